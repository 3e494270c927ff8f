"""From what a client asks to what the scheduler does, and back to its text."""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from spatialvlm import generation
from spatialvlm.models.vlm import Vlm
from spatialvlm.processing.processor import Processor
from spatialvlm.server.chat import LEAST_TEMPERATURE, Chat, Picture
from spatialvlm.server.errors import FAILED, OVERLOADED, Refused
from spatialvlm.server.pictures import Album, Cut
from spatialvlm.server.speech import Piece, Speech, Vocabulary
from spatialvlm.serving.lane import Job, SchedulerConfig, Served, Token
from spatialvlm.serving.requests import Generated, Request, prefix_length
from spatialvlm.serving.requests import Picture as Shown
from spatialvlm.serving.scheduler import Full, Scheduler, Stopped, TooLate
from spatialvlm.types import IMAGE_MARK, UserError


@dataclasses.dataclass(frozen=True)
class ServiceConfig:
  """What clients may do.

  Attributes:
    images: folder whose pictures they may show by path, None for none.
    most_bytes: of a body, and of a picture's file.
    most_pixels: of one picture.
    most_images: of one request.
    max_tokens: of an answer to a request that names no number; None for what the context leaves.
    temperature: of a request that names none; OpenAI's is 1.
  """

  images: Path | None = None
  most_bytes: int = 32 << 20
  most_pixels: int = 24_000_000
  most_images: int = 16
  max_tokens: int | None = None
  temperature: float = 1.0

  def __post_init__(self):
    if self.images is not None and not self.images.expanduser().is_dir():
      raise UserError(f"--images: {self.images} is no folder")
    for name in ("most_bytes", "most_pixels"):
      if getattr(self, name) < 1:
        raise UserError(f"--{name}: {getattr(self, name)} must be at least 1")
    few = self.max_tokens is not None and self.max_tokens < 1
    cold = 0 < self.temperature < LEAST_TEMPERATURE
    if self.most_images < 0 or few or cold or not 0 <= self.temperature <= 2:
      raise UserError("--most_images must not be below 0, --max_tokens at least 1, --temperature from 0 to 2")


@dataclasses.dataclass(frozen=True)
class Event:
  """What comes of an answer: a piece of it, and at its end why it ends, or an error."""

  piece: Piece = Piece("", ())
  finish: Literal["stop", "length"] | None = None
  said: int = 0
  error: Refused | None = None

  @property
  def last(self) -> bool:
    """Whether nothing follows."""
    return self.finish is not None or self.error is not None


@dataclasses.dataclass(frozen=True)
class Asked:
  """A request that was taken.

  Attributes:
    prompt_tokens: of its prompt, image tokens included.
    job: the scheduler's.
  """

  prompt_tokens: int
  job: Job


class Service:
  """Models by name, their processors, and the scheduler that answers. Safe to use from any thread."""

  def __init__(
    self,
    models: Mapping[str, tuple[Vlm, Processor]],
    config: ServiceConfig,
    scheduling: SchedulerConfig,
    on_error: Callable[[Exception], None] = lambda error: None,
  ):
    """`models`: by the names by which clients ask for them; the first is the base.

    Raises:
      UserError: a model whose priors ask how each picture was taken, which no client says.
    """
    for name, (vlm, _) in models.items():
      if vlm.priors:
        raise UserError(
          f"{name}: a model with priors ({', '.join(vlm.priors)}), which must know how each picture was"
          " taken; requests to a server do not say it: serve its base"
        )
    self.config = config
    self._processors = {name: processor for name, (_, processor) in models.items()}
    self._vocabulary = Vocabulary(next(iter(self._processors.values())).tokenizer)
    self._album = Album(config.images, config.most_bytes, config.most_pixels)
    self.scheduler = Scheduler(
      {name: _served(vlm, processor) for name, (vlm, processor) in models.items()},
      scheduling,
      on_error=on_error,
    )

  @property
  def vocabulary(self) -> Vocabulary:
    """What tokens are called."""
    return self._vocabulary

  def check(self, chat: Chat) -> None:
    """Raises a Refused for what can be told before any picture is opened."""
    if chat.model not in self._processors:
      raise Refused(
        404,
        f"model {chat.model!r} does not exist; there are {', '.join(map(repr, self._processors))}",
        param="model",
        code="model_not_found",
      )
    count = len(chat.pictures)
    if count > self.config.most_images:
      raise _of_messages(f"{count} pictures are more than the {self.config.most_images} that are allowed")
    processor = self._processors[chat.model]
    if count and not processor.sees:
      raise _of_messages(f"model {chat.model!r} reads no pictures", "image_not_supported")
    marks = {IMAGE_MARK, processor.format.mark} - {""}
    for message in chat.messages:
      for mark in marks if processor.sees else ():
        if any(mark in part for part in message.parts if isinstance(part, str)):
          raise _of_messages(f"a text holds {mark}, the mark of a picture; send pictures as image_url parts")

  def prepare(self, chat: Chat) -> Request:
    """Opens pictures, and lays out the prompt: the work that may be done beside the scheduler's.

    Raises:
      Refused: a picture that cannot be shown, or a prompt that is too long, or that the template refuses.
    """
    self.check(chat)
    processor = self._processors[chat.model]
    cut = {part: self._cut(part, processor) for part in dict.fromkeys(chat.pictures)}
    shown = [cut[part] for part in chat.pictures]
    try:
      encoded = processor.encode_prompt([c.tiles for c in shown], _conversation(chat), pixels=False)
    except UserError as error:
      raise _of_messages(str(error)) from None
    limit = chat.max_tokens or self.config.max_tokens or self.scheduler.config.context
    temperature = self.config.temperature if chat.temperature is None else chat.temperature
    seed = secrets.randbits(32) if chat.seed is None else chat.seed % 2**32
    count = sum(encoded.images)
    return Request(
      tokens=encoded.tokens,
      image_slot=encoded.image_slot,
      prefix=prefix_length(encoded.image_slot, encoded.prefix),
      wanted=(Generated(limit, processor.stop_ids, temperature=temperature, top_p=chat.top_p, seed=seed),),
      bidirectional=encoded.prefix > 0,
      image=_key(shown) if count else None,
      picture=(lambda: Shown(tiles=np.concatenate([c.tiles.pixels for c in shown]))) if count else None,
      tile_count=count,
      name="the prompt",
    )

  def ask(self, chat: Chat, request: Request, on_event: Callable[[Event], None]) -> Asked:
    """Hands a prepared request to the scheduler; `on_event` is called in its thread.

    Raises:
      Refused: too many wait, a prompt without room for an answer, a server that stops.
    """
    processor = self._processors[chat.model]
    speech = Speech(lambda ids: processor.decode(ids), chat.stop)
    listener = _Listener(speech, on_event)
    try:
      job = self.scheduler.submit(chat.model, request, listener, tells=chat.logprobs)
    except (UserError, Full, Stopped) as error:
      raise refusal(error) from None
    return Asked(len(request.tokens), job)

  def cancel(self, asked: Asked) -> None:
    """Nobody waits for the answer any more; of an answer that has come this does nothing."""
    self.scheduler.cancel(asked.job)

  def _cut(self, picture: Picture, processor: Processor) -> Cut:
    try:
      return self._album.cut(picture, processor.tiler, str(id(processor.tiler)))
    except UserError as error:
      raise Refused(400, f"{picture.param}: {error}", param=picture.param, code="invalid_image") from None


