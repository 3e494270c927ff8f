"""Kind "rgbd": questions of Depth, Distance and Relation about photographs with depth and maps of objects.

Beside these kinds of CV-Bench, which have options, Metres is asked where `tasks` names it: how far ahead one
object is, answered in metres (`worlds.spoken`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import NamedTuple

import numpy as np

from spatialvlm.config import RgbdConfig, fingerprint, nearest
from spatialvlm.data.sources.lettered import QuestionExamples, question_to_example
from spatialvlm.data.sources.registry import Source
from spatialvlm.data.sources.rgbd_files import (
  Intrinsics,
  check_intrinsics,
  read_intrinsics,
  read_names,
)
from spatialvlm.data.sources.rgbd_layouts import (
  Files,
  Hypersim,
  Layout,
  Nyuv2,
  Objects,
  Pairs,
  ScanNet,
  SunRgbd,
  sampled,
)
from spatialvlm.data.sources.rgbd_nyu_mat import NyuMat
from spatialvlm.data.sources.rgbd_objects import Ask, Measured, asks, measured
from spatialvlm.shots import in_pixels
from spatialvlm.types import Asked, Example, Geometry, Question, Shot, Turn, UserError, choice_prompt
from spatialvlm.worlds import facts, spoken, world
from spatialvlm.worlds.questions import AXIS_NAMES, BOX_ORDER, object_text

KINDS = ("Relation", "Depth", "Distance")
# Kinds whose answers are no choice: for training, and for `launch/skills.py`.
OPEN = ("Metres",)
LAYOUTS: dict[str, Layout] = {
  "pairs": Pairs(),
  "nyuv2": Nyuv2(),
  "nyuv2_mat": NyuMat(),
  "sunrgbd": SunRgbd(),
  "hypersim": Hypersim(),
  "scannet": ScanNet(),
}
_BLOCK = 16
_WORKERS = 2
# What was asked of folders as they were; a run opens its sources more than once.
_KEPT: dict[tuple[str, bool, str], list[_Asked]] = {}
_MOST_KEPT = 8


def questions(config: RgbdConfig) -> RgbdQuestions:
  for kind in OPEN:
    if kind in config.tasks:
      raise UserError(
        f"tasks: {kind} has no options to choose from; leave it out here: launch/skills.py --rgbd asks it"
      )
  return RgbdQuestions(config)


def examples(config: RgbdConfig, *, defer: bool = False) -> Source:
  return RgbdExamples(RgbdQuestions(config, defer=defer), config.depth_size)


class _Asked(NamedTuple):
  """A question of a picture: its number, and what is asked, in the order of mention; or why it is broken."""

  picture: int
  ask: Ask | None = None
  objects: tuple[Measured, ...] = ()
  marked: bool = False
  error: UserError | None = None


class RgbdQuestions(Sequence[Question]):
  """Questions in CV-Bench's templates, boxes drawn, whose answers follow from depth and maps of objects.

  All pictures' depth and objects are read when it is opened (with `size`, as many as it takes); pixels when
  a question is. Which is named first is drawn, so that either answer is right as often as the other.

  Args:
    config: `RgbdConfig`.
    defer: whether a picture that cannot be used is refused when it is read, not when the folder is opened.

  Raises:
    UserError: a folder without pictures of the layout, an unknown kind of question; the first picture whose
      files are missing, damaged or contradict each other, by file; no question at all.
  """

  def __init__(self, config: RgbdConfig, *, defer: bool = False):
    self._config, self._layout = config, LAYOUTS[config.layout]
    self._kinds = _weights(config.tasks)
    _check(config)
    self._root = root = Path(config.path).expanduser()
    self._fixed = read_intrinsics(Path(config.intrinsics).expanduser()) if config.intrinsics else None
    self._names = read_names(Path(config.names).expanduser()) if config.names else None
    self._files = self._layout.find(root) if root.is_dir() else []
    if not self._files:
      raise UserError(f"{config.path}: holds no pictures in the layout {config.layout!r} (docs/open_data.md)")
    self._asked = self._kept(defer)
    if not any(asked.ask for asked in self._asked):
      broken = f"; the first: {self._asked[0].error}" if self._asked else ""
      raise UserError(
        f"{config.path}: of {len(self._files)} pictures none has two objects that can be asked about{broken}"
      )

  def _kept(self, defer: bool) -> list[_Asked]:
    alike = dataclasses.replace(self._config, weight=1.0, depth_size=0)
    key = fingerprint(alike), defer, _state(self._files, self._config)
    if key not in _KEPT:
      found = itertools.chain.from_iterable(self._scanned(defer))
      asked = list(itertools.islice(found, self._config.size or None))
      while len(_KEPT) >= _MOST_KEPT:
        _KEPT.pop(next(iter(_KEPT)))
      _KEPT[key] = asked
    return _KEPT[key]

  def __len__(self) -> int:
    return len(self._asked)

  def __getitem__(self, index: int) -> Question:
    asked = self._asked[index]
    if asked.error:
      raise asked.error
    return self._question(index, asked)

  def example(self, index: int) -> Example:
    """A question as a conversation, with the thing's own depth as its answer where it is of Metres."""
    asked = self._asked[index]
    if asked.error or asked.ask.kind not in OPEN:
      return question_to_example(self[index])
    files, (o,) = self._files[asked.picture], asked.objects
    image = self._layout.image(files)
    return Example(
      images=(image,),
      shots=(self._shot(index, files, image.shape),),
      turns=(Turn(spoken.PROMPT.format(o.name), spoken.metres(o.depth)),),
      id=str(index),
      task=asked.ask.kind,
      source=self._config.layout,
      files=(self._called(files),),
      geometry=Geometry((Asked("metres", (tuple(map(float, o.box)),)),)),
    )

  def place(self, index: int) -> str:
    return self._files[self._asked[index].picture].where

  def depth(self, index: int) -> np.ndarray:
    """(H, W) float32 metres of the picture of a question, 0 where there is none."""
    return self._layout.depth(self._files[self._asked[index].picture], self._config.unit)

  def facts(self, index: int) -> Callable[[], str] | None:
    """Gives the named objects in words (`facts.said`); None where their places are not known."""
    asked = self._asked[index]
    if any(np.isnan(o.surface).any() for o in asked.objects):
      return None
    colors = _drawn(asked)
    told = [(o.name, o.surface, colors.get(i, "")) for i, o in enumerate(asked.objects)]
    return lambda: facts.said(told)

  def _scanned(self, defer: bool) -> Iterator[list[_Asked]]:
    """The questions of each picture, in order, a block of pictures at a time."""
    with futures.ThreadPoolExecutor(_WORKERS) as executor:
      for first in range(0, len(self._files), _BLOCK):
        numbers = range(first, min(first + _BLOCK, len(self._files)))
        yield from executor.map(lambda number: self._of_picture(number, defer), numbers)

  def _of_picture(self, number: int, defer: bool) -> list[_Asked]:
    try:
      objects, shape = self._measured(self._files[number])
    except UserError as error:
      if not defer:
        raise
      return [_Asked(number, error=error)]
    rng = np.random.Generator(np.random.Philox(key=[self._config.seed, number]))
    found = asks(objects, shape, [*self._kinds])
    return [_asked(number, ask, objects, rng) for ask in _chosen(found, self._kinds, self._config, rng)]

  def _measured(self, files: Files) -> tuple[list[Measured], tuple[int, ...]]:
    """The objects of a picture, and its shape, when all of its maps fit each other."""
    shape = self._layout.shape(files)
    depth = self._layout.depth(files, self._config.unit)
    objects = self._layout.objects(files)
    for file, found in ((files.depth, depth), (files.instance or files.label, objects.ids)):
      if found.shape != shape[:2]:
        said = [f"{width} x {height}" for height, width in (found.shape, shape[:2])]
        raise UserError(f"{file}: {said[0]} pixels, but {files.where} has {said[1]}")
    if self._names is not None:
      objects = Objects(objects.ids, self._names)
    intrinsics = self._fixed or self._layout.intrinsics(files, shape)
    self._check_intrinsics(intrinsics, shape, files)
    return measured(objects, depth, intrinsics, self._config.min_share), shape

  def _check_intrinsics(self, found: Intrinsics | None, shape: tuple[int, ...], files: Files) -> None:
    if found is not None:
      file = Path(self._config.intrinsics) if self._fixed else files.intrinsics or files.image
      check_intrinsics(found, shape, file)
    elif "Distance" in self._kinds:
      raise UserError(
        f"{files.where}: no intrinsics, which Distance is measured by; write intrinsics.json (fx, fy, cx, "
        "cy) beside the folder of pictures, name a file in `intrinsics`, or leave Distance out of `tasks`"
      )

  def _question(self, index: int, asked: _Asked) -> Question:
    files, ask, objects = self._files[asked.picture], asked.ask, asked.objects
    image = self._layout.image(files)
    name = self._called(files)
    for place, color in _drawn(asked).items():
      world.draw_box(image, objects[place].box, color)
    names = [o.name for o in objects]
    text, choices = object_text(ask.kind, names, BOX_ORDER[ask.kind], ask.axis, asked.marked)
    asked_of = Asked(
      ask.kind,
      tuple(tuple(map(float, o.box)) for o in objects),
      AXIS_NAMES[ask.axis] if ask.kind == "Relation" else "",
      margin=world.thickness(min(image.shape[:2])),
    )
    return Question(
      asked=asked_of,
      idx=index,
      type="2D" if ask.kind == "Relation" else "3D",
      task=ask.kind,
      images=(image,),
      question=text,
      choices=tuple(choices),
      answer=ask.answer,
      prompt=choice_prompt(text, choices),
      source=self._config.layout,
      source_dataset=self._config.layout,
      filename=name,
      source_filename=name,
      shots=(self._shot(index, files, image.shape),),
      target_class=names[0],
      target_size=objects[0].pixels,
      bbox=tuple(tuple(map(float, o.box)) for o in objects),
    )

  def _called(self, files: Files) -> str:
    """The picture's file below the folder, with its number where one holds several."""
    return files.image.relative_to(self._root).as_posix() + (f"/{files.number:04d}" if files.number else "")

  def _shot(self, index: int, files: Files, shape: tuple[int, ...]) -> Shot:
    found = self._fixed or self._layout.intrinsics(files, shape)
    focal, middle = (None, None) if found is None else ((found.fx, found.fy), (found.cx, found.cy))
    return in_pixels(shape[:2], focal, middle, depth=lambda: self.depth(index))


