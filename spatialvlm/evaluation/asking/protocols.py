"""How a question is put to a model, and in which form its answer is read off.

One model's scores under two protocols may differ by ten points, so a protocol is data, named in every result.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple
from typing import Protocol as TypingProtocol

import numpy as np

from spatialvlm.config import ScoreConfig, nearest
from spatialvlm.evaluation.asking.controls import CONTROLS
from spatialvlm.processing.processor import Encoded, Processor
from spatialvlm.processing.tiling import Tiles
from spatialvlm.types import IMAGE_MARK, LETTERS, Note, Question, Shot, UserError


class Prompt(NamedTuple):
  """A question as a model reads it: the encoded prompt, and the token of each option's letter, int32 (K,)."""

  encoded: Encoded
  option_ids: np.ndarray


@dataclasses.dataclass(frozen=True)
class Protocol:
  """One way of asking.

  Attributes:
    text: the user's turn; images stand before it, or at its `<image>` marks.
    reading: what is read off: log-probabilities of the options' "letters" or "texts", or a "generated" answer
      (greedy), from which `extraction.extract_choice` takes the letter by the rule of the protocol's name.
    answer_prefix: what the model is made to begin its answer with, before the letter.
    limit: most tokens of a generated answer; it ends earlier at one of the checkpoint's stop tokens.
  """

  text: Callable[[Question], str]
  reading: Literal["letters", "texts", "generated"] = "letters"
  answer_prefix: str = ""
  limit: int = 0


_DIRECTLY = "Answer with the option's letter from the given choices directly."


def _lmms_eval(question: Question) -> str:
  # The harness knows five letters: of six options it announces five.
  letters = ", ".join(LETTERS[: min(len(question.choices), 5)])
  note = f"Note: You only need to respond with {letters} without providing any additional information."
  return f"{note}\n\n{question.prompt}"


def _vsi(question: Question) -> str:
  options = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=False)]
  return "\n".join(["These are frames of a video.", question.question, "Options:", *options, _DIRECTLY])


PROTOCOLS = {
  # The data set's own prompt in the checkpoint's own chat template, and the letter as the answer's first
  # token: the form that training takes.
  "native": Protocol(text=lambda question: question.prompt),
  # The same after `Answer:`, the form in which SmolVLM's own instruction data gives letters
  # (huggingface/smollm, build_ds_sft.py).
  "native-prefill": Protocol(text=lambda question: question.prompt, answer_prefix="Answer:"),
  # The options' texts as answers to the same prompt, by their mean log-probability per token.
  "options": Protocol(text=lambda question: question.prompt, reading="texts"),
  # EvolvingLMMs-Lab/lmms-eval 75571cf, tasks/cv_bench, model "huggingface".
  "lmms_eval": Protocol(text=_lmms_eval, reading="generated", limit=1024),
  # open-compass/VLMEvalKit e8e78f0, SmolVLM, --judge exact_matching.
  "vlmevalkit": Protocol(text=lambda question: question.prompt, reading="generated", limit=2048),
  # cambrian-mllm/cambrian 539ffc3, eval/cv_bench.
  "cambrian": Protocol(
    text=lambda question: f"{question.prompt}\n{_DIRECTLY}", reading="generated", limit=512
  ),
  # The ports of VSI-Bench (VLM-3R, SpatialStack), which announce a still image as frames.
  "vsi": Protocol(text=_vsi, reading="generated", limit=16),
}


def check(config: ScoreConfig) -> None:
  """Raises a UserError where a protocol or control is unknown or named twice, or none is named."""
  if not config.protocols:
    raise UserError("score.protocols: name at least one protocol")
  if config.new_tokens < 0:
    raise UserError(f"score.new_tokens: must be at least 0, got {config.new_tokens}")
  for field, known in (("protocols", PROTOCOLS), ("controls", CONTROLS)):
    names = getattr(config, field)
    for name in names:
      if name not in known:
        raise UserError(f"score.{field}: unknown {field[:-1]} {name!r}; {nearest(name, known)}")
    if len(set(names)) < len(names):
      raise UserError(f"score.{field}: {', '.join(names)}: one stands twice")


