"""Frames per second of rooms with twelve things or more: picture, depth, ids and all that is known.

  python benchmarks/rooms.py

Beside the clock, processor time is counted (over all threads): on a machine with other work the fairer one.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import platform
import time
from collections.abc import Callable

from spatialvlm.worlds.rooms import frames
from spatialvlm.worlds.rooms.dial import dial
from spatialvlm.worlds.rooms.layout import Layout
from spatialvlm.worlds.rooms.questions.sequence import RoomQuestions


def full(count: int, things: int) -> list[Layout]:
  """The first scenes that have so many things."""
  found: list[Layout] = []
  start = 0
  while len(found) < count:
    drawn = frames.draw(0, range(start, start + 64), 1.0)
    found += [one for one in drawn if len(one.things) >= things]
    start += 64
  return found[:count]


def rate(count: int, work: Callable[[], object]) -> str:
  clock, core = time.perf_counter(), time.process_time()
  work()
  clock, core = time.perf_counter() - clock, time.process_time() - core
  return f"{count / clock:7.1f} frames/s, {count / core:7.1f} per second of one core"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--size", type=int, default=384)
  parser.add_argument("--frames", type=int, default=48)
  parser.add_argument("--things", type=int, default=12)
  parser.add_argument("--threads", type=int, default=os.cpu_count())
  arguments = parser.parse_args()
  size, count = arguments.size, arguments.frames
  print(
    f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
  )
  drawn = full(count, arguments.things)
  start = time.process_time()
  frames.paint(drawn[0], size, dial(1.0))
  print(f"compiling: {time.process_time() - start:.1f} s of one core")
  with concurrent.futures.ThreadPoolExecutor(arguments.threads) as pool:
    many = rate(count, lambda: list(pool.map(lambda one: frames.paint(one, size, dial(1.0)), drawn)))
  print(f"{size} x {size}, {arguments.things} things or more, {arguments.threads} threads: {many}")
  frames.measure(drawn[:1], 96, 1.0)
  measured = rate(count, lambda: frames.measure(drawn, 96, 1.0))
  print(f"96 x 96 without light, as pools are measured:  {measured}")
  sequence = RoomQuestions(1)
  _ = sequence[0]
  print(
    f"questions at {size}, read in order by a thread: {rate(44, lambda: [sequence[i] for i in range(44)])}"
  )


if __name__ == "__main__":
  main()
