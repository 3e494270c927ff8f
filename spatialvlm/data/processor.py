"""The processor: conversations and images into token ids and tiles, without torch.

Its text and ids are those of transformers' `Idefics3Processor` and `SmolVLMProcessor` (version 5.23), its
pixels those of their PIL image processors.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from spatialvlm.data import arrays, prompts
from spatialvlm.data import images as image_lib
from spatialvlm.data import processor_files as files
from spatialvlm.data.expansion import Expander
from spatialvlm.types import Example, ImageLayout, Turn, UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded:
  """One conversation, ready to be put into a batch.

  Attributes:
    tokens: int32 (T,).
    loss_mask: bool (T,), true at the tokens that are to be predicted: each answer and the
      `<end_of_utterance>` after it.
    image_slot: int32 (T,), for an image token its place among the example's I * P image tokens, else -1.
    tiles: float32 (I, S, S, 3), normalised, of all images in order; I is 0 without images.
    pixel_mask: bool (I, S, S), true at real pixels; None, as always here, where all are.
    images: how many tiles each image became.
    dense: the example's dense targets, untouched.
  """

  tokens: np.ndarray
  loss_mask: np.ndarray
  image_slot: np.ndarray
  tiles: np.ndarray
  pixel_mask: np.ndarray | None = None
  images: tuple[int, ...] = ()
  id: str = ""
  task: str = ""
  source: str = ""
  dense: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


class Processor:
  """Tokenizer, chat template and tiler of one checkpoint. Safe to use from several threads.

  Attributes:
    tokenizer: the `tokenizers.Tokenizer`.
    tiler: how images become tiles.
    template: the chat template.
    tokens_per_tile: image tokens of one tile.
    image_id, pad_id: token ids.
    stop_ids: ids that end an answer: `<end_of_utterance>`, and what generation_config.json names.
    max_length: longest sequence that the decoder takes.
    padding_side: of `__call__`, by default.
  """

  def __init__(
    self,
    tokenizer: Tokenizer,
    template: prompts.ChatTemplate,
    tiler: image_lib.Tiler,
    tokens_per_tile: int,
    *,
    pad_id: int,
    stop_ids: Sequence[int],
    max_length: int,
    padding_side: str = "right",
    where: str = "processor",
  ):
    self.tokenizer = tokenizer
    self.template = template
    self.tiler = tiler
    self.tokens_per_tile = tokens_per_tile
    self.pad_id = pad_id
    self.stop_ids = tuple(stop_ids)
    self.max_length = max_length
    self.padding_side = padding_side
    self._expand = Expander(tokenizer, tokens_per_tile, where)
    self.image_id, self.end_id = self._expand.image_id, self._expand.end_id

  @functools.cached_property
  def layout(self) -> ImageLayout:
    """What data must know of the model."""
    return ImageLayout(
      tile_size=self.tiler.tile_size,
      tokens_per_tile=self.tokens_per_tile,
      max_tiles=self.tiler.most_tiles,
      image_token_id=self.image_id,
      max_length=self.max_length,
    )

  # Text and images as transformers' processors take them.

  def __call__(
    self,
    text: str | Sequence[str] | None = None,
    images: Any = None,
    *,
    padding_side: str | None = None,
  ) -> dict[str, np.ndarray]:
    """Arrays in transformers' layout.

    Args:
      text: one prompt or several, with an `<image>` mark for each image.
      images: one image, a list of images (handed to the prompts in order), or a list per prompt. An image
        is whatever `images.open_image` reads.
      padding_side: "left" or "right"; by default the checkpoint's.

    Returns:
      input_ids, attention_mask (B, T) int64; with images pixel_values (B, I, 3, S, S) float32 and
      pixel_attention_mask (B, I, S, S) int64, samples with fewer tiles padded by zeros.

    Raises:
      UserError: marks and images differ in number, or an image cannot be read.
    """
    if text is None and images is None:
      raise UserError("processor: pass text, images or both")
    result: dict[str, np.ndarray] = {}
    texts = None if text is None else [text] if isinstance(text, str) else list(text)
    blocks: list[list[list[int]]] | None = None
    if images is not None:
      nested = arrays.images_by_prompt(images, texts)
      cut = [[self.tiler(image_lib.open_image(image)) for image in sample] for sample in nested]
      if any(cut):
        size = self.tiler.tile_size
        tiles = [self.tiler.normalise(np.concatenate([t.pixels for t in row])) if row else () for row in cut]
        result |= arrays.pixel_arrays(tiles, size)
      blocks = [[self._expand.block(t.rows, t.cols) for t in sample] for sample in cut]
    if texts is not None:
      rows = []
      for index, sample in enumerate(texts):
        rows.append(self._expand(sample, blocks[index] if blocks is not None else None)[0])
      result = arrays.token_arrays(rows, self.pad_id, padding_side or self.padding_side) | result
    return result

  def apply_chat_template(
    self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False
  ) -> str:
    """The prompt text of a conversation, as transformers' processors render it."""
    return self.template.render(messages, add_generation_prompt)

  def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
    """Text of token ids."""
    return self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

  # Conversations of ours.

  def encode(self, example: Example) -> Encoded:
    """A conversation with the loss on its answers.

    Raises:
      UserError: `<image>` marks and images differ in number; longer than the context (image tokens are
        never cut); a chat template that hides where answers begin.
    """
    messages = prompts.messages(example.turns, len(example.images))
    text = self.template.render(messages)
    spans = [self._answer_span(text, messages[: 2 * k + 1], example.id) for k in range(len(example.turns))]
    return self._encode(text, spans, example)

  def encode_prompt(
    self,
    images: Sequence[np.ndarray | image_lib.Tiles],
    prompt: str,
    answer_prefix: str = "",
    id: str = "",
    pixels: bool = True,
  ) -> Encoded:
    """A prompt that the model is to answer: ends after `Assistant:`, or after `answer_prefix` behind it.

    `prompt` may hold `<image>` marks, like a `Turn`. The prefix is joined as the template joins an answer,
    by a space: `answer_prefix="Answer:"` gives `Assistant: Answer:`. An image may come already cut
    (`tiler(image)`), so that several prompts share the work; `pixels` false leaves `tiles` empty.

    Raises:
      UserError: as `encode`.
    """
    turn = Turn(prompt, answer_prefix)
    messages = prompts.messages((turn,), len(images))
    text = self.template.render(messages[:1], add_generation_prompt=True)
    if answer_prefix:
      start, _ = self._answer_span(whole := self.template.render(messages), messages[:1], id)
      text = whole[: whole.index(answer_prefix, start) + len(answer_prefix)]
    return self._encode(text, [], Example(tuple(images), (turn,), id=id), pixels)

  def answer_ids(self, answer: str, answer_prefix: str = "") -> tuple[int, ...]:
    """Tokens of an answer as it stands right after `encode_prompt(..., answer_prefix)`, without its end.

    The answer is joined to the prefix by a space, as the template joins it to `Assistant:`, unless the
    prefix ends in a bracket, a quote or white space.

    Raises:
      UserError: the tokenizer merges the answer's beginning with what stands before it.
    """
    joiner = "" if not answer_prefix or answer_prefix[-1] in "([{\"'*" or answer_prefix[-1].isspace() else " "
    prompt = self.encode_prompt((), "", answer_prefix).tokens
    whole = self.encode(Example((), (Turn("", answer_prefix + joiner + answer),))).tokens
    end = np.flatnonzero(whole == self.end_id)[-1]
    if not np.array_equal(whole[: len(prompt)], prompt) or end <= len(prompt):
      raise UserError(f"answer {answer!r} does not begin with a token of its own after {answer_prefix!r}")
    return tuple(whole[len(prompt) : end].tolist())

  def letter_ids(self, count: int, answer_prefix: str = "") -> tuple[int, ...]:
    """The token by which an answer A, B, ... begins right after `encode_prompt(..., answer_prefix)`.

    The template writes `Assistant: A`, so in SmolVLM's vocabularies it is the letter with its space, both
    directly and after a prefix such as `Answer:`. After a prefix that ends in a bracket, as in
    `Assistant: (A`, it is the bare letter. Which one is read off the tokenizer, never assumed.

    Raises:
      UserError: a letter is no single token there, or `count` is not in 1..26.
    """
    if not 1 <= count <= 26:
      raise UserError(f"letters run from 1 to 26, got {count}")
    result = []
    for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:count]:
      ids = self.answer_ids(letter, answer_prefix)
      if len(ids) != 1:
        raise UserError(f"answer letter {letter!r} after {answer_prefix!r} is not one token here")
      result.append(ids[0])
    return tuple(result)

  # Within.

  def _encode(
    self, text: str, spans: Sequence[tuple[int, int]], example: Example, with_pixels: bool = True
  ) -> Encoded:
    name = f"example {example.id!r}" if example.id else "prompt"
    cut = [i if isinstance(i, image_lib.Tiles) else self.tiler(i) for i in example.images]
    blocks = [self._expand.block(t.rows, t.cols) for t in cut]
    ids, loss = self._expand(text, blocks, spans, name)
    tokens = np.array(ids, np.int32)
    if len(tokens) > self.max_length:
      visual = int((tokens == self.image_id).sum())
      raise UserError(
        f"{name}: {len(tokens)} tokens ({visual} of images) exceed the model's context of {self.max_length};"
        " shorten the text or lower max_tiles"
      )
    is_image = tokens == self.image_id
    slots = np.where(is_image, np.cumsum(is_image) - 1, -1).astype(np.int32)
    size = self.tiler.tile_size
    shown = cut if with_pixels else []
    pixels = np.concatenate([t.pixels for t in shown]) if shown else np.zeros((0, size, size, 3), np.uint8)
    return Encoded(
      tokens=tokens,
      loss_mask=np.array(loss, bool),
      image_slot=slots,
      tiles=self.tiler.normalise(pixels),
      images=tuple(len(t.pixels) for t in cut),
      id=example.id,
      task=example.task,
      source=example.source,
      dense=example.dense,
    )

  def _answer_span(self, text: str, before: Sequence[Any], name: str) -> tuple[int, int]:
    """Where the answer that follows the messages `before` lies in `text`, its end token included."""
    prefix = self.template.render(before, add_generation_prompt=True)
    end = text.find(prompts.END_OF_UTTERANCE, len(prefix))
    if not text.startswith(prefix) or end < 0:
      raise UserError(
        f"example {name!r}: the chat template does not continue its generation prompt by the answer and"
        f" {prompts.END_OF_UTTERANCE}, so the loss cannot be placed"
      )
    return len(prefix), end + len(prompts.END_OF_UTTERANCE)


