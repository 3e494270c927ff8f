"""What a client hands to the engine, and what comes back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np

from spatialvlm import generation
from spatialvlm.types import UserError


@dataclasses.dataclass(frozen=True)
class EngineConfig:
  """Shapes and memory of an `engine.Engine`. None of it changes an answer beyond the order of sums.

  Attributes:
    batch_size: requests of one batch; rounded up to a multiple of the shards of a batch.
    lengths: buckets of the text behind a prefix, in tokens, ascending; a longer text is refused.
    tiles: buckets of image tiles per request, ascending; more tiles are refused.
    pool_tiles: encoded tiles kept on the device for further requests with the same images; the least recently
      used go first. Never fewer than a batch needs.
    pool_prefixes: keys and values of prefixes kept on the device for further requests, of each length apart;
      0 for two batches.
    section: what stands before a field's name where messages tell the user to change it, such as "score.".
  """

  batch_size: int = 32
  lengths: tuple[int, ...] = (32, 64, 96, 128, 192, 256, 512, 1024, 2048)
  tiles: tuple[int, ...] = (1, 5, 13, 17)
  pool_tiles: int = 1024
  pool_prefixes: int = 0
  section: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
  """The images of a request as the vision tower takes them; one of the two.

  Attributes:
    tiles: (I, S, S, C), uint8 for an engine with a table `normal`, else normalised float32.
    features: (I, P, D), image tokens after the connector that are known already, what priors say among them.
    priors: beside `tiles`, of a model with priors: what each says of their tokens, (I, P, C) by name.
  """

  tiles: np.ndarray | None = None
  features: np.ndarray | None = None
  priors: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Letters:
  """Wants the log-probability of each of some single tokens as the next one.

  Attributes:
    tokens: K token ids.
    tag: the client's own, returned with the answer and never looked at.
  """

  tokens: tuple[int, ...]
  tag: Any = None


@dataclasses.dataclass(frozen=True, eq=False)
class Texts:
  """Wants the summed log-probability of the tokens of each of some texts as what comes next.

  Attributes:
    texts: token ids of K texts, none of them empty.
    tag: as of `Letters`.
  """

  texts: tuple[tuple[int, ...], ...]
  tag: Any = None


@dataclasses.dataclass(frozen=True, eq=False)
class Generated:
  """Wants what the model says: greedily, or drawn. Several of one request are drawn alike.

  Attributes:
    limit: most tokens, at least 1; fewer where the model's context ends before.
    stop: token ids that end it; none of them belongs to the answer.
    tag: as of `Letters`.
    temperature: 0 takes the likeliest token; else logits are divided by it and a token is drawn.
    top_p: only the likeliest tokens whose probabilities first reach this sum are drawn from.
    seed: in [0, 2**32): what is drawn follows from it and from the prompt alone, whatever the batch.
  """

  limit: int
  stop: tuple[int, ...] = ()
  tag: Any = None
  temperature: float = 0.0
  top_p: float = 1.0
  seed: int = 0

  @property
  def draw(self) -> tuple[float, float, int]:
    """How tokens are chosen: temperature, top_p and seed."""
    return self.temperature, self.top_p, self.seed


Wanted = Letters | Texts | Generated


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
  """A prompt, and all that is wanted of it: it is read once, however much that is.

  Attributes:
    tokens: int32 (T,), the prompt.
    image_slot: int32 (T,), for an image token its place among the request's I * P image tokens, else -1.
    prefix: how many leading tokens are read once for all requests that begin with them and show the same
      images (`prefix_length`). With `bidirectional` the last of them is read again, before what follows.
    wanted: at least one.
    bidirectional: whether the tokens of the prefix all see each other, as a prefix-LM's prompt does.
    image: key of the images that are shown, None without. Equal keys mean equal pixels, and equal priors.
    picture: gives the images' tiles or features, called by the engine's thread at most once, where the device
      does not hold them; None without images.
    tile_count: I, how many tiles they have.
    name: what messages call the request.
  """

  tokens: np.ndarray
  image_slot: np.ndarray
  prefix: int
  wanted: tuple[Wanted, ...]
  bidirectional: bool = False
  image: Hashable | None = None
  picture: Callable[[], Picture] | None = None
  tile_count: int = 0
  name: str = "request"

  def __post_init__(self):
    if not 0 < self.prefix < len(self.tokens) + self.bidirectional:
      raise ValueError(f"{self.name}: a prefix of {self.prefix} of {len(self.tokens)} tokens")
    if not self.wanted:
      raise ValueError(f"{self.name}: nothing is wanted of it")
    if any(not want.texts or not all(want.texts) for want in self.of(Texts)):
      raise ValueError(f"{self.name}: a text without tokens")
    if any(want.limit < 1 for want in self.of(Generated)):
      raise ValueError(f"{self.name}: an answer of less than one token")
    draws = {want.draw for want in self.of(Generated)}
    if len(draws) > 1:
      raise ValueError(f"{self.name}: answers of one request that are drawn in several ways; make it several")
    for temperature, top_p, seed in draws:
      if not temperature >= 0 or not 0 < top_p <= 1 or not 0 <= seed < 2**32:
        raise ValueError(f"{self.name}: temperature {temperature}, top_p {top_p}, seed {seed}: out of range")

  @property
  def draw(self) -> tuple[float, float, int]:
    """How the tokens of its generated answers are chosen (`Generated.draw`); greedily where it wants none."""
    return next((want.draw for want in self.of(Generated)), (0.0, 1.0, 0))

  def of(self, kind: type[Wanted]) -> tuple[Any, ...]:
    """What of one kind is wanted."""
    return tuple(want for want in self.wanted if isinstance(want, kind))

  @property
  def text_start(self) -> int:
    """Where the text begins that is read behind the prefix."""
    return self.prefix - self.bidirectional


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
  """What was wanted.

  Attributes:
    wanted: the `Letters`, `Texts` or `Generated`, with its tag.
    logprobs: float32 (K,), of letters or texts in their order; over the whole vocabulary.
    tokens: int32, what was generated, without the stop token.
    ended: whether a stop token ended it, not its limit.
    stopped_by: that stop token; -1 where none ended it.
  """

  wanted: Wanted
  logprobs: np.ndarray | None = None
  tokens: np.ndarray | None = None
  ended: bool = False
  stopped_by: int = -1

  @property
  def tag(self) -> Any:
    return self.wanted.tag


def buckets(request: Request, config: EngineConfig) -> tuple[int, int]:
  """The buckets of a request's tiles, 0 without, and of its text.

  Raises:
    UserError: it does not fit the largest one.
  """
  tiles, text = request.tile_count, len(request.tokens) - request.text_start
  advice = "lower model.max_tiles or model.longest_edge"
  found = _smallest(request, tiles, "image tiles", config, "tiles", advice) if tiles else 0
  if request.bidirectional:
    return found, generation.bucket(text, 4)  # the prefix's last token and what the answer begins with
  return found, _smallest(request, text, "tokens of text", config, "lengths", "shorten the text")


def _smallest(
  request: Request, needed: int, what: str, config: EngineConfig, setting: str, advice: str
) -> int:
  """The bucket of a setting into which something fits."""
  sizes = getattr(config, setting)
  for size in sizes:
    if size >= needed:
      return size
  raise UserError(
    f"{request.name}: {needed} {what} do not fit the largest bucket, {max(sizes)}; raise "
    f"{config.section}{setting}, or {advice}"
  )


def prefix_length(image_slot: np.ndarray, bidirectional: int = 0) -> int:
  """How much of a prompt others on its images share: up to its last image token, or its first token.

  Args:
    image_slot: int32 (T,), as in `Request`.
    bidirectional: how many leading tokens see each other. Where there are any, what an image's tokens hold
      depends on all of them, so all of them are the prefix.
  """
  images = np.flatnonzero(np.asarray(image_slot) >= 0)
  return bidirectional or (int(images[-1]) + 1 if len(images) else 1)
