"""The one transformer block that encoders and decoders share, and a stack of them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from spatialvlm.core.attention import Attention, AttentionConfig, KVCache, Look, Read, at_places
from spatialvlm.core.axes import constrain, logical
from spatialvlm.core.mlp import Mlp
from spatialvlm.core.norm import NORMS
from spatialvlm.types import UserError


@dataclasses.dataclass(frozen=True)
class BlockConfig:
  """A pre-norm transformer block.

  Attributes:
    attention: sizes and parts of the attention; the residual stream's width is its.
    mlp_width: hidden units of the feed-forward network.
    norm: "layer" or "rms", with `eps` inside the root.
    activation: a key of `core.mlp.ACTIVATIONS`; `gated` multiplies it with a second projection.
    mlp_bias: whether its linear layers have biases.
    layer_scale: each branch is multiplied by a learned vector (CaiT, Touvron et al., 2021).
    out_norms: each branch ends in a norm of its own.
  """

  attention: AttentionConfig
  mlp_width: int
  norm: str
  eps: float
  activation: str
  gated: bool
  mlp_bias: bool
  layer_scale: bool = False
  out_norms: bool = False

  @property
  def width(self) -> int:
    """Width of the residual stream."""
    return self.attention.width


class Block(nnx.Module):
  """x + attn(norm(x)), then x + mlp(norm(x))."""

  def __init__(self, config: BlockConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs, out_scale: float = 1.0):
    norm = lambda: NORMS[config.norm](config.width, config.eps, dtype=dtype, rngs=rngs)
    self.attn_norm = norm()
    self.attn = Attention(config.attention, dtype=dtype, rngs=rngs, out_scale=out_scale)
    self.mlp_norm = norm()
    self.mlp = Mlp(
      config.width,
      config.mlp_width,
      activation=config.activation,
      gated=config.gated,
      bias=config.mlp_bias,
      dtype=dtype,
      rngs=rngs,
      out_scale=out_scale,
    )
    scale = lambda: nnx.Param(jnp.ones((config.width,), dtype), **logical("embed"))
    self.attn_scale, self.mlp_scale = (scale(), scale()) if config.layer_scale else (None, None)
    self.attn_out_norm, self.mlp_out_norm = (norm(), norm()) if config.out_norms else (None, None)

  def __call__(
    self, x_BTD, mask_BTS=None, angles=None, past=None, look: Look | None = None, at_BQ=None, change=None
  ) -> tuple[jax.Array, Read]:
    """Arguments as of `Attention`; returns the residual stream (B, T, D) and what the attention read.

    With `at_BQ` the stream is (B, Q, D), at these places alone: all that nothing reads is left out.
    """
    out_BTD, read = self.attn(self.attn_norm(x_BTD), mask_BTS, angles, past, look, at_BQ, change)
    x_BTD = x_BTD if at_BQ is None else at_places(x_BTD, at_BQ)
    x_BTD = x_BTD + _finished(out_BTD, self.attn_out_norm, self.attn_scale)
    out_BTD = self.mlp(self.mlp_norm(x_BTD))
    return x_BTD + _finished(out_BTD, self.mlp_out_norm, self.mlp_scale), read


def _finished(x_BTD: jax.Array, norm: nnx.Module | None, scale: nnx.Param | None) -> jax.Array:
  """What a branch adds to the residual stream."""
  x_BTD = x_BTD if norm is None else norm(x_BTD)
  return x_BTD if scale is None else x_BTD * scale[...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StackOutput:
  """What went through a stack of blocks.

  Attributes:
    x_BTD: the residual stream after the last block that ran.
    layers: by number, the residual stream (B, T, D) after so many blocks; 0 is what the first one reads.
    attention: by number, the attention's probabilities (B, N, T, S) in float32 in the block that makes the
      layer of this number, from 1 on; (B, N, Q, S) of the rows that were asked for.
    attention_mean: by number, their means over heads (B, T, S) in float32.
  """

  x_BTD: jax.Array
  layers: dict[int, jax.Array]
  attention: dict[int, jax.Array]
  attention_mean: dict[int, jax.Array]


class Hooks(Protocol):
  """What is done to a stack while it reads, block by block: the first is number 1."""

  def mask(self, number: int, mask_BTS: jax.Array) -> jax.Array:
    """What the queries of a block see, of what they would see."""

  def heads(self, number: int, out_BTNH: jax.Array) -> jax.Array:
    """What becomes of the outputs of a block's heads before they are joined."""

  def stream(self, number: int, x_BTD: jax.Array) -> jax.Array:
    """What becomes of the residual stream behind a block; 0 is what the first one reads."""