def load_processor(
  folder: str | os.PathLike,
  *,
  max_tiles: int | None = None,
  longest_edge: int | None = None,
  split_images: bool | None = None,
  enlarge: bool = True,
  max_length: int | None = None,
) -> Processor:
  """The processor of a local SmolVLM or Idefics3 folder.

  Reads tokenizer.json, preprocessor_config.json or processor_config.json, and the chat template from
  chat_template.jinja, chat_template.json, processor_config.json or tokenizer_config.json, in transformers'
  order of precedence. Nothing of it needs torch, and no code of the folder is run.

  Args:
    max_tiles, longest_edge, split_images, enlarge: the tile budget, see `images.Tiler`; None for the
      checkpoint's own.
    max_length: longest sequence; None for the checkpoint's own.

  Raises:
    UserError: a file is missing, broken or of another kind of model.
  """
  folder = Path(folder).expanduser()
  if not folder.is_dir():
    raise UserError(f"{folder}: no such folder; pass a checkpoint in Hugging Face's format")
  config = files.read_json(folder, "config.json")
  outer = files.read_json(folder, "processor_config.json")
  inner = outer.get("image_processor") or files.read_json(folder, "preprocessor_config.json")
  if not inner:
    raise UserError(f"{folder}: no preprocessor_config.json; copy the base model's processor files there")
  tiler = image_lib.tiler_from_config(
    inner,
    str(folder),
    max_tiles=max_tiles,
    longest_edge=longest_edge,
    split_images=split_images,
    enlarge=enlarge,
  )
  tokenizer = files.tokenizer(folder)
  settings = files.read_json(folder, "tokenizer_config.json")
  generation = files.read_json(folder, "generation_config.json")
  names = {k: files.content(v) for k, v in settings.items() if k.endswith("_token") and files.content(v)}
  end = tokenizer.token_to_id(prompts.END_OF_UTTERANCE)
  stops = [s for s in [end, *files.as_list(generation.get("eos_token_id"))] if s is not None]
  pad = tokenizer.token_to_id(names.get("pad_token", ""))
  if pad is None:
    pad = next(iter(files.as_list(generation.get("pad_token_id"))), end)
  context = files.group(config, "text_config", folder).get("max_position_embeddings") or settings.get(
    "model_max_length"
  )
  processor = Processor(
    tokenizer,
    prompts.ChatTemplate(files.template(folder, outer, settings), names, str(folder)),
    tiler,
    files.tokens_per_tile(config, outer, tiler, folder),
    pad_id=pad,
    stop_ids=tuple(dict.fromkeys(stops)),
    max_length=max_length or int(min(context or 8192, 2**31)),
    padding_side=settings.get("padding_side", "right"),
    where=str(folder),
  )
  if (expected := config.get("image_token_id")) not in (None, processor.image_id):
    raise UserError(
      f"{folder}: config.json says image_token_id {expected}, the tokenizer {processor.image_id}"
    )
  return processor