class Prompter(TypingProtocol):
  """Turns questions into prompts; `pad_id` fills batches. Called from several threads.

  `sees`: whether the model reads images; one that does not is asked every question without.
  """

  sees: bool
  pad_id: int
  stop_ids: Sequence[int]
  normal: np.ndarray

  def __call__(
    self,
    question: Question,
    protocol: str = "native",
    images: Sequence[Tiles] | None = None,
    blind: bool = False,
  ) -> Prompt: ...

  def layout(self, image: np.ndarray) -> Tiles: ...

  def cut(self, image: np.ndarray) -> Tiles: ...

  def identity(self) -> dict[str, Any]: ...

  def priors(
    self, shots: Sequence[Shot], images: Sequence[Tiles], blind: bool = False
  ) -> Mapping[str, np.ndarray]: ...

  def answers(self, choices: Sequence[str]) -> tuple[tuple[int, ...], ...]: ...

  def decode(self, ids: Iterable[int]) -> str: ...


class ProcessorPrompter:
  """The prompter of a checkpoint's processor.

  Attributes:
    sees, pad_id, stop_ids: the processor's.
    normal: float32 (256, 3), what the vision tower takes for each value of a pixel and channel.
  """

  def __init__(self, processor: Processor):
    self.sees = processor.sees
    if not self.sees:
      said = "a language model by itself reads no images: every question is asked without them"
      warnings.warn(said, Note, stacklevel=2)
    self.pad_id = processor.pad_id
    self.stop_ids = processor.stop_ids
    self._processor = processor
    self.normal = processor.normal.values
    self._letters: dict[tuple[int, str], np.ndarray] = {}
    self._answer = functools.lru_cache(maxsize=8192)(processor.answer_ids)
    self._lock = threading.Lock()

  def __call__(
    self,
    question: Question,
    protocol: str = "native",
    images: Sequence[Tiles] | None = None,
    blind: bool = False,
  ) -> Prompt:
    """The prompt of a question.

    Args:
      images: tiles of the images that are shown, whose pixels then stay out; None for the question's own.
      blind: show no image at all; the text's `<image>` marks go too.

    Raises:
      UserError: an option has no letter, or the prompt is longer than the model's context.
    """
    asked = PROTOCOLS[protocol]
    text = asked.text(question)
    if blind:
      images, text = (), text.replace(IMAGE_MARK, "")
    shown = question.images if images is None else images
    name = f"question {question.idx}"
    encoded = self._processor.encode_prompt(shown, text, asked.answer_prefix, name, images is None)
    return Prompt(encoded, self._letter_ids(len(question.choices), asked.answer_prefix))

  def layout(self, image: np.ndarray) -> Tiles:
    """What `cut` gives, with pixels that take no memory and mean nothing."""
    tiler = self._processor.tiler
    rows, cols = tiler.grid(*image.shape[:2])
    size = tiler.tile_size
    return Tiles(np.broadcast_to(np.uint8(0), (rows * cols + 1, size, size, 3)), rows, cols)

  def cut(self, image: np.ndarray) -> Tiles:
    """An image's tiles, uint8."""
    return self._processor.tiler(image)

  def identity(self) -> dict[str, Any]:
    """All that an image's tiles depend on beside its pixels, as JSON values."""
    versions = {name: importlib.metadata.version(name) for name in ("pillow", "transformers")}
    return dataclasses.asdict(self._processor.tiler) | versions

  def priors(
    self, shots: Sequence[Shot], images: Sequence[Tiles], blind: bool = False
  ) -> Mapping[str, np.ndarray]:
    """What each of the model's priors says of the tiles of images, float32 (I, P, C) by name; none without
    any.

    Args:
      blind: they say nothing.

    Raises:
      UserError: the shots lack what a prior needs.
    """
    if self._processor.priors is None:
      return {}
    return self._processor.priors(shots, [(tiles.rows, tiles.cols) for tiles in images], blind)

  def answers(self, choices: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Tokens of each option's text as the answer.

    Raises:
      UserError: a text does not begin with a token of its own.
    """
    return tuple(self._answer(choice) for choice in choices)

  def decode(self, ids: Iterable[int]) -> str:
    """Text of generated tokens, without special ones."""
    return self._processor.decode(ids)

  def _letter_ids(self, count: int, prefix: str) -> np.ndarray:
    with self._lock:
      if (count, prefix) not in self._letters:
        self._letters[count, prefix] = np.array(self._processor.letter_ids(count, prefix), np.int32)
      return self._letters[count, prefix]