def layer_numbers(asked: Iterable[int], depth: int, what: str, first: int = 0) -> dict[int, int]:
  """Numbers from 0 to `depth` by what was asked for, which may count from the end: -1 is `depth`.

  Args:
    what: whose layers they are, for the message.
    first: least number that there is.

  Raises:
    UserError: a layer that is not there.
  """
  numbers = {layer: layer if layer >= 0 else layer + depth + 1 for layer in asked}
  for layer, number in numbers.items():
    if not first <= number <= depth:
      raise UserError(
        f"layer {layer}: this {what} has layers {first} to {depth}, or {first - depth - 1} to -1"
      )
  return numbers


def looks(
  heads: Iterable[int],
  mean: Iterable[int] = (),
  rows_BQ: jax.Array | None = None,
  traces: Mapping[int, jax.Array] | None = None,
) -> dict[int, Look]:
  """What is asked of each block, by the number of its layer: probabilities by head, of all queries or of the
  rows alone; their means; their gradient. Arguments as of `core.attention.Look`."""
  heads, mean, traces = set(heads), set(mean), traces or {}
  return {
    number: Look(number in heads, number in mean, rows_BQ, traces.get(number))
    for number in sorted(heads.union(mean, traces))
  }


class Stack(nnx.Module):
  """`depth` blocks. `remat` (may be set later) recomputes their activations in the backward pass.

  `apart` (may be set later) makes each block a program of its own, which is compiled once for all that are
  alike: for who reads a model outside of any `jax.jit`, one question with much to be given, where one program
  of all blocks would take longer to compile than to run.

  The layers that write into the residual stream start smaller by sqrt(2 depth) (GPT-2), so that the
  stream's variance at the top does not grow with depth.
  """

  def __init__(self, config: BlockConfig, depth: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
    out_scale = (2 * depth) ** -0.5
    self.layers = nnx.List([Block(config, dtype=dtype, rngs=rngs, out_scale=out_scale) for _ in range(depth)])
    self.remat = self.apart = False

  def __call__(self, x_BTD: jax.Array, mask_BTS=None, angles=None) -> jax.Array:
    """The residual stream (B, T, D) after the last block, without a cache. Arguments as of `read`."""
    return self.read(x_BTD, mask_BTS, angles).x_BTD

  def read(
    self,
    x_BTD: jax.Array,
    mask_BTS=None,
    angles=None,
    *,
    layers: Collection[int] = (),
    attention: Mapping[int, Look] | None = None,
    stop: int | None = None,
    past: Sequence[tuple[jax.Array, jax.Array, jax.Array]] | None = None,
    at_BQ: jax.Array | None = None,
    hooks: Hooks | None = None,
  ) -> StackOutput:
    """Runs the blocks, without a cache, and keeps what is asked for on the way.

    Args:
      mask_BTS: as of `Attention`, or a tuple of them, one a layer.
      layers: numbers as of `StackOutput`, none negative (`layer_numbers` makes them so).
      attention: by such a number, what of its probabilities is wanted (`looks`).
      stop: after so many blocks; None for all.
      past: as of `Attention`, one a layer; None where nothing stands before.
      at_BQ: places that the last block's stream is wanted of, which is then (B, Q, D): of the others it makes
        keys and values alone. None for all.
      hooks: change what is read on the way, and need masks; None: nothing does.
    """
    x_BTD = x_BTD if hooks is None else hooks.stream(0, x_BTD)
    streams, attended, means = ({0: x_BTD} if 0 in layers else {}), {}, {}
    attention = attention or {}
    past = past or (None,) * len(self.layers)
    blocks = list(zip(self.layers, self._masks(mask_BTS), past, strict=True))[:stop]
    for number, (layer, mask, before) in enumerate(blocks, 1):
      run = _remat if self.remat else _run
      if self.apart and hooks is None:
        run = functools.partial(_apart, self.remat)
      x_BTD = constrain(x_BTD, "batch", None, None)
      at = at_BQ if number == len(blocks) else None
      look, change = attention.get(number), None
      if hooks is not None:
        mask, change = hooks.mask(number, mask), functools.partial(hooks.heads, number)
      x_BTD, found_BNTS, mean_BTS = run(layer, x_BTD, mask, angles, before, look, at, change)
      x_BTD = x_BTD if hooks is None else hooks.stream(number, x_BTD)
      if number in layers:
        streams[number] = x_BTD
      if found_BNTS is not None:
        attended[number] = found_BNTS
      if mean_BTS is not None:
        means[number] = mean_BTS
    return StackOutput(x_BTD, streams, attended, means)

  def extend(self, x_BTD: jax.Array, mask_BTS, angles, cache: KVCache) -> tuple[jax.Array, KVCache]:
    """Runs T new tokens whose slots `cache.extend` has marked, and writes their keys and values."""
    start = cache.length - x_BTD.shape[1]
    keys, values = [], []
    for layer, mask, k, v in zip(self.layers, self._masks(mask_BTS), cache.keys, cache.values, strict=True):
      x_BTD, read = layer(constrain(x_BTD, "batch", None, None), mask, angles, (k, v, start))
      keys.append(read.keys)
      values.append(read.values)
    return x_BTD, dataclasses.replace(cache, keys=tuple(keys), values=tuple(values))

  def _masks(self, mask_BTS) -> tuple[Any, ...]:
    return mask_BTS if isinstance(mask_BTS, tuple) else (mask_BTS,) * len(self.layers)


_Found = tuple[jax.Array, jax.Array | None, jax.Array | None]


def _run(layer: Block, x_BTD, mask_BTS, angles, past, look: Look | None, at_BQ, change) -> _Found:
  x_BTD, read = layer(x_BTD, mask_BTS, angles, past, look=look, at_BQ=at_BQ, change=change)
  return x_BTD, read.probabilities, read.mean


def _remat(layer: Block, x_BTD, mask_BTS, angles, past, look: Look | None, at_BQ, change) -> _Found:
  # jax.checkpoint over split state, since nnx.remat tracks graph updates, which fail inside a gradient
  # that is taken over a part of the parameters only.
  graphdef, state = nnx.split(layer)
  run = lambda state, *inputs: _run(nnx.merge(graphdef, state), *inputs, at_BQ, change)
  return jax.checkpoint(run)(state, x_BTD, mask_BTS, angles, past, look)


def _apart(remat: bool, layer: Block, *inputs) -> _Found:
  *inputs, change = inputs
  assert change is None  # a closure, which no other call's program could be shared with
  return _program(*nnx.split(layer), *inputs, remat=remat)


@functools.partial(jax.jit, static_argnames=("graphdef", "remat"))
def _program(graphdef, state, x_BTD, mask_BTS, angles, past, look, at_BQ, *, remat: bool) -> _Found:
  def run(state, *inputs):
    return _run(nnx.merge(graphdef, state), *inputs, None)

  return (jax.checkpoint(run) if remat else run)(state, x_BTD, mask_BTS, angles, past, look, at_BQ)
