"""The typed configuration of a comparison of encoders."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
  """Encoders side by side on rendered scenes (`launch/encoders.py`).

  Attributes:
    name: of the comparison; the default workdir is named after it.
    encoders: by the names that tables give them: folders or hub ids, of encoders or of vision-language models
      whose towers are meant.
    dtype: "float32" or "bfloat16", of weights and activations.
    layers: which hidden states are probed, each by itself, as `LoadedEncoder.features` counts them: -2 is
      what the last block but one gives.
    norm: apply the checkpoint's final norm to them.
    image_size: edge in pixels of the square that an encoder reads; 0 for the one it was trained on.
    random: probe each encoder with drawn weights as well.
    batch_size: images of one batch.
    scenes, validation, test: numbers of scenes that probes are fitted on, choose their penalties by, and are
      held against.
    render_size: edge in pixels of the rendered scenes, a multiple of `grid`.
    grid: rows and columns of cells that every encoder's patches are averaged to, so that all answer the same
      questions.
    farthest: metres; cells of a larger mean depth, and sky, are left out of the depth probe.
    penalties: of the ridge regressions, as shares of the features' variance, which is 1 each.
    pictures: scenes that are shown with their features.
    photos: folder of photographs whose depth is known, NAME.png or .jpg beside NAME.depth.npy or
      NAME.disparity.npy: how well do the scenes' probes order their cells? Empty for none.
    bootstrap: resamples of the intervals.
    seed: of the rendered worlds, the pairs, the drawn weights and the resamples.
  """

  name: str = "encoders"
  encoders: Mapping[str, str] = dataclasses.field(default_factory=dict)
  dtype: str = "float32"
  layers: tuple[int, ...] = (-2,)
  norm: bool = False
  image_size: int = 0
  random: bool = True
  batch_size: int = 16
  scenes: int = 800
  validation: int = 200
  test: int = 500
  render_size: int = 224
  grid: int = 8
  farthest: float = 10.0
  penalties: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
  pictures: int = 6
  photos: str = ""
  bootstrap: int = 1000
  seed: int = 1_000_000
