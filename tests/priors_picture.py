"""docs/priors.png: what the priors say of one picture, token by token.

`python -m tests.priors_picture` draws it anew.
"""

from __future__ import annotations

import pathlib

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from spatialvlm.config import PriorConfig, ScenesConfig
from spatialvlm.data.sources.registry import open_source
from spatialvlm.priors import Reader

PICTURE = pathlib.Path(__file__).parents[1] / "docs" / "priors.png"
SEED, NUMBER, SIZE, SIDE = 7, 2, 288, 16
KINDS = {
  "rays": PriorConfig("rays"),
  "depth_map": PriorConfig("depth_map", kwargs={"cells": 6}),
  "normal_map": PriorConfig("normal_map", kwargs={"cells": 6}),
  "positions": PriorConfig("positions", kwargs={"frame": "world"}),
}


def pixels(values: np.ndarray, cells: int, channels: int) -> np.ndarray:
  """(P, cells * cells * channels) of one tile as a map (h, w, channels)."""
  parts = values.reshape(SIDE, SIDE, cells, cells, channels)
  return parts.transpose(0, 2, 1, 3, 4).reshape(SIDE * cells, SIDE * cells, channels)


def main() -> None:
  source = open_source(ScenesConfig(seed=SEED, image_size=SIZE, tasks={"Distance": 1.0}))
  example = source[NUMBER]
  said = {name: values[0] for name, values in Reader(KINDS, SIDE**2)(example.shots, [(0, 0)]).items()}
  figure, axes = plt.subplots(1, 5, figsize=(15, 4.3), layout="constrained")
  shown = dict(zip(("picture", *KINDS), axes, strict=True))
  shown["picture"].imshow(example.images[0])
  rays = said["rays"].reshape(SIDE, SIDE, 6)
  places = (np.arange(SIDE) + 0.5) * SIZE / SIDE
  shown["rays"].imshow(example.images[0], alpha=0.35)
  shown["rays"].quiver(
    places, places, rays[..., 0], -rays[..., 1], angles="xy", scale_units="xy", scale=0.022, width=0.004
  )
  shown["rays"].set_xlabel("direction, x and y")
  depth = pixels(said["depth_map"], 6, 1)[..., 0]
  drawn = shown["depth_map"].imshow(depth, cmap="viridis_r", norm="log")
  bar = figure.colorbar(drawn, ax=shown["depth_map"], location="bottom", shrink=0.8, label="metres")
  bar.set_ticks([2, 5, 10, 20], labels=["2", "5", "10", "20"])
  bar.minorticks_off()
  shown["normal_map"].imshow(pixels(said["normal_map"], 6, 3) / 2 + 0.5)
  shown["normal_map"].set_xlabel("x, y, z as colours")
  height = said["positions"].reshape(SIDE, SIDE, 3)[..., 2]
  drawn = shown["positions"].imshow(height, cmap="cividis", vmin=0, vmax=np.nanpercentile(height, 98))
  figure.colorbar(drawn, ax=shown["positions"], location="bottom", shrink=0.8, label="height, metres")
  for name, axis in shown.items():
    axis.set_xticks([]), axis.set_yticks([])
    axis.set_title(name, fontsize=11)
  figure.savefig(PICTURE, dpi=64)


if __name__ == "__main__":
  main()
