"""A model that is asked the same question many times, a little changed each time, in programs of fixed shape.

A row is a prompt, a picture, and what is changed while it is read. Rows are read `rows` at a time, padded to
one length, so that whatever is asked, one program for each kind of intervention serves; pictures that several
rows share go through the vision tower once.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spatialvlm.causes.cases import Case
from spatialvlm.models.interventions import Interventions
from spatialvlm.models.outputs import Wants
from spatialvlm.models.vlm import Vlm
from spatialvlm.priors.prior import Tokens, windows
from spatialvlm.processing.processor import Processor
from spatialvlm.serving.scorer import Graph
from spatialvlm.types import Batch, PixelTable, UserError

_LENGTHS = 16
# A small batch is this part of a whole one.
_FEW = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
  """A case as a model reads it.

  Attributes:
    tokens: int32 (T,). slots: int32 (T,), of image tokens their number among all of the picture, else -1.
    prefix: how many of the tokens all see each other.
    option_ids: int32 (K,), the token by which each choice begins.
    words: the text of each token.
    places: what the image tokens show; None without a picture.
  """

  tokens: np.ndarray
  slots: np.ndarray
  prefix: int
  option_ids: np.ndarray
  words: tuple[str, ...]
  places: Tokens | None

  @property
  def behind(self) -> int:
    """The first position behind all image tokens."""
    return int(np.flatnonzero(self.slots >= 0)[-1]) + 1 if self.places is not None else 0

  def at(self, shown: np.ndarray) -> np.ndarray:
    """bool (T,): the positions of image tokens (I * P,)."""
    return (self.slots >= 0) & shown[np.maximum(self.slots, 0)]


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
  """One reading.

  Attributes:
    tiles: uint8 (I, S, S, 3); rows that share a picture hold the same array. None without a picture.
    order: int (I * P,), which image token stands where; None: as they are.
  """

  prompt: Prompt
  tiles: np.ndarray | None
  order: np.ndarray | None = None


class Reader:
  """A model with its processor, asked row by row.

  Attributes:
    vlm, processor: of the model. name: for tables.
    depth, heads: blocks of the decoder, and query heads of each.
    rows: of one batch.

  Raises:
    UserError: a language model by itself, or a model with priors, which rendered pictures would need too.
  """

  def __init__(self, vlm: Vlm, processor: Processor, rows: int = 32, name: str = "model"):
    if vlm.vision is None:
      raise UserError(f"{name}: a language model by itself, which reads no images; there is nothing to grey")
    if vlm.priors is not None:
      raise UserError(
        f"{name}: a model that priors tell of its pictures: who greys these must grey the priors too, which"
        " is not done; name a model without priors"
      )
    self.vlm = vlm
    graphdef, self._state = nnx.split(vlm)
    self._graph = Graph.of(graphdef)
    self.processor, self.rows, self.name = processor, rows, name
    self.depth = vlm.config.text.depth
    self.heads = vlm.config.text.block.attention.heads
    self.encoder_depth = getattr(vlm.config.vision, "depth", 0)
    self._length = 0
    self._width = vlm.config.text.block.width
    self._ids: dict[tuple[str, str], int] = {}

  # Prompts and pictures.

  def prompt(self, case: Case) -> Prompt:
    """A case as the model reads it.

    Raises:
      UserError: longer than its context; two choices begin with one token.
    """
    images = () if case.image is None else (case.image,)
    name = f"question {case.id} of {case.task}"
    encoded = self.processor.encode_prompt(images, case.text, case.answer_prefix, name, pixels=False)
    if case.lettered:
      ids = self.processor.letter_ids(len(case.choices), case.answer_prefix)
    else:
      ids = [self._first(choice, case.answer_prefix) for choice in case.choices]
    if len(set(ids)) < len(ids):
      raise UserError(f"{name}: two of its choices begin with the same token: {', '.join(case.choices)}")
    places = None
    if case.image is not None:
      tiler = self.processor.tiler
      side = round(self.processor.tokens_per_tile**0.5)
      if side**2 != self.processor.tokens_per_tile or not tiler.even:
        raise UserError(
          f"{self.name}: nobody knows what each image token shows; cut pictures as the checkpoint does"
        )
      places = Tokens(windows(*tiler.grid(*case.image.shape[:2])), side)
    words = tuple(self.processor.decode([int(token)], False) for token in encoded.tokens)
    slots = np.asarray(encoded.image_slot, np.int32)
    return Prompt(encoded.tokens, slots, encoded.prefix, np.asarray(ids, np.int32), words, places)

  def _first(self, choice: str, prefix: str) -> int:
    if (choice, prefix) not in self._ids:
      self._ids[choice, prefix] = self.processor.answer_ids(choice, prefix)[0]
    return self._ids[choice, prefix]

  def cut(self, image: np.ndarray) -> np.ndarray:
    """A picture's tiles, uint8 (I, S, S, 3)."""
    return self.processor.tiler(image).pixels

  def fit(self, prompts: Sequence[Prompt]) -> None:
    """Makes room for the longest of them, so that what is read next has one length."""
    longest = (
      max(len(prompt.tokens) for prompt in prompts) + 1
    )  # the last one's logits need a place behind it
    self._length = max(self._length, -(-longest // _LENGTHS) * _LENGTHS)

  @property
  def length(self) -> int:
    """Positions T of a row."""
    return self._length

  def pad(self, x_T: np.ndarray, fill: Any = 0) -> np.ndarray:
    """An array of a prompt's positions at those of a row."""
    return np.pad(x_T, (0, self._length - len(x_T)), constant_values=fill)

  # Readings.

  def ask(self, rows: Sequence[Row], changes: Interventions | None = None) -> np.ndarray:
    """Log-probabilities float32 (R, K) of the choices as what comes next, over the whole vocabulary.

    K is the most choices of any row; NaN beyond a row's own. `changes` has a row for each of `rows`.
    """
    most = max(len(row.prompt.option_ids) for row in rows)
    ids_RK = np.stack([np.resize(row.prompt.option_ids, most) for row in rows])
    call = lambda batch, some, index: _logprobs(self._graph, self._state, batch, some, ids_RK[index])
    found_RK = np.concatenate([np.asarray(part)[:count] for part, count in self._parts(rows, changes, call)])
    for row, found_K in zip(rows, found_RK, strict=True):
      found_K[len(row.prompt.option_ids) :] = np.nan
    return found_RK

  def streams(self, rows: Sequence[Row]) -> np.ndarray:
    """Residual streams (L + 1, R, T, D) of the decoder, before the first block and after each."""
    call = lambda batch, some, index: _streams(self._graph, self._state, batch)
    parts = [np.asarray(part)[:, :count] for part, count in self._parts(rows, None, call)]
    return np.concatenate(parts, axis=1)

  def attention(self, rows: Sequence[Row]) -> np.ndarray:
    """float32 (R, L, N, T): what the last position of each row looks at, in every block and head."""
    call = lambda batch, some, index: _attention(self._graph, self._state, batch)
    return np.concatenate([np.asarray(part)[:count] for part, count in self._parts(rows, None, call)])

  def layers(self, tiles: Sequence[np.ndarray], encoder_layers: tuple[int, ...]) -> dict[int, np.ndarray]:
    """Residual streams (V, P', D) of the vision tower by layer, of pictures of one tile each."""
    found: dict[int, list] = {layer: [] for layer in encoder_layers}
    for start in range(0, len(tiles), self.rows):
      index = np.minimum(np.arange(start, start + self.rows), len(tiles) - 1)
      pixels = np.concatenate([tiles[i] for i in index])
      out = _towers(self._graph, self._state, pixels, self.processor.normal, encoder_layers)
      for layer, x in out.items():
        found[layer].append(np.asarray(x, np.float32)[: len(tiles) - start])
    return {layer: np.concatenate(parts) for layer, parts in found.items()}

  def _parts(self, rows: Sequence[Row], changes: Interventions | None, call: Callable[..., Any]):
    """(what a call gives, how many rows of it count) of each batch of rows."""
    size = self._size(len(rows))
    for start in range(0, len(rows), size):
      index = np.minimum(np.arange(start, start + size), len(rows) - 1)
      count = min(size, len(rows) - start)
      some = None if changes is None else changes.rows(index)
      if some is not None and some.heads_out is not None and some.heads_out.kind_BT is not None:
        kind_BT = np.array(some.heads_out.kind_BT)
        kind_BT[count:] = -1  # rows that fill a batch are no part of its mean
        some = dataclasses.replace(some, heads_out=dataclasses.replace(some.heads_out, kind_BT=kind_BT))
      yield call(self._batch([rows[i] for i in index]), some, index), count

  def _batch(self, rows: Sequence[Row]) -> Batch:
    """Rows as one batch, each picture among them once."""
    self.fit([row.prompt for row in rows])
    pictures: dict[int, int] = {}
    shown = [row.tiles for row in rows if row.tiles is not None]
    each = max((len(tiles) for tiles in shown), default=1)
    kept = []
    for tiles in shown:
      if id(tiles) not in pictures:
        pictures[id(tiles)] = len(kept)
        kept.append(np.concatenate([tiles, np.zeros((each - len(tiles), *tiles.shape[1:]), tiles.dtype)]))
    tile_BI = np.zeros((len(rows), each), np.int32)
    for b, row in enumerate(rows):
      if row.tiles is not None:
        tile_BI[b] = pictures[id(row.tiles)] * each + np.arange(each)
    lengths_B = np.array([len(row.prompt.tokens) for row in rows])
    valid_BT = np.arange(self._length) < lengths_B[:, None]
    mask_ar_BT = None
    if self.processor.bidirectional:
      prefix_B = np.array([row.prompt.prefix for row in rows])
      mask_ar_BT = np.arange(self._length) >= prefix_B[:, None]
    return Batch(
      tokens_BT=np.stack([self.pad(row.prompt.tokens, self.processor.pad_id) for row in rows]),
      valid_BT=valid_BT,
      features_NPD=self._features(kept, len(rows)),
      tile_index_BI=tile_BI,
      image_slot_BT=np.stack([self.pad(_slots(row), -1) for row in rows]),
      mask_ar_BT=mask_ar_BT,
      target_index_BK=lengths_B[:, None].astype(np.int32),
    )

  def _size(self, count: int) -> int:
    """Rows of a batch: few where there are few, so that a clean reading costs no whole batch."""
    few = max(self.rows // _FEW, 1)
    return few if count <= few else self.rows

  def _features(self, pictures: Sequence[np.ndarray], rows: int) -> jax.Array:
    """Image tokens (N, P, D) of one picture, or of as many as a batch has rows."""
    if not pictures:
      return jnp.zeros((1, self.processor.tokens_per_tile, self._width), jnp.float32)
    count = 1 if len(pictures) == 1 else rows
    filled = [*pictures, *[pictures[-1]] * (count - len(pictures))]
    return _image_tokens(self._graph, self._state, np.concatenate(filled), self.processor.normal)


def _slots(row: Row) -> np.ndarray:
  slots = row.prompt.slots
  return (
    slots if row.order is None else np.where(slots >= 0, row.order[np.maximum(slots, 0)], -1).astype(np.int32)
  )


def _seen(pixels_NSSC: Any) -> dict[str, Any]:
  """The fields of a batch that shows pictures to nobody in particular."""
  nothing = jnp.zeros((1, 1), jnp.int32)
  return {"tokens_BT": nothing, "valid_BT": nothing.astype(bool), "pixels_NHWC": pixels_NSSC}


@functools.partial(jax.jit, static_argnums=(0, 3))
def _image_tokens(graph: Graph, state: Any, pixels_NSSC: jax.Array, normal: PixelTable) -> jax.Array:
  vlm = nnx.merge(graph.graphdef, state)
  return vlm.read(Batch(**_seen(pixels_NSSC), normal=normal), Wants(image=True)).image


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _towers(graph: Graph, state: Any, pixels_NSSC, normal: PixelTable, layers: tuple[int, ...]):
  vlm = nnx.merge(graph.graphdef, state)
  return vlm.read(Batch(**_seen(pixels_NSSC), normal=normal), Wants(encoder_layers=layers)).encoder_layers


@functools.partial(jax.jit, static_argnums=0)
def _logprobs(graph: Graph, state: Any, batch: Batch, changes: Interventions | None, ids_BK) -> jax.Array:
  vlm = nnx.merge(graph.graphdef, state)
  logits_BV = vlm.read(batch, Wants(logits=True), changes).logits[:, 0]
  return jnp.take_along_axis(jax.nn.log_softmax(logits_BV), ids_BK, axis=1)


@functools.partial(jax.jit, static_argnums=0)
def _streams(graph: Graph, state: Any, batch: Batch) -> jax.Array:
  vlm = nnx.merge(graph.graphdef, state)
  layers = tuple(range(vlm.config.text.depth + 1))
  found = vlm.read(batch, Wants(decoder_layers=layers)).decoder_layers
  return jnp.stack([found[layer] for layer in layers])


@functools.partial(jax.jit, static_argnums=0)
def _attention(graph: Graph, state: Any, batch: Batch) -> jax.Array:
  vlm = nnx.merge(graph.graphdef, state)
  blocks = tuple(range(1, vlm.config.text.depth + 1))
  last_B1 = batch.target_index_BK - 1
  found = vlm.read(batch, Wants(attention=blocks), rows_BQ=last_B1).attention
  return jnp.stack([found[block][:, :, 0] for block in blocks], axis=1)


def log_odds(logprobs_RK: np.ndarray, choice: int) -> np.ndarray:
  """(R,): log-odds of one choice against all others of a row."""
  own = logprobs_RK[..., choice]
  others = np.delete(logprobs_RK, choice, axis=-1)
  others = np.where(np.isnan(others), -np.inf, others)
  high = others.max(-1)
  return own - high - np.log(np.exp(others - high[..., None]).sum(-1))
