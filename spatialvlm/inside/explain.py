"""One question from inside: what is wanted, what memory that takes, and the record of it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping

import numpy as np

from spatialvlm import generation
from spatialvlm.core.block import layer_numbers
from spatialvlm.inside import lens as lens_lib
from spatialvlm.inside import reading
from spatialvlm.inside import rollout as rollout_lib
from spatialvlm.inside.asked import Asked
from spatialvlm.inside.lens import Translator
from spatialvlm.inside.record import Lens, Record, Vision
from spatialvlm.models.vlm import Vlm
from spatialvlm.processing.processor import Processor
from spatialvlm.types import LETTERS, Batch, UserError

# Layers of which patches are read by the lens, evenly taken; every one is a product with the vocabulary.
PATCH_LAYERS = 9
# Tokens of a free question's answer that are kept, and options of it that curves show.
ANSWER_TOKENS, LIKELIEST = 24, 5


@dataclasses.dataclass(frozen=True)
class Settings:
  """What is looked at.

  Attributes:
    layers: the decoder's layers of which attention is kept, from 1 on, -1 the last; empty: all.
    heads: of each head; False: their mean.
    words: from each word of the text; False: from the answer's place alone.
    rollout: attention rollout, which reads all layers and positions.
    gradient: gradient-weighted relevance, which needs a backward pass through the decoder.
    vision: the vision tower's attention.
    vision_gradient: gradient-weighted relevance carried on through the vision tower: a backward pass of it.
    memory: GiB that all of it may take beside the model.
  """

  layers: tuple[int, ...] = ()
  heads: bool = True
  words: bool = True
  rollout: bool = True
  gradient: bool = True
  vision: bool = True
  vision_gradient: bool = False
  memory: float = 4.0


def explain(
  model: Vlm,
  processor: Processor,
  asked: Asked,
  settings: Settings = Settings(),
  translators: Mapping[int, Translator] | None = None,
  name: str = "model",
  context: contextlib.AbstractContextManager | None = None,
) -> Record:
  """Everything of one question.

  Args:
    translators: of the tuned lens, by layer; None: the logit lens alone.
    name: of the model, for the page.
    context: of the mesh that the model is sharded over.

  Raises:
    UserError: a layer that is not there, more memory than may be taken, or a tower whose layers have no
      number.
  """
  rows = _rows(asked, settings)
  layers = _layers(model, settings)
  check(model, asked, settings)
  depth = model.config.text.depth
  with context or contextlib.nullcontext():
    seen = reading.see(model, asked, attention=settings.vision)
    looked = reading.look(
      model,
      asked,
      seen,
      rows=rows,
      layers=layers,
      heads=settings.heads,
      rollout=settings.rollout,
      gradient=settings.gradient,
      vision_gradient=settings.vision and settings.vision_gradient,
      streams=tuple(range(depth + 1)),
    )
    at = asked.image_at
    weighted = rollout_lib.relevance(looked.weighted, rows)[:, at] if settings.gradient else _NONE[0]
    vision = _vision(model, asked, seen, looked, weighted) if settings.vision else None
    free = not asked.option_ids
    option_ids = asked.option_ids or _likeliest(model, looked)
    read = lambda maps: lens_lib.read(model, looked.streams, option_ids, _evenly(depth), maps)
    logit = read(None)
    tuned = read(translators) if translators else None
    said = _said(model, processor, asked, seen) if free else LETTERS[int(logit.options[-1].argmax())]
  numbers, words = _word_rows(asked, rows)
  return Record(
    model=name,
    question=asked.question,
    name=asked.name,
    free=free,
    options=tuple(processor.decode([i]).strip() or repr(processor.decode([i])) for i in option_ids)
    if free
    else asked.options,
    right=asked.right,
    chosen=int(logit.options[-1].argmax()),
    said=said,
    pictures=asked.pictures,
    canvases=asked.canvases,
    tokens=asked.encoded.tokens,
    image_at=at,
    words=words,
    word_rows=numbers,
    rows=rows,
    layers=np.asarray(layers, np.int32),
    attention=looked.attention,
    rollout=rollout_lib.rollout(looked.mean, rows)[..., at] if settings.rollout else _NONE,
    gradient=weighted,
    vision=vision,
    lens=logit,
    tuned=tuned,
    vocabulary=_vocabulary(processor, logit, tuned),
  )


_NONE = np.zeros((1, 0, 0), np.float32)


def check(model: Vlm, asked: Asked, settings: Settings) -> None:
  """Says what would go wrong before anything is computed.

  Raises:
    UserError: a layer that is not there; more memory than `settings.memory`; a vision tower of several
      encoders.
  """
  layers, rows = _layers(model, settings), _rows(asked, settings)
  parts = getattr(model.config.vision, "parts", ())
  if settings.vision and len(parts) > 1:
    raise UserError(
      f"this model joins {len(parts)} encoders, whose layers have no number in common; leave their"
      f" attention out"
      " with --novision"
    )
  needed = memory(model, asked, settings)
  if needed > settings.memory * 2**30:
    tiles, heads = len(asked.encoded.tiles), model.config.text.block.attention.heads
    raise UserError(
      f"{tiles} tiles with {len(layers)} layers, {heads} heads and {len(rows)} places that look take about"
      f" {needed / 2**30:.1f} GiB beside the model, and memory={settings.memory:g}: ask for less with"
      " --layers=8,16, --noheads, --nowords, --norollout, --nogradient, --novision or --max_tiles, or give"
      " more"
      " with --memory"
    )


def memory(model: Vlm, asked: Asked, settings: Settings) -> int:
  """Bytes that an explanation takes at its largest, beside the model: an estimate, from the shapes."""
  text = model.config.text
  heads, depth = text.block.attention.heads, text.depth
  T, M = generation.bucket(len(asked.encoded.tokens) + 1, 16), len(asked.image_at)
  rows, layers = len(_rows(asked, settings)), len(_layers(model, settings))
  kept = layers * (heads if settings.heads else 1) * rows * M
  kept += depth * T * T * (settings.rollout + 2 * settings.gradient)  # traces and what comes of them
  kept += (depth + 1) * (1 + M) * text.block.width
  passing = heads * T * T * (5 if settings.gradient else 2)  # of one layer: scores, probabilities, gradients
  words = 3 * M * text.vocab_size
  return 4 * max(kept + passing, kept + words, _vision_memory(model, asked, settings))


def _vision_memory(model: Vlm, asked: Asked, settings: Settings) -> int:
  """Numbers that the pass of one tile holds, and what is kept of all."""
  if not settings.vision:
    return 0
  parts = getattr(model.config.vision, "parts", None)
  config = parts[0].vision if parts else model.config.vision
  heads, patches = config.block.attention.heads, (model.config.vision.grid) ** 2
  tiles, tokens = len(asked.encoded.tiles), patches // model.config.connector.factor**2
  passing = (heads + 2) * patches**2 + config.depth * patches**2 * (1 + 2 * settings.vision_gradient)
  return passing + tiles * (tokens * patches + config.depth * heads * patches)


def _layers(model: Vlm, settings: Settings) -> tuple[int, ...]:
  depth = model.config.text.depth
  asked = settings.layers or range(1, depth + 1)
  return tuple(sorted(set(layer_numbers(asked, depth, "decoder's attention", first=1).values())))


def _rows(asked: Asked, settings: Settings) -> np.ndarray:
  """Positions that look: of the words' tokens, and last the answer's place."""
  last = len(asked.encoded.tokens) - 1
  places = [at for word in asked.words for at in word.at] if settings.words else []
  return np.array([*(at for at in places if at != last), last], np.int32)


def _word_rows(asked: Asked, rows: np.ndarray) -> tuple[tuple[tuple[int, ...], ...], tuple[str, ...]]:
  """Of each word the numbers of its rows, and its text; of words that have no rows nothing."""
  number = {at: n for n, at in enumerate(rows.tolist())}
  kept = [word for word in asked.words if all(at in number for at in word.at)] if len(rows) > 1 else []
  return tuple(tuple(number[at] for at in word.at) for word in kept), tuple(word.text for word in kept)


def _evenly(depth: int) -> list[int]:
  """At most `PATCH_LAYERS` layers from the embeddings to the last."""
  return sorted({round(x) for x in np.linspace(0, depth, min(PATCH_LAYERS, depth + 1))})


def _vision(
  model: Vlm, asked: Asked, seen: reading.Seen, looked: reading.Looked, weighted: np.ndarray
) -> Vision:
  grid, factor = seen.features.grid, model.config.connector.factor
  gradient = np.zeros((0, 0), np.float32)
  if looked.features is not None:
    rows, columns = (side // factor for side in grid)
    of_tokens = weighted[-1].reshape(len(seen.rollout), rows, columns) / factor**2
    top = of_tokens.repeat(factor, axis=1).repeat(factor, axis=2).reshape(len(of_tokens), -1)
    gradient = reading.see_gradient(model, asked, looked.features, top)
  return Vision(side=grid[1], received=seen.received, rollout=seen.rollout, gradient=gradient)


def _likeliest(model: Vlm, looked: reading.Looked) -> tuple[int, ...]:
  """The tokens that are likeliest in the end, which stand in for options."""
  depth = model.config.text.depth
  last = lens_lib.read(model, {depth: looked.streams[depth]}, (0,), (depth,))
  return tuple(int(i) for i in last.answer_ids[-1][:LIKELIEST])


def _said(model: Vlm, processor: Processor, asked: Asked, seen: reading.Seen) -> str:
  """The beginning of the model's answer, greedy."""
  room = model.max_length - len(asked.encoded.tokens)
  if room < 1:
    return ""
  length = generation.bucket(len(asked.encoded.tokens) + 1, 16)
  batch: Batch = dataclasses.replace(
    reading.batch_of(asked, seen, length, model.config.prefix_lm), target_index_BK=None
  )
  found = generation.generate(
    model,
    batch,
    max_new_tokens=min(ANSWER_TOKENS, room),
    stop_ids=processor.stop_ids,
    pad_id=processor.pad_id,
  )
  return processor.decode(i for i in found[0] if i != processor.pad_id).strip()


def _vocabulary(processor: Processor, *lenses: Lens | None) -> dict[str, str]:
  """Texts of all tokens that the lenses name, white space made visible."""
  ids = {int(i) for lens in lenses if lens for part in (lens.patch_ids, lens.answer_ids) for i in part.flat}
  decode = lambda i: processor.decode([i], skip_special_tokens=False)
  return {str(i): decode(i).replace("\n", "⏎").replace("\t", "⇥") for i in sorted(ids)}
