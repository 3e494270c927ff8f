"""A model's eyes as a graph: pixels to image tokens; and an encoder that stands alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from spatialvlm.export.onnx import layers
from spatialvlm.export.onnx.graph import Graph, Value
from spatialvlm.export.onnx.language import BATCH, Built
from spatialvlm.export.onnx.numbers import Form, halved
from spatialvlm.models.connector import Connector
from spatialvlm.models.encoders import PatchEmbed, VisionEncoder
from spatialvlm.models.joined import EPS, JoinedEncoder, nearest
from spatialvlm.models.positions import plane_angles, position_ids, resample, stretched
from spatialvlm.models.vlm import Vlm

PIXELS, MASK = "pixel_values", "pixel_attention_mask"


def eyes(vlm: Vlm, form: Form) -> Built:
  """Tiles (B, I, 3, S, S) to image tokens (N, P, D) of those tiles that are not all 0, in order.

  `pixel_attention_mask` (B, I, S, S): true at real pixels. Tiles of zeros are padding, as in transformers.
  """
  graph, config = Graph("vision_encoder", form), vlm.config
  side, channels = config.vision.image_size, config.vision.channels
  pixels = graph.reshape(PIXELS, -1, channels, side, side)
  real = graph.op("ReduceMax", graph.op("Abs", pixels), axes=[1, 2, 3], keepdims=0)
  real = graph.op("Greater", real, graph.number(0))
  pixels = graph.op("Compress", pixels, real, axis=0)
  mask = graph.op("Compress", graph.reshape(MASK, -1, side, side), real, axis=0)
  x, grid = _tower(graph, vlm.vision, pixels, mask)
  x = _connected(graph, vlm.connector, x, grid)
  graph.op("Identity", x, out="image_features")
  tokens = grid[0] * grid[1] // config.connector.factor**2
  inputs = [
    Value(PIXELS, "float32", (BATCH, "num_images", channels, side, side)),
    Value(MASK, "bool", (BATCH, "num_images", side, side)),
  ]
  return graph, inputs, [Value("image_features", "float32", ("num_tiles", tokens, config.text.block.width))]


def encoder(model: VisionEncoder, side: int, form: Form) -> Built:
  """Images (B, 3, S, S) of this side to `last_hidden_state` (B, T, D), as transformers' models give it."""
  graph, config = Graph("model", form), model.config
  x, grid = _encoded(graph, model, PIXELS, None, (side, side), "vision")
  x = layers.norm(graph, model.norm, x, "vision.norm") if config.final_norm == "tokens" else x
  graph.op("Identity", x, out="last_hidden_state")
  tokens = config.prefix + grid[0] * grid[1]
  inputs = [Value(PIXELS, "float32", (BATCH, config.channels, side, side))]
  return graph, inputs, [Value("last_hidden_state", "float32", (BATCH, tokens, config.width))]


def _tower(graph: Graph, tower, pixels: str, mask: str) -> tuple[str, tuple[int, int]]:
  """Patches (N, P, D) that the connector reads, and their grid."""
  side = tower.config.image_size
  if not isinstance(tower, JoinedEncoder):
    return _patches(graph, tower, pixels, mask, (side, side), "vision")
  parts = []
  for number, (part, one) in enumerate(zip(tower.config.parts, tower.encoders, strict=True)):
    at = f"vision.encoders.{number}"
    to = side if number == 0 else nearest(side, part.vision.patch_size)
    own, own_mask = pixels, mask
    if to != side:
      own = _resized(graph, pixels, side, to, "cubic", f"{at}.resize")
      take = np.asarray(jax.image.resize(jnp.arange(side, dtype=jnp.int32), (to,), "nearest"), np.int64)
      for axis in (1, 2):
        own_mask = graph.op("Gather", own_mask, graph.constant(take, np.int64), axis=axis)
    if not part.keeps_pixels:
      row = lambda values: graph.constant(np.asarray(values, np.float32).reshape(1, -1, 1, 1), np.float32)
      own = graph.op("Add", graph.op("Mul", own, row(part.scale)), row(part.shift))
    parts.append(_patches(graph, one, own, own_mask, (to, to), at))
  grid = parts[0][1]
  if len(parts) == 1:
    return parts[0]
  joined = [
    layers.unit(graph, _on_grid(graph, *part, grid, f"vision.grid.{i}"), EPS) for i, part in enumerate(parts)
  ]
  return graph.op("Concat", *joined, axis=-1), grid


