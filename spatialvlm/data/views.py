"""What other models read of an example: the same answers behind another prompt, or with other pictures."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from spatialvlm.config import DataConfig
from spatialvlm.data import batch as batches
from spatialvlm.data.checks import check_encoded
from spatialvlm.data.depth_words import MOST, USUAL, depth_words
from spatialvlm.data.packing import rounded
from spatialvlm.processing.tiling import Tiles
from spatialvlm.types import IMAGE_MARK, Batch, Example, UserError, of_priors

if TYPE_CHECKING:
  from spatialvlm.processing.processor import Encoded, Processor

_FIELD = re.compile(r"\{(facts|prompt|depth(?::\d+)?)\}")
# The map of `Example.dense` that `{depth}` puts into words.
DEPTH = "depth"
_LEADING_MARKS = re.compile(rf"(?:\s*{re.escape(IMAGE_MARK)}\s*)*")


@dataclasses.dataclass(frozen=True, eq=False)
class View:
  """How one other model reads examples.

  Attributes:
    processor: its own; its tokenizer must be the trained model's.
    prompt: what it reads in place of the first prompt: a text with `{prompt}`, and `{facts}` where it is told
      what is true of the pictures, `{depth}` or `{depth:6}` where it is told the depth of the first one's
      4 x 4 or 6 x 6 parts. Marks of images that begin a prompt stay before all of it.
    pictures: whether its batches hold pictures that it cuts itself; else those of the batch are shown, which
      it must cut alike.
    plain: whether these are of the example as it is, where the trained model is shown a changed one.
    where: the setting, for messages.
  """

  processor: Processor
  prompt: str = "{prompt}"
  pictures: bool = False
  plain: bool = False
  where: str = "view"

  def __call__(self, example: Example) -> Example:
    """The example as it is asked.

    Raises:
      UserError: it is to be told facts or depth, and the example has none.
    """
    first = example.turns[0]
    marks = _LEADING_MARKS.match(first.prompt).group()
    said = {field: self._told(field, example) for field in fields(self.prompt) - {"prompt"}}
    said["prompt"] = first.prompt[len(marks) :]
    asked = marks + _FIELD.sub(lambda found: said[found.group(1)], self.prompt)
    turns = (dataclasses.replace(first, prompt=asked), *example.turns[1:])
    # What is set against each other is for the trained model alone.
    turns = tuple(dataclasses.replace(turn, false=()) for turn in turns)
    return dataclasses.replace(example, turns=turns, rearranged=())

  def _told(self, field: str, example: Example) -> str:
    """What stands in the place of a field that tells something of the pictures."""
    if field == "facts":
      if example.facts is None:
        raise UserError(
          f"{self.where}: has {{facts}}, but this example says none; sources of kind 'scenes' and 'skills'"
          " do, and rows of yours may, under 'facts'"
        )
      return example.facts()
    if DEPTH not in example.dense:
      raise UserError(
        f"{self.where}: has {{{field}}}, but this example has no depth; sources of kind 'scenes' and 'skills'"
        " do"
      )
    return depth_words(example.dense[DEPTH], _parts(field))

  def encode(self, example: Example, ours: Encoded, config: DataConfig) -> Encoded:
    """What is read of an example, of which the trained model reads `ours`.

    Raises:
      UserError: the example is broken or too large, as `samples.encode`; or its answer is other tokens here.
    """
    told = self(example)
    try:
      encoded = self.processor.encode(told)
      sizes = {"longest": config.lengths[-1], "most_tiles": config.tiles[-1]}
      check_encoded(encoded, told, self.processor.layout, **sizes)
    except UserError as error:
      raise UserError(f"as it is read for {self.where.rpartition('.')[0]}: {error}") from error
    if not np.array_equal(encoded.tokens[encoded.loss_mask], ours.tokens[ours.loss_mask]):
      raise UserError(
        f"{self.where.rpartition('.')[0]}: reads this answer as other tokens than the model that it shall"
        " teach; use a teacher with the same template"
      )
    return dataclasses.replace(encoded, extra=of_priors(encoded.extra) if self.pictures else {})


def fields(prompt: str) -> set[str]:
  """The fields of a `View.prompt`, as they stand between the braces."""
  return {found.group(1) for found in _FIELD.finditer(prompt)}


def tells_depth(prompt: str) -> bool:
  """Whether a `View.prompt` has depth in words, which needs the map of `Example.dense`."""
  return any(field.startswith(DEPTH) for field in fields(prompt))


def check_prompt(prompt: str, where: str) -> None:
  """Raises a UserError for a `View.prompt` without its question, or with a depth of too few or many parts."""
  found = fields(prompt)
  if "prompt" not in found:
    raise UserError(f"{where}: {prompt!r} leaves the question out; write {{prompt}} in its place")
  for field in found:
    if field.startswith(DEPTH) and not 1 <= _parts(field) <= MOST:
      raise UserError(f"{where}: {{{field}}} asks for {_parts(field)} parts along a side; use 1 to {MOST}")


def _parts(field: str) -> int:
  """Parts along a side that a field `depth` or `depth:N` asks for."""
  return int(field.partition(":")[2] or USUAL)


def cut_once(example: Example, processor: Processor, views: Mapping[str, View]) -> Example:
  """The example with its pictures cut into tiles, where a view is shown the very tiles of the batch."""
  if all(view.pictures for view in views.values()):
    return example
  cut = tuple(i if isinstance(i, Tiles) else processor.tiler(i) for i in example.images)
  return dataclasses.replace(example, images=cut)


def with_views(
  example: Example,
  shown: Example,
  cut: Example,
  ours: Encoded,
  views: Mapping[str, View],
  config: DataConfig,
) -> Encoded:
  """`ours` with what each view reads of its example, under `Encoded.views`.

  Args:
    shown: the example as the trained model is shown it, and `cut` that as `cut_once` gives it.

  Raises:
    UserError: as `View.encode`.
  """
  own = lambda view: (example if view.plain else shown) if view.pictures else cut
  read = {name: view.encode(own(view), ours, config) for name, view in views.items()}
  return dataclasses.replace(ours, views=read)


def collated(
  rows: Sequence[Encoded],
  views: Mapping[str, View],
  config: DataConfig,
  bucket: batches.Bucket,
  batch_size: int,
) -> tuple[dict[str, Batch], dict[str, batches.Bucket]]:
  """The views of a batch of these rows, packed or not, and their buckets; `bucket` is the batch's own.

  Raises:
    UserError: a row is larger than the largest bucket.
  """
  made, buckets = {}, {}
  for name, view in views.items():
    own = [row.views[name] for row in rows]
    buckets[name] = size = _bucket(own, config, bucket, view.pictures)
    made[name] = batches.collate(
      own,
      **size._asdict(),
      pad_id=view.processor.pad_id,
      batch_size=batch_size,
      normal=view.processor.normal if view.pictures else None,
    )
  return made, buckets


def _bucket(
  rows: Sequence[Encoded], config: DataConfig, bucket: batches.Bucket, pictures: bool
) -> batches.Bucket:
  longest = max((len(row.tokens) for row in rows), default=1)
  tiles = max((len(row.tiles) for row in rows), default=0) if pictures else 0

  def room(sizes: Sequence[int], needed: int) -> int:
    """A packed row, of which the trained model's part is packed tightly, may be larger than any bucket."""
    return next((size for size in sizes if size >= needed), rounded(needed))

  return batches.Bucket(
    room(config.lengths, longest), room(config.tiles, tiles) if tiles else 0, bucket.targets, bucket.rows
  )
