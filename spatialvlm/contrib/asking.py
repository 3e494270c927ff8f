"""Conversations with pictures to a model of this process, many at a time."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

import spatialvlm
from spatialvlm.processing.images import ImageSource, open_image
from spatialvlm.server.chat import Chat, Message, Picture
from spatialvlm.server.errors import Refused
from spatialvlm.server.service import Collected, Service, ServiceConfig
from spatialvlm.serving.lane import SchedulerConfig
from spatialvlm.types import UserError

# How many pictures a conversation may show, and how large they may be, is the harness's affair.
_ANY = 2**40


class Asker:
  """A model that answers lists of conversations.

  Attributes:
    vlm: the `spatialvlm.LoadedVlm`.
  """

  def __init__(self, model: str, rows: int = 16, context: int = 8192, **settings: Any):
    """Loads what `spatialvlm.load_vlm` loads.

    Args:
      rows: conversations that are answered at the same time.
      context: most tokens of a prompt and its answer.
      settings: of `load_vlm` (`dtype`, `max_tiles`, `layout`, ...).

    Raises:
      UserError: as `load_vlm`; a setting that it does not know.
    """
    try:
      self.vlm = spatialvlm.load_vlm(model, **settings)
    except TypeError as error:
      raise UserError(f"spatialvlm: {error}") from None
    # Everything is asked at once, however long it takes.
    scheduling = SchedulerConfig(rows=rows, context=context, queue=_ANY, seconds=float(_ANY))
    allowed = ServiceConfig(most_bytes=_ANY, most_pixels=_ANY, most_images=_ANY)
    self._service = Service({"model": (self.vlm.model, self.vlm.processor)}, allowed, scheduling)

  def answers(self, chats: Sequence[Chat]) -> list[str]:
    """The answers, in the order of the conversations.

    Raises:
      UserError: a conversation that cannot be asked, by its number.
    """
    found: list[Collected] = []
    for number, chat in enumerate(chats):
      collected = Collected()
      try:
        self._service.ask(chat, self._service.prepare(chat), collected)
      except Refused as error:
        raise UserError(f"request {number}: {error}") from None
      found.append(collected)
      # Pictures are opened as they are needed, so that not all of them are in memory.
      while self._service.scheduler.waiting >= 2 * self._service.scheduler.config.rows:
        self._service.scheduler.turn()
    while self._service.scheduler.turn():
      pass
    return ["".join(event.piece.text for event in _whole(n, one)) for n, one in enumerate(found)]


def chat(messages: Sequence[Message], **drawn: Any) -> Chat:
  """A conversation for `Asker.answers`; `drawn` are fields of `Chat`, greedy if nothing is said."""
  return Chat("model", tuple(messages), **({"temperature": 0.0} | drawn))


def picture(source: ImageSource) -> Picture:
  """Anything that holds an image, as part of a message."""
  buffer = io.BytesIO()
  Image.fromarray(np.asarray(open_image(source))).save(buffer, "PNG", compress_level=1)
  return Picture("data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode(), "picture")


def _whole(number: int, collected: Collected) -> list:
  try:
    return collected.wait(0)
  except Refused as error:
    raise UserError(f"request {number}: {error}") from None
