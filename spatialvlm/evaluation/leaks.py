"""Whether training data holds pictures of a benchmark: by the names of their files, and by what they show.

Names find what was kept as it was; the perceptual hash finds what was renamed, resized, saved again,
mirrored, or has a box drawn into it. A name alone proves nothing where data sets count from one (`0001.jpg`);
a hash alone may be a picture of the same scene. Both are reported, apart.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any

import numpy as np
from PIL import Image

from spatialvlm import mixture
from spatialvlm.data.sources import registry
from spatialvlm.evaluation.records import image_name
from spatialvlm.reporting import tables
from spatialvlm.reporting.tables import Cell, Table
from spatialvlm.types import Example, Question, UserError

SIDE, KEPT = 64, 16
# Of 255 bits. Copies at another size, saved again as JPEG and with a box drawn into them, differ in 18
# (median) to 32 (99 %); of 160,000 pairs of rendered scenes, which have much in common, none in less than 88.
NEAR = 40
# How far below a picture's usual contrast it says nothing: an even picture is like any other even picture.
_FLAT = 1.0
_BLOCK = 32
_KINDS = ("name and picture", "picture", "mirrored picture", "name")
_COCO = re.compile(r"^coco_(train|val|test)\d{4}_")


@dataclasses.dataclass(frozen=True)
class Leak:
  """A picture of the training data that is one of the benchmark's.

  Attributes:
    source, index, id: the example's source in the config, its number there and its own id.
    benchmark: the benchmark's name of the picture.
    questions: `idx` of the questions on it.
    how: "name and picture", "picture", "mirrored picture" or "name".
    distance: bits of 255 in which the hashes differ; None where only the name agrees.
  """

  source: str
  index: int
  id: str
  benchmark: str
  questions: tuple[int, ...]
  how: str
  distance: int | None


def perceptual_hash(image: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
  """Signs of a picture's low frequencies against their median, and the same of its mirror image.

  The pHash of Zauner ("Implementation and benchmarking of perceptual image hash functions", 2010) with 255
  bits instead of 64: the discrete cosine transform of the grey picture at 64 x 64, its 16 x 16 lowest
  frequencies without the mean.

  Args:
    image: uint8 (H, W, 3).

  Returns:
    Two uint64 (4,), or None for an even picture, which says nothing.
  """
  grey = Image.fromarray(image).convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
  basis = _cosines()
  low_KK = (basis @ np.asarray(grey, float) @ basis.T)[:KEPT, :KEPT]
  if np.abs(low_KK.ravel()[1:]).max() < _FLAT * SIDE:
    return None
  # Mirrored left to right, the frequencies that are odd along a row change their sign.
  mirror_KK = low_KK * np.where(np.arange(KEPT) % 2, -1.0, 1.0)
  return _bits(low_KK), _bits(mirror_KK)


def normalised(filename: str) -> str:
  """A file's name without folder, ending and COCO's prefix, in lower case."""
  return _COCO.sub("", pathlib.PurePosixPath(filename.replace("\\", "/")).stem.lower())


class Benchmark:
  """The pictures of a benchmark, ready to be looked up."""

  def __init__(self, questions: Sequence[Question]):
    idx_of: dict[str, list[int]] = {}
    hashes: list[np.ndarray] = []
    self._owner: list[str] = []
    self._names: dict[str, str] = {}
    for question in _each(questions):
      name = image_name(question)
      idx_of.setdefault(name, []).append(int(question.idx))
      self._names |= {normalised(file): name for file in question.source_filenames if file}
      # Boxes are drawn for one question, so every question's own pictures are looked at.
      for found in filter(None, map(perceptual_hash, question.images)):
        hashes.append(found[0])
        self._owner.append(name)
    self._questions = {name: tuple(idx) for name, idx in idx_of.items()}
    self._hash_N4 = np.array(hashes, np.uint64).reshape(-1, KEPT * KEPT // 64)

  def __len__(self) -> int:
    return len(self._questions)

  def find(self, source: str, index: int, example: Example) -> list[Leak]:
    """The benchmark's pictures among those of an example."""
    found = []
    files = example.files or ("",) * len(example.images)
    for image, file in zip(example.images, files, strict=True):
      by_name = self._names.get(normalised(file)) if file else None
      owner, distance, mirrored = self._nearest(image)
      if owner is not None:
        how = "name and picture" if by_name == owner else "mirrored picture" if mirrored else "picture"
      elif by_name is not None:
        owner, how = by_name, "name"
      else:
        continue
      found.append(Leak(source, index, example.id, owner, self._questions[owner], how, distance))
    return found

  def _nearest(self, image: np.ndarray) -> tuple[str | None, int | None, bool]:
    hashes = perceptual_hash(image)
    if hashes is None or not len(self._hash_N4):
      return None, None, False
    distance_2N = np.bitwise_count(np.stack(hashes)[:, None] ^ self._hash_N4).sum(-1, dtype=int)
    side, place = np.unravel_index(distance_2N.argmin(), distance_2N.shape)
    nearest = int(distance_2N[side, place])
    return (self._owner[place], nearest, bool(side)) if nearest <= NEAR else (None, None, False)


