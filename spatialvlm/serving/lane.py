"""One model's requests on their rows: read in, said on turn by turn, let go."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from spatialvlm import generation
from spatialvlm.models.vlm import Vlm
from spatialvlm.serving import rows as rows_lib
from spatialvlm.serving.requests import Generated, Request
from spatialvlm.serving.rows import Draw, Rows, Said
from spatialvlm.serving.scorer import VlmScorer
from spatialvlm.serving.shared import Shared
from spatialvlm.types import UserError


@dataclasses.dataclass(frozen=True)
class SchedulerConfig:
  """Shapes, memory and limits of a `scheduler.Scheduler`. Only `context` may change an answer: it may end it.

  Attributes:
    rows: requests that are answered at the same time, of each model.
    together: texts that are read at once.
    steps: tokens of one turn; between turns requests come and go.
    context: most tokens of a prompt and its answer, if the model's own context is not shorter.
    queue: most requests that wait, of all models.
    seconds: that a request may take, its waiting included.
    image_tiles: encoded tiles that are kept for further requests with the same pictures, of each model.
    prefix_tokens: tokens of prompts' beginnings whose keys and values are kept, of each model.
  """

  rows: int = 16
  together: int = 4
  steps: int = 4
  context: int = 2048
  queue: int = 256
  seconds: float = 300.0
  image_tiles: int = 256
  prefix_tokens: int = 8192

  def __post_init__(self):
    for name in ("rows", "together", "steps", "context", "queue"):
      if getattr(self, name) < 1:
        raise UserError(f"{name}: {getattr(self, name)} must be at least 1")
    if not self.seconds > 0 or self.image_tiles < 0 or self.prefix_tokens < 0:
      raise UserError("seconds must be above 0, image_tiles and prefix_tokens not below 0")


@dataclasses.dataclass(frozen=True)
class Served:
  """A model that is served.

  Attributes:
    pad_id: token that fills what is read; it changes no answer.
    stop_ids: tokens that end an answer.
    normal: float32 (256, C), what the vision tower takes for each value of a pixel; None without a tower.
  """

  vlm: Vlm
  pad_id: int
  stop_ids: tuple[int, ...]
  normal: np.ndarray | None = None


class Token(NamedTuple):
  """A token that was said.

  Attributes:
    logprob: over the whole vocabulary, before any temperature; 0 where none was asked for.
    top: id and log-probability of the likeliest tokens in its place, falling; empty where none was asked for.
  """

  id: int
  logprob: float = 0.0
  top: tuple[tuple[int, float], ...] = ()


class Listener(Protocol):
  """Whoever waits for an answer. Called by the scheduler's thread: it returns at once and raises nothing."""

  def said(self, tokens: Sequence[Token]) -> bool:
    """The next tokens, none of them a stop token; true where no more are wanted: then nothing else comes."""

  def ended(self, stopped: bool) -> None:
    """The answer is whole: a stop token came, or (false) its limit."""

  def failed(self, error: Exception) -> None:
    """There will be no answer, or no more of it."""


@dataclasses.dataclass(eq=False)
class Job:
  """A request on its way.

  Attributes:
    model: name of it.
    limit: most tokens of the answer.
    tells: whether log-probabilities are told.
    deadline: by the scheduler's clock.
    cancelled: nobody waits for it any more.
    row, length, count, last: the row that it takes, the tokens that this holds, how many were said, and the
      one that was said last.
  """

  model: str
  request: Request
  limit: int
  tells: bool
  listener: Listener
  deadline: float
  cancelled: bool = False
  row: int = -1
  length: int = 0
  count: int = 0
  last: int = 0

  @property
  def draw(self) -> Draw:
    """How the next token is chosen."""
    return Draw(*self.request.draw, said=self.count)


@dataclasses.dataclass
class Counts:
  """What a lane has done so far; `row_steps`: tokens that its turns said, also such as nobody wanted."""

  prompt_tokens: int = 0
  said_tokens: int = 0
  answers: int = 0
  turns: int = 0
  row_steps: int = 0


