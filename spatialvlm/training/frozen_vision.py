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
import hashlib
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from spatialvlm.config import TrainConfig
from spatialvlm.core import axes
from spatialvlm.core.pixels import normalised
from spatialvlm.data.tile_keys import NAMED, ONCE, PADDING, TILE_KEY, tile_keys
from spatialvlm.serving.feature_store import FeatureStore, Place, open_store
from spatialvlm.training import step as step_lib
from spatialvlm.training.objectives import Terms
from spatialvlm.training.state import Params, Split, TrainState
from spatialvlm.types import Batch, Features, PixelTable, UserError, of_priors

# Tiles that one device sees at a time. On a CPU one: a single tile fills its caches, and its bits can then
# not depend on its place among others.
TOGETHER, TOGETHER_ON_CPU = 8, 1
# So many times in one call of the program, at most.
ROUNDS, ROUNDS_ON_CPU = 2, 16
# Part of the identity of what is kept on disk: to be raised when towers or keys come out otherwise.
FORMAT = 2

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
    if objective.wants.of_encoder_layers:
      return f"losses.{name} reads layers of the vision tower, which are not kept"
  return ""


def memory_of(config: TrainConfig) -> Memory | None:
  """Where a run keeps features; None for nowhere."""
  return None if config.cache_vision == "off" else Memory(config.cache_vision_mib * 2**20)


def check(config: TrainConfig) -> None:
  """Raises a UserError for settings that make no sense, whatever is trained."""
  if config.cache_vision_mib < 0:
    raise UserError(f"config.train.cache_vision_mib: {config.cache_vision_mib} is below 0; 0 keeps nothing")
  if config.cache_vision == "off" and config.cache_vision_folder is not None:
    raise UserError(
      "config.train.cache_vision_folder: nothing is kept there while cache_vision is 'off'; leave out one"
    )


def for_certain(config: TrainConfig) -> str:
  """The setting by which features must be kept; empty where they only may be."""
  if config.cache_vision_folder is not None:
    return "cache_vision_folder"
  return "cache_vision" if config.cache_vision == "on" else ""


def apart(config: TrainConfig, trained: Iterable[str], terms: Terms) -> bool:
  """Whether the tower runs apart from the step; `trained` as for `obstacle`.

  Raises:
    UserError: it cannot, and something is to be kept for certain.
  """
  reason = obstacle(trained, terms)
  if reason and (setting := for_certain(config)):
    raise UserError(
      f"config.train.{setting}: features cannot be kept: {reason}; leave it out, or train nothing before the"
      " connector"
    )
  return not reason


def make(
  config: TrainConfig,
  split: Split,
  terms: Terms,
  memory: Memory | None,
  numbers: Callable[[], Mapping[str, Any]] = dict,
  handover: Handover | None = None,
  own_eyes: frozenset[str] = frozenset(),
) -> FrozenVision | None:
  """What a run does with its tower; None where the tower must run within the step.

  Args:
    numbers: gives what features depend on beside pictures and the model's arrays, as JSON values: its dtype,
      how pictures become tiles and pixels numbers.
    handover: what the stage before has left, and where this one leaves its own.
    own_eyes: other models that need pixels (`training.teachers`): they keep them in views of theirs.

  Raises:
    UserError: something is to be kept for certain that cannot be; the folder cannot be written.
  """
  if not apart(config, split.params, terms):
    return None
  vision = FrozenVision(split, terms, memory, own_eyes)
  identity = lambda: vision.identity(split.frozen, numbers())
  vision.store = open_store(config.cache_vision_folder, identity, "config.train.cache_vision_folder")
  if handover is not None and memory is not None:
    handover.take(memory, identity())
  return vision


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

  def fill(self, other: Memory) -> None:
    """Keeps what another memory holds, as far as there is room."""
    for key, row in other._rows.items():
      self.add(key, row)

  def add(self, key: Key, row: np.ndarray) -> None:
    """Keeps features where there is room for them."""
    with self._lock:
      if key not in self._rows and row.nbytes <= self._left:
        self._left -= row.nbytes
        # The rows of one call of the program must not keep each other alive.
        self._rows[key] = row if row.flags.owndata else np.array(row)


