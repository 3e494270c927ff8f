"""Everything that an answer to one question hangs on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from spatialvlm.causes import greyed, layers, regions
from spatialvlm.causes.cases import Case
from spatialvlm.causes.reader import Reader, Row
from spatialvlm.causes.record import Causes
from spatialvlm.types import Question, UserError

GRID = 6


def case_of(
  images: Sequence[np.ndarray],
  prompt: str,
  choices: Sequence[str],
  answer: int = -1,
  boxes: Sequence[Sequence[float]] = (),
  name: str = "question",
) -> Case:
  """A case of somebody's question about one picture; boxes, where there are any, are taken for its objects.

  Args:
    images: uint8 (H, W, 3); one.
    prompt: with its options listed by letters.
    boxes: (x0, y0, x1, y1) in pixels, half-open, of what it names.

  Raises:
    UserError: no picture, or several.
  """
  if len(images) != 1:
    raise UserError(f"{name}: has {len(images)} pictures; causes are of one")
  (image,) = images
  instance = None
  if boxes:
    instance = np.full(image.shape[:2], -1, np.int32)
    for number, box in enumerate(boxes):
      instance[regions.rectangle(box, 0, image.shape[:2])] = number
  return Case(
    task=name,
    id=name,
    scene=name,
    image=image,
    text=prompt,
    choices=tuple(choices),
    answer=answer,
    instance=instance,
    named=tuple(range(len(boxes))),
    boxes=tuple(tuple(map(float, box)) for box in boxes),
  )


def of_question(question: Question, prompt: str = "", answer_prefix: str = "") -> Case:
  """A case of a benchmark's question, with the boxes that it brings.

  Args:
    prompt, answer_prefix: how a protocol puts it; the question's own prompt where it is empty.

  Raises:
    UserError: no picture, or several.
  """
  asked, text = question.asked, prompt or question.prompt
  boxes = asked.named if asked is not None else question.bbox or ()
  name = f"question {question.idx}"
  case = case_of(question.images, text, question.choices, question.answer, boxes, name)
  margin = 0 if asked is None else round(asked.margin)
  return dataclasses.replace(case, margin=margin, answer_prefix=answer_prefix)


def causes(reader: Reader, case: Case, *, grid: int = GRID, seed: int = 0) -> Causes:
  """Greys every region of a case, exchanges its objects, cuts attention and patches states.

  Args:
    grid: rows and columns of cells that are greyed beside known objects; 0 for none.

  Raises:
    UserError: the case has no picture, or less than two choices.
  """
  if case.image is None or len(case.choices) < 2:
    raise UserError(
      f"question {case.id}: needs a picture and two options at least; else nothing can be told apart"
    )
  prompt, shape = reader.prompt(case), case.image.shape[:2]
  known = case.instance is not None
  found = regions.of_case(case, seed) if known else [regions.Region("all", "all", np.ones(shape, bool))]
  found = [*found, *(regions.cells(shape, grid) if grid else [])]
  rows = [Row(prompt, reader.cut(case.image))]
  rows += [Row(prompt, reader.cut(regions.greyed(case.image, region.mask))) for region in found]
  orders = greyed.exchanges(case, prompt, seed) if known else {}
  rows += [Row(prompt, rows[0].tiles, order) for order in orders.values()]
  other = case.opposite if case.opposite is not None else regions.greyed(case.image, np.ones(shape, bool))
  rows += [Row(prompt, reader.cut(other))]
  asked = reader.ask(rows)
  at = layers.groups(case, prompt)
  seen = {name: x for name, x in at.items() if name in layers.SEEN}
  count, options = len(found), len(case.choices)
  blind = next(number for number, region in enumerate(found) if region.kind == "all")
  return Causes(
    question=case.text,
    options=case.choices,
    right=case.answer,
    chosen=int(np.argmax(asked[0])),
    picture=case.image,
    regions=tuple(region.name for region in found),
    kinds=tuple(region.kind for region in found),
    masks=np.stack([region.mask for region in found]),
    logprobs=asked[0],
    blind=asked[1 + blind],
    grey=asked[1 : 1 + count],
    swaps=tuple(orders),
    swapped=asked[1 + count : -1].reshape(len(orders), options),
    cut_groups=tuple(seen),
    cut=layers.cut(reader, prompt, rows[0].tiles, seen),
    patch_groups=tuple(at),
    patched=layers.patched(reader, prompt, rows[0].tiles, rows[-1].tiles, at),
    opposite=asked[-1],
  )