class RgbdExamples(QuestionExamples):
  """The questions as examples, with `depth` in metres over the whole picture, `depth_size` pixels square."""

  def __init__(self, questions: RgbdQuestions, depth_size: int):
    super().__init__(questions)
    self._depth_size = depth_size

  def __getitem__(self, index: int) -> Example:
    example = self.questions.example(index)
    told = self.questions.facts(index)
    dense = {}
    if self._depth_size:
      dense["depth"] = sampled(self.questions.depth(index), (self._depth_size, self._depth_size))
    return dataclasses.replace(example, dense=dense, facts=told)

  def __getitems__(self, indices: Sequence[int]) -> list[Example]:
    return [self[index] for index in indices]


def _state(files: Sequence[Files], config: RgbdConfig) -> str:
  """Names, sizes and times of all files that questions come from: another where one has changed."""
  digest = hashlib.blake2b(digest_size=16)
  extra = [Path(name).expanduser() for name in (config.names, config.intrinsics) if name]
  for path in itertools.chain(extra, *(vars(one).values() for one in files)):
    if isinstance(path, Path) and path.exists():
      said = path.stat()
      digest.update(f"{path}\0{said.st_size}\0{said.st_mtime_ns}\n".encode())
  return digest.hexdigest()


def _weights(tasks: Mapping[str, float]) -> dict[str, float]:
  for kind, weight in tasks.items():
    if kind not in KINDS + OPEN:
      known = nearest(kind, KINDS + OPEN)
      raise UserError(f"tasks: kind of question {kind!r} is unknown to photographs; {known}")
    if not weight > 0:
      raise UserError(f"tasks: kind {kind!r} has weight {weight}; give it a positive one or leave it out")
  return dict(sorted(tasks.items())) or dict.fromkeys(sorted(KINDS), 1.0)


