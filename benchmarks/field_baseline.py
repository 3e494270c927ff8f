"""A published radiance field on the very views of `configs/field.py:scene`, for as long on the processor.

    pip install nerf-pytorch==1.2      # beside a PyTorch for the CPU
    python benchmarks/field_baseline.py --seconds=210

`nerf-pytorch` (Brandon Trabucco, MIT) is NeRF, an MLP of a point's frequencies, with a learned placing of its
samples. All of these are run as they come, with 1,024 rays a step and Adam's rate falling to a
tenth. Samples lie between a quarter of and three times the cameras' usual distance: as far as ours they would
be thin. PSNR is that of the same ten held-out views.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from nerf.model import NeRF

from spatialvlm.configs import field as recipe
from spatialvlm.fields import metrics, run
from spatialvlm.fields.posed.cameras import View, directions


def rays(view: View, space) -> tuple[torch.Tensor, torch.Tensor]:
  """Origins and directions (H * W, 3) in radii of the scene, directions of depth 1 in metres."""
  ahead = directions(view.camera) / space.radius
  origin = (view.camera.pose[:3, 3] - np.array(space.center)) / space.radius
  return torch.tensor(np.broadcast_to(origin, ahead.shape).astype(np.float32)), torch.tensor(ahead)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--seconds", type=float, default=210.0, help="of processor time, for the fit")
  parser.add_argument("--rate", type=float, default=1e-3)
  parser.add_argument("--samples", type=int, default=64)
  args = parser.parse_args()
  torch.set_num_threads(1)
  torch.manual_seed(0)
  config = recipe.get_config("scene")
  _, views = run._views(config)
  fitted, held = [v for v in views if not v.heldout], [v for v in views if v.heldout]
  space = run._space(config, fitted)
  origins, ahead = (torch.cat(parts) for parts in zip(*(rays(v, space) for v in fitted), strict=True))
  colours = torch.tensor(np.concatenate([v.image.reshape(-1, 3) for v in fitted]).astype(np.float32) / 255)
  usual = space.far / 20  # of the cameras from the middle of the scene
  near, far = usual / 4, 3 * usual
  model = NeRF(normalize_position=(usual + far) / space.radius)
  tx = torch.optim.Adam(model.parameters(), lr=args.rate)
  sees = lambda o, d, drawn: model.render_rays(o, d, near, far, args.samples, randomly_sample=drawn)
  begun, step = time.process_time(), 0
  while (spent := time.process_time() - begun) < args.seconds:
    for group in tx.param_groups:
      group["lr"] = args.rate * 0.1 ** (spent / args.seconds)
    some = torch.randint(len(colours), (config.rays,))
    loss = ((sees(origins[some], ahead[some], True) - colours[some]) ** 2).mean()
    tx.zero_grad()
    loss.backward()
    tx.step()
    step += 1
    if step % 50 == 0:
      print(f"step {step}, {spent:.0f} s: {-10 * np.log10(float(loss.detach())):.2f} dB", flush=True)
  found = []
  with torch.no_grad():
    for view in held:
      parts = [sees(o, d, False) for o, d in zip(*(t.split(4096) for t in rays(view, space)), strict=True)]
      image = np.rint(255 * torch.cat(parts).clamp(0, 1).numpy()).astype(np.uint8).reshape(view.image.shape)
      found.append(metrics.psnr(image, view.image))
  print(f"{step} steps, {time.process_time() - begun:.0f} s; held-out PSNR {metrics.interval(found, 0)}")


if __name__ == "__main__":
  main()
