"""What `Vlm.read` can be asked for, and what it gives: a model's inside in one pass of each tower.

    wants = Wants(image=True, logits=True) | Wants(decoder_layers=(6,))
    outputs = vlm.read(batch, wants)

Objectives, probes and tests join their wants with `|` and share the outputs. What is not wanted is not
computed, and is None in the outputs.
"""

from __future__ import annotations

import dataclasses

import jax

from spatialvlm.types import Features


@dataclasses.dataclass(frozen=True)
class Wants:
  """Which fields of `Outputs` are wanted. Hashable, so that it may be a static argument of `jax.jit`.

  Attributes:
    vision, image, hidden, logits: whether the field of that name is.
    encoder_layers, decoder_layers: layers whose residual stream is wanted: 0 is what the first block reads, i
      what stands after i blocks, and negative numbers count from the end, -1 being the last.
    encoder_attention, attention: layers whose attention probabilities are wanted, numbered as above: layer i
      is the block that makes layer i, so the first is 1.
    encoder_attention_mean, attention_mean: layers of which their means over heads are wanted.
  """

  vision: bool = False
  image: bool = False
  encoder_layers: tuple[int, ...] = ()
  encoder_attention: tuple[int, ...] = ()
  decoder_layers: tuple[int, ...] = ()
  attention: tuple[int, ...] = ()
  encoder_attention_mean: tuple[int, ...] = ()
  attention_mean: tuple[int, ...] = ()
  hidden: bool = False
  logits: bool = False

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if not isinstance(value, bool):  # two wants are equal whatever the order of their layers
        object.__setattr__(self, field.name, tuple(sorted({int(layer) for layer in value})))

  def __or__(self, other: Wants) -> Wants:
    """All that either wants."""
    pairs = ((f.name, getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(self))
    return Wants(**{name: a or b if isinstance(a, bool) else a + b for name, a, b in pairs})

  @property
  def of_encoder(self) -> bool:
    """Whether anything from before the connector is wanted."""
    return self.vision or self.of_encoder_layers

  @property
  def of_encoder_layers(self) -> bool:
    """Whether the encoder's layers must be at hand, not its features alone."""
    return bool(self.encoder_layers or self.encoder_attention or self.encoder_attention_mean)

  @property
  def of_decoder(self) -> bool:
    """Whether the decoder must run."""
    return self.hidden or self.logits or bool(self.decoder_layers or self.attention or self.attention_mean)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outputs:
  """What was wanted; None elsewhere, and in the first four fields where the batch has no images.

  Shapes: N tiles, P' patches of a tile, P image tokens of a tile, B samples, T positions, K targets. Arrays
  have the model's dtype where no other is said. Layers are keys of dicts as they were asked for.

  Attributes:
    vision: image tokens before the connector, (N, P', D of the encoder), and their grid.
    image: image tokens after the connector (N, P, D); those of the batch, where it holds them.
    encoder_layers: residual streams (N, P', D of the encoder) of the patches alone, before any final norm.
    encoder_attention: probabilities (N, heads, T', T') in float32 over all tokens of the encoder, class token
      and registers first.
    decoder_layers: residual streams (B, T, D), before the final norm.
    attention: probabilities (B, heads, T, T) in float32, or (B, heads, Q, T) of the rows that were named;
      rows of padding say nothing. What a soft prompt takes of a row is missing from its sum.
    encoder_attention_mean, attention_mean: means over heads of all rows, (N, T', T') and (B, T, T) in
      float32.
    hidden: (B, T, D), after the final norm.
    logits: (B, K, V) in float32, of the tokens at `batch.target_index_BK`: each row is read at the position
      before its target, and only there the product with the vocabulary is made. Rows of targets that are none
      (index -1 or 0) are of position 0 and say nothing.
  """

  vision: Features | None = None
  image: jax.Array | None = None
  encoder_layers: dict[int, jax.Array] | None = None
  encoder_attention: dict[int, jax.Array] | None = None
  decoder_layers: dict[int, jax.Array] | None = None
  attention: dict[int, jax.Array] | None = None
  encoder_attention_mean: dict[int, jax.Array] | None = None
  attention_mean: dict[int, jax.Array] | None = None
  hidden: jax.Array | None = None
  logits: jax.Array | None = None
