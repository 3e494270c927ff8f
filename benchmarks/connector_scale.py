"""The first steps of a fresh connector by the size that its image tokens start with.

    python benchmarks/connector_scale.py --figure=docs/connector_scale.png

The small model that ships with the project gets a new connector in front of its own tower; stage 1 of
`configs/encoders.py:tiny` (connector alone, the same data and steps) runs once for each way to draw it: as
`hub.assemble` does, so that image tokens are as large as words; 10 times smaller and larger; and without a
norm, as plain layers are drawn.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import tempfile

import jax
import numpy as np
from matplotlib.figure import Figure
from safetensors.numpy import load_file, save_file

from spatialvlm import cli, hub
from spatialvlm.config import ModelConfig, RunConfig
from spatialvlm.training import metrics, one_run, stages

BASE = pathlib.Path(__file__).parents[1] / "checkpoints" / "smolvlm-tiny"
LAST = "model.connector.proj.weight"


def write_models(folder: pathlib.Path, seed: int) -> dict[str, pathlib.Path]:
  """A model for each way to draw the connector, by its label in the figure."""
  chosen = hub.assemble(BASE, ["own"], folder / "chosen", seed=seed)
  scale = json.loads((chosen / "config.json").read_text())["connector"]["init_scale"]
  models = {f"as large as words (scale {scale:.3g})": chosen}
  for factor in (0.1, 10.0):
    other = hub.assemble(BASE, ["own"], folder / f"times-{factor:g}", seed=seed)
    change(other, lambda tensors, by=factor: tensors | {LAST: np.float32(by) * tensors[LAST]})
    models[f"times {factor:g}"] = other
  plain = hub.assemble(BASE, ["own"], folder / "plain", seed=seed)
  change(
    plain,
    lambda tensors: {
      name: value / np.float32(scale) if name == LAST else value
      for name, value in tensors.items()
      if not name.startswith("model.connector.norm.")
    },
    norm=False,
    init_scale=1.0,
  )
  return models | {"no norm, plain layers": plain}


def change(folder: pathlib.Path, tensors, **connector) -> None:
  file, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
  save_file(tensors(load_file(file)), file)
  config["connector"] |= connector
  (folder / "config.json").write_text(json.dumps(config))


def losses(model: pathlib.Path, workdir: pathlib.Path, steps: int, seed: int) -> tuple[float, list[tuple]]:
  """Size of the image tokens at the start, by that of words; (step, loss) of stage 1."""
  vlm = hub.load_model(model)
  size = vlm.config.vision.image_size
  pixels = np.random.default_rng(0).uniform(-1, 1, (2, size, size, 3)).astype(np.float32)
  rms = lambda x: float(np.sqrt(np.mean(np.square(np.asarray(x, np.float64)))))
  ratio = rms(vlm.encode_images(pixels)) / rms(vlm.decoder.embed.embedding[...])
  whole = cli.load("encoders:tiny,encoder=own", [], RunConfig)
  _, stage = stages.split(whole, workdir)[0]
  train = dataclasses.replace(stage.train, steps=steps, log_every=2, validate_every=0, export=False)
  optim = dataclasses.replace(stage.optim, schedule_steps=whole.stages["1-connector"].train.steps)
  run = dataclasses.replace(
    stage, model=ModelConfig(path=str(model)), train=train, optim=optim, eval=None, seed=seed
  )
  one_run.train(run, workdir)
  rows = metrics.read(workdir / metrics.FILE)
  return ratio, [(row["step"], row["loss"]) for row in rows if "loss" in row]


def draw(found: dict[str, tuple[float, list[tuple]]], path: pathlib.Path) -> None:
  figure = Figure(figsize=(7, 4), layout="constrained")
  axis = figure.add_subplot()
  for label, (_, curve) in found.items():
    axis.plot(*zip(*curve, strict=True), label=label, linewidth=1.2)
  axis.set(xlabel="step of stage 1", ylabel="loss", yscale="log")
  axis.legend(fontsize=8)
  figure.savefig(path, dpi=120)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--steps", type=int, default=120)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--figure", type=pathlib.Path, default="connector_scale.png")
  given = parser.parse_args()
  print(f"{jax.devices()}, jax {jax.__version__}", flush=True)
  with tempfile.TemporaryDirectory() as name:
    folder, found = pathlib.Path(name), {}
    for label, model in write_models(folder, given.seed).items():
      found[label] = losses(model, folder / f"run-{len(found)}", given.steps, given.seed)
  print("| connector | image tokens by words | loss, steps 1 to 2 | highest | last 20 steps |")
  print("|---|---|---|---|---|")
  for label, (ratio, curve) in found.items():
    values = [loss for _, loss in curve]
    tail = float(np.mean(values[-10:]))
    print(f"| {label} | {ratio:.2f} | {values[0]:.2f} | {max(values):.2f} | {tail:.2f} |")
  draw(found, given.figure)


if __name__ == "__main__":
  main()
