"""Samples of a mixture: read by position, encoded and checked, broken rows left out where that is wanted."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from spatialvlm.config import DataConfig
from spatialvlm.data.checks import check_encoded
from spatialvlm.data.sources.registry import Source, read
from spatialvlm.data.tile_keys import Known, settled
from spatialvlm.data.views import View, cut_once, with_views
from spatialvlm.mixture import ENDLESS, Mixture
from spatialvlm.types import Example, Note, UserError

if TYPE_CHECKING:
  from spatialvlm.processing.processor import Encoded, Processor

# Rows of a source that are looked at before a run, to say how many have no picture.
_FIRST = 100
# So many broken rows in succession are no accident.
_MOST_BROKEN = 100


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
  """An example and where it stands: `index` within the source `source`; its images' keys (`tile_keys`)."""

  source: str
  index: int
  example: Example
  keys: tuple[np.ndarray | None, ...] = ()

  @property
  def id(self) -> str:
    return f"{self.source}[{self.index}]" + (f" ({self.example.id})" if self.example.id else "")


class Mixed:
  """The opened sources of a mixture, read by position.

  Attributes:
    mixture: the order.
    count: positions there are; `ENDLESS` for a stream without an end.
  """

  def __init__(
    self,
    sources: Mapping[str, Source],
    mixture: Mixture,
    count: int = ENDLESS,
    kept: Mapping[str, np.ndarray] | None = None,
  ):
    """`kept`: rows of a source, where some are left out; the mixture counts those alone."""
    self._sources = [sources[name] for name in mixture.names]
    self._kept = [(kept or {}).get(name) for name in mixture.names]
    self.mixture, self.count = mixture, count

  def _row(self, source: int, index: int) -> int:
    rows = self._kept[source]
    return index if rows is None else int(rows[index])

  def read(self, positions: Sequence[int], *, deferred: bool = False) -> list[Sample]:
    """The samples at `positions`, in order; each source reads its part in one go.

    Args:
      deferred: whether sources that can may give pictures as `types.Deferred`, without dense targets.
    """
    places = [self.mixture[p] for p in positions]
    samples: list = [None] * len(places)
    for source in sorted({p.source for p in places}):
      rows = [row for row, p in enumerate(places) if p.source == source]
      indices = [self._row(source, places[row].index) for row in rows]
      opened = self._sources[source]
      later = deferred and hasattr(opened, "deferred")
      examples = opened.deferred(indices) if later else read(opened, indices)
      for row, example in zip(rows, examples, strict=True):
        index = self._row(source, places[row].index)
        samples[row] = Sample(self.mixture.names[source], index, example)
    return samples

  def again(self, name: str) -> bool:
    """Whether a source's pictures may be read more than once: it has an end, or draws on a few pictures."""
    if self.count != ENDLESS:  # all positions are, at every pass
      return True
    source = self._sources[self.mixture.names.index(name)]
    return len(source) != ENDLESS or bool(getattr(source, "pictures", 0))

  def say_pictures(self, on_note: Callable[[str], None] | None) -> None:
    """Says how many of the first rows of each source of somebody's rows have no picture.

    Args:
      on_note: takes each text; None for a `types.Note`.
    """
    on_note = on_note or (lambda text: warnings.warn(Note(text), stacklevel=4))
    for name, source in zip(self.mixture.names, self._sources, strict=True):
      if not hasattr(source, "picture_counts"):
        continue
      counts = np.asarray(source.picture_counts(_FIRST))
      none = int(np.count_nonzero(counts == 0))
      said = f"its first {len(counts)} rows all have pictures"
      if none:
        said = f"without a picture are {none} of its first {len(counts)} rows; they train on their text alone"
      on_note(f"data source {name!r}: {said}")

  def first(self, name: str, count: int) -> list[Example]:
    """So many examples of a source at most, spread over all of them where it has an end.

    Broken ones are not among them.
    """
    number = self.mixture.names.index(name)
    source, rows = self._sources[number], self._kept[number]
    length = len(source) if rows is None else len(rows)
    step = 1 if length == ENDLESS else max(length / count, 1)
    indices = [self._row(number, int(i * step)) for i in range(min(count, length))]
    try:
      return read(source, indices)
    except UserError:  # one of them is broken
      found = []
      for index in indices:
        with contextlib.suppress(UserError):
          found += read(source, [index])
      return found

  def after(self, position: int) -> Iterator[tuple[str, int, Callable[[], Sample]]]:
    """The row at a position and those behind it in its source: the source's name, the row, and its reader.

    From the last row of a source it goes on with the first.
    """
    place = self.mixture[position]
    name, source = self.mixture.names[place.source], self._sources[place.source]
    kept = self._kept[place.source]
    length = len(source if kept is None else kept)
    for step in range(length):
      index = place.index + step if length == ENDLESS else (place.index + step) % length
      index = self._row(place.source, index)
      yield name, index, lambda index=index: Sample(name, index, read(source, [index])[0])