class Handover:
  """Features from one stage of a run to the next, as long as the tower stays the same to the last bit."""

  def __init__(self):
    self._identity: Mapping[str, Any] | None = None
    self._memory: Memory | None = None

  def take(self, memory: Memory, identity: Mapping[str, Any]) -> None:
    """Gives `memory` what an earlier one of this identity holds, and keeps it for the next."""
    if self._memory is not None and self._identity == identity:
      memory.fill(self._memory)
    self._identity, self._memory = identity, memory


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
    store: keeps features on disk, too; None for none.
    encoded, reused: tiles of this process so far that the tower has seen, and that it need not.
  """

  def __init__(
    self, split: Split, terms: Terms, memory: Memory | None, own_eyes: frozenset[str] = frozenset()
  ):
    """`memory`: where features are kept; None for nowhere. `own_eyes`: as of `make`."""
    self._own_eyes = own_eyes
    self._split, self._mesh, self._memory = split, split.mesh, memory
    self.store: FeatureStore | None = None
    before = any(objective.wants.vision for _, objective in terms.values())
    # Behind a frozen connector there is less to keep and nothing left to do.
    self._connected = not before and not any(name.startswith("connector.") for name in split.params)
    shards = int(np.prod([self._mesh.shape[axis] for axis in axes.RULES["batch"]]))
    on_cpu = self._mesh.devices.flat[0].platform == "cpu"
    together, self._rounds = (TOGETHER_ON_CPU, ROUNDS_ON_CPU) if on_cpu else (TOGETHER, ROUNDS)
    self._sharding = NamedSharding(self._mesh, PartitionSpec(None, axes.RULES["batch"]))
    self._round = shards * together // jax.process_count()
    self._programs = step_lib.Programs(self._encode, self._mesh, donate=False, out_shardings=self._sharding)
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
      row = None if key[0] == ONCE else self._kept(key)
      if row is None:
        fresh.setdefault(place if key[0] == ONCE else key, []).append(place)
      else:
        found[place] = row
        self.reused += 1
    rows, seconds, flops = self._rows(state, frozen, batch, [places[0] for places in fresh.values()])
    for (key, places), row in zip(fresh.items(), rows, strict=True):
      found.update(dict.fromkeys(places, row))
      if isinstance(key, tuple):
        self._keep(key, row)
    self.encoded += len(fresh)
    features = np.zeros((len(keys_N2), *self._shape[0]), self._shape[1])
    for place, row in found.items():
      features[place] = row
    seen = {"features_NPD": features} if self._connected else {"vision": Features(features, self._grid)}
    own = {name: batch.view(name) for name in self._own_eyes}
    views = {
      name: dataclasses.replace(view, extra=of_priors(view.extra), views={}) for name, view in own.items()
    }
    batch = dataclasses.replace(
      batch,
      pixels_NHWC=None,
      pixel_mask_NHW=None,
      normal=None,
      extra=extra,
      views={**batch.views, **views},
      **seen,
    )
    return batch, seconds, flops

  def traced(self, state: TrainState, frozen: Params, batch: Batch) -> tuple[jax.stages.Traced, int, int]:
    """The program for batches of these tiles, which may be described alone, as it would be compiled.

    Returns:
      It, how many tiles one of its rounds takes over all devices, and how many rounds one call has at most.
    """
    count = jax.ShapeDtypeStruct((), np.int32, sharding=NamedSharding(self._mesh, PartitionSpec()))

    def put(array):
      if array is None:
        return None
      shape = (self._rounds, self._round, *array.shape[1:])
      return jax.ShapeDtypeStruct(shape, array.dtype, sharding=self._sharding)

    work = _Work(put(batch.pixels_NHWC), put(batch.pixel_mask_NHW), count, batch.normal)
    return self._programs.traced(state, frozen, work), self._round, self._rounds

  def close(self) -> str:
    """Writes what waits for the disk; returns a line or two on what was done."""
    kept = f"; {len(self._memory):,} are kept" if self._memory is not None else ""
    said = f"vision features: {self.encoded:,} tiles encoded, {self.reused:,} times a known one{kept}"
    return f"{said}\n{self.store.close()}" if self.store is not None else said

  def identity(self, frozen: Params, numbers: Mapping[str, Any]) -> dict[str, Any]:
    """All that features depend on beside pixels, as JSON values; reads the tower's arrays once."""
    digest = hashlib.sha256()
    towers = ("vision.", "connector.") if self._connected else ("vision.",)
    for name in sorted(name for name in frozen if name.startswith(towers)):
      for array in map(np.asarray, jax.tree.leaves(frozen[name])):  # several of a quantised kernel
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    config = self._split.model(self._split.params, frozen).config
    shapes = repr((config.vision, config.connector if self._connected else None))
    return {
      "training": FORMAT,
      "weights": digest.hexdigest(),
      "tower": re.sub(r" at 0x[0-9a-f]+", "", shapes),
      "connected": self._connected,
      "device": self._mesh.devices.flat[0].device_kind,
      "mesh": dict(self._mesh.shape),
      "jax": jax.__version__,
      **numbers,
    }

  def _kept(self, key: Key) -> np.ndarray | None:
    row = self._memory.get(key) if self._memory is not None else None
    if row is None and self.store is not None and not key[0] & NAMED:
      found = self.store.get(_file(key), 1)
      if found is not None:
        row = found[0]
        self._shape = row.shape, row.dtype
        self._memory.add(key, row)
    return row

  def _keep(self, key: Key, row: np.ndarray) -> None:
    if self._memory is not None:
      self._memory.add(key, row)
    if self.store is not None and not key[0] & NAMED:
      self.store.add([Place(_file(key), 0, 1)], row[None])

  def _rows(self, state, frozen, batch: Batch, places: list[int]) -> tuple[list[np.ndarray], float, float]:
    """The features of the tiles at `places`; the same number of calls in every process."""
    rounds = -(-len(places) // self._round)
    if jax.process_count() > 1:
      rounds = int(multihost_utils.process_allgather(np.int32(rounds)).max())
    rows, seconds, flops = [], 0.0, 0.0
    # A first batch of padding alone must still say what features look like.
    for first in range(0, max(rounds, self._grid is None), self._rounds):
      count = min(rounds - first, self._rounds)
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
      out = np.zeros((self._rounds * self._round, *array.shape[1:]), array.dtype)
      out[: len(places)] = array[places]
      out = out.reshape(self._rounds, self._round, *array.shape[1:])
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
    empty = jnp.zeros((self._rounds, *shape.patches_NPD.shape), shape.patches_NPD.dtype)
    empty = jax.lax.with_sharding_constraint(empty, self._sharding)
    put = lambda number, out: out.at[number].set(see(number).patches_NPD)
    return Features(jax.lax.fori_loop(0, work.count, put, empty), shape.grid)


def _keys(batch: Batch) -> np.ndarray:
  """Keys of a batch whose tiles bring none."""
  return tile_keys(np.asarray(batch.pixels_NHWC), batch.pixel_mask_NHW)


def _file(key: Key) -> str:
  """A key as the disk names it."""
  return "".join(f"{number % 2**64:016x}" for number in key)


def _local(array: jax.Array) -> np.ndarray:
  """This process's part (R, g, ...) of an array that is cut along its second axis."""
  if array.is_fully_addressable:
    return np.asarray(array)
  parts = {shard.index[1].start or 0: shard.data for shard in array.addressable_shards}
  return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)], axis=1)
