"""The layers of `core` as nodes, read off the modules themselves: whatever parts a layer has are written.

Values carry the suffixes of the modules' own code. `at` is a module's path, by which its weights are named.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from flax import nnx

from spatialvlm.core.attention import Attention
from spatialvlm.core.block import Block
from spatialvlm.core.mlp import Mlp
from spatialvlm.core.norm import LayerNorm, RMSNorm
from spatialvlm.export.onnx.graph import Graph
from spatialvlm.hub.save import whole

HIDDEN = np.finfo(np.float32).min


@dataclasses.dataclass(frozen=True)
class Kept:
  """Keys and values of the tokens before, and where those of all go: names of values."""

  keys: str
  values: str
  all_keys: str
  all_values: str


def floats(variable: nnx.Variable) -> np.ndarray:
  """A parameter in float32; what is kept in few bits is decoded."""
  return np.asarray(whole(variable), np.float32)


def linear(graph: Graph, layer: nnx.Linear, x: str, at: str) -> str:
  """x times the kernel, and the bias where there is one."""
  y = graph.form.product(graph, x, floats(layer.kernel), f"{at}.kernel")
  return y if layer.bias is None else graph.op("Add", y, graph.array(floats(layer.bias), f"{at}.bias"))


def norm(graph: Graph, layer: LayerNorm | RMSNorm, x: str, at: str) -> str:
  """Over the last axis."""
  scale = floats(layer.scale)
  if isinstance(layer, LayerNorm):
    names = graph.array(scale, f"{at}.scale"), graph.array(floats(layer.bias), f"{at}.bias")
    return graph.op("LayerNormalization", x, *names, axis=-1, epsilon=float(layer.eps))
  scale = scale + np.float32(layer.offset)
  return graph.op("Mul", unit(graph, x, layer.eps), graph.array(scale, f"{at}.scale"))


def unit(graph: Graph, x: str, eps: float) -> str:
  """x divided by its root mean square over the last axis."""
  square = graph.op("ReduceMean", graph.op("Pow", x, graph.number(2)), axes=[-1], keepdims=1)
  return graph.op("Div", x, graph.op("Sqrt", graph.op("Add", square, graph.number(eps))))


def activation(graph: Graph, kind: str, x: str) -> str:
  """One of `core.mlp.ACTIVATIONS`."""
  mul, number = (lambda *of: graph.op("Mul", *of)), graph.number
  if kind == "silu":
    return mul(x, graph.op("Sigmoid", x))
  if kind == "quick_gelu":
    return mul(x, graph.op("Sigmoid", mul(x, number(1.702))))
  if kind == "gelu":
    inner = graph.op("Erf", mul(x, number(2**-0.5)))
  elif kind == "gelu_tanh":
    cube = mul(mul(x, mul(x, x)), number(0.044715))
    inner = graph.op("Tanh", mul(graph.op("Add", x, cube), number((2 / np.pi) ** 0.5)))
  else:
    raise ValueError(f"activation {kind!r} is not written")
  return mul(mul(x, number(0.5)), graph.op("Add", inner, number(1)))


def mlp(graph: Graph, layer: Mlp, x: str, at: str) -> str:
  """Plain or gated."""
  hidden = linear(graph, layer.up_proj, x, f"{at}.up_proj")
  if layer.gated:
    gate = activation(graph, layer.activation, linear(graph, layer.gate_proj, x, f"{at}.gate_proj"))
    hidden = graph.op("Mul", gate, hidden)
  else:
    hidden = activation(graph, layer.activation, hidden)
  return linear(graph, layer.down_proj, hidden, f"{at}.down_proj")


def attention(
  graph: Graph,
  layer: Attention,
  x: str,
  at: str,
  bias: str | None = None,
  angles: tuple[str, str] | None = None,
  kept: Kept | None = None,
) -> str:
  """softmax(scale q k^T + bias) v, through the output layer.

  Args:
    bias: (B, 1, T, S) or what broadcasts to it, added to the scores; None where all see all.
    angles: cosines and sines (B, 1, T, H / 2); None where nothing is turned.
    kept: what stands before the tokens of `x`; None where nothing does.
  """
  config = layer.config
  heads, kv_heads, size = config.heads, config.kv_heads, config.head_dim
  q, k, v = (linear(graph, getattr(layer, f"{n}_proj"), x, f"{at}.{n}_proj") for n in "qkv")
  if layer.q_norm is not None:
    q, k = norm(graph, layer.q_norm, q, f"{at}.q_norm"), norm(graph, layer.k_norm, k, f"{at}.k_norm")
  by_head = lambda y, count: graph.transpose(graph.reshape(y, 0, -1, count, size), 0, 2, 1, 3)
  q, k, v = by_head(q, heads), by_head(k, kv_heads), by_head(v, kv_heads)
  if angles is not None:
    q, k = turned(graph, q, angles), turned(graph, k, angles)
  q = graph.op("Mul", q, graph.number(size**-0.5 if config.scale is None else config.scale))
  q, k, v = graph.half(q), graph.half(k), graph.half(v)
  if kept is not None:
    k = graph.op("Concat", kept.keys, k, axis=2, out=kept.all_keys)
    v = graph.op("Concat", kept.values, v, axis=2, out=kept.all_values)
  grouped = heads != kv_heads
  q = graph.reshape(q, 0, kv_heads, -1, size) if grouped else q  # query heads of one key-value head, in a row
  scores = graph.op("MatMul", q, graph.transpose(k, 0, 1, 3, 2))
  scores = graph.full(graph.reshape(scores, 0, heads, -1, 0) if grouped else scores)
  if config.softcap is not None:
    cap = graph.number(config.softcap)
    scores = graph.op("Mul", graph.op("Tanh", graph.op("Div", scores, cap)), cap)
  scores = scores if bias is None else graph.op("Add", scores, bias)
  p = graph.half(graph.op("Softmax", scores, axis=-1))
  p = graph.reshape(p, 0, kv_heads, -1, 0) if grouped else p
  y = graph.full(graph.op("MatMul", p, v))
  y = graph.reshape(y, 0, heads, -1, size) if grouped else y
  y = graph.reshape(graph.transpose(y, 0, 2, 1, 3), 0, -1, heads * size)
  return linear(graph, layer.o_proj, y, f"{at}.o_proj")


def turned(graph: Graph, x: str, angles: tuple[str, str]) -> str:
  """(B, N, T, H): the pairs (x[i], x[i + H/2]) turned, as `core.rope.rotate`."""
  cos, sin = angles
  mul = lambda a, b: graph.op("Mul", a, b)
  first, second = graph.split(x, -1)
  left = graph.op("Sub", mul(first, cos), mul(second, sin))
  right = graph.op("Add", mul(second, cos), mul(first, sin))
  return graph.op("Concat", left, right, axis=-1)


def block(
  graph: Graph, layer: Block, x: str, at: str, bias=None, angles=None, kept: Kept | None = None
) -> str:
  """The residual stream after a block; arguments as of `attention`."""
  branch = attention(
    graph, layer.attn, norm(graph, layer.attn_norm, x, f"{at}.attn_norm"), f"{at}.attn", bias, angles, kept
  )
  x = graph.op("Add", x, _finished(graph, branch, layer.attn_out_norm, layer.attn_scale, f"{at}.attn"))
  branch = mlp(graph, layer.mlp, norm(graph, layer.mlp_norm, x, f"{at}.mlp_norm"), f"{at}.mlp")
  return graph.op("Add", x, _finished(graph, branch, layer.mlp_out_norm, layer.mlp_scale, f"{at}.mlp"))


def _finished(graph: Graph, x: str, out_norm, scale, at: str) -> str:
  """What a branch adds to the residual stream."""
  x = x if out_norm is None else norm(graph, out_norm, x, f"{at}_out_norm")
  return x if scale is None else graph.op("Mul", x, graph.array(floats(scale), f"{at}_scale"))