def _patches(
  graph: Graph, model: VisionEncoder, pixels: str, mask, size, at: str
) -> tuple[str, tuple[int, int]]:
  """Of one encoder, what `VisionConfig.feature_layer` says, without the tokens before the patches."""
  config = model.config
  x, grid = _encoded(graph, model, pixels, mask, size, at, config.feature_layer)
  if config.feature_layer is None and config.final_norm == "tokens":
    x = layers.norm(graph, model.norm, x, f"{at}.norm")
  if config.prefix:
    first, end = graph.integers(config.prefix), graph.integers(config.prefix + grid[0] * grid[1])
    x = graph.op("Slice", x, first, end, graph.integers(1))
  return x, grid


def _encoded(
  graph: Graph, model: VisionEncoder, pixels: str, mask: str | None, size: tuple[int, int], at: str, stop=None
) -> tuple[str, tuple[int, int]]:
  """The residual stream (N, T, D) after `stop` blocks, None for all; and the grid."""
  config = model.config
  grid = rows, columns = size[0] // config.patch_size, size[1] // config.patch_size
  x = _patched(graph, model.patch_embed, pixels, f"{at}.patch_embed")
  bias, angles = None, None
  table = layers.floats(model.positions) if hasattr(model, "positions") else None
  if config.positions == "navit" and mask is not None:
    places, bias = _navit(graph, mask, grid, config)
    x = graph.op("Add", x, graph.op("Gather", graph.array(table, f"{at}.positions"), places, axis=0))
  elif config.positions == "navit":
    places = np.asarray(position_ids(jnp.ones((1, rows, columns), bool), config.grid)).reshape(-1)
    x = graph.op("Add", x, graph.array(table[places], f"{at}.positions"))
  elif config.positions.startswith("bicubic"):
    own = table[int(config.class_token) :]
    placed = np.asarray(resample(jnp.asarray(own), rows, columns, config.positions == "bicubic_antialias"))
    x = graph.op("Add", x, graph.array(placed, f"{at}.positions"))
  elif config.positions == "rope":
    head = config.block.attention.head_dim
    angles = tuple(
      graph.array(np.asarray(angle)[:, None], f"{at}.{name}")
      for name, angle in zip(
        ("cos", "sin"), plane_angles(rows, columns, head, config.rope_theta, config.prefix), strict=True
      )
    )
  x = _led(graph, model, x, table, at)
  if config.embedding_norm:
    x = layers.norm(graph, model.embedding_norm, x, f"{at}.embedding_norm")
  for number, layer in enumerate(list(model.stack.layers)[:stop]):
    x = layers.block(graph, layer, x, f"{at}.stack.layers.{number}", bias, angles)
  return x, grid


def _patched(graph: Graph, layer: PatchEmbed, pixels: str, at: str) -> str:
  """(N, P, D). Its weights are few, and are kept in float32, or in float16 where products are of it."""
  kernel = layers.floats(layer.kernel).transpose(3, 2, 0, 1)
  if graph.form.half:
    kernel = halved(kernel, f"{at}.kernel")
  p = kernel.shape[-1]
  weights = graph.array(kernel, f"{at}.kernel")
  x = graph.full(graph.op("Conv", graph.half(pixels), weights, strides=[p, p], kernel_shape=[p, p]))
  x = graph.transpose(graph.reshape(x, 0, kernel.shape[0], -1), 0, 2, 1)
  return x if layer.bias is None else graph.op("Add", x, graph.array(layers.floats(layer.bias), f"{at}.bias"))