class _Listener:
  """Makes events of one answer's tokens, in the scheduler's thread."""

  def __init__(self, speech: Speech, on_event: Callable[[Event], None]):
    self._speech, self._on_event, self._said = speech, on_event, 0

  def said(self, tokens: Sequence[Token]) -> bool:
    self._said += len(tokens)
    try:
      piece, stopped = self._speech.add(tokens)
    except Exception as error:  # of this answer alone: others wait for the thread that called
      self.failed(error)
      return True
    if stopped or piece.text or piece.tokens:
      self._on_event(Event(piece, "stop" if stopped else None, self._said))
    return stopped

  def ended(self, stopped: bool) -> None:
    self._on_event(Event(self._speech.end(), "stop" if stopped else "length", self._said))

  def failed(self, error: Exception) -> None:
    self._on_event(Event(said=self._said, error=refusal(error)))


class Collected:
  """Events of one answer as a whole: for those who wait in a thread of their own."""

  def __init__(self):
    self.events: list[Event] = []
    self._whole = threading.Event()

  def __call__(self, event: Event) -> None:
    self.events.append(event)
    if event.last:
      self._whole.set()

  def wait(self, seconds: float) -> list[Event]:
    """All events.

    Raises:
      Refused: what the answer failed with.
      TimeoutError: it is not whole after so long.
    """
    if not self._whole.wait(seconds):
      raise TimeoutError(f"no whole answer within {seconds:g} seconds")
    if self.events[-1].error is not None:
      raise self.events[-1].error
    return self.events


def refusal(error: Exception) -> Refused:
  """What a client is told of an error of the scheduler's."""
  if isinstance(error, Refused):
    return error
  if isinstance(error, Full):
    return Refused(429, str(error), code="rate_limit_exceeded", kind=OVERLOADED, headers={"Retry-After": "1"})
  if isinstance(error, TooLate):
    return Refused(504, str(error), code="timeout", kind=FAILED)
  if isinstance(error, Stopped):
    return Refused(503, str(error), code="stopping", kind=FAILED)
  if isinstance(error, UserError) and generation.NOT_FINITE not in str(error):
    return _of_messages(str(error), "context_length_exceeded" if "context" in str(error) else "unfit")
  return Refused(500, "the server failed on this request; its log says more", code="failed", kind=FAILED)


def _served(vlm: Vlm, processor: Processor) -> Served:
  normal = processor.normal.values if processor.sees else None
  return Served(vlm, processor.pad_id, tuple(processor.stop_ids), normal)


def _conversation(chat: Chat) -> list[dict[str, Any]]:
  """The messages as chat templates take them."""
  part = lambda p: {"type": "text", "text": p} if isinstance(p, str) else {"type": "image"}
  return [{"role": m.role, "content": [part(p) for p in m.parts]} for m in chat.messages]


def _key(shown: Sequence[Cut]) -> str:
  """A key of several pictures in their order."""
  return hashlib.blake2b("\n".join(cut.key for cut in shown).encode(), digest_size=16).hexdigest()


def _of_messages(what: str, code: str = "invalid_value") -> Refused:
  return Refused(400, f"messages: {what}", param="messages", code=code)
