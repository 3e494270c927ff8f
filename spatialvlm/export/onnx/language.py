"""The language model's graphs: the table of tokens, and the decoder with its cache, apart or as one.

Names of inputs and outputs are those that Hugging Face's exporters have, which transformers.js goes by.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spatialvlm.core.rope import rope_frequencies
from spatialvlm.export.onnx import layers
from spatialvlm.export.onnx.graph import Graph, Value
from spatialvlm.export.onnx.numbers import Form
from spatialvlm.models.decoder import Decoder
from spatialvlm.models.vlm import Vlm

# transformers.js gives an empty cache its batch by this very name, and 0 to every other free size.
BATCH = "batch_size"
Built = tuple[Graph, list[Value], list[Value]]


def embedding(vlm: Vlm, form: Form) -> Built:
  """int64 ids (B, T) to float32 embeddings (B, T, D)."""
  graph = Graph("embed_tokens", form)
  ids = Value("input_ids", "int64", (BATCH, "sequence_length"))
  _embedded(graph, vlm.decoder, ids.name, out="inputs_embeds")
  width = vlm.config.text.block.width
  return graph, [ids], [Value("inputs_embeds", "float32", (BATCH, "sequence_length", width))]


def decoder(vlm: Vlm, form: Form) -> Built:
  """Embedded tokens behind a cache to logits and the longer cache.

  `num_logits_to_keep`: of so many last positions the logits are computed; of all where it is 0.
  """
  graph = Graph("decoder_model_merged", form)
  x = Value("inputs_embeds", "float32", (BATCH, "sequence_length", vlm.config.text.block.width))
  inputs, outputs = _decoder(graph, vlm.decoder, x.name)
  return graph, [x, *inputs], outputs


def whole(vlm: Vlm, form: Form) -> Built:
  """A language model by itself: as `decoder`, of tokens."""
  graph = Graph("model", form)
  ids = Value("input_ids", "int64", (BATCH, "sequence_length"))
  inputs, outputs = _decoder(graph, vlm.decoder, _embedded(graph, vlm.decoder, ids.name))
  return graph, [ids, *inputs], outputs


def _embedded(graph: Graph, model: Decoder, ids: str, out: str = "") -> str:
  x = graph.form.rows(graph, ids, layers.floats(model.embed.embedding), "decoder.embed.embedding")
  scale = model.config.embed_scale
  if scale != 1:
    return graph.op("Mul", x, graph.number(scale), out=out)
  return graph.op("Identity", x, out=out) if out else x


def _decoder(graph: Graph, model: Decoder, x: str) -> tuple[list[Value], list[Value]]:
  """Adds the blocks and the head: further inputs, and outputs."""
  config, cache = model.config, graph.form.cache
  attention = config.block.attention
  inputs = [
    Value("attention_mask", "int64", (BATCH, "total_sequence_length")),
    Value("position_ids", "int64", (BATCH, "sequence_length")),
    Value("num_logits_to_keep", "int64", ()),
  ]
  outputs = [Value("logits", "float32", (BATCH, "num_logits", config.vocab_size))]
  biases, angles = _biases(graph, config, x), _angles(graph, config)
  for number, layer in enumerate(model.stack.layers):
    past, present = f"past_key_values.{number}", f"present.{number}"
    for part in ("key", "value"):
      shape = (BATCH, attention.kv_heads, "{}", attention.head_dim)
      of = lambda length, shape=shape: tuple(length if size == "{}" else size for size in shape)
      inputs.append(Value(f"{past}.{part}", cache, of("past_sequence_length")))
      outputs.append(Value(f"{present}.{part}", cache, of("total_sequence_length")))
    kept = layers.Kept(f"{past}.key", f"{past}.value", f"{present}.key", f"{present}.value")
    x = layers.block(graph, layer, x, f"decoder.stack.layers.{number}", biases[number], angles, kept)
  x = layers.norm(graph, model.norm, _last(graph, x), "decoder.norm")
  _head(graph, model, x)
  return inputs, outputs


def _last(graph: Graph, x: str) -> str:
  """Of (B, T, D) the last `num_logits_to_keep` positions, all of them for 0."""
  length = graph.size(x, 1)
  wanted = graph.reshape("num_logits_to_keep", 1)
  first = graph.op("Max", graph.op("Sub", length, wanted), graph.integers(0))
  every = graph.op("Equal", wanted, graph.integers(0))
  first = graph.op("Where", every, graph.integers(0), first)
  return graph.op("Slice", x, first, length, graph.integers(1))


def _head(graph: Graph, model: Decoder, x: str) -> None:
  if model.tied:
    kernel, name = layers.floats(model.embed.embedding).T, "decoder.embed.head"
  else:
    kernel, name = layers.floats(model.lm_head.kernel), "decoder.lm_head.kernel"
  logits, cap = graph.form.product(graph, x, np.ascontiguousarray(kernel), name), model.config.softcap
  if cap is not None:
    capped = graph.op("Tanh", graph.op("Div", logits, graph.number(cap)))
    logits = graph.op("Mul", capped, graph.number(cap))
  graph.op("Identity", logits, out="logits")


def _angles(graph: Graph, config) -> tuple[str, str]:
  """Cosines and sines (B, 1, T, H / 2) of the tokens' positions."""
  turns = rope_frequencies(config.block.attention.head_dim, config.rope_theta, config.rope_scaling)
  places = graph.unsqueeze(graph.cast("position_ids", np.float32), 1, 3)
  angles = graph.op("Mul", places, graph.array(np.asarray(turns, np.float32), "decoder.frequencies"))
  return graph.op("Cos", angles), graph.op("Sin", angles)


def _biases(graph: Graph, config, x: str) -> Sequence[str]:
  """What is added to the scores of each layer, (B, 1, T, S): 0 where a token sees another.

  It sees those in slots before it and its own, but none that the mask hides; in layers with a window, none
  that stands so many positions before it.
  """
  length, total = graph.size(x, 1), graph.size("attention_mask", 1)
  scalar = lambda name: graph.op("Squeeze", name, graph.integers(0))
  slots = graph.op("Range", graph.constant(0, np.int64), scalar(total), graph.constant(1, np.int64))
  own = graph.op("Slice", slots, graph.op("Sub", total, length), total, graph.integers(0))
  before = graph.op("LessOrEqual", graph.unsqueeze(slots, 0), graph.unsqueeze(own, 1))  # (T, S)
  real = graph.unsqueeze(graph.cast("attention_mask", np.bool_), 1, 2)  # (B, 1, 1, S)
  seen = graph.op("And", real, before)
  hidden = lambda seen: graph.op("Where", seen, graph.number(0), graph.number(layers.HIDDEN))
  by_size = {0: hidden(seen)}
  for size in sorted(set(config.windows) - {0}):
    count = graph.op("CumSum", "attention_mask", graph.constant(1, np.int64))
    keys = graph.unsqueeze(graph.op("Sub", count, graph.integers(1)), 1, 2)
    queries = graph.unsqueeze("position_ids", 1, 3)
    near = graph.op("Less", graph.op("Sub", queries, keys), graph.integers(size))
    by_size[size] = hidden(graph.op("And", seen, near))
  return [by_size[size] for size in config.windows or (0,) * config.depth]
