"""The programs of a run, by name: each as a training or an evaluation would trace it, of described arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from spatialvlm import generation
from spatialvlm.config import ScoreConfig
from spatialvlm.core import axes, backend
from spatialvlm.core.attention import KVCache
from spatialvlm.plan.abstract import Run
from spatialvlm.serving import engine, scorer
from spatialvlm.training import frozen_vision
from spatialvlm.training import step as step_lib
from spatialvlm.types import Batch, PixelTable, UserError

# Tokens of a prompt beside image tokens: its markup by tile, and a question with its options.
PER_TILE, TEXT = 4, 64
# A column of the table of pixels: which numbers stand there changes no program's cost.
_NORMAL = PixelTable.of(np.zeros((256, 3), np.float32))


@dataclasses.dataclass(frozen=True)
class Shapes:
  """Of what size batches are.

  Attributes:
    tiles: of a row, 0 without pictures; `tokens`: of a row in training, pictures and text; `targets`:
      supervised positions of a row.
    batch: rows of a training step, over all devices and microbatches; `asked`: of an evaluator's batch.
  """

  tiles: int
  tokens: int
  targets: int
  batch: int
  asked: int


@dataclasses.dataclass(frozen=True)
class Traced:
  """A program that can be compiled.

  Attributes:
    traced: what `jax.jit(...).trace` gives.
    groups: the arrays that it is given, by what they are, as descriptions with places.
    rounds: how often its loop turns for one batch, where it has one whose length it does not say.
    rows: rows, or tiles, that one run of it takes over all devices.
  """

  traced: jax.stages.Traced
  groups: Mapping[str, Any]
  rounds: int = 1
  rows: int = 0


def shapes_of(run: Run, tiles: int | None = None, tokens: int | None = None) -> Shapes:
  """The shapes of a run: those asked for, else of its settings, in the smallest of its buckets that holds
  them.

  Raises:
    UserError: more tiles or tokens than the run's buckets, or than the model's context.
  """
  data, sees = run.config.data, run.model.vision is not None
  score = run.config.eval or ScoreConfig()
  if tiles is None:
    tiles = min(run.config.model.max_tiles or data.tiles[-1], data.tiles[-1]) if sees else 0
  if tiles < 0 or (tiles and not sees):
    raise UserError(
      f"--tiles={tiles}: a language model by itself has none" if tiles > 0 else f"--tiles={tiles}: at least 0"
    )
  if tokens is None:
    least = tiles * (tokens_per_tile(run) + PER_TILE) + TEXT
    tokens = next((length for length in data.lengths if length >= least), 0)
    if not tokens:
      raise UserError(
        f"config.data.lengths: none of {data.lengths} holds {tiles} tiles of {tokens_per_tile(run)} tokens"
        " and a question; give --length, or --tiles"
      )
  if not tiles * tokens_per_tile(run) < tokens <= run.model.text.max_length:
    raise UserError(
      f"--length={tokens}: {tiles} tiles take {tiles * tokens_per_tile(run)} tokens, and the model's context"
      f" is {run.model.text.max_length}"
    )
  shards = int(np.prod([run.mesh.shape[axis] for axis in axes.RULES["batch"]]))
  asked = -(-score.batch_size // shards) * shards
  return Shapes(tiles, tokens, data.targets, run.config.train.batch_size, asked)


def tokens_per_tile(run: Run) -> int:
  if run.model.vision is None:
    return 0
  return run.model.image_tokens(run.model.vision.image_size, run.model.vision.image_size)


def train(run: Run, shapes: Shapes) -> Traced:
  """One optimizer step, as `fit` compiles it."""
  batch = _training_batch(run, shapes)
  if _tower_apart(run, shapes):
    # `FrozenVision` hands these on: what the tower makes of the tiles, or what the connector makes of that.
    batch = dataclasses.replace(batch, pixels_NHWC=None, normal=None, **_seen(run, shapes))
  parts = run.config.train.accumulation
  sharding = step_lib.batch_sharding(run.mesh, parts)
  cut = lambda x: (parts, x.shape[0] // parts, *x.shape[1:]) if parts > 1 else x.shape
  batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(cut(x), x.dtype, sharding=sharding), batch)
  places = (step_lib.state_shardings(run.state), None)
  span = jax.ShapeDtypeStruct((2,), jnp.float32, sharding=NamedSharding(run.mesh, PartitionSpec()))
  programs = step_lib.Programs(run.step, run.mesh, donate=True, out_shardings=places, given=(span,))
  groups = {"weights": run.split.frozen, "trained": _weights(run), "optimizer": _moments(run), "batch": batch}
  return Traced(programs.traced(run.state, run.split.frozen, batch), groups, rows=shapes.batch)


def vision(run: Run, shapes: Shapes) -> Traced | None:
  """The frozen tower, which a training runs apart from its step; None where it does not."""
  if not _tower_apart(run, shapes):
    return None
  tower = frozen_vision.FrozenVision(run.split, run.terms, None)
  traced, tiles, _ = tower.traced(run.state, run.split.frozen, _training_batch(run, shapes))
  groups = {"weights": run.split.frozen, "trained": _weights(run), "optimizer": _moments(run)}
  return Traced(traced, groups, rounds=-(-shapes.batch * shapes.tiles // tiles), rows=tiles)


def encode(run: Run, shapes: Shapes) -> Traced | None:
  """An evaluator's pictures: image tokens of a chunk of tiles, on every device; None without pictures."""
  if not shapes.tiles:
    return None
  shards = int(np.prod([run.mesh.shape[axis] for axis in axes.RULES["batch"]]))
  chunk = engine.CHUNK_ON_CPU if backend.platform() == "cpu" else engine.CHUNK
  tiles = -(-chunk // shards) * shards
  side = run.model.vision.image_size
  pixels = _described(run, (tiles, side, side, 3), jnp.uint8)
  normal = jax.ShapeDtypeStruct((256, 3), jnp.float32)
  return _evaluated(run, "encode", {"batch": pixels}, pixels, {}, normal, rows=tiles)


def prefix(run: Run, shapes: Shapes) -> Traced:
  """An evaluator's prefill: keys and values of prompts up to and with their pictures."""
  length = _prefix_length(run, shapes)
  batch = Batch(
    tokens_BT=_described(run, (shapes.asked, length), jnp.int32),
    valid_BT=_described(run, (shapes.asked, length), jnp.bool_),
  )
  if shapes.tiles:
    score = run.config.eval or ScoreConfig()
    slots = max(score.pool_tiles, shapes.asked * shapes.tiles)
    kept = (slots, tokens_per_tile(run), run.model.text.block.width)
    batch = dataclasses.replace(
      batch,
      features_NPD=_described(run, kept, run.model.dtype, whole=True),
      tile_index_BI=_described(run, (shapes.asked, shapes.tiles), jnp.int32),
      image_slot_BT=_described(run, (shapes.asked, length), jnp.int32),
    )
  return _evaluated(run, "prefix", {"batch": batch}, batch, rows=shapes.asked)


def read(run: Run, shapes: Shapes) -> Traced:
  """An evaluator's questions, each behind its picture's prefix: the logits of the answer's first token."""
  S = _prefix_length(run, shapes)
  like = _cache(run, shapes.asked, S)
  keep = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_whole(run))
  keys, values, valid_BS = jax.tree.map(keep, (like.keys, like.values, like.valid_BS))
  prefixes = scorer.Prefixes(keys, values, valid_BS)
  index = _described(run, (shapes.asked,), jnp.int32)
  text = _described(run, (shapes.asked, TEXT), jnp.int32)
  valid = _described(run, (shapes.asked, TEXT), jnp.bool_)
  groups = {"cache": prefixes, "batch": (index, text, valid)}
  return _evaluated(run, "read", groups, prefixes, index, text, valid, rows=shapes.asked, room=0)


