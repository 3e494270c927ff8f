"""The products of a traced program, counted from its shapes.

A compiler's own count leaves out what it calls as a kernel and takes a loop's body once; this one is the same
for every device. Counted are matrix products and convolutions, a multiplication with its addition as 2;
norms, activations and softmax are not, as is usual. What is computed again in the backward pass counts again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from jax.extend import core
from jax.interpreters import partial_eval


def count(jaxpr: Any) -> float:
  """Operations of one run, without those that no result needs.

  A loop whose length the program does not say counts as one turn.
  """
  inner = getattr(jaxpr, "jaxpr", jaxpr)
  return _all(partial_eval.dce_jaxpr(inner, [True] * len(inner.outvars))[0])


def _all(jaxpr: Any) -> float:
  return sum(_of(equation) for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns)


def _of(equation: Any) -> float:
  name = equation.primitive.name
  if name == "dot_general":
    return _product(equation)
  if name == "conv_general_dilated":
    return _convolution(equation)
  parts = [_all(part) for part in _programs(equation.params)]
  if name == "cond":
    return max(parts, default=0.0)
  return _TIMES.get(name, lambda params: 1)(equation.params) * sum(parts)


# How often an equation's programs run: turns of a loop, blocks of a kernel's grid, devices of a mesh.
_TIMES = {
  "scan": lambda params: params["length"],
  "pallas_call": lambda params: math.prod(params["grid_mapping"].grid),
  "shard_map": lambda params: params["mesh"].size,
}


def _product(equation: Any) -> float:
  (contracted, _), _ = equation.params["dimension_numbers"]
  left = equation.invars[0].aval.shape
  return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _convolution(equation: Any) -> float:
  kernel = equation.invars[1].aval.shape
  outputs = equation.params["dimension_numbers"].rhs_spec[0]
  each = math.prod(size for axis, size in enumerate(kernel) if axis != outputs)
  return 2.0 * math.prod(equation.outvars[0].aval.shape) * each


def _programs(params: Any) -> Iterator[Any]:
  """The programs within an equation's parameters."""
  for name, value in params.items():
    if name in ("jvp_jaxpr_fun", "fwd_jaxpr_thunk", "bwd"):  # made when they are called
      continue
    for part in value if isinstance(value, (tuple, list)) else (value,):
      if isinstance(part, (core.Jaxpr, core.ClosedJaxpr)):
        yield part
