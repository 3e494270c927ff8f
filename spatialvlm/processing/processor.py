"""The processor: conversations and images into token ids and tiles, without torch.

Its text and ids are those of transformers' `Idefics3Processor`, `SmolVLMProcessor`, `InternVLProcessor` and
`PaliGemmaProcessor` (version 5.23), its pixels those of their PIL image processors.
"""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from spatialvlm.config import read_json
from spatialvlm.processing import arrays, layouts, prompts, tiling
from spatialvlm.processing import images as image_lib
from spatialvlm.processing import processor_files as files
from spatialvlm.processing.branches import branched, in_tiles
from spatialvlm.processing.encoded import Encoded
from spatialvlm.processing.expansion import Expander
from spatialvlm.processing.processor_family import Files, family_of
from spatialvlm.processing.tiling import Priors, TileOptions, Tiler, Tiles, pixels_of
from spatialvlm.types import IMAGE_MARK, LETTERS, Example, ImageLayout, PixelTable, Shot, Turn, UserError


class Processor:
  """Tokenizer, prompt format and tiler of one checkpoint. Safe to use from several threads.

  Attributes:
    tokenizer: the `tokenizers.Tokenizer`.
    tiler: how images become tiles.
    format: how the family's texts are made of tokens.
    template: how conversations become such texts.
    tokens_per_tile: image tokens of one tile.
    image_id, pad_id: token ids; `image_id` is -1 of a language model by itself.
    stop_ids: ids that end an answer: `end_id`, of the format, and what generation_config.json names.
    max_length: longest sequence that the decoder takes, beside a soft prompt of `reserved` tokens.
    padding_side: of `__call__`, by default.
    priors: reads what a model's priors say of pictures; None of a model without any.
  """

  priors: Priors | None = None

  def __init__(
    self,
    tokenizer: Tokenizer,
    prompt_format: prompts.PromptFormat,
    template: prompts.Template,
    tiler: Tiler,
    tokens_per_tile: int,
    *,
    pad_id: int,
    stop_ids: Sequence[int],
    max_length: int,
    reserved: int = 0,
    padding_side: str = "right",
    where: str = "processor",
  ):
    self.tokenizer = tokenizer
    self.format = prompt_format
    self.template = template
    self.tiler = tiler
    self.tokens_per_tile = tokens_per_tile
    self.pad_id = pad_id
    self.stop_ids = tuple(stop_ids)
    self.max_length, self.reserved = max_length - reserved, reserved
    self.padding_side = padding_side
    self._expand = Expander(tokenizer, prompt_format, tokens_per_tile, where)
    self.image_id = -1 if self._expand.image_id is None else self._expand.image_id
    self.end_id = self._expand.end_id

  def with_priors(self, priors: Callable[[int], Priors] | None) -> Processor:
    """The processor with other readers of priors, as `load_processor` takes them; errors as there."""
    other = copy.copy(self)
    other.priors = tiling.prior_reader(priors, self.tiler, self.tokens_per_tile)
    return other

  @property
  def bidirectional(self) -> bool:
    """Whether prompts are a prefix whose tokens all see each other (PaliGemma)."""
    return self.format.bidirectional

  @property
  def sees(self) -> bool:
    """Whether it reads images; a language model by itself does not."""
    return bool(self.format.mark)

  @functools.cached_property
  def normal(self) -> PixelTable:
    """What the model takes for each value of a pixel and channel."""
    return PixelTable.of(self.tiler.normalise(np.arange(256, dtype=np.uint8)[:, None].repeat(3, axis=1)))

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
    suffix: str | Sequence[str] | None = None,
    padding_side: str | None = None,
  ) -> dict[str, np.ndarray]:
    """Arrays in transformers' layout.

    Args:
      text: one prompt or several, with an `<image>` mark for each image. PaliGemma's may do without: the
        images of a prompt then stand before it. A text without images begins with its `<bos>`, also beside
        texts with some (where transformers 5.23 puts it behind the sixth character).
      images: one image, a list of images (handed to the prompts in order), or a list per prompt. An image
        is whatever `images.open_image` reads.
      suffix: answers, one for each prompt, of a model with a bidirectional prefix.
      padding_side: "left" or "right"; by default the checkpoint's.

    Returns:
      input_ids, attention_mask (B, T) int64. With images, SmolVLM: pixel_values (B, I, 3, S, S) float32 and
      pixel_attention_mask (B, I, S, S) int64, samples with fewer tiles padded by zeros; InternVL and
      PaliGemma: pixel_values (N, 3, S, S) float32, all tiles in a row. PaliGemma: token_type_ids (B, T)
      int64, 1 at suffixes, and with suffixes labels (B, T) int64, -100 elsewhere.

    Raises:
      UserError: marks and images, or prompts and suffixes, differ in number; an image cannot be read;
        suffixes of a model that knows none.
    """
    if text is None and images is None:
      raise UserError("processor: pass text, images or both")
    texts = [text] if isinstance(text, str) else text
    if images is not None and not self.format.mark:
      self.tiler.grid(1, 1)
    texts = None if texts is None else [self.format.marked(t) for t in texts]
    pixels: dict[str, np.ndarray] = {}
    blocks: list[list[list[int]]] | None = None
    if images is not None:
      first = self.bidirectional and texts is not None and not any(self.format.mark in t for t in texts)
      nested = arrays.images_by_prompt(images, texts, self.format.mark, one_each=first)
      if first:
        texts = [self.format.mark * len(row) + t for row, t in zip(nested, texts, strict=True)]
      cut = [[self.tiler(image_lib.open_image(image)) for image in sample] for sample in nested]
      if any(cut):
        pixels = self._pixel_arrays(cut)
      blocks = [[self._expand.block(t.rows, t.cols) for t in sample] for sample in cut]
    if texts is None:
      return pixels
    return self._token_arrays(texts, blocks, suffix, padding_side or self.padding_side) | pixels

  def _pixel_arrays(self, cut: list[list[Tiles]]) -> dict[str, np.ndarray]:
    rows = [self.tiler.normalise(np.concatenate([t.pixels for t in row])) for row in cut if row]
    if not self.format.nested_pixels:
      return {"pixel_values": np.ascontiguousarray(np.concatenate(rows).transpose(0, 3, 1, 2))}
    left = iter(rows)
    return arrays.pixel_arrays([next(left) if row else () for row in cut], self.tiler.tile_size)

  def _token_arrays(self, texts, blocks, suffix, side: str) -> dict[str, np.ndarray]:
    rows = []
    for index, text in enumerate(texts):
      framed = self.template.frame(text)
      opened = self.format.opened != "never"
      rows.append(self._expand(framed, blocks[index] if blocks is not None else None, opened=opened).ids)
    if not self.bidirectional:
      if suffix is not None:
        raise UserError(f"suffix: {self.format.family} knows none; write the answer into the text")
      return arrays.token_arrays(rows, self.pad_id, side)
    suffixes = [suffix] if isinstance(suffix, str) else list(suffix or [])
    if suffix is not None and len(suffixes) != len(rows):
      raise UserError(f"suffix: {len(rows)} prompts, but {len(suffixes)} suffixes")
    lengths = [len(row) for row in rows]
    if any(self.format.mark in s for s in suffixes):
      raise UserError("suffix: an answer holds an <image> mark; images stand in prompts only")
    for row, answer in zip(rows, suffixes, strict=False):
      row += self._expand(answer + self.format.end, None).ids
    return arrays.prefix_arrays(rows, lengths, self.pad_id, side, labels=suffix is not None)

  def apply_chat_template(
    self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False
  ) -> str:
    """The prompt text of a conversation, as transformers' processors render it.

    Of PaliGemma, which has no chat template, it is one turn's marks and text: what `__call__` takes.

    Raises:
      UserError: the template refuses the conversation.
    """
    return self.template.prompt(messages, add_generation_prompt)

  def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
    """Text of token ids."""
    return self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

  # Conversations of ours.

  def token_ids(self, text: str) -> list[int]:
    """Ids of a text by itself: no template, no special tokens added."""
    return self.tokenizer.encode(text, add_special_tokens=False).ids

  def encode(self, example: Example) -> Encoded:
    """A conversation with the loss on its answers, and beside them what is set against them (`branches`): the
    wrong ones that its turns have, its rearranged pictures.

    Raises:
      UserError: `<image>` marks and images differ in number; longer than the context (image tokens are
        never cut); a chat template that hides where answers begin; a conversation that the family does not
        know, as PaliGemma knows one turn only; wrong answers of a model with a bidirectional prefix.
    """
    if not (any(turn.false for turn in example.turns) or example.rearranged):
      return self._conversation(example)
    if self.bidirectional:
      raise UserError(
        f"false answers: the prompts of {self.format.family} are no causal text; leave them out"
      )
    if example.rearranged and self.priors is not None:
      raise UserError(
        "rearranged pictures bring no shots, so that priors would tell them from the right one; leave out"
        " false_pictures, or config.priors"
      )
    example = in_tiles(example, self.tiler)
    return branched(self._conversation(example), example, lambda e: self._conversation(e, pixels=False))

  def _conversation(self, example: Example, pixels: bool = True) -> Encoded:
    name = f"example {example.id!r}" if example.id else "example"
    if any(IMAGE_MARK in turn.answer for turn in example.turns):
      raise UserError(f"{name}: an answer holds an <image> mark; write marks in the text of prompts only")
    messages = prompts.messages(example.turns, len(example.images))
    text = self.template.render(messages)
    spans = [self._answer_span(text, messages[: 2 * k + 1], example.id) for k in range(len(example.turns))]
    return self._encode(text, spans, example, spans[0][0] if self.bidirectional else 0, name, pixels)

  def encode_prompt(
    self,
    images: Sequence[np.ndarray | Tiles],
    prompt: str | Sequence[prompts.Message],
    answer_prefix: str = "",
    id: str = "",
    pixels: bool = True,
    shots: Sequence[Shot] = (),
  ) -> Encoded:
    """A prompt that the model is to answer: ends where an answer begins, or after `answer_prefix` there.

    `prompt` may hold `<image>` marks, like a `Turn`; or it is a conversation in transformers' form that ends
    with what is to be answered, without such a prefix. The prefix is joined as the template joins an answer:
    `answer_prefix="Answer:"` gives SmolVLM's `Assistant: Answer:`; of PaliGemma it is no part of the
    bidirectional prefix. An image may come already cut (`tiler(image)`), so that several prompts share the
    work; `pixels` false leaves `tiles` empty, and what priors say. `id` is what messages call the prompt;
    `shots` say how the images were taken, for a model with priors.

    Raises:
      UserError: as `encode`.
    """
    text = self.prompt_text(len(images), prompt, answer_prefix, id)
    boundary = len(self.prompt_text(len(images), prompt)) if self.bidirectional else 0
    asked = Example(tuple(images), (), id=id, shots=tuple(shots))
    return self._encode(text, [], asked, boundary, id or "prompt", pixels)

  def prompt_text(
    self, images: int, prompt: str | Sequence[prompts.Message], answer_prefix: str = "", id: str = ""
  ) -> str:
    """The text of `encode_prompt`, with the family's mark (`format.mark`) for each image; errors as there."""
    if not isinstance(prompt, str):
      return self.template.render(prompt, add_generation_prompt=True)
    messages = prompts.messages((Turn(prompt, answer_prefix),), images)
    if not answer_prefix:
      return self.template.render(messages[:1], add_generation_prompt=True)
    start, _ = self._answer_span(whole := self.template.render(messages), messages[:1], id)
    return whole[: whole.index(answer_prefix, start) + len(answer_prefix)]

  def answer_ids(self, answer: str, answer_prefix: str = "") -> tuple[int, ...]:
    """Tokens of an answer as it stands right after `encode_prompt(..., answer_prefix)`, without its end.

    The answer is joined to the prefix by a space, as SmolVLM joins it to `Assistant:`, unless the prefix
    ends in a bracket, a quote or white space.

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

  def word_ids(self, text: str) -> tuple[int, ...]:
    """Tokens of a text as it stands, without any that the tokenizer adds before or behind it."""
    return tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)

  def letter_ids(self, count: int, answer_prefix: str = "") -> tuple[int, ...]:
    """The token by which an answer A, B, ... begins right after `encode_prompt(..., answer_prefix)`.

    SmolVLM's template writes `Assistant: A`, so in its vocabularies it is the letter with its space, both
    directly and after a prefix such as `Answer:`. After a prefix that ends in a bracket, as in
    `Assistant: (A`, and where an answer begins a line (InternVL, PaliGemma), it is the bare letter. Which one
    is read off the tokenizer, never assumed.

    Raises:
      UserError: a letter is no single token there, or `count` is not in 1..26.
    """
    if not 1 <= count <= len(LETTERS):
      raise UserError(f"letters run from 1 to 26, got {count}")
    result = []
    for letter in LETTERS[:count]:
      ids = self.answer_ids(letter, answer_prefix)
      if len(ids) != 1:
        raise UserError(f"answer letter {letter!r} after {answer_prefix!r} is not one token here")
      result.append(ids[0])
    return tuple(result)

  # Within.

  def _encode(
    self,
    text: str,
    spans: Sequence[tuple[int, int]],
    example: Example,
    boundary: int,
    name: str,
    with_pixels: bool = True,
  ) -> Encoded:
    cut = [i if isinstance(i, Tiles) else self.tiler(i) for i in example.images]
    blocks = [self._expand.block(t.rows, t.cols) for t in cut]
    ids, loss, prefix = self._expand(text, blocks, spans, name, boundary, self.format.opened == "always")
    tokens = np.array(ids, np.int32)
    if len(tokens) > self.max_length:
      visual = int((tokens == self.image_id).sum())
      alone = len(tokens) - visual > self.max_length  # the text is too long without any image
      advice = "shorten the text" + ("" if alone or not visual else " or lower max_tiles")
      beside = f" (beside a soft prompt of {self.reserved})" if self.reserved else ""
      raise UserError(
        f"{name}: {len(tokens)} tokens ({visual} of images) exceed the model's context of {self.max_length}"
        f"{beside};"
        f" {advice}"
      )
    is_image = tokens == self.image_id
    slots = np.where(is_image, np.cumsum(is_image) - 1, -1).astype(np.int32)
    pixels = pixels_of(cut if with_pixels else [], self.tiler.tile_size)
    return Encoded(
      tokens=tokens,
      loss_mask=np.array(loss, bool),
      image_slot=slots,
      tiles=pixels,
      normal=self.normal,
      images=tuple(len(t.pixels) for t in cut),
      id=example.id,
      task=example.task,
      source=example.source,
      extra=tiling.dense_tiles(example.dense, [len(t.pixels) for t in cut])
      | (tiling.prior_tiles(self.priors, example.shots, cut, name) if with_pixels else {}),
      prefix=prefix,
    )

  def _answer_span(self, text: str, before: Sequence[Any], name: str) -> tuple[int, int]:
    """Where the answer that follows the messages `before` lies in `text`, its end token included."""
    prefix = self.template.render(before, add_generation_prompt=True)
    end = text.find(self.format.end, len(prefix))
    if not text.startswith(prefix) or end < 0:
      raise UserError(
        f"example {name!r}: the chat template does not continue its generation prompt by the answer and"
        f" {self.format.end}, so the loss cannot be placed"
      )
    return len(prefix), end + len(self.format.end)


def load_processor(
  folder: str | os.PathLike,
  *,
  max_tiles: int | None = None,
  longest_edge: int | None = None,
  split_images: bool | None = None,
  enlarge: bool = True,
  pixels: str = "exact",
  layout: str = layouts.OWN,
  max_length: int | None = None,
  reserved: int = 0,
  priors: Callable[[int], Priors] | None = None,
) -> Processor:
  """The processor of a local folder: SmolVLM's or Idefics3's, InternVL's (`-hf` format), or PaliGemma's; of a
  language model by itself its tokenizer and template, which refuse images.

  Reads config.json, tokenizer.json, preprocessor_config.json or processor_config.json, and the chat template
  from chat_template.jinja, chat_template.json, processor_config.json or tokenizer_config.json, in
  transformers' order of precedence; PaliGemma has none, and base models may do without. Nothing of it needs
  torch, and no code of the folder is run.

  Args:
    max_tiles, longest_edge, split_images, enlarge, pixels: the tile budget, and how images are resized, see
      `tiling.TileOptions`; None for the checkpoint's own.
    layout: a key of `layouts.LAYOUTS`; "mtmd" is llama.cpp's.
    max_length: longest sequence; None for the checkpoint's own.
    reserved: places of it that a soft prompt takes.
    priors: gives what reads priors, of the number of image tokens of a tile; None for none.

  Raises:
    UserError: a file is missing, broken or of another kind of model; the family's tiles know no such option;
      a soft prompt that leaves nothing of the context.
  """
  folder = Path(folder).expanduser()
  if not folder.is_dir():
    raise UserError(f"{folder}: no such folder; pass a checkpoint in Hugging Face's format")
  found = Files.read(folder)
  family, kind = family_of(found)
  options = TileOptions(max_tiles, longest_edge, split_images, enlarge, pixels, layout)
  tiler = layouts.laid_out(layout, family.tiler(found.inner, str(folder), options, kind), str(folder))
  tokenizer = files.tokenizer(folder)
  settings = read_json(folder / "tokenizer_config.json")
  names = files.special_tokens(folder, settings)
  written = files.template(folder, found.outer, settings)
  prompt_format, template = family.dialogue(family, written, tokenizer, names, str(folder))
  eos = None if family.images else found.config.get("eos_token_id")  # as transformers takes it from there
  pad, stops = files.pad_and_stops(folder, tokenizer, names, tokenizer.token_to_id(prompt_format.end), eos)
  context = files.group(found.config, "text_config", folder).get("max_position_embeddings")
  context = context or found.config.get("max_position_embeddings") or family.context
  context = context or settings.get("model_max_length") or 8192
  longest = max_length or int(min(context, 2**31))
  if reserved >= longest:
    raise UserError(f"a soft prompt of {reserved} leaves no room in the model's context of {longest}")
  processor = Processor(
    tokenizer,
    prompt_format,
    template,
    tiler,
    family.tokens_per_tile(tiler.tile_size, found),
    pad_id=pad,
    stop_ids=stops,
    max_length=longest,
    reserved=reserved,
    padding_side=settings.get("padding_side", family.padding_side),
    where=str(folder),
  )
  processor = processor.with_priors(priors)
  expected = found.config.get("image_token_id", found.config.get("image_token_index"))
  if expected not in (None, processor.image_id) and prompt_format.mark:
    raise UserError(
      f"{folder}: config.json says image_token_id {expected}, the tokenizer {processor.image_id}"
    )
  return processor