def _check(config: RgbdConfig) -> None:
  if not config.path:
    raise UserError("a source of kind 'rgbd' needs a `path`: the folder of the pictures")
  if config.per_image < 1 or config.size < 0 or config.depth_size < 0 or not 0 <= config.seed < 2**63:
    raise UserError("per_image must be 1 or more, and size, depth_size and seed 0 or more")
  if not 0 < config.min_share < 1:
    raise UserError(f"min_share: {config.min_share:g}: a share of the picture lies between 0 and 1")


def _chosen(
  found: Mapping[str, list[Ask]], weights: Mapping[str, float], config: RgbdConfig, rng: np.random.Generator
) -> list[Ask]:
  """Up to `per_image` of them, kinds drawn by their weights as long as they have some."""
  left = {kind: list(rng.permutation(len(some))) for kind, some in found.items() if some}
  chosen = []
  while left and len(chosen) < config.per_image:
    kinds = [*left]
    share = np.array([weights[kind] for kind in kinds])
    kind = kinds[int(rng.choice(len(kinds), p=share / share.sum()))]
    chosen.append(found[kind][left[kind].pop()])
    if not left[kind]:
      del left[kind]
  return chosen


def _asked(number: int, ask: Ask, objects: Sequence[Measured], rng: np.random.Generator) -> _Asked:
  """The question with one of the two orders drawn, where it has two."""
  if ask.kind in OPEN:
    return _Asked(number, ask, tuple(objects[i] for i in ask.roles))
  swap, marked = (bool(x) for x in rng.integers(0, 2, 2))
  *first, a, b = ask.roles
  roles = (*first, b, a) if swap else ask.roles
  ask = ask._replace(answer=ask.answer ^ swap, roles=roles)
  return _Asked(number, ask, tuple(objects[i] for i in roles), marked)


def _drawn(asked: _Asked) -> dict[int, str]:
  """Place among the objects named -> colour of the box around it."""
  colors = BOX_ORDER.get(asked.ask.kind, ())
  return dict(enumerate(colors)) if asked.ask.kind != "Relation" or asked.marked else {}
