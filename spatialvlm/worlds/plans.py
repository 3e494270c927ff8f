"""Who is asked what: questions that are wished for, spread over pictures that can answer them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Wish(NamedTuple):
  """A question to be found a picture: its kind, its cell, and of Count the options."""

  kind: str
  cell: int
  numbers: tuple[int, ...] = ()


class Placed(NamedTuple):
  """A question that has one: its number among the wishes, and its row in its kind's `Found`."""

  number: int
  kind: str
  row: int


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
  """What pictures can be asked of one kind: `cells` ascending; `rows` the picture, the roles, the cell."""

  cells: np.ndarray
  rows: np.ndarray

  def matching(self, wish: Wish) -> tuple[int, int]:
    """Where the rows of a cell stand. Without any, of those that differ in the last rule, the last two, ...

    Of Count, whose cells are numbers, of another option; and if all fails, all.
    """
    if wish.kind == "Count":
      tries = [(wish.cell, 1), *((2 * number + wish.cell % 2, 1) for number in wish.numbers)]
    else:
      tries = [(wish.cell, 2**width) for width in range(int(self.cells[-1]).bit_length())]
    for cell, width in tries:
      low, high = np.searchsorted(self.cells, [cell // width * width, (cell // width + 1) * width])
      if low < high:
        return int(low), int(high)
    return 0, len(self.rows)


def plan(
  wishes: Sequence[Wish], found: Mapping[str, Found], talks: int, turns: int, rng: np.random.Generator
) -> list[list[Placed]]:
  """So many conversations, each about one picture, of 1 to `turns` different questions.

  Each wish goes into a conversation that has room for it, else it begins another about the picture with the
  fewest so far: a picture that alone can answer what is often wished for is shown often. Where all have begun
  and none has room, the kind has had its turn, and the rest of its wishes is left out: wishes go through all
  cells over and over, so that what was placed is balanced.

  Args:
    wishes: about `talks * turns` of them; at least `talks`.
    found: for each kind what there is, at least one row.
  """
  pictures = 1 + max(int(of.rows[:, 0].max()) for of in found.values() if len(of.rows))
  made: list[list[Placed]] = []
  begun = np.zeros(pictures, int)
  latest = np.full(pictures, -1)  # the conversation about each picture that has room
  asked_in = {kind: np.full(len(of.rows), -1) for kind, of in found.items()}
  done: set[str] = set()
  for number, wish in enumerate(wishes):
    if wish.kind in done:
      continue
    low, high = found[wish.kind].matching(wish)
    shown, last = found[wish.kind].rows[low:high, 0], asked_in[wish.kind]
    room = (latest[shown] >= 0) & (last[low:high] != latest[shown])
    cost = np.where(room, 0, 1 + begun[shown] if len(made) < talks else np.inf) + 0.9 * rng.random(high - low)
    best = int(cost.argmin())
    picture = int(shown[best])
    if cost[best] == np.inf:
      done.add(wish.kind)
      continue
    if not room[best]:
      latest[picture] = len(made)
      begun[picture] += 1
      made.append([])
    talk = int(latest[picture])
    made[talk].append(Placed(number, wish.kind, low + best))
    last[low + best] = talk
    if len(made[talk]) == turns:
      latest[picture] = -1
  while len(made) < talks:
    longest = max(made, key=len)
    made.append([longest.pop() for _ in range(len(longest) // 2)] or longest[:])
  return [[talk[i] for i in rng.permutation(len(talk))] for talk in (made[i] for i in rng.permutation(talks))]