def encode(
  sample: Sample,
  processor: Processor,
  config: DataConfig,
  views: Mapping[str, View] | None = None,
  change: Callable[[Example], Example] | None = None,
) -> Encoded:
  """What the model will read of a sample, checked (`checks.check_encoded`), and others, by `views`.

  Args:
    change: makes of the example what is shown in its place (`data.augment`); None: it is shown itself.

  Raises:
    UserError: the example is broken, would train wrongly, or fits no bucket; named.
  """
  try:
    shown = sample.example if change is None else change(sample.example)
    example = cut_once(shown, processor, views) if views else shown
    encoded = processor.encode(example)
    sizes = {"longest": config.lengths[-1], "most_tiles": config.tiles[-1]}
    check_encoded(encoded, shown, processor.layout, **sizes)
    encoded = with_views(sample.example, shown, example, encoded, views, config) if views else encoded
  except UserError as error:
    where = f" (id {sample.example.id!r})" if sample.example.id else ""
    raise UserError(f"data source {sample.source!r}, example {sample.index}{where}: {error}") from error
  return encoded


def _settled(sample: Sample, processor: Processor, known: Known) -> Sample:
  example, keys = settled(sample.example, processor.tiler, known)
  return dataclasses.replace(sample, example=example, keys=keys)


def read_good(
  mixed: Mixed,
  positions: Sequence[int],
  processor: Processor,
  config: DataConfig,
  *,
  known: Known | None = None,
  views: Mapping[str, View] | None = None,
  augment: Callable[[Example, int, str], Example] | None = None,
) -> tuple[list[Sample], list[Encoded], dict[str, str]]:
  """The samples at `positions`, encoded; and why rows were left out, by `source[index]`.

  Args:
    config: with `bad_rows` "skip" a broken row is left out; in its place stands the next good one of its
      source. That depends on the position and the data alone, so that a stream goes on with the same bits
      after an interruption.
    known: tells whether a tile's features are kept; pictures of which all are need not be made. None: all
      are made.
    views: what other models read of the samples.
    augment: changes what is shown of the example at a position, of a source (`data.augment`).

  Raises:
    UserError: a broken row, or with "skip" so many of them in succession that the config must be wrong.
  """

  def change(position: int, sample: Sample) -> Callable[[Example], Example] | None:
    return augment and functools.partial(augment, position=position, source=sample.source)

  try:
    samples = mixed.read(positions, deferred=known is not None)
    if known is not None:
      samples = [_settled(sample, processor, known) for sample in samples]
    changes = map(change, positions, samples)
    encoded = [encode(s, processor, config, views, c) for s, c in zip(samples, changes, strict=True)]
    return samples, encoded, {}
  except UserError:
    if config.bad_rows != "skip":
      raise
  good, skipped = [], {}
  for position in positions:
    for tried, (name, index, reader) in enumerate(mixed.after(position)):
      try:
        sample = reader()
        good.append((sample, encode(sample, processor, config, views, change(position, sample))))
        break
      except UserError as error:
        skipped[f"{name}[{index}]"] = str(error)
        if tried + 1 >= _MOST_BROKEN:
          raise UserError(
            f"data source {name!r}: {tried + 1} rows in succession cannot be used, up to {index}: {error}"
          ) from error
    else:
      raise UserError(
        f"data source {name!r}: not one row can be used; the last: {skipped[f'{name}[{index}]']}"
      )
  samples, encoded = map(list, zip(*good, strict=True)) if good else ([], [])
  return samples, encoded, skipped
