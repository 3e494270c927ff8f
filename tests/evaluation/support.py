"""Questions, a processor and a model small enough for exact comparisons."""

from __future__ import annotations

import numpy as np
from flax import nnx

from spatialvlm.core.attention import AttentionConfig
from spatialvlm.core.axes import create_sharded
from spatialvlm.core.block import BlockConfig
from spatialvlm.evaluation.asking.protocols import ProcessorPrompter
from spatialvlm.evaluation.records import Prediction
from spatialvlm.models.connector import ConnectorConfig
from spatialvlm.models.decoder import DecoderConfig
from spatialvlm.models.encoders import VisionConfig
from spatialvlm.models.vlm import Vlm, VlmConfig
from spatialvlm.processing.processor import load_processor
from spatialvlm.types import Question, choice_prompt
from tests.tiny_processor import write_processor

COMMON = dict(mlp_width=32, eps=1e-5, mlp_bias=False)


def processor(folder):
  """Tiles of 16 pixels, images enlarged to 32: one global view, and 2 or 4 tiles of detail before it."""
  return load_processor(write_processor(folder, longest_edge=32))


def prompter(folder):
  return ProcessorPrompter(processor(folder))


def model(image_id: int, vocabulary: int = 512, seed: int = 0) -> Vlm:
  """A Vlm of random weights; all of them, so that no term is silent."""
  text = BlockConfig(AttentionConfig(16, 4, 2, 4), norm="rms", activation="silu", gated=True, **COMMON)
  vision = BlockConfig(
    AttentionConfig(16, 2, 2, 8), norm="layer", activation="gelu_tanh", gated=False, **COMMON
  )
  config = VlmConfig(
    family="smolvlm",
    vision=VisionConfig(vision, depth=1, image_size=16, patch_size=4, channels=3),
    text=DecoderConfig(text, depth=2, vocab_size=vocabulary, rope_theta=1e4, max_length=512),
    connector=ConnectorConfig(factor=2),
    image_token_id=image_id,
    tied=False,
  )
  vlm = create_sharded(lambda: Vlm(config, rngs=nnx.Rngs(seed)), None)
  rng = np.random.default_rng(seed)
  state = nnx.state(vlm, nnx.Param)
  nnx.update(vlm, nnx.map_state(lambda _, v: v.replace(rng.normal(0, 0.3, v.shape).astype(v.dtype)), state))
  return vlm


def questions(count: int = 11, images: int = 5) -> list[Question]:
  """Questions of 2 to 6 options on `images` images of two shapes, so that there are several buckets."""
  rng = np.random.default_rng(7)
  pictures = [rng.integers(0, 256, (24, 24 if i % 2 else 40, 3), dtype=np.uint8) for i in range(images)]
  result = []
  for i in range(count):
    task = ("Count", "Relation", "Depth", "Distance")[i % 4]
    choices = tuple(f"{'cone ' * (i % 3)}{n}" for n in range(4 + i % 3 if task == "Count" else 2))
    source = ("ADE20K", "COCO")[i % 3 % 2] if task in ("Count", "Relation") else "Omni3D"
    question = "Which is closer?" if task == "Depth" else "How many cones are in the image?"
    result.append(
      Question(
        idx=100 + 3 * i,
        type="3D" if source == "Omni3D" else "2D",
        task=task,
        images=(pictures[i % images],),
        question=question,
        choices=choices,
        answer=i % len(choices),
        prompt=choice_prompt(question, choices),
        source=source,
        source_dataset=f"{source}_{i % 2}",
        filename=f"{i}.png",
      )
    )
  return result


def row(
  idx, correct=True, task="Depth", source="scenes", image=None, options=2, gold="A", **fields
) -> Prediction:
  """A prediction by hand; a wrong one chooses the letter after the gold one."""
  letters = "ABCDEFGH"[:options]
  choice = gold if correct else letters[(letters.index(gold) + 1) % options]
  values = dict(
    idx=idx,
    type="3D" if task in ("Depth", "Distance") else "2D",
    task=task,
    source=source,
    source_dataset="",
    filename="",
    image=image or f"image {idx}",
    choices=tuple(f"text {letter}" for letter in letters),
    gold=gold,
    choice=choice,
    correct=correct,
    logprobs=tuple(-0.1 if letter == choice else -3.0 for letter in letters),
  )
  return Prediction(**(values | fields))
