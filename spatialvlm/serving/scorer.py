"""What the engine asks of a model: images encoded, their prefixes read, texts read behind them.

A prompt is cut behind its image. The part with the image, the long one, is read once for all requests that
begin with it; its keys and values are kept, and a request's text is read behind a copy of them. The options
of a request, or its generated answer, go on from there. Where a model's prompts are bidirectional, what an
image's tokens hold depends on the text, so all of the prompt is such a part.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import re
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spatialvlm import generation
from spatialvlm.core import axes, pixels
from spatialvlm.core.attention import KVCache
from spatialvlm.types import Batch

if TYPE_CHECKING:
  from collections.abc import Mapping, Sequence

  from spatialvlm.models.vlm import Vlm


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefixes:
  """Keys and values of prompts' beginnings, rows along the first axis.

  Attributes:
    keys, values: for each layer (B, S, K, H).
    valid_BS: false at padding.
  """

  keys: tuple[Any, ...]
  values: tuple[Any, ...]
  valid_BS: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Read:
  """Prompts read to their end.

  Attributes:
    logits_BV: float32, of the token that comes next.
    finite_B: whether all of a row's logits are.
    cache: the prompts' keys and values with the room that was asked for; None where none was.
  """

  logits_BV: Any
  finite_B: Any
  cache: Any


class Drawn(NamedTuple):
  """How the tokens of a batch are drawn, as `generation.decode` takes it.

  Attributes:
    temperature: above 0.
    seed_B, said_B: uint32 and int32, of each row its seed, and how many tokens it has said before.
  """

  temperature: float
  top_p: float
  seed_B: np.ndarray
  said_B: np.ndarray


class Scorer(Protocol):
  """A model as the engine sees it.

  Attributes:
    multiple: batch sizes are rounded up to a multiple of it (the shards of a batch).
    max_length: the model's context.
    bidirectional: whether the tokens of its prompts all see each other (a prefix-LM).
    programs: (name, shapes) of each distinct program that was called.
  """

  multiple: int
  max_length: int
  bidirectional: bool
  programs: set[tuple]

  def encode(
    self,
    pixels_NHWC: np.ndarray,
    normal: np.ndarray | None = None,
    priors: Mapping[str, np.ndarray] | None = None,
  ) -> Any:
    """Image tokens after the connector, features_NPD.

    Args:
      pixels_NHWC: normalised, float32; or uint8 with `normal`, float32 (256, C): the table's values are then
        taken on the device, which is exact, and a quarter of the bytes are moved.
      priors: of a model with priors, what each says of the tiles' tokens, (N, P, C) by name.
    """

  def features(self, features_NPD: np.ndarray) -> Any:
    """Image tokens that are known already, laid on the devices as those of `encode`."""

  def identity(self) -> dict[str, Any]:
    """All that image tokens depend on beside the pixels, as JSON values: weights, numbers, devices."""

  def prefix(self, batch: Batch) -> Any:
    """Prefixes of prompts, a tree of arrays with leading axis B."""

  def read(
    self, prefixes: Any, index_B: np.ndarray, tokens_BT: np.ndarray, valid_BT: np.ndarray, room: int
  ) -> Read:
    """Reads texts, padded on the right, each behind the prefix of its index; `room` slots stay free."""

  def letters(self, read: Read, ids_BK: np.ndarray, mask_BK: np.ndarray) -> Any:
    """Log-probabilities (B, K) float32 of single tokens as the next; -inf where the mask is false."""

  def texts(self, read: Read, tokens_BKT: np.ndarray, valid_BKT: np.ndarray) -> Any:
    """Summed log-probabilities (B, K) float32 of texts as what comes next; 0 where none is valid."""

  def generate(
    self,
    read: Read,
    room: int,
    limit: int,
    done_B: np.ndarray,
    stop_ids: Sequence[int],
    pad_id: int,
    drawn: Drawn | None = None,
  ) -> Any:
    """Tokens (B, room) int32, at most `limit`, each row up to its stop token; uses the cache up.

    Greedy ones, or as `drawn` says.
    """


class Graph:
  """A model's structure as a static argument: hashed and compared once, not at every call.

  For a model of 44 layers that takes longer than a device takes for a small batch.
  """

  _known: ClassVar[dict[Any, Graph]] = {}

  def __init__(self, graphdef: Any):
    self.graphdef = graphdef

  @classmethod
  def of(cls, graphdef: Any) -> Graph:
    """The one object of all equal structures."""
    return cls._known.setdefault(graphdef, cls(graphdef))


class VlmScorer:
  """The scorer over a `Vlm`, with or without adapters, on one device or on a mesh.

  Compiled programs are shared by all scorers of models of one structure, so that a model before and after
  training compiles once.
  """

  def __init__(self, vlm: Vlm, mesh: Mesh | None = None):
    graphdef, self._state = nnx.split(vlm)
    self._graph = Graph.of(graphdef)
    self._mesh = mesh
    self.max_length, self.bidirectional = vlm.max_length, vlm.config.prefix_lm
    self.programs: set[tuple] = set()
    self.multiple = 1
    if mesh is not None:
      self.multiple = int(np.prod([mesh.shape[axis] for axis in axes.RULES["batch"]]))

  def encode(
    self,
    pixels_NHWC: np.ndarray,
    normal: np.ndarray | None = None,
    priors: Mapping[str, np.ndarray] | None = None,
  ) -> jax.Array:
    self._note("images", pixels_NHWC)
    with self._context():
      return _encode(self._graph, self._state, *self._put((pixels_NHWC, dict(priors or {}))), normal)

  def features(self, features_NPD: np.ndarray) -> jax.Array:
    sharding = None if self._mesh is None else NamedSharding(self._mesh, PartitionSpec())
    return jax.device_put(features_NPD, sharding)

  def identity(self) -> dict[str, Any]:
    vlm = nnx.merge(self._graph.graphdef, self._state)
    digest = hashlib.sha256()
    for part in filter(None, (vlm.vision, vlm.connector, vlm.priors)):
      graphdef, state = nnx.split(part)
      # What is no array (activations, an adapter's scale) stands in the graph; addresses of functions do too.
      digest.update(re.sub(r" at 0x[0-9a-f]+", "", str(graphdef)).encode())
      for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    device = jax.devices()[0] if self._mesh is None else self._mesh.devices.flat[0]
    return {
      "weights": digest.hexdigest(),
      "dtype": vlm.config.dtype,
      "device": device.device_kind,
      "mesh": {} if self._mesh is None else dict(self._mesh.shape),
      "jax": jax.__version__,
    }

  def prefix(self, batch: Batch) -> Prefixes:
    self._note("prefix", batch)
    features, batch = batch.features_NPD, dataclasses.replace(batch, features_NPD=None)
    batch = dataclasses.replace(self._put(batch), features_NPD=features)
    with self._context():
      return _prefix(self._graph, self._state, batch)

  def read(
    self, prefixes: Prefixes, index_B: np.ndarray, tokens_BT: np.ndarray, valid_BT: np.ndarray, room: int
  ) -> Read:
    self._note("text", prefixes, tokens_BT, room)
    index_B, tokens_BT, valid_BT = self._put((index_B, tokens_BT, valid_BT))
    with self._context():
      return _read(self._graph, self._state, prefixes, index_B, tokens_BT, valid_BT, room=room)

  def letters(self, read: Read, ids_BK: np.ndarray, mask_BK: np.ndarray) -> jax.Array:
    self._note("letters", ids_BK)
    with self._context():
      return _letters(read.logits_BV, self._put(ids_BK), self._put(mask_BK))

  def texts(self, read: Read, tokens_BKT: np.ndarray, valid_BKT: np.ndarray) -> jax.Array:
    self._note("options", read.cache, tokens_BKT)
    # Options that no request of the batch has are not read.
    count = np.int32(valid_BKT.any(axis=(0, 2)).sum())
    tokens_BKT, valid_BKT = self._put((tokens_BKT, valid_BKT))
    with self._context():
      return _texts(self._graph, self._state, read.logits_BV, read.cache, tokens_BKT, valid_BKT, count)

  def generate(
    self,
    read: Read,
    room: int,
    limit: int,
    done_B: np.ndarray,
    stop_ids: Sequence[int],
    pad_id: int,
    drawn: Drawn | None = None,
  ) -> jax.Array:
    self._note("generation", read.cache, room)
    if drawn is not None:
      drawn = drawn._replace(seed_B=self._put(drawn.seed_B), said_B=self._put(drawn.said_B))
    with self._context():
      new_BT = generation.decode(
        self._graph.graphdef,
        self._state,
        read.logits_BV,
        read.cache,
        room=room,
        limit=limit,
        done_B=self._put(done_B),
        stop_ids=stop_ids,
        pad_id=pad_id,
        **({} if drawn is None else drawn._asdict()),
      )
      return _gathered(new_BT)

  def _note(self, name: str, *arguments: Any) -> None:
    shapes = tuple(np.shape(leaf) or leaf for leaf in jax.tree.leaves(arguments))
    self.programs.add((name, tuple(s for s in shapes if isinstance(s, tuple | int))))

  def _put(self, tree: Any) -> Any:
    return jax.device_put(tree, axes.batch_sharding(self._mesh)) if self._mesh is not None else tree

  def _context(self) -> contextlib.AbstractContextManager:
    return jax.set_mesh(self._mesh) if self._mesh is not None else contextlib.nullcontext()


@functools.partial(jax.jit, static_argnums=0)
def _encode(graph, state, pixels_NHWC, priors, normal=None):
  if normal is not None:
    pixels_NHWC = pixels.looked_up(pixels_NHWC, normal)
  return _replicated(nnx.merge(graph.graphdef, state).encode_images(pixels_NHWC, priors=priors))


@functools.partial(jax.jit, static_argnums=0)
def _prefix(graph, state, batch):
  vlm = nnx.merge(graph.graphdef, state)
  B, S = batch.tokens_BT.shape
  _, cache = vlm.prefill(batch, vlm.init_cache(B, S))
  valid_BS = cache.valid_BS
  if vlm.config.prefix_lm:
    # The last token is read again before the answer, in its own place, for its hidden state.
    valid_BS &= jnp.cumsum(valid_BS, axis=1) < valid_BS.sum(axis=1, keepdims=True)
  return _replicated(Prefixes(cache.keys, cache.values, valid_BS))


@functools.partial(jax.jit, static_argnums=0, static_argnames="room")
def _read(graph, state, prefixes, index_B, tokens_BT, valid_BT, *, room: int):
  vlm = nnx.merge(graph.graphdef, state)
  T, S = tokens_BT.shape[1], prefixes.valid_BS.shape[1]
  more = lambda x: jnp.pad(x[index_B], ((0, 0), (0, T + room)) + ((0, 0),) * (x.ndim - 2))
  keys, values = (tuple(map(more, arrays)) for arrays in (prefixes.keys, prefixes.values))
  cache = KVCache(keys, values, more(prefixes.valid_BS), jnp.int32(S))
  batch = Batch(tokens_BT=tokens_BT, valid_BT=valid_BT)
  if vlm.config.prefix_lm:
    causal_BT = jnp.broadcast_to(jnp.arange(T) > 0, tokens_BT.shape)
    batch = dataclasses.replace(batch, mask_ar_BT=causal_BT)
  last_BD, cache = vlm.prefill(batch, cache)
  logits_BV = vlm.unembed(last_BD).astype(jnp.float32)
  return Read(logits_BV, _replicated(jnp.isfinite(logits_BV).all(axis=-1)), cache if room else None)


@jax.jit
def _letters(logits_BV, ids_BK, mask_BK):
  logprob_BV = jax.nn.log_softmax(logits_BV, axis=-1)
  return _replicated(jnp.where(mask_BK, jnp.take_along_axis(logprob_BV, ids_BK, axis=1), -jnp.inf))


@functools.partial(jax.jit, static_argnums=0)
def _texts(graph, state, logits_BV, cache, tokens_BKT, valid_BKT, count):
  vlm = nnx.merge(graph.graphdef, state)
  first_BV = jax.nn.log_softmax(logits_BV, axis=-1)

  def option(k, sums_BK):
    tokens_BT = jax.lax.dynamic_index_in_dim(tokens_BKT, k, 1, keepdims=False)
    valid_BT = jax.lax.dynamic_index_in_dim(valid_BKT, k, 1, keepdims=False)
    logprob_BT = jnp.take_along_axis(first_BV, tokens_BT[:, :1], axis=1)
    if tokens_BT.shape[1] > 1:
      hidden_BTD, _ = vlm.extend(Batch(tokens_BT=tokens_BT[:, :-1], valid_BT=valid_BT[:, :-1]), cache)
      rest_BTV = jax.nn.log_softmax(vlm.unembed(hidden_BTD), axis=-1)
      rest_BT = jnp.take_along_axis(rest_BTV, tokens_BT[:, 1:, None], axis=-1)[..., 0]
      logprob_BT = jnp.concatenate([logprob_BT, rest_BT], axis=1)
    return sums_BK.at[:, k].set(jnp.where(valid_BT, logprob_BT, 0.0).sum(axis=1))

  return _replicated(jax.lax.fori_loop(0, count, option, jnp.zeros(tokens_BKT.shape[:2], jnp.float32)))


_gathered = jax.jit(lambda x: _replicated(x))
# By name, for who compiles them without running them (`spatialvlm.plan`): (Graph, state, ...) -> result.
PROGRAMS = {"encode": _encode, "prefix": _prefix, "read": _read}


def _replicated(tree):
  """Every process reads the result, and every shard of a later batch may need any row."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return tree
  return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec()), tree)