def decode(run: Run, shapes: Shapes) -> Traced:
  """One more token of each row of an evaluator's batch, whose cache holds prompt and answer."""
  length = generation.bucket(shapes.tokens + TEXT, 16)
  like = _cache(run, shapes.asked, length)
  place = axes.batch_sharding(run.mesh)
  described = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place if x.ndim else _whole(run))
  cache = dataclasses.replace(jax.tree.map(described, like), begun=True)
  tokens = _described(run, (shapes.asked,), jnp.int32)
  graphdef, state = nnx.split(run.vlm)
  with jax.set_mesh(run.mesh):
    traced = generation.step.trace(graphdef, state, tokens, cache)
  return Traced(traced, {"weights": state, "cache": cache, "batch": tokens}, rows=shapes.asked)


PROGRAMS: dict[str, Callable[[Run, Shapes], Traced | None]] = {
  "train": train,
  "vision": vision,
  "encode": encode,
  "prefix": prefix,
  "read": read,
  "decode": decode,
}


def device_bytes(tree: Any) -> int:
  """Bytes that one device holds of described arrays."""
  held = lambda x: int(np.prod(_local(x), dtype=np.int64)) * jnp.dtype(x.dtype).itemsize
  return sum(map(held, jax.tree.leaves(tree)))


def _local(x: Any) -> tuple[int, ...]:
  return x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)


