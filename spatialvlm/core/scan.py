"""Neighbouring blocks of one kind as one loop, so that the compiler sees one of them instead of all.

Weights stay where they are, layer by layer and under their names: inside of the program they are put one
above the other, and `jax.lax.scan` goes through them. While such a program runs it takes room for a copy of
these weights, on each device of its share.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from spatialvlm.core.axes import context_mesh, sharding_of

# A number that tells a layer from its neighbours, for those who prepare it from outside (random masks); no
# layer reads its own while it computes, so that layers which differ in it alone are of one kind.
OWN_NUMBER = "layer_id"


@dataclasses.dataclass(frozen=True)
class Parts:
  """What one block computes with.

  Attributes:
    graph: what it consists of.
    tree: structure of `leaves`.
    leaves: arrays of its variables, and of what it reads from before.
    kind: equal for blocks that one body can stand for.
  """

  graph: nnx.GraphDef
  tree: Any
  leaves: tuple[jax.Array, ...]
  kind: Any


def parts(layer: nnx.Module, mask: Any = None, past: Any = None) -> Parts:
  """Cuts a block, with what it alone reads, into structure and arrays.

  Args:
    mask: the array that its queries see keys by, or None.
    past: a pytree of what stands before, or None.
  """
  graph, state = nnx.split(layer)
  leaves, tree = jax.tree.flatten((state, past))
  kind = (_unnumbered(graph), tree, tuple(map(_shape, leaves)), None if mask is None else mask.dtype)
  return Parts(graph, tree, tuple(leaves), kind)


def runs(
  blocks: Sequence[Parts], ends: Collection[int] = (), alone: Collection[int] = ()
) -> Iterator[tuple[int, int]]:
  """(first, last + 1) of the longest runs of neighbours of one kind, in order, all blocks together.

  Args:
    ends: after so many blocks a run ends, since what stands there is wanted.
    alone: numbers, from 0 on, of blocks that are a run of their own.
  """
  first = 0
  for number in range(1, len(blocks) + 1):
    apart = number in ends or number in alone or number - 1 in alone
    if number == len(blocks) or apart or blocks[number].kind != blocks[first].kind:
      yield first, number
      first = number


def loop(
  blocks: Sequence[Parts],
  masks: Sequence[jax.Array | None],
  body: Callable[[nnx.Module, jax.Array, jax.Array | None, Any], tuple[jax.Array, Any]],
  x_BTD: jax.Array,
) -> tuple[jax.Array, Any]:
  """Runs neighbours of one kind, each on what the one before gives.

  Args:
    masks: one a block; equal ones, by identity, are kept once.
    body: (block, residual stream, its mask, what stands before) -> (residual stream, what is kept).

  Returns:
    The residual stream behind the last block, and what was kept, one above the other.
  """
  different = list({id(mask): mask for mask in masks}.values())
  if len(different) > 1:
    shape = jnp.broadcast_shapes(*(mask.shape for mask in different))
    table = jnp.stack([jnp.broadcast_to(mask, shape) for mask in different])
  places = [next(i for i, mask in enumerate(different) if mask is one) for one in masks]
  columns = list(zip(*(block.leaves for block in blocks), strict=True))
  # What all of them have in common (VeRA's projections, where a cache is written) is no part of the loop.
  shared = [all(leaf is column[0] for leaf in column) for column in columns]
  own = [_stacked(c, where) for c, s, where in zip(columns, shared, _places(blocks[0]), strict=True) if not s]

  def one(x_BTD, own_and_place):
    own, place = own_and_place
    given = iter(own)
    leaves = [c[0] if s else next(given) for c, s in zip(columns, shared, strict=True)]
    state, past = jax.tree.unflatten(blocks[0].tree, leaves)
    mask = different[0] if len(different) == 1 else table[place]
    return body(nnx.merge(blocks[0].graph, state), x_BTD, mask, past)

  return jax.lax.scan(one, x_BTD, (own, jnp.asarray(places, jnp.int32)), length=len(blocks))


def _unnumbered(graph: nnx.GraphDef) -> Any:
  return tuple(graph.nodes), tuple((key, what) for key, what in graph.attributes if key != OWN_NUMBER)


def _shape(leaf: Any) -> Any:
  return leaf.shape, leaf.dtype


def _places(block: Parts) -> list[Any]:
  """Where each leaf lies on the mesh of the program; None for those without names, and without a mesh."""
  mesh = context_mesh()
  if mesh is None:
    return [None] * len(block.leaves)
  state, past = jax.tree.unflatten(block.tree, block.leaves)
  is_variable = lambda leaf: isinstance(leaf, nnx.Variable)
  of_state = jax.tree.map(lambda v: sharding_of(v, mesh), state, is_leaf=is_variable)
  return [*jax.tree.leaves(of_state), *[None] * len(jax.tree.leaves(past))]


def _stacked(column: Sequence[jax.Array], sharding: Any) -> jax.Array:
  above = jnp.stack(column)
  if sharding is None:
    return above
  # Left to the compiler, each device might hold all of it.
  return jax.lax.with_sharding_constraint(above, jax.sharding.PartitionSpec(None, *sharding.spec))
