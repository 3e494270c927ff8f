"""How a question is put to a model, and in which form its options are read off.

One model's scores under two protocols may differ by ten points, so a protocol is data, named in every result.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple
from typing import Protocol as TypingProtocol

import numpy as np

from spatialvlm.config import nearest
from spatialvlm.data.processor import Encoded, Processor
from spatialvlm.types import Question, UserError


class Prompt(NamedTuple):
  """A question as a model reads it: the encoded prompt, and the token of each option's letter, int32 (K,)."""

  encoded: Encoded
  option_ids: np.ndarray


class Encoder(TypingProtocol):
  """Turns questions into prompts; `pad_id` fills batches. Called from several threads."""

  pad_id: int

  def __call__(self, question: Question) -> Prompt: ...


@dataclasses.dataclass(frozen=True)
class Protocol:
  """One way of asking.

  Attributes:
    text: the user's turn; the image stands before it.
    answer_prefix: what the model is made to begin its answer with, before the letter.
  """

  text: Callable[[Question], str]
  answer_prefix: str = ""


PROTOCOLS = {
  # The data set's own prompt in the checkpoint's own chat template, and the letter as the answer's first
  # token: the form that training takes.
  "native": Protocol(text=lambda question: question.prompt),
  # The same after `Answer:`, the form in which SmolVLM's own instruction data gives letters
  # (huggingface/smollm, build_ds_sft.py).
  "native-prefill": Protocol(text=lambda question: question.prompt, answer_prefix="Answer:"),
}


class ProcessorEncoder:
  """The encoder of a checkpoint's processor under a protocol.

  Raises:
    UserError: an unknown protocol; later, a question with more options than letters, or one whose prompt is
      longer than the model's context.
  """

  def __init__(self, processor: Processor, protocol: str = "native"):
    if protocol not in PROTOCOLS:
      raise UserError(f"score.protocol: unknown protocol {protocol!r}; {nearest(protocol, PROTOCOLS)}")
    self.pad_id = processor.pad_id
    self._processor = processor
    self._protocol = PROTOCOLS[protocol]
    self._letters: dict[int, np.ndarray] = {}

  def __call__(self, question: Question) -> Prompt:
    prefix = self._protocol.answer_prefix
    count = len(question.choices)
    if count not in self._letters:
      self._letters[count] = np.array(self._processor.letter_ids(count, prefix), np.int32)
    encoded = self._processor.encode_prompt(
      (question.image,), self._protocol.text(question), prefix, id=f"question {question.idx}"
    )
    return Prompt(encoded, self._letters[count])
