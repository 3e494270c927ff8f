"""Log-likelihood of option letters: one prefill per question, images encoded once.

The hidden state of a prompt's last token alone goes through the vocabulary product; the softmax runs over the
whole vocabulary, in float32, and the options are picked from it.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spatialvlm.core import axes
from spatialvlm.types import Batch, UserError

if TYPE_CHECKING:
  from spatialvlm.models.vlm import Vlm

# Tiles that one call of the vision tower encodes: enough to keep a device busy, and one compiled shape only.
CHUNK = 16


class Scorer(Protocol):
  """What an evaluation asks of a model.

  Attributes:
    multiple: batch sizes are rounded up to a multiple of it (the shards of a batch).
  """

  multiple: int

  def encode(self, pixels_NHWC: np.ndarray) -> jax.Array:
    """Image tokens after the connector, features_NPD."""

  def __call__(self, batch: Batch, option_ids_BK: np.ndarray, option_mask_BK: np.ndarray) -> jax.Array:
    """Log-probabilities (B, K) float32 of the options as the next token; -inf where the mask is false."""


class VlmScorer:
  """The scorer over a `Vlm`, with or without adapters, on one device or on a mesh.

  Compiled programs are shared by all scorers of models of one structure, so that scoring a model before and
  after training compiles once.
  """

  def __init__(self, vlm: Vlm, mesh: Mesh | None = None):
    self._graphdef, self._state = nnx.split(vlm)
    self._mesh = mesh
    self.multiple = 1
    if mesh is not None:
      self.multiple = int(np.prod([mesh.shape[axis] for axis in axes.RULES["batch"]]))

  def encode(self, pixels_NHWC: np.ndarray) -> jax.Array:
    with self._context():
      return _encode(self._graphdef, self._state, self._put(pixels_NHWC))

  def __call__(self, batch: Batch, option_ids_BK: np.ndarray, option_mask_BK: np.ndarray) -> jax.Array:
    features, batch = batch.features_NPD, dataclasses.replace(batch, features_NPD=None)
    batch = dataclasses.replace(self._put(batch), features_NPD=features)
    with self._context():
      return _score(self._graphdef, self._state, batch, self._put(option_ids_BK), self._put(option_mask_BK))

  def _put(self, tree: Any) -> Any:
    return jax.device_put(tree, axes.batch_sharding(self._mesh)) if self._mesh is not None else tree

  def _context(self) -> contextlib.AbstractContextManager:
    return jax.set_mesh(self._mesh) if self._mesh is not None else contextlib.nullcontext()


@functools.partial(jax.jit, static_argnums=0)
def _encode(graphdef, state, pixels_NHWC):
  return _replicated(nnx.merge(graphdef, state).encode_images(pixels_NHWC))


@functools.partial(jax.jit, static_argnums=0)
def _score(graphdef, state, batch, option_ids_BK, option_mask_BK):
  vlm = nnx.merge(graphdef, state)
  x_BTD = vlm.hidden(batch)
  # Right for padding on either side: the last position that is valid.
  last_B = batch.valid_BT.shape[1] - 1 - jnp.argmax(batch.valid_BT[:, ::-1], axis=1)
  x_BD = jnp.take_along_axis(x_BTD, last_B[:, None, None], axis=1)[:, 0]
  logprob_BV = jax.nn.log_softmax(vlm.unembed(x_BD).astype(jnp.float32), axis=-1)
  logprob_BK = jnp.take_along_axis(logprob_BV, option_ids_BK, axis=1)
  return _replicated(jnp.where(option_mask_BK, logprob_BK, -jnp.inf))


def _replicated(x):
  """Every process reads the result, and every shard of a later batch may need any image."""
  mesh = jax.sharding.get_abstract_mesh()
  return x if mesh.empty else jax.lax.with_sharding_constraint(x, PartitionSpec())


class FeaturePool:
  """Encoded images on the device, by key, in a fixed number of tile slots.

  An image that is still in the pool is not encoded again. Those that no waiting question needs go first, the
  least recently used first of all. The array keeps one shape, so a batch that points into it compiles once.
  """

  def __init__(self, scorer: Scorer, slots: int):
    self._scorer = scorer
    self._slots = slots
    self._free = list(range(slots - 1, -1, -1))
    self._images: collections.OrderedDict[Hashable, tuple[int, ...]] = collections.OrderedDict()
    self._pins: collections.Counter = collections.Counter()
    self._staged: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()
    self._array_NPD: jax.Array | None = None
    self._chunk = -(-CHUNK // scorer.multiple) * scorer.multiple

  def place(self, key: Hashable, tiles: np.ndarray) -> tuple[int, ...] | None:
    """Pins an image's slots for a question, one per tile; None where waiting questions hold too many.

    Args:
      key: names the pixels of all its tiles.
      tiles: (I, H, W, C) float32, normalised.

    Raises:
      UserError: the image has more tiles than the pool has slots.
    """
    if len(tiles) > self._slots:
      raise UserError(
        f"an image of {len(tiles)} tiles does not fit a pool of {self._slots}; raise score.pool_tiles"
      )
    if key not in self._images:
      unpinned = [k for k in self._images if not self._pins[k]]
      while len(self._free) < len(tiles) and unpinned:
        self._free.extend(self._images.pop(unpinned.pop(0)))
      if len(self._free) < len(tiles):
        return None
      self._images[key] = tuple(self._free.pop() for _ in tiles)
      for i, slot in enumerate(self._images[key]):
        self._staged[slot] = tiles[i]
      # At once, where a full chunk has come together: pixels are large, features small.
      while len(self._staged) >= self._chunk:
        self._encode_chunk()
    self._images.move_to_end(key)
    self._pins[key] += 1
    return self._images[key]

  def release(self, key: Hashable) -> None:
    """One question less waits for this image."""
    self._pins[key] -= 1

  def features(self, slots: Sequence[int]) -> jax.Array:
    """The pool's features_NPD, these slots encoded."""
    while any(slot in self._staged for slot in slots):
      self._encode_chunk()
    return self._array_NPD

  def _encode_chunk(self) -> None:
    taken = [self._staged.popitem(last=False) for _ in range(min(self._chunk, len(self._staged)))]
    pixels = np.zeros((self._chunk, *taken[0][1].shape), np.float32)
    # Padding is written past the end, where the scatter drops it.
    index = np.full(self._chunk, self._slots, np.int32)
    for row, (slot, tile) in enumerate(taken):
      index[row], pixels[row] = slot, tile
    features_NPD = self._scorer.encode(pixels)
    if self._array_NPD is None:
      self._array_NPD = _zeros(self._slots, features_NPD)
    self._array_NPD = _write(self._array_NPD, index, features_NPD)


def _zeros(slots: int, like: jax.Array) -> jax.Array:
  sharding = getattr(like, "sharding", None)
  out = sharding if isinstance(sharding, NamedSharding) else None
  return jax.jit(lambda: jnp.zeros((slots, *like.shape[1:]), like.dtype), out_shardings=out)()


@functools.partial(jax.jit, donate_argnums=0)
def _write(pool_NPD, index_N, features_NPD):
  return pool_NPD.at[index_N].set(features_NPD, mode="drop")