class Lane:
  """The rows of one model. Belongs to the scheduler's thread.

  Attributes:
    running: the jobs that have a row.
    most: tokens of a prompt and its answer together.
    counts, shared: what was done, and what is kept.
  """

  def __init__(self, model: Served, config: SchedulerConfig):
    vlm = model.vlm
    self._config, self._stop_ids = config, frozenset(model.stop_ids)
    self._rows = Rows(vlm, config.rows, config.together, model.stop_ids, config.steps)
    self._free = list(range(config.rows - 1, -1, -1))
    self._soft = vlm.config.text.max_length - vlm.max_length
    self.most = min(config.context, vlm.max_length)
    self.running: dict[int, Job] = {}
    self.counts = Counts()
    self.shared = Shared(
      VlmScorer(vlm),
      pad_id=model.pad_id,
      normal=model.normal,
      image_tiles=config.image_tiles,
      prefix_tokens=config.prefix_tokens,
    )

  def limit(self, request: Request) -> int:
    """Most tokens of the answer to a request.

    Raises:
      UserError: its prompt leaves no room for any.
    """
    (want,) = request.of(Generated)
    room = self.most - len(request.tokens)
    if room < 1:
      raise UserError(
        f"{request.name}: {len(request.tokens)} tokens leave no room for an answer in the context of"
        f" {self.most}; shorten the text, or show fewer or smaller pictures"
      )
    return min(want.limit, room)

  def drop(self, over: Callable[[Job], bool]) -> list[Job]:
    """Frees the rows of jobs that are over, and returns these."""
    gone = [job for job in self.running.values() if over(job)]
    for job in gone:
      self._leave(job)
    return gone

  def admit(self, take: Callable[[Callable[[Job], bool]], Job | None]) -> None:
    """Reads waiting jobs into free rows; while others go on, at most one prefix that is not kept.

    Args:
      take: gives the first of the waiting jobs if it fits, else None.
    """
    others, fresh = bool(self.running), 0
    fits = lambda job: not (others and fresh) or self.shared.has(job.request)
    while self._free:
      group: list[Job] = []
      while self._free and len(group) < self._config.together and (job := take(fits)) is not None:
        fresh += not self.shared.has(job.request)
        if self._place(job):
          group.append(job)
      if not group:
        return
      self._read(group)

  def advance(self) -> None:
    """One turn of all rows."""
    jobs = list(self.running.values())
    if not jobs:
      return
    self._rows.fit(self._needed())
    said = self._rows.turn(
      [job.row for job in jobs],
      [job.last for job in jobs],
      [job.length for job in jobs],
      [job.limit - job.count for job in jobs],
      [job.draw for job in jobs],
      any(job.tells for job in jobs),
    )
    steps = said.tokens_BT.shape[1]
    self.counts.turns += 1
    self.counts.row_steps += steps * len(jobs)
    for index, job in enumerate(jobs):
      job.length += steps
      self._deliver(job, said, index)

  def clear(self) -> list[Job]:
    """Forgets all rows; returns the jobs that had one."""
    jobs = list(self.running.values())
    for job in jobs:
      self._leave(job)
    self._rows.clear()
    return jobs

  def rest(self) -> None:
    """Gives the rows' memory back where none is taken."""
    if not self.running:
      self._rows.clear()

  def _place(self, job: Job) -> bool:
    """Lays a job's prefix into a free row and reads its text up to the last piece; whether that went well."""
    try:
      prefix = self.shared.prefix(job.request)
    except Exception as error:  # what is wrong with one request is no matter of the others
      job.listener.failed(error)
      return False
    job.row, job.length = self._free.pop(), job.request.text_start + self._soft
    self.running[job.row] = job
    self._rows.place(job.row, prefix, self._needed())
    self.counts.prompt_tokens += len(job.request.tokens)
    *first, _ = _pieces(job.request)
    for text in first:
      self._rows.fit(self._needed(job.length + len(text)))
      self._rows.read([job.row], [text], [job.length], [job.draw], False)
      job.length += len(text)
    return True

  def _read(self, group: Sequence[Job]) -> None:
    """Reads the last pieces of several texts, and says the first tokens."""
    texts = [_pieces(job.request)[-1] for job in group]
    length = rows_lib.piece(max(map(len, texts)))
    self._rows.fit(self._needed(max(job.length for job in group) + length))
    said = self._rows.read(
      [job.row for job in group],
      texts,
      [job.length for job in group],
      [job.draw for job in group],
      any(job.tells for job in group),
    )
    for index, (job, text) in enumerate(zip(group, texts, strict=True)):
      job.length += len(text)
      self._deliver(job, said, index)

  def _needed(self, least: int = 0) -> int:
    """Columns that the rows need for the next turn."""
    return max(least, *(job.length + self._config.steps for job in self.running.values()), 0)

  def _deliver(self, job: Job, said: Said, index: int) -> None:
    """Hands a job its new tokens, up to its end."""
    tokens: list[Token] = []
    ended = broken = stopped = False
    for at, token in enumerate(said.tokens_BT[index].tolist()):
      broken, stopped = token == generation.BROKEN, token in self._stop_ids
      if broken or stopped:
        break
      job.count, job.last = job.count + 1, token
      tokens.append(_told(said, index, at) if job.tells else Token(token))
      ended = job.count >= job.limit
      if ended:
        break
    self.counts.said_tokens += len(tokens)
    enough = bool(tokens) and job.listener.said(tokens)
    if not (broken or stopped or ended or enough):
      return
    self._leave(job)
    if broken:
      job.listener.failed(UserError(f"{job.request.name}: {generation.NOT_FINITE}"))
      return
    self.counts.answers += 1
    if not enough:
      job.listener.ended(stopped)

  def _leave(self, job: Job) -> None:
    del self.running[job.row]
    self._free.append(job.row)


def _pieces(request: Request) -> list[np.ndarray]:
  """A request's text behind its prefix, in pieces."""
  text = request.tokens[request.text_start :]
  return [text[i : i + rows_lib.PIECES[-1]] for i in range(0, len(text), rows_lib.PIECES[-1])]


def _told(said: Said, index: int, at: int) -> Token:
  top = zip(said.top_ids_BTK[index, at].tolist(), said.top_logprobs_BTK[index, at].tolist(), strict=True)
  return Token(int(said.tokens_BT[index, at]), float(said.logprobs_BT[index, at]), tuple(top))