def _tower_apart(run: Run, shapes: Shapes) -> bool:
  return bool(shapes.tiles) and frozen_vision.apart(run.config.train, run.split.params, run.terms)


def _training_batch(run: Run, shapes: Shapes) -> Batch:
  """What `data.batch.collate` makes, by its shapes: right-padded rows, tiles beside them, all pixels real."""
  B, T = shapes.batch, shapes.tokens
  of = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype)
  batch = Batch(
    tokens_BT=of((B, T), jnp.int32),
    valid_BT=of((B, T), jnp.bool_),
    image_slot_BT=of((B, T), jnp.int32),
    mask_ar_BT=of((B, T), jnp.bool_) if run.model.prefix_lm else None,
    target_index_BK=of((B, shapes.targets), jnp.int32),
    example_mask_B=of((B,), jnp.bool_),
  )
  if not shapes.tiles:
    return batch
  side = run.model.vision.image_size
  return dataclasses.replace(
    batch, pixels_NHWC=of((B * shapes.tiles, side, side, 3), jnp.uint8), normal=_NORMAL
  )


def _seen(run: Run, shapes: Shapes) -> dict[str, Any]:
  """The field of a batch that a frozen tower fills, as `FrozenVision` does."""
  side, dtype = run.model.vision.image_size, jnp.dtype(run.model.dtype)
  pixels = jax.ShapeDtypeStruct((shapes.batch * shapes.tiles, side, side, 3), jnp.float32)
  graphdef, state = nnx.split(run.vlm)
  tower = lambda state, pixels: nnx.merge(graphdef, state).vision(pixels.astype(dtype), None)
  features = jax.eval_shape(tower, state, pixels)
  before = any(objective.wants.vision for _, objective in run.terms.values())
  if before or any(name.startswith("connector.") for name in run.split.params):
    return {"vision": features}
  join = lambda state, features: nnx.merge(graphdef, state).connector(features)
  return {"features_NPD": jax.eval_shape(join, state, features)}


def _evaluated(
  run: Run, name: str, groups: Mapping[str, Any], *arguments: Any, rows: int, **static: Any
) -> Traced:
  """A program of `serving.scorer` with the model that is evaluated."""
  graphdef, state = nnx.split(run.vlm)
  with jax.set_mesh(run.mesh):
    traced = scorer.PROGRAMS[name].trace(scorer.Graph.of(graphdef), state, *arguments, **static)
  return Traced(traced, {"weights": state, **groups}, rows=rows)


def _cache(run: Run, batch: int, length: int) -> KVCache:
  """A cache as it is made for prompts, without places."""
  graphdef, state = nnx.split(run.vlm)
  return jax.eval_shape(lambda state: nnx.merge(graphdef, state).init_cache(batch, length), state)


def _prefix_length(run: Run, shapes: Shapes) -> int:
  least = shapes.tiles * (tokens_per_tile(run) + PER_TILE)
  return generation.bucket(max(least, 16), 16)


def _weights(run: Run) -> Any:
  return run.state.params


def _moments(run: Run) -> Any:
  return (run.state.opt_state, run.state.ema, run.state.step)


def _whole(run: Run) -> NamedSharding:
  return NamedSharding(run.mesh, PartitionSpec())


def _described(run: Run, shape: tuple[int, ...], dtype: Any, whole: bool = False) -> jax.ShapeDtypeStruct:
  place = _whole(run) if whole else axes.batch_sharding(run.mesh)
  return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=place)
