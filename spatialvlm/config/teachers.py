"""Models that the losses of a run ask."""

from __future__ import annotations

import dataclasses

from spatialvlm.config.mesh import MeshConfig


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
  """A model that losses ask and the run does not train (`docs/distillation.md`).

  It must have the model's tokenizer and no smaller vocabulary. Settings of None are the run's.

  Attributes:
    path: local folder or hub id, also a PEFT adapter's or a training run's; "base" for the run's own model
      without what training adds to it; "ema" for the moving average that the run keeps (`optim.ema`).
    revision: hub revision.
    adapter: PEFT folder that is laid over it.
    dtype: "float32" or "bfloat16", of its weights and activations.
    mesh: how its weights are spread over the run's devices; of each batch every device computes what it does
      for the run's own model.
    prompt: what it reads in place of an example's first prompt: any text with `{prompt}`, and `{facts}` where
      it is told what is true of the pictures, `{depth}` where it is told how far their parts are, as far as
      the data says.
    plain: it is shown pictures as they are where `data.augment` changes those of the model.
    max_tiles, longest_edge, split_images, layout: how it is shown pictures, as of `ModelConfig`.
    cache: folder of what it finds likeliest at every answer's tokens, which `launch/teach.py` fills; the run
      then reads that, and loads no teacher.
    top: with `cache`: how many tokens of each position.
  """

  path: str = "base"
  revision: str | None = None
  adapter: str | None = None
  dtype: str | None = None
  mesh: MeshConfig | None = None
  prompt: str = "{prompt}"
  plain: bool = False
  max_tiles: int | None = None
  longest_edge: int | None = None
  split_images: bool | None = None
  layout: str | None = None
  cache: str | None = None
  top: int = 64