def find(
  benchmark: Benchmark,
  opened: Mapping[str, Sequence[Example]],
  *,
  limit: int = 0,
  skip: bool = False,
  workers: int = 2,
  on_progress: Callable[[str, int, int], None] | None = None,
) -> tuple[list[Leak], dict[str, int]]:
  """Looks for a benchmark's pictures in sources of examples, by their names.

  Args:
    limit: only the first so many examples of each source, 0 for all; one without an end needs a limit.
    skip: pass over examples that cannot be read, as training does (`DataConfig.bad_rows`).

  Returns:
    The leaks, and how many examples of each source were looked at.
  """
  leaks, looked = [], {}
  for name, source in opened.items():
    if not limit and len(source) == mixture.ENDLESS:
      raise ValueError(f"source {name!r} has no end; give a limit")
    count = min(len(source), limit) if limit else len(source)
    looked[name] = count
    blocks = [range(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK)]
    look = functools.partial(_look, benchmark, name, source, skip)
    with futures.ThreadPoolExecutor(workers) as executor:
      for block, found in zip(blocks, executor.map(look, blocks), strict=True):
        leaks += found
        if on_progress is not None:
          on_progress(name, block.stop, count)
  return leaks, looked


def summary(leaks: Sequence[Leak], looked: Mapping[str, int], benchmark: Benchmark) -> dict[str, Any]:
  """Counts by source and kind, and the leaks themselves, for JSON."""
  return {
    "pictures_in_benchmark": len(benchmark),
    "sources": {
      name: {"examples": count}
      | {kind: sum(leak.source == name and leak.how == kind for leak in leaks) for kind in _KINDS}
      for name, count in looked.items()
    },
    "leaks": [dataclasses.asdict(leak) for leak in leaks],
  }


def table(found: Mapping[str, Any], shown: int = 10) -> Table:
  """What `summary` gives by source and kind; the first so many pictures by name in the note."""
  rows = []
  for name, counts in found["sources"].items():
    kind = "bad" if any(counts[k] for k in _KINDS if k != "name") else ""
    rows.append([Cell(name, kind), str(counts["examples"]), *(_count(counts[k], kind) for k in _KINDS)])
  head = ["", "examples", *(kind if kind != "name" else "name alone" for kind in _KINDS)]
  lines = [
    f"{leak['source']}[{leak['index']}] {leak['id']}: {leak['how']}, {leak['benchmark']}, "
    f"questions {', '.join(map(str, leak['questions'][:5]))}{' ...' if len(leak['questions']) > 5 else ''}"
    for leak in sorted(found["leaks"], key=lambda leak: leak["distance"] is None)[:shown]
  ]
  lines += [f"and {len(found['leaks']) - shown} more"] if len(found["leaks"]) > shown else []
  none = [f"None of the benchmark's {found['pictures_in_benchmark']} pictures was found."]
  title = "Pictures of the benchmark in the training data"
  return tables.make("leaks", title, head, rows, note="\n".join(lines or none))


def _count(count: int, kind: str) -> Cell:
  return Cell(str(count), kind if count else "")


def _look(
  benchmark: Benchmark, name: str, source: Sequence[Example], skip: bool, block: Sequence[int]
) -> list[Leak]:
  try:
    examples = registry.read(source, block)
  except UserError:
    if not skip:
      raise
    if len(block) == 1:
      return []
    return [leak for i in block for leak in _look(benchmark, name, source, skip, [i])]
  return [leak for i, e in zip(block, examples, strict=True) for leak in benchmark.find(name, i, e)]


def _each(questions: Sequence[Question]):
  for start in range(0, len(questions), _BLOCK):
    yield from registry.read(questions, range(start, min(start + _BLOCK, len(questions))))


@functools.cache
def _cosines() -> np.ndarray:
  place = (np.arange(SIDE) + 0.5) * np.pi / SIDE
  basis = np.cos(np.arange(SIDE)[:, None] * place) * np.sqrt(2 / SIDE)
  basis[0] /= np.sqrt(2)
  return basis


def _bits(low_KK: np.ndarray) -> np.ndarray:
  values = low_KK.ravel()[1:]
  bits = np.concatenate([[False], values > np.median(values)])
  return np.packbits(bits).view(np.uint64)
