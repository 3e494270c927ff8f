"""From a question to what a runtime is given: the prompt of training and evaluation, letter for letter."""

from __future__ import annotations

import base64
import dataclasses
import io
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from spatialvlm.deployed.child import MARK
from spatialvlm.evaluation.asking.protocols import PROTOCOLS, ProcessorPrompter
from spatialvlm.processing.processor import Processor
from spatialvlm.types import IMAGE_MARK, Question, UserError


@dataclasses.dataclass(frozen=True)
class Asked:
  """A question as a runtime reads it.

  Attributes:
    given: of `child`, what a runtime's methods take.
    tokens: of the whole prompt, as this library reads it.
    seconds: that cutting pictures took, where the runtime does not do it itself.
    text: the user's turn, without pictures.
  """

  given: dict[str, Any]
  tokens: int
  seconds: float
  text: str


class Asker:
  """Makes them, for one layout of pictures.

  Args:
    arrays: a file for the arrays of runtimes that take such; None for pictures and text.

  Raises:
    UserError: a protocol that reads no letters.
  """

  def __init__(self, processor: Processor, protocol: str, arrays: Path | None = None):
    if PROTOCOLS[protocol].reading != "letters":
      known = ", ".join(name for name, rule in PROTOCOLS.items() if rule.reading == "letters")
      raise UserError(f"score.protocols: {protocol!r} reads no letters, as runtimes are asked for: {known}")
    self._processor, self._protocol, self._arrays = processor, protocol, arrays
    self._prompter = ProcessorPrompter(processor)

  def __call__(self, question: Question) -> Asked:
    """Raises a UserError for a question that the model cannot be asked."""
    rule, sees = PROTOCOLS[self._protocol], self._processor.sees
    images = question.images if sees else ()
    text = rule.text(question) if sees else rule.text(question).replace(IMAGE_MARK, "")
    name = f"question {question.idx}"
    layouts = [self._prompter.layout(image) for image in images]
    encoded, letters = self._prompter(question, self._protocol, layouts, blind=not sees)
    prompt = self._processor.prompt_text(len(images), text, rule.answer_prefix, name)
    given: dict[str, Any] = {"options": letters.tolist(), "pictures": [], "prompt": "", "arrays": ""}
    seconds = 0.0
    if self._arrays is None:
      mark = self._processor.format.mark
      given["prompt"] = prompt.replace(mark, MARK) if mark else prompt
      given["pictures"] = [png(image) for image in images]
    else:
      began = time.perf_counter()
      made = self._processor(text=[prompt], images=[list(images)] if images else None)
      seconds = time.perf_counter() - began
      np.savez(self._arrays, **made)
      given["arrays"] = str(self._arrays)
    return Asked(given, len(encoded.tokens), seconds, text)


def png(image: np.ndarray) -> str:
  """A uint8 (H, W, 3) picture as a PNG file in base64."""
  buffer = io.BytesIO()
  Image.fromarray(np.asarray(image)).save(buffer, "PNG")
  return base64.b64encode(buffer.getvalue()).decode()