def _led(graph: Graph, model: VisionEncoder, x: str, table: np.ndarray | None, at: str) -> str:
  """With class token and registers before the patches."""
  parts = []
  if model.config.class_token:
    place = 0 if table is None else table[:1]
    parts.append(layers.floats(model.class_token) + place)
  if model.config.registers:
    parts.append(layers.floats(model.registers))
  if not parts:
    return x
  lead = np.concatenate(parts).astype(np.float32)
  count = graph.op("Concat", graph.size(x, 0), graph.integers(*lead.shape), axis=0)
  lead = graph.op("Expand", graph.array(lead[None], f"{at}.lead"), count)
  return graph.op("Concat", lead, x, axis=1)


def _navit(graph: Graph, mask: str, grid: tuple[int, int], config) -> tuple[str, str]:
  """Rows of the table for each patch (N, P), and what hides patches of no real pixel (N, 1, 1, P).

  As `models.positions.position_ids`. A place follows from a quotient that must be rounded rightly, which
  runtimes do not promise; so those of every count are written out.
  """
  rows, columns = grid
  p = config.patch_size
  real = graph.unsqueeze(graph.cast(mask, np.float32), 1)
  real = graph.op("MaxPool", real, kernel_shape=[p, p], strides=[p, p])  # (N, 1, rows, columns)
  valid = graph.cast(graph.reshape(real, 0, rows, columns), np.int64)

  def cells(line: str, size: int) -> str:  # (N, size)
    known = np.asarray(stretched(jnp.arange(size + 1), size, config.grid), np.int64)
    whole = graph.op("ReduceSum", line, graph.integers(1), keepdims=0)
    return graph.op("Gather", graph.constant(known, np.int64), whole, axis=0)

  first = graph.constant(0, np.int64)
  down = cells(graph.op("Gather", valid, first, axis=2), rows)
  across = cells(graph.op("Gather", valid, first, axis=1), columns)
  places = graph.op("Mul", graph.unsqueeze(down, 2), graph.integers(config.grid))
  places = graph.op("Mul", graph.op("Add", places, graph.unsqueeze(across, 1)), valid)
  seen = graph.cast(graph.reshape(valid, 0, 1, 1, rows * columns), np.bool_)
  bias = graph.op("Where", seen, graph.number(0), graph.number(layers.HIDDEN))
  return graph.reshape(places, 0, rows * columns), bias


def _connected(graph: Graph, layer: Connector, x: str, grid: tuple[int, int]) -> str:
  """Image tokens of patches: squares of them joined, then the layers."""
  config, (rows, columns) = layer.config, grid
  factor = config.factor
  if factor > 1:
    width = layer_width(layer) // factor**2
    x = graph.reshape(x, -1, rows // factor, factor, columns // factor, factor * width)
    x = graph.transpose(x, 0, 1, 3, 2, 4)
    x = graph.reshape(x, -1, rows * columns // factor**2, factor**2 * width)
  if layer.norm is not None:
    x = layers.norm(graph, layer.norm, x, "connector.norm")
  if layer.hidden is not None:
    x = layers.activation(graph, config.activation, layers.linear(graph, layer.hidden, x, "connector.hidden"))
  return layers.linear(graph, layer.proj, x, "connector.proj")


def layer_width(layer: Connector) -> int:
  """What the connector's first layer reads."""
  return (layer.proj if layer.hidden is None else layer.hidden).kernel.shape[0]


def _resized(graph: Graph, x: str, old: int, new: int, method: str, name: str) -> str:
  """(N, C, old, old) to (N, C, new, new): what `jax.image.resize` does is linear along each axis."""
  matrix = np.asarray(jax.image.resize(jnp.eye(old, dtype=jnp.float32), (new, old), method))
  down = graph.op("MatMul", graph.array(matrix, f"{name}.down"), x)
  return graph.op("MatMul", down, graph.array(np.ascontiguousarray(matrix.T), f"{name}.across"))


def _on_grid(graph: Graph, x: str, own: tuple[int, int], grid: tuple[int, int], name: str) -> str:
  """(N, P, D) on another grid; both are square."""
  if own == grid:
    return x
  x = graph.transpose(x, 0, 2, 1)
  x = _resized(graph, graph.reshape(x, 0, 0, *own), own[0], grid[0], "linear", name)
  return graph.transpose(graph.reshape(x, 0, 0, grid[0] * grid[1]), 0, 2, 1)
