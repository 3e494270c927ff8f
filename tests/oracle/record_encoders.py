"""Writes tests/fixtures/encoders/*: tiny random encoders of transformers, and their tokens of one image.

  python -m tests.oracle.record_encoders

`tests/test_encoder.py` holds our encoders to these records without PyTorch. The image has another grid than
the tables, so positions are resampled.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers as tf

from tests.oracle import reference

FIXTURES = Path(__file__).parents[1] / "fixtures" / "encoders"
SIZES = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=12, patch_size=4)
WIDE = SIZES | dict(intermediate_size=24)
CASES = {
  "siglip": (tf.SiglipVisionConfig, tf.SiglipVisionModel, WIDE | dict(vision_use_head=False)),
  "clip": (tf.CLIPVisionConfig, tf.CLIPVisionModel, WIDE),
  "dinov2": (tf.Dinov2Config, tf.Dinov2Model, SIZES | dict(use_swiglu_ffn=True)),
  "dinov2_with_registers": (tf.Dinov2WithRegistersConfig, tf.Dinov2WithRegistersModel, SIZES),
  "dinov3_vit": (tf.DINOv3ViTConfig, tf.DINOv3ViTModel, WIDE | dict(num_register_tokens=2)),
  "internvl_vision": (tf.InternVLVisionConfig, tf.InternVLVisionModel, WIDE | dict(use_qk_norm=True)),
}


def main() -> None:
  pixels = np.random.default_rng(0).integers(0, 255, (1, 3, 16, 20)).astype(np.uint8)
  for name, (config, model, sizes) in CASES.items():
    theirs = model(config(**sizes)).eval()
    reference.randomise(theirs, 3)
    theirs.save_pretrained(FIXTURES / name)
    (FIXTURES / name / "model.safetensors").chmod(0o644)
    choice = {"interpolate_pos_encoding": True} if name in ("siglip", "clip") else {}
    with torch.no_grad():
      out = theirs(torch.tensor(pixels / 127.5 - 1).float(), output_hidden_states=True, **choice)
    np.savez_compressed(
      FIXTURES / name / "record.npz",
      transformers=np.array(tf.__version__),
      pixels=pixels,
      tokens=out.last_hidden_state.numpy(),
      penultimate=out.hidden_states[-2].numpy(),
    )


if __name__ == "__main__":
  main()
