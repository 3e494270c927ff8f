"""SmolVLM's processor for a language model that never saw an image: the tokenizer, grown, and all else."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from spatialvlm.config import read_json
from spatialvlm.processing import processor_files as files
from spatialvlm.processing import prompts
from spatialvlm.types import UserError

# SmolVLM's own template but for what it begins with.
_TEMPLATE = (
  "{% for message in messages %}{{message['role'] | capitalize}}"
  "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
  "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
  "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
  "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
_OPENING = "<|im_start|>"
# SmolVLM's: the longest edge of an image is four tiles, so that at most 4 x 4 and the whole are seen.
_MOST_TILES = 4
_LANCZOS = 1


@dataclasses.dataclass(frozen=True)
class GrownTokenizer:
  """A text model's tokenizer with SmolVLM's special tokens behind its own.

  Attributes:
    text: tokenizer.json.
    known: how many ids it had before; the new ones follow.
    opening, pad: the tokens that a conversation begins with, and that fill a batch.
    ids: of all tokens that the files name.
    stops: ids that end an answer: `<end_of_utterance>`, and what ends the text model's own.
    context: the longest sequence that the tokenizer's settings name, None where they name none.
  """

  text: str
  known: int
  opening: str
  pad: str
  ids: Mapping[str, int]
  stops: tuple[int, ...]
  context: int | None

  @property
  def size(self) -> int:
    """Ids with the new ones."""
    return self.known + len(prompts.SMOLVLM_TOKENS)

  @property
  def image_id(self) -> int:
    return self.ids[prompts.SMOLVLM.mark]

  @property
  def end_id(self) -> int:
    return self.ids[prompts.SMOLVLM.end]

  def files(
    self, tile: int, tokens: int, mean: Sequence[float], std: Sequence[float], context: int
  ) -> dict[str, Any]:
    """The processor's files by their names: JSON values, or text as it is.

    Args:
      tile: side of a tile in pixels, which makes so many image tokens.
      mean, std: of each channel, of 1, by which pixels are normalised.
      context: longest sequence that the decoder takes.
    """
    side = lambda pixels: {"longest_edge": pixels}
    images = {
      "do_convert_rgb": True,
      "do_image_splitting": True,
      "do_normalize": True,
      "do_pad": True,
      "do_rescale": True,
      "do_resize": True,
      "image_mean": list(mean),
      "image_processor_type": "SmolVLMImageProcessor",
      "image_std": list(std),
      "max_image_size": side(tile),
      "processor_class": "SmolVLMProcessor",
      "resample": _LANCZOS,
      "rescale_factor": 1 / 255,
      "size": side(_MOST_TILES * tile),
    }
    named = {"bos_token": self.opening, "eos_token": prompts.SMOLVLM.end, "pad_token": self.pad}
    words = {
      **named,
      "add_bos_token": False,
      "additional_special_tokens": [*prompts.SMOLVLM.apart, prompts.SMOLVLM.mark, prompts.SMOLVLM.end],
      "clean_up_tokenization_spaces": False,
      "model_max_length": min(context, self.context or context),
      "padding_side": "left",
      "processor_class": "SmolVLMProcessor",
      "tokenizer_class": "PreTrainedTokenizerFast",
    }
    generation = {
      "bos_token_id": self.ids[self.opening],
      "eos_token_id": list(self.stops),
      "pad_token_id": self.ids[self.pad],
    }
    return {
      "tokenizer.json": self.text,
      "tokenizer_config.json": words,
      "chat_template.jinja": self.opening + _TEMPLATE,
      "generation_config.json": generation,
      "preprocessor_config.json": images,
      "processor_config.json": {"image_seq_len": tokens, "processor_class": "SmolVLMProcessor"},
    }


def grow(folder: Path) -> GrownTokenizer:
  """Reads a text model's tokenizer files and adds SmolVLM's special tokens, in SmolVLM's order.

  They follow the last id; of SmolLM2's 49,152 they get the ids that they have in SmolVLM. A conversation
  begins with `<|im_start|>` where the tokenizer has it, as SmolVLM's do, else with its own `bos_token`. What
  the tokenizer itself would put before a text is taken out, since the template writes it.

  Raises:
    UserError: no tokenizer or a broken one; a token that it has already; none that opens or pads.
  """
  tokenizer = files.tokenizer(folder)
  vocabulary = tokenizer.get_vocab(with_added_tokens=True)
  known = max(vocabulary.values(), default=-1) + 1
  for token in prompts.SMOLVLM_TOKENS:
    if token in vocabulary:
      raise UserError(
        f"{folder}: its tokenizer has a token {token} already (id {vocabulary[token]}), which SmolVLM's"
        " prompts give another meaning; name a language model without it"
      )
  settings = read_json(folder / "tokenizer_config.json")
  names = files.special_tokens(folder, settings)
  opening = _OPENING if _OPENING in vocabulary else names.get("bos_token")
  pad = next((names[key] for key in ("pad_token", "eos_token", "unk_token") if key in names), None)
  for what, token in (("begin a conversation", opening), ("fill a batch", pad)):
    if token is None or token not in vocabulary:
      said = "none" if token is None else f"{token}, which is not in tokenizer.json"
      raise UserError(
        f"{folder}: tokenizer_config.json names no token to {what} with (bos_token, pad_token, eos_token):"
        f" {said}"
      )
  text = _without_frame(json.loads(tokenizer.to_str()))
  grown = Tokenizer.from_str(text)
  grown.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in prompts.SMOLVLM_TOKENS])
  ids = {token: grown.token_to_id(token) for token in (*prompts.SMOLVLM_TOKENS, opening, pad)}
  if [ids[token] for token in prompts.SMOLVLM_TOKENS] != list(
    range(known, known + len(prompts.SMOLVLM_TOKENS))
  ):
    raise UserError(
      f"{folder}/tokenizer.json: its ids have gaps below {known}, so new tokens cannot follow them"
    )
  length = settings.get("model_max_length")
  return GrownTokenizer(
    text=grown.to_str(),
    known=known,
    opening=opening,
    pad=pad,
    ids=ids,
    stops=tuple(dict.fromkeys((ids[prompts.SMOLVLM.end], *_own_stops(folder, vocabulary, names)))),
    context=int(length) if isinstance(length, (int, float)) and 0 < length < 2**31 else None,
  )


def _own_stops(folder: Path, vocabulary: Mapping[str, int], names: Mapping[str, str]) -> list[int]:
  """What ends the text model's answers, by its files."""
  said = files.as_list(read_json(folder / "generation_config.json").get("eos_token_id"))
  end = vocabulary.get(names.get("eos_token", ""))
  return [*said, *([end] if end is not None else [])]


def _without_frame(tokenizer: dict[str, Any]) -> str:
  """tokenizer.json without what puts tokens around a text: templates, alone or in a sequence."""
  after = tokenizer.get("post_processor") or {}
  parts = after.get("processors", [after] if after else [])
  kept = [part for part in parts if part.get("type") == "ByteLevel"]
  tokenizer["post_processor"] = kept[0] if kept else None
  return json.dumps(tokenizer, ensure_ascii=False)
