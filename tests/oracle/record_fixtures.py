"""Writes tests/fixtures/{smolvlm,...}: small random checkpoints and what transformers makes of them.

  python -m tests.oracle.record_fixtures

`tests/models/test_recorded.py` holds our model to these records without PyTorch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers

from tests.oracle import reference

FIXTURES = Path(__file__).parents[1] / "fixtures"
NEW_TOKENS = 6


def from_bytes(pixels: np.ndarray) -> np.ndarray:
  """Normalised pixels of bytes, as a processor makes them; byte 255 of a padding image marks exact zero."""
  return np.where(pixels == 255, 0.0, pixels / 127.5 - 1).astype(np.float32)


def quantised(case: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The case with its pixels rounded to bytes, which compress."""
  if "pixel_values" not in case:
    return case
  pixels = case["pixel_values"]
  levels = np.clip(np.round((pixels + 1) * 127.5), 0, 254)
  return {**case, "pixel_values": np.where(pixels == 0, 255, levels).astype(np.uint8)}


def record(family: str, tied: bool, names: tuple[str, str], text: dict | None = None) -> None:
  """Logits of two cases, loss and gradients of the first, greedy tokens of the second."""
  model = reference.build(family, tied=tied, seed=7, text=text)
  folder = FIXTURES / family
  model.save_pretrained(folder)
  (folder / "model.safetensors").chmod(0o644)
  (folder / "generation_config.json").unlink(missing_ok=True)
  out: dict[str, np.ndarray] = {"transformers": np.array(transformers.__version__)}
  for name, case in reference.cases().items():
    if name not in names:
      continue
    stored = quantised(case)
    out.update({f"{name}.{key}": value for key, value in stored.items()})
    if "pixel_values" in stored:
      case = {**case, "pixel_values": from_bytes(stored["pixel_values"])}
    out[f"{name}.logits"] = reference.logits(model, case)
    if name == names[0]:
      out[f"{name}.labels"] = labels = reference.labels_of(case)
      loss = model(**reference.tensors(case), labels=torch.tensor(labels)).loss
      loss.backward()
      out[f"{name}.loss"] = loss.detach().numpy()
      for key, parameter in model.named_parameters():
        if parameter.grad is not None:
          out[f"{name}.grad.{key}"] = np.array([parameter.grad.norm(), parameter.grad.sum()])
    else:
      with torch.no_grad():
        tokens = model.generate(
          **reference.tensors(case), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None
        )
      out[f"{name}.greedy"] = tokens.numpy()[:, -NEW_TOKENS:]
  np.savez_compressed(folder / "record.npz", **out)


def record_other(name: str, model) -> None:
  """Logits and greedy tokens of one case, padded on the left; a prefix model's prompts are bidirectional."""
  folder = FIXTURES / name
  model.save_pretrained(folder)
  (folder / "model.safetensors").chmod(0o644)
  (folder / "generation_config.json").unlink(missing_ok=True)
  stored = quantised(reference.cases()["left"])
  case = {**stored, "pixel_values": from_bytes(stored["pixel_values"])}
  prefix = name.startswith("paligemma")
  ends = {"token_type_ids": reference.typed(case, 4)["token_type_ids"]} if prefix else {}
  given = reference.flat(case)
  prompt = given | {"token_type_ids": np.zeros_like(case["input_ids"])} if prefix else given
  with torch.no_grad():
    tokens = model.generate(
      **reference.tensors(prompt), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None
    )
  out = {f"left.{key}": value for key, value in (stored | ends).items()}
  out["left.logits"] = reference.logits(model, given | ends)
  out["left.greedy"] = tokens.numpy()[:, -NEW_TOKENS:]
  np.savez_compressed(folder / "record.npz", transformers=np.array(transformers.__version__), **out)


def main() -> None:
  layers = {"num_hidden_layers": 2}
  record_other("internvl", reference.build_internvl(text=layers, seed=7))
  record_other("paligemma", reference.build_paligemma(False, text=layers, seed=7))
  record_other("paligemma2", reference.build_paligemma(True, text=layers, seed=7))
  record("smolvlm", False, ("masked", "left"), text={"num_hidden_layers": 2})
  record("idefics3", True, ("plain", "text"), text={"num_hidden_layers": 1})
  size = sum(file.stat().st_size for file in FIXTURES.rglob("*") if file.is_file())
  print(f"{FIXTURES}: {size / 1e3:.0f} kB")


if __name__ == "__main__":
  main()
