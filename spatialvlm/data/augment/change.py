"""The changes of a training stream: what is drawn, what of it is done, and what could not be."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from spatialvlm.config import AugmentConfig, nearest
from spatialvlm.data.augment import legality
from spatialvlm.data.augment.move import moved
from spatialvlm.data.augment.photometric import BEST_JPEG, changed, names_colour
from spatialvlm.data.augment.warp import Warp, drawn
from spatialvlm.types import Deferred, Example, UserError

# Sets these draws apart from others of the same seed and number: of light, and of place.
_DRAWS, _PLACES = 0xA06, 0xA07
# A warp that is not legal is drawn anew, each time weaker.
TRIES = 12
_MOST = dict(share=1.0, brightness=0.9, contrast=0.9, saturation=1.0, hue=0.5, jpeg=BEST_JPEG)
_MOST |= dict(flip=1.0, crop=0.8, zoom_out=0.8, roll=45.0, perspective=15.0)


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What became of the changes of place that were drawn for an example.

  Attributes:
    wanted: settings of `legality.CHANGES`.
    left: of these, what was left out, and why.
  """

  wanted: tuple[str, ...] = ()
  left: tuple[tuple[str, str], ...] = ()


class Augment:
  """Changes the pictures of examples; what is drawn follows from the seed and the position alone."""

  def __init__(self, config: AugmentConfig, seed: int = 0):
    """`seed`: of the stream.

    Raises:
      UserError: a setting out of its range.
    """
    self._config, self._seed = config, seed
    for field in dataclasses.fields(config):
      if field.name == "sources":
        continue
      value, limit = getattr(config, field.name), _MOST.get(field.name, np.inf)
      if not 0 <= value <= limit or value == np.inf:
        raise UserError(
          f"config.data.augment.{field.name}: {value} is out of range; use a number from 0"
          + (f" to {limit:g}" if limit < np.inf else "")
        )

  @property
  def moves(self) -> tuple[str, ...]:
    """The settings that move a picture, as far as they are set."""
    return moves(self._config)

  def of(self, source: str) -> bool:
    """Whether the examples of a data source are changed."""
    return not self._config.sources or source in self._config.sources

  def check(self, sources: Iterable[str]) -> None:
    """Raises a UserError where `sources` of the config names none of the stream's."""
    sources = list(sources)
    for name in self._config.sources:
      if name not in sources:
        raise UserError(
          f"config.data.augment.sources: {name!r} is no source of the data; {nearest(name, sources)}"
        )

  def __call__(self, example: Example, position: int, source: str = "") -> Example:
    """The example with another picture, and what goes with it.

    Args:
      position: where it stands in the stream; the same picture is changed otherwise when it comes again.
      source: the data source that it is of.
    """
    return self.changed(example, position, source)[0]

  def changed(self, example: Example, position: int, source: str = "") -> tuple[Example, Outcome]:
    """As `__call__`, and what of the changes of place was done."""
    rng = np.random.default_rng((_DRAWS, self._seed, position))
    if not self.of(source) or rng.uniform() >= self._config.share or not example.images:
      return example, Outcome()
    if any(isinstance(image, Deferred) for image in example.images):
      raise ValueError("a picture that is changed cannot go by the name of the one that it was")
    if example.rearranged:
      raise UserError(
        "config.data.augment: the pictures that are set against this one (false_pictures) would be told apart"
        " by what is changed; name other sources in config.data.augment.sources"
      )
    outcome = Outcome()
    if self.moves:
      places = np.random.default_rng((_PLACES, self._seed, position))
      example, outcome = self._moved(example, places)
    colours = not names_colour(example)
    images = tuple(changed(image, self._config, rng, colours) for image in example.images)
    return dataclasses.replace(example, images=images), outcome

  def _moved(self, example: Example, rng: np.random.Generator) -> tuple[Example, Outcome]:
    mirror = rng.uniform() < self._config.flip
    wanted = [name for name in self.moves if name != "flip" or mirror]
    left = {name: reason for name in wanted if (reason := legality.obstacle(example, name))}
    flip = "flip" in wanted and "flip" not in left
    warp = self._drawn(example, rng, [n for n in wanted if n not in left and n != "flip"], flip)
    if flip and not warp.flip:
      left["flip"] = "what it names stands on a border between two answers"
    if warp.still:
      left |= dict.fromkeys(set(wanted) - {"flip", *left}, "no window was found that keeps what it names")
    outcome = Outcome(tuple(wanted), tuple(sorted(left.items())))
    return (example if len(left) == len(wanted) else moved(example, warp)), outcome

  def _drawn(self, example: Example, rng: np.random.Generator, names: Sequence[str], flip: bool) -> Warp:
    """A warp that keeps the answers of an example true; one that is `still` where no other was found."""
    size = example.images[0].shape[:2]
    focal = example.geometry and example.geometry.focal
    asked = example.geometry.asked if example.geometry else ()
    legal = lambda warp: all(legality.holds(a, warp) for a in asked)
    plain = Warp(size, flip=flip, focal=focal or 1.0)
    if flip and not legal(plain):
      flip = False
    most = {name: getattr(self._config, name) for name in names}
    keep = legality.hull(asked, size)
    for number in range(TRIES if names else 0):
      warp = drawn(rng, size, most, focal=focal, flip=flip, strength=1 - number / TRIES, keep=keep)
      if legal(warp):
        return warp
    return dataclasses.replace(plain, flip=flip)


def moves(config: AugmentConfig | None) -> tuple[str, ...]:
  """The settings of a config that move a picture, as far as they are set."""
  return tuple(name for name in legality.CHANGES if config and getattr(config, name))


class Recorded:
  """An `Augment` that keeps what it did with the examples of one batch.

  Attributes:
    shown: by position, the examples as they are shown.
    outcomes: by position, the source and what became of the changes of place.
  """

  def __init__(self, augment: Augment):
    self._augment = augment
    self.shown: dict[int, Example] = {}
    self.outcomes: dict[int, tuple[str, Outcome]] = {}

  def __call__(self, example: Example, position: int, source: str = "") -> Example:
    self.shown[position], outcome = self._augment.changed(example, position, source)
    self.outcomes[position] = source, outcome
    return self.shown[position]

  def counts(self) -> dict[str, Counter]:
    """By source: how many examples each change was drawn for ("flip"), and how many stayed ("flip left")."""
    found: dict[str, Counter] = {}
    for source, outcome in self.outcomes.values():
      if outcome.wanted:
        said = found.setdefault(source, Counter())
        said.update(outcome.wanted)
        said.update(f"{name} left" for name, _ in outcome.left)
    return found
