"""Frames per second of the ray caster beside MuJoCo's renderer, in one run on one machine.

Both give RGB, metric depth and object ids of 8 objects on a floor, with shadows, at 384 x 384; every frame is
another scene. Ours includes drawing the scene and measuring boxes and visibility; MuJoCo's is the change of
poses, `mj_forward` and three passes (RGB, depth, segmentation).

  pip install mujoco
  MUJOCO_GL=egl python benchmarks/scenes.py        # needs libegl1 (apt-get install libegl1)
  MUJOCO_GL=osmesa python benchmarks/scenes.py     # needs libosmesa6 (apt-get install libosmesa6)

Without MuJoCo, or where it finds no way to draw, ours is measured alone. Beside the clock, processor time is
counted (over all threads): on a machine with other work it is the fairer of the two.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

os.environ.setdefault("MUJOCO_GL", "egl")

from spatialvlm.worlds import world
from spatialvlm.worlds.questions import SceneQuestions


class Rate(NamedTuple):
  """Frames per second of the clock, and per second of one core."""

  clock: float
  core: float

  def __str__(self) -> str:
    return f"{self.clock:8.1f} frames/s, {self.core:8.1f} per second of one core"


def rate(count: int, work: Callable[[], object]) -> Rate:
  clock, core = time.perf_counter(), time.process_time()
  work()
  return Rate(count / (time.perf_counter() - clock), count / (time.process_time() - core))


def median(rates: list[Rate]) -> Rate:
  return Rate(*(statistics.median(column) for column in zip(*rates, strict=True)))


def full_scenes(count: int) -> list[int]:
  """Numbers of the first scenes that have all eight objects."""
  found: list[int] = []
  start = 0
  while len(found) < count:
    pool = world.pool(0, range(start, start + 256), 32)
    found += [start + int(b) for b in np.flatnonzero(pool.layout.present.sum(1) == 8)]
    start += 256
  return found[:count]


def ours(numbers: list[int], size: int, threads: int) -> Rate:
  """Frames with all metadata, in blocks as training reads them."""
  blocks = [numbers[i : i + world.BLOCK] for i in range(0, len(numbers), world.BLOCK)]
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    return rate(len(numbers), lambda: list(pool.map(lambda b: world.frames(0, b, size), blocks)))


def _mujoco_model() -> str:
  ring = [(np.cos(a), np.sin(a), -1.0) for a in np.linspace(0, 2 * np.pi, 25)[:-1]]
  vertices = " ".join(f"{0.4 * x:.4f} {0.4 * y:.4f} {0.4 * z:.4f}" for x, y, z in [*ring, (0.0, 0.0, 1.0)])
  geoms = ['type="sphere" size=".4"', 'type="box" size=".35 .35 .35"', 'type="cylinder" size=".35 .4"']
  geoms.append('type="mesh" mesh="cone"')
  bodies = "".join(
    f'<body name="o{k}" mocap="true" pos="0 0 .4"><geom {geoms[k % 4]} '
    f'rgba="{0.3 + 0.08 * k:.2f} .4 {0.9 - 0.1 * k:.2f} 1"/></body>'
    for k in range(8)
  )
  return f"""<mujoco>
    <visual><global offwidth="2048" offheight="2048" fovy="52"/></visual>
    <asset><mesh name="cone" vertex="{vertices}"/>
      <texture name="checker" type="2d" builtin="checker" width="256" height="256"
        rgb1=".6 .6 .6" rgb2=".5 .5 .5"/>
      <material name="floor" texture="checker" texrepeat="20 20"/></asset>
    <worldbody><light pos="1 1 8" dir="-.1 -.1 -1" directional="true" castshadow="true"/>
      <geom type="plane" size="20 20 .1" material="floor"/>
      <body name="eye" mocap="true"><camera name="eye"/></body>{bodies}</worldbody></mujoco>"""


def mujoco_frames(count: int, size: int) -> Rate:
  """MuJoCo's renderer. Raises whatever it raises where it cannot draw."""
  import mujoco

  model = mujoco.MjModel.from_xml_string(_mujoco_model())
  data = mujoco.MjData(model)
  rng = np.random.default_rng(0)
  with mujoco.Renderer(model, size, size) as renderer:

    def one():
      data.mocap_pos[1:] = np.column_stack([rng.uniform(-2.5, 2.5, (8, 2)), rng.uniform(0.4, 1.5, 8)])
      data.mocap_pos[0] = (0, -6, rng.uniform(2, 4))
      tilt = rng.uniform(1.1, 1.3)  # from straight down
      data.mocap_quat[0] = (np.cos(tilt / 2), np.sin(tilt / 2), 0, 0)
      mujoco.mj_forward(model, data)
      renderer.update_scene(data, camera="eye")
      rgb = renderer.render()
      renderer.enable_depth_rendering()
      depth = renderer.render()
      renderer.disable_depth_rendering()
      renderer.enable_segmentation_rendering()
      ids = renderer.render()
      renderer.disable_segmentation_rendering()
      return rgb, depth, ids

    rgb, depth, ids = one()
    assert rgb.std() > 5 and 1 < depth.min() < 20 and len(np.unique(ids[..., 0])) >= 4, "MuJoCo drew nothing"
    return rate(count, lambda: [one() for _ in range(count)])


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--size", type=int, default=384)
  parser.add_argument("--frames", type=int, default=96)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--threads", type=int, default=os.cpu_count())
  arguments = parser.parse_args()
  size, rounds = arguments.size, arguments.rounds
  print(
    f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
  )

  numbers = full_scenes(arguments.frames)
  world.frames(0, numbers[:1], size)  # compile
  mine, theirs, why = [], [], ""
  for _ in range(rounds):  # in turn, so that a busy machine slows both
    mine.append(ours(numbers, size, arguments.threads))
    if not why:
      try:
        theirs.append(mujoco_frames(max(arguments.frames // 4, 8), size))
      except Exception as error:
        why = f"{type(error).__name__}: {error}"
  best = median(mine)
  print(f"ours    {size} x {size}, 8 objects, {arguments.threads} threads: {best}")
  if why:
    print(f"MuJoCo  not measured: {why}")
  else:
    other = median(theirs)
    print(f"MuJoCo  {size} x {size}, 8 objects, {os.environ['MUJOCO_GL']}:       {other}")
    by_clock, by_core = best.clock / other.clock, best.core / other.core
    print(f"ratio ours / MuJoCo: {by_clock:.2f} by the clock, {by_core:.2f} by core")

  world.frames(0, [0], 96)
  print(f"ours    96 x 96, 3 to 8 objects, with metadata:  {ours(list(range(512)), 96, arguments.threads)}")
  sequence = SceneQuestions(1)
  _ = sequence[0]
  asked = rate(2000, lambda: [sequence[i] for i in range(2000)])
  print(f"questions at 96 x 96, read in order by a thread: {asked}")


if __name__ == "__main__":
  main()
