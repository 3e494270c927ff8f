"""A vision tower that nothing trained stands before: a program of its own, whose features are kept.

What such a tower makes of a tile follows from the tile alone, so it need not be made twice. The step then
takes features in place of pixels: `Batch.vision`, or `Batch.features_NPD` where the connector is frozen too.
They always come from one program of one shape, in which each device sees one tile at a time (accelerators a
few), whatever a batch holds beside it. So kept features have the very bits of fresh ones, and a run is the
same with everything kept, with nothing kept, and with a cache that an interruption emptied.

A step that runs the tower inside, as it must where the tower is trained, differs from this by rounding alone:
the same sums in batches of another shape.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spatialvlm.config import TrainConfig
from spatialvlm.core import axes
from spatialvlm.core.pixels import normalised
from spatialvlm.data.tile_keys import ONCE, PADDING, TILE_KEY, tile_keys
from spatialvlm.training import step as step_lib
from spatialvlm.training.objectives import Terms
from spatialvlm.training.state import Params, Split, TrainState
from spatialvlm.types import Batch, Features, PixelTable, UserError

# Tiles that one device sees at a time. On a CPU one: a single tile fills its caches, and its bits can then
# not depend on its place among others.
TOGETHER, TOGETHER_ON_CPU = 8, 1
# So many times in one call of the program, at most.
ROUNDS = 16

Key = tuple[int, int]


def obstacle(trained: Iterable[str], terms: Terms) -> str:
  """Why the tower must run within the step; empty where it need not.

  Args:
    trained: names of the trained parameters, as `state.Split` has them.
  """
  of_tower = sorted(name for name in trained if name.startswith("vision."))
  if of_tower:
    others = f", and {len(of_tower) - 1} more arrays of the vision tower" if len(of_tower) > 1 else ""
    return f"{of_tower[0]} is trained{others}"
  for name, (_, objective) in terms.items():
    if objective.wants.encoder_layers or objective.wants.encoder_attention:
      return f"losses.{name} reads layers of the vision tower, which are not kept"
  return ""


def memory_of(config: TrainConfig) -> Memory | None:
  """Where a run keeps features; None for nowhere."""
  return None if config.cache_vision == "off" else Memory(config.cache_vision_mib * 2**20)


def make(
  config: TrainConfig, split: Split, terms: Terms, mesh: Mesh, memory: Memory | None
) -> FrozenVision | None:
  """What a run does with its tower; None where the tower must run within the step.

  Raises:
    UserError: `cache_vision` is "on" where nothing can be kept.
  """
  if reason := obstacle(split.params, terms):
    if config.cache_vision == "on":
      raise UserError(
        f"config.train.cache_vision: features cannot be kept: {reason}; leave it at 'auto', or train nothing"
        " before the connector"
      )
    return None
  return FrozenVision(split, terms, mesh, memory)


class Memory:
  """Features by tile, in this process's memory, until a budget is used up: what came first stays.

  Nothing is evicted. Data that is read over and over would throw out each tile before it comes again, where
  a share of it kept is a share of the work saved. Safe to ask from several threads.
  """

  def __init__(self, budget: int):
    """`budget`: bytes."""
    self._rows: dict[Key, np.ndarray] = {}
    self._left, self._lock = budget, threading.Lock()

  def __contains__(self, key: Key) -> bool:
    return key in self._rows

  def __len__(self) -> int:
    return len(self._rows)

  def get(self, key: Key) -> np.ndarray | None:
    """Features (P, D) of a tile, or None."""
    return self._rows.get(key)

  def add(self, key: Key, row: np.ndarray) -> None:
    """Keeps features where there is room for them."""
    with self._lock:
      if key not in self._rows and row.nbytes <= self._left:
        self._left -= row.nbytes
        self._rows[key] = np.array(row)  # the rows of one call must not keep each other alive


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Work:
  """Tiles for one call of the program: R rounds of G tiles each, of which `count` rounds are there."""

  pixels_RGHWC: Any
  mask_RGHW: Any
  count: Any
  normal: PixelTable | None = dataclasses.field(metadata={"static": True})


class FrozenVision:
  """Turns batches of pixels into batches of features, on the host, in every process alike.

  Attributes:
    encoded, reused: tiles of this process so far that the tower has seen, and that it need not.
  """

  def __init__(self, split: Split, terms: Terms, mesh: Mesh, memory: Memory | None):
    """`memory`: where features are kept; None for nowhere."""
    self._split, self._mesh, self._memory = split, mesh, memory
    before = any(objective.wants.vision for _, objective in terms.values())
    # Behind a frozen connector there is less to keep and nothing left to do.
    self._connected = not before and not any(name.startswith("connector.") for name in split.params)
    shards = int(np.prod([mesh.shape[axis] for axis in axes.RULES["batch"]]))
    together = TOGETHER_ON_CPU if jax.default_backend() == "cpu" else TOGETHER
    self._sharding = NamedSharding(mesh, PartitionSpec(None, axes.RULES["batch"]))
    self._round = shards * together // jax.process_count()
    self._programs = step_lib.Programs(self._encode, mesh, donate=False, out_shardings=self._sharding)
    self._grid: tuple[int, int] | None = None
    self._shape: tuple[tuple[int, ...], Any] | None = None
    self.encoded = self.reused = 0

  def __call__(self, state: TrainState, frozen: Params, batch: Batch) -> tuple[Batch, float, float]:
    """This process's rows of a batch with features in place of pixels; seconds of compilation, and FLOPs.

    Tiles that pad a bucket are zeros: no token shows them.
    """
    extra = {name: value for name, value in batch.extra.items() if name != TILE_KEY}
    if batch.pixels_NHWC is None:
      return dataclasses.replace(batch, extra=extra), 0.0, 0.0
    keys_N2 = batch.extra[TILE_KEY].array if TILE_KEY in batch.extra else _keys(batch)
    found: dict[int, np.ndarray] = {}
    fresh: dict[Any, list[int]] = {}  # what is to be encoded: by its key, the places that show it
    for place, key in enumerate(map(tuple, keys_N2.tolist())):
      if key[0] == PADDING:
        continue
      row = self._memory.get(key) if self._memory is not None and key[0] != ONCE else None
      if row is None:
        fresh.setdefault(place if key[0] == ONCE else key, []).append(place)
      else:
        found[place] = row
        self.reused += 1
    rows, seconds, flops = self._rows(state, frozen, batch, [places[0] for places in fresh.values()])
    for (key, places), row in zip(fresh.items(), rows, strict=True):
      found.update(dict.fromkeys(places, row))
      if self._memory is not None and isinstance(key, tuple):
        self._memory.add(key, row)
    self.encoded += len(fresh)
    features = np.zeros((len(keys_N2), *self._shape[0]), self._shape[1])
    for place, row in found.items():
      features[place] = row
    seen = {"features_NPD": features} if self._connected else {"vision": Features(features, self._grid)}
    batch = dataclasses.replace(
      batch, pixels_NHWC=None, pixel_mask_NHW=None, normal=None, extra=extra, **seen
    )
    return batch, seconds, flops

  def said(self) -> str:
    """One line on what was done."""
    kept = f"; {len(self._memory):,} are kept" if self._memory is not None else ""
    return f"vision features: {self.encoded:,} tiles encoded, {self.reused:,} taken from memory{kept}"

  def _rows(self, state, frozen, batch: Batch, places: list[int]) -> tuple[list[np.ndarray], float, float]:
    """The features of the tiles at `places`; the same number of calls in every process."""
    rounds = -(-len(places) // self._round)
    if jax.process_count() > 1:
      rounds = int(multihost_utils.process_allgather(np.int32(rounds)).max())
    rows, seconds, flops = [], 0.0, 0.0
    # A first batch of padding alone must still say what features look like.
    for first in range(0, max(rounds, self._shape is None), ROUNDS):
      count = min(rounds - first, ROUNDS)
      taken = places[first * self._round : (first + count) * self._round]
      work = self._work(batch, taken, count)
      program, fresh = self._programs.get(state, frozen, work)
      seconds += program.seconds * fresh
      flops += program.flops * count
      out = program.run(state, frozen, work)
      self._grid = out.grid
      local = _local(out.patches_NPD)
      local = local.reshape(-1, *local.shape[2:])
      self._shape = local.shape[1:], local.dtype
      rows += list(local[: len(taken)])
    return rows, seconds, flops

  def _work(self, batch: Batch, places: list[int], count: int) -> _Work:
    def put(array):
      if array is None:
        return None
      out = np.zeros((ROUNDS * self._round, *array.shape[1:]), array.dtype)
      out[: len(places)] = array[places]
      out = out.reshape(ROUNDS, self._round, *array.shape[1:])
      if jax.process_count() > 1:
        return jax.make_array_from_process_local_data(self._sharding, out)
      return jax.device_put(out, self._sharding)

    everywhere = NamedSharding(self._mesh, PartitionSpec())
    count = jax.device_put(np.int32(count), everywhere)
    return _Work(put(batch.pixels_NHWC), put(batch.pixel_mask_NHW), count, batch.normal)

  def _encode(self, state: TrainState, frozen: Params, work: _Work) -> Features:
    """Features (R, G, P, D) of all tiles that are there, and their grid; traced."""
    vlm = self._split.model(state.params, frozen)

    def see(number) -> Features:
      mask = None if work.mask_RGHW is None else work.mask_RGHW[number]
      features = vlm.vision(normalised(work.pixels_RGHWC[number], work.normal), mask)
      return (
        dataclasses.replace(features, patches_NPD=vlm.connector(features)) if self._connected else features
      )

    shape = jax.eval_shape(see, 0)
    empty = jnp.zeros((ROUNDS, *shape.patches_NPD.shape), shape.patches_NPD.dtype)
    empty = jax.lax.with_sharding_constraint(empty, self._sharding)
    put = lambda number, out: out.at[number].set(see(number).patches_NPD)
    return Features(jax.lax.fori_loop(0, work.count, put, empty), shape.grid)


def _keys(batch: Batch) -> np.ndarray:
  """Keys of a batch whose tiles bring none."""
  return tile_keys(np.asarray(batch.pixels_NHWC), batch.pixel_mask_NHW)


def _local(array: jax.Array) -> np.ndarray:
  """This process's part (R, g, ...) of an array that is cut along its second axis."""
  if array.is_fully_addressable:
    return np.asarray(array)
  parts = {shard.index[1].start or 0: shard.data for shard in array.addressable_shards}
  return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)], axis=1)
