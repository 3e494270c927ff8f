"""What the model will really see: samples of the stream, encoded and checked as in training.

The page that shows them is `inspect_page`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from spatialvlm.config import DataConfig
from spatialvlm.data import batch as batches
from spatialvlm.data import checks, pipeline
from spatialvlm.types import UserError

if TYPE_CHECKING:
  from spatialvlm.processing.processor import Encoded, Processor


@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
  """One sample as it goes into training.

  Attributes:
    encoded: None where encoding itself failed.
    problem: why training would refuse it; empty for a good one.
    wrong: bool (T,), positions that are learned but should not be.
    bucket: the smallest that holds it alone; None for a bad one.
    pictures: sizes (width, height) of its images before they became tiles.
  """

  id: str
  task: str
  encoded: Encoded | None
  problem: str
  wrong: np.ndarray
  bucket: batches.Bucket | None
  pictures: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Packed:
  """One conversation in a packed row: its name, tokens, tiles and supervised tokens."""

  id: str
  tokens: int
  tiles: int
  targets: int


@dataclasses.dataclass(frozen=True, eq=False)
class Inspection:
  """The first samples of a stream, with what they sum up to.

  Attributes:
    name: "training" or "validation".
    shown: the samples that are shown in full; every bad one is among them.
    lengths, supervised, tiles: of all good samples, each an int array.
    images: tokens of images among `lengths`, in all.
    buckets: batches by the bucket they take, in the order of the stream.
    padding: share of the positions of those batches that are padding.
    unpacked: with `data.packing` the same share without it, else None.
    packed: with `data.packing` the first batch: its bucket, and what stands in its rows.
    sources, tasks: samples.
    problems: id -> why it is refused.
    skipped: rows that training leaves out (`DataConfig.bad_rows`): by source[index], why.
  """

  name: str
  shown: tuple[Seen, ...]
  lengths: np.ndarray
  supervised: np.ndarray
  tiles: np.ndarray
  images: int
  buckets: Counter
  padding: float
  unpacked: float | None
  packed: tuple[batches.Bucket, tuple[tuple[Packed, ...], ...]] | None
  sources: Counter
  tasks: Counter
  problems: dict[str, str]
  skipped: dict[str, str] = dataclasses.field(default_factory=dict)

  @property
  def bucket_says(self) -> str:
    """What the numbers of its buckets are."""
    return batches.bucket_says(self.packed is not None)

  @property
  def count(self) -> int:
    return len(self.lengths) + len(self.problems)

  def raise_if_bad(self) -> None:
    """Raises:
    UserError: a sample would train wrongly; the first is named, and how many there are.
    """
    for name, problem in self.problems.items():
      more = f" (and {len(self.problems) - 1} more samples)" if len(self.problems) > 1 else ""
      raise UserError(f"{self.name} data: {name}: {problem}{more}")


def inspect_data(
  config: DataConfig,
  processor: Processor,
  batch_size: int,
  *,
  seed: int = 0,
  scan: int = 256,
  show: int = 24,
  multiple: int = 1,
) -> list[Inspection]:
  """Looks at the training stream and, where one is configured, at the validation stream.

  Args:
    scan: samples that are read, encoded and checked.
    show: of these, how many are kept to be shown; bad ones beyond them too.
    multiple: as of `pipeline.training_stream`; the validation stream's is 1.

  With `config.bad_rows` "skip", broken rows are left out as in training, and named.

  Raises:
    UserError: a source cannot be opened, or a sample cannot be read at all and is not left out.
  """
  config = pipeline.suited(config, processor)
  streams = {"training": pipeline.training_mixture(config, seed)}
  if (validation := pipeline.validation_mixture(config)) is not None:
    streams["validation"] = validation
  return [
    _inspect(
      name,
      mixed,
      config,
      processor,
      batch_size,
      min(scan, mixed.count),
      show,
      multiple if name == "training" else 1,
    )
    for name, mixed in streams.items()
  ]


def _inspect(
  name: str,
  mixed: pipeline.Mixed,
  config: DataConfig,
  processor: Processor,
  batch_size: int,
  scan: int,
  show: int,
  multiple: int,
) -> Inspection:
  shown, good, buckets, cells, alone, packed = [], [], Counter(), 0, 0, None
  sources, tasks, problems, skipped = Counter(), Counter(), {}, {}
  positions = iter(range(scan))
  while block := list(itertools.islice(positions, batch_size)):
    samples, encoded, left_out = _read(mixed, block, config, processor)
    seen = [_look(*pair, config, processor) for pair in zip(samples, encoded, strict=True)]
    skipped |= left_out
    sources.update(sample.source for sample in samples)
    tasks.update(sample.example.task for sample in samples)
    problems |= {s.id: s.problem for s in seen if s.problem}
    for s in seen:
      if len(shown) < show or s.problem:
        shown.append(s)
    fine_seen = [s for s in seen if not s.problem]
    fine = [s.encoded for s in fine_seen]
    good += [_figures(e, processor) for e in fine]
    if fine:
      _, bucket, rows = pipeline.batch_rows(fine, config, processor, multiple)
      buckets[bucket] += 1
      cells += bucket.length * (bucket.rows or len(fine))
      alone += _bucket(fine, config).length * len(fine)
      if packed is None and config.packing:
        packed = bucket, tuple(tuple(_packed(fine_seen[i]) for i in row) for row in rows)
  figures = np.array(good, np.int64).reshape(-1, 4)
  return Inspection(
    name=name,
    shown=tuple(shown),
    lengths=figures[:, 0],
    supervised=figures[:, 1],
    tiles=figures[:, 2],
    images=int(figures[:, 3].sum()),
    buckets=buckets,
    padding=1 - figures[:, 0].sum() / cells if cells else 0.0,
    unpacked=1 - figures[:, 0].sum() / alone if packed else None,
    packed=packed,
    sources=sources,
    tasks=tasks,
    problems=problems,
    skipped=skipped,
  )


def _read(
  mixed: pipeline.Mixed, positions: Sequence[int], config: DataConfig, processor: Processor
) -> tuple[list[pipeline.Sample], Sequence[Encoded | None], dict[str, str]]:
  """Samples as training reads them, encoded where it may leave some out (else None); and what it left out."""
  if config.bad_rows == "skip":
    return pipeline.read_good(mixed, positions, processor, config)
  samples = mixed.read(positions)
  return samples, [None] * len(samples), {}


def _look(sample: pipeline.Sample, encoded: Encoded | None, config: DataConfig, processor: Processor) -> Seen:
  problem, bucket, wrong = "", None, np.zeros(0, bool)
  try:
    encoded = encoded or processor.encode(sample.example)
    wrong = checks.wrongly_supervised(encoded, sample.example, processor)
    checks.check_encoded(encoded, sample.example, processor.layout, longest=config.lengths[-1])
    checks.check_answers(encoded, sample.example, processor)
    bucket = _bucket([encoded], config)
  except UserError as error:
    problem = str(error)
  pictures = tuple((image.shape[1], image.shape[0]) for image in sample.example.images)
  return Seen(sample.id, sample.example.task, encoded, problem, wrong, bucket, pictures)


def _packed(seen: Seen) -> Packed:
  e = seen.encoded
  return Packed(seen.id, len(e.tokens), len(e.tiles), int(np.count_nonzero(e.loss_mask)))


def _bucket(encoded: Sequence[Encoded], config: DataConfig) -> batches.Bucket:
  return batches.bucket_of(encoded, lengths=config.lengths, tiles=config.tiles, targets=config.targets)


def _figures(encoded: Encoded, processor: Processor) -> tuple[int, int, int, int]:
  supervised = int(np.count_nonzero(encoded.loss_mask))
  images = int(np.count_nonzero(encoded.tokens == processor.layout.image_token_id))
  return len(encoded.tokens), supervised, len(encoded.tiles), images


def summary(inspection: Inspection) -> str:
  """What a terminal shows of an inspection, a few lines."""
  i = inspection
  lines = [f"{i.name}: {i.count} samples from " + _counts(i.sources)]
  if any(i.tasks):
    lines.append("  tasks: " + _counts(i.tasks))
  if len(i.lengths):
    total = int(i.lengths.sum())
    low, middle, high = np.percentile(i.lengths, [0, 50, 100]).astype(int)
    lines.append(
      f"  tokens a sample: {low} to {high}, median {middle}; {i.images / total:.1%} are image tokens"
    )
    lines.append(
      f"  supervised: {i.supervised.sum() / total:.2%} of all tokens, {i.supervised.mean():.1f} a sample"
    )
    lines.append(f"  tiles a sample: {i.tiles.min()} to {i.tiles.max()}; padding {i.padding:.1%} of the text")
    if i.packed:
      bucket, rows = i.packed
      held = ", ".join(str(len(row)) for row in rows)
      lines.append(
        f"  packed: padding {i.padding:.1%}, {i.unpacked:.1%} with a row for each; the first batch stands in"
        f" {bucket.rows} rows of {bucket.length} tokens, which hold {held}"
      )
    lines.append(f"  batches by bucket ({i.bucket_says}): " + _counts(_named(i.buckets)))
    lines.append("  truncated: 0 (what is too long is refused)")
  if i.skipped:
    lines.append(f"  left out (data.bad_rows=skip): {len(i.skipped)} rows")
  return "\n".join(lines + _listed("left out", i.skipped) + _listed("REFUSED", i.problems))


def _listed(what: str, reasons: dict[str, str], most: int = 5) -> list[str]:
  lines = [f"  {what} {name}: {reason}" for name, reason in itertools.islice(reasons.items(), most)]
  return lines + ([f"  {what}: {len(reasons) - most} more"] if len(reasons) > most else [])


def _named(buckets: Counter) -> Counter:
  return Counter({str(bucket): count for bucket, count in sorted(buckets.items())})


def _counts(counter: Counter) -> str:
  return ", ".join(f"{name or '(none)'} {count}" for name, count in counter.most_common())
