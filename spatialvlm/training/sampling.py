"""Answers that a model in training gives to the questions of a batch, and the batch that they make.

The batched engine (`serving`) draws them: what is drawn for a question follows from the parameters, the
question and a seed alone. One process asks; its mesh may have many devices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spatialvlm.models.outputs import Wants
from spatialvlm.models.vlm import Vlm
from spatialvlm.serving.engine import Engine
from spatialvlm.serving.requests import EngineConfig, Generated, Picture, Request, prefix_length
from spatialvlm.serving.scorer import VlmScorer
from spatialvlm.training import step as step_lib
from spatialvlm.training.state import Split, TrainState
from spatialvlm.types import Batch, Turn, UserError

# Fields of a batch that hold pictures.
PICTURES = ("pixels_NHWC", "pixel_mask_NHW", "vision", "features_NPD")


class DrawSettings(Protocol):
  """What the settings of a phase that samples say of how it draws.

  Attributes:
    new_tokens: most tokens of an answer, its end included.
    temperature, top_p: as of `Draw`.
    together: answers that are drawn in one batch.
  """

  new_tokens: int
  temperature: float
  top_p: float
  together: int


def check_draw(settings: DrawSettings, where: str) -> None:
  """Raises a UserError where nothing can be drawn so; `where` is `config.phases.NAME`."""
  for name in ("new_tokens", "together"):
    if getattr(settings, name) < 1:
      raise UserError(f"{where}.kwargs.{name}: {getattr(settings, name)} is less than 1")
  if not settings.temperature > 0:
    raise UserError(
      f"{where}.kwargs.temperature: {settings.temperature} draws no two answers that differ; use e.g. 1"
    )
  if not 0 < settings.top_p <= 1:
    raise UserError(f"{where}.kwargs.top_p: {settings.top_p} is out of range; use a number in (0, 1]")


def check_processes(where: str) -> None:
  """Raises a UserError where several processes would sample."""
  if jax.process_count() > 1:
    raise UserError(f"{where}: one process samples; run it as one, whose mesh takes all its devices")


def only_turn(name: str, turns: Sequence[Turn], where: str) -> Turn:
  """The one question of a conversation, which the example `name` holds.

  Raises:
    UserError: there are several.
  """
  if len(turns) != 1:
    raise UserError(
      f"{name}: {len(turns)} questions in one conversation, where {where} asks one; give each a"
      " conversation of its own (turns=1 of a source that makes them)"
    )
  return turns[0]


@dataclasses.dataclass(frozen=True)
class Draw:
  """How answers are drawn.

  Attributes:
    limit: most tokens of an answer, its end included.
    temperature: above 0; top_p: in (0, 1] (`generation.generate`).
    stop_ids, pad_id: of the model's processor.
    batch_size: answers that are drawn together.
  """

  limit: int
  temperature: float
  top_p: float
  stop_ids: tuple[int, ...]
  pad_id: int
  batch_size: int

  @classmethod
  def of(cls, settings: DrawSettings, processor: Any) -> Draw:
    """As a phase's settings say, for a model of this processor."""
    stop_ids, pad_id = tuple(processor.stop_ids), processor.pad_id
    return cls(settings.new_tokens, settings.temperature, settings.top_p, stop_ids, pad_id, settings.together)


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
  """One answer.

  Attributes:
    tokens: int32, the stop token included where one ended it.
    ended: whether one did, not the limit.
  """

  tokens: np.ndarray
  ended: bool

  @property
  def said(self) -> np.ndarray:
    """The tokens without the stop token."""
    return self.tokens[:-1] if self.ended else self.tokens


class Sampler:
  """Draws answers with the parameters of a step, and makes batches of them."""

  def __init__(self, split: Split, mesh: Mesh, accumulation: int, examples: int, draw: Draw):
    """`examples`: of the batches that are given, over all microbatches."""
    self._split, self._mesh, self._draw = split, mesh, draw
    self._accumulation, self._examples = accumulation, examples
    everywhere = NamedSharding(mesh, PartitionSpec())
    self._see = step_lib.Programs(self._features, mesh, donate=False, out_shardings=everywhere)
    placed = step_lib.batch_sharding(mesh, accumulation)
    self._take = step_lib.Programs(self._taken, mesh, donate=False, out_shardings=placed)

  def __call__(
    self, state: TrainState, frozen, batch: Batch, seeds_BG: np.ndarray, names: Sequence[str]
  ) -> list[list[Sample]]:
    """For each example of a batch as many answers as it has seeds.

    Args:
      batch: as the step has it (`step.to_devices`); of its answers nothing is read.
      seeds_BG: uint32 (B, G).
      names: what messages call the examples.

    Raises:
      UserError: logits are not finite.
    """
    rows = texts_of(batch, self._accumulation)
    features = None if _blind(batch) else self._see.get(state, frozen, batch)[0].run(state, frozen, batch)
    requests = self._requests(rows, None if features is None else np.asarray(features), seeds_BG, names)
    # From the shape of the batch, not from its questions: else programs would come one by one for a while.
    longest = rows.tokens_BT.shape[1] - min(r.text_start for r in requests)
    config = EngineConfig(
      batch_size=min(self._draw.batch_size, len(requests)),
      lengths=(longest,),
      tiles=(max(max(r.tile_count for r in requests), 1),),
      pool_tiles=0,
    )
    scorer = VlmScorer(self._split.model(state.params, frozen), self._mesh)
    found: list[list[Sample]] = [[None] * seeds_BG.shape[1] for _ in range(len(seeds_BG))]
    for answers in Engine(scorer, config, pad_id=self._draw.pad_id).run(requests):
      for answer in answers:
        row, number = answer.tag
        end = [answer.stopped_by] if answer.ended else []
        found[row][number] = Sample(np.array([*answer.tokens, *end], np.int32), answer.ended)
    return found

  def batch(
    self, batch: Batch, rows: Sequence[int], samples: Sequence[Sample], taught: Sequence[bool] | None = None
  ) -> Batch:
    """The batch of these samples, one to a row, each as the answer of an example; laid out for the step.

    Its shape follows from the shape of `batch`, the number of samples and the limit alone. Arrays of `extra`
    go with their examples, but for those of axis "target", which belong to answers of the data. What other
    models read (`Batch.views`) holds the same samples, behind the prompts that they read.

    Args:
      rows: of each sample its example's place in `batch`.
      taught: of each sample whether its tokens are targets; None: all are.
    """
    texts, limit = texts_of(batch, self._accumulation), self._draw.limit
    made = answered(texts, rows, samples, limit, self._draw.pad_id)
    if taught is not None:
      index_BK = np.where(np.array(taught)[:, None], made.target_index_BK, -1)
      made = dataclasses.replace(made, target_index_BK=index_BK)
    made = step_lib.to_devices(made, self._mesh, self._accumulation)
    shown = Batch(tokens_BT=None, valid_BT=None, **{name: getattr(batch, name) for name in PICTURES})
    extra = {name: value for name, value in batch.extra.items() if value.axis != "target"}
    shown = dataclasses.replace(shown, extra=extra)
    if jax.tree.leaves(shown):
      index = np.array(rows, np.int32)
      shown = self._take.get(index, {}, shown)[0].run(index, {}, shown)
    pictures = {name: getattr(shown, name) for name in PICTURES}
    views = {name: self.batch(view, rows, samples, taught) for name, view in batch.views.items()}
    return dataclasses.replace(made, normal=batch.normal, extra=shown.extra, views=views, **pictures)

  def _requests(self, rows: Batch, features_NPD, seeds_BG: np.ndarray, names: Sequence[str]) -> list[Request]:
    found, draw = [], self._draw
    for row, seeds in enumerate(seeds_BG):
      tokens, slots, prefix = prompt_of(rows, row)
      count, picture = 0, None
      if slots.max(initial=-1) >= 0:
        tiles = features_NPD.reshape(len(seeds_BG), -1, *features_NPD.shape[1:])[row]
        count = int(slots.max()) // tiles.shape[1] + 1
        picture = lambda tiles=tiles[:count]: Picture(features=tiles)
      for number, seed in enumerate(seeds):
        want = Generated(draw.limit, draw.stop_ids, (row, number), draw.temperature, draw.top_p, int(seed))
        request = Request(
          tokens=tokens,
          image_slot=slots,
          prefix=prefix_length(slots, prefix),
          wanted=(want,),
          bidirectional=prefix > 0,
          image=row if count else None,
          picture=picture,
          tile_count=count,
          name=names[row],
        )
        found.append(request)
    return found

  def _features(self, state: TrainState, frozen, batch: Batch) -> jax.Array:
    """Image tokens (N, P, D) of all tiles, in the order of their examples; traced."""
    vlm: Vlm = self._split.model(state.params, frozen)
    see = lambda part: vlm.read(part, Wants(image=True)).image
    if self._accumulation == 1:
      return see(batch)
    out = jax.lax.map(see, batch)
    return out.reshape(-1, *out.shape[2:])

  def _taken(self, index, nothing, shown: Batch) -> Batch:
    """The pictures of the examples at `index`, tiles with their examples; traced."""
    del nothing
    parts = self._accumulation

    def chosen(x: jax.Array) -> jax.Array:
      rest = x.shape[2:] if parts > 1 else x.shape[1:]
      of_examples = x.reshape(self._examples, -1, *rest)[index]
      return of_examples.reshape(*(parts, -1) if parts > 1 else (-1,), *rest)

    return jax.tree.map(chosen, shown)


def answered(texts: Batch, rows: Sequence[int], samples: Sequence[Sample], limit: int, pad_id: int) -> Batch:
  """Prompts of `texts`, on the host and flat, each with a sample behind it, which is what is supervised.

  The batch is as long as `texts` and `limit` together, and has `limit` targets a row.
  """
  B, T = len(rows), texts.tokens_BT.shape[1] + limit
  tokens, valid = np.full((B, T), pad_id, np.int32), np.zeros((B, T), bool)
  slots, targets = np.full((B, T), -1, np.int32), np.full((B, limit), -1, np.int32)
  causal = np.ones((B, T), bool)
  for place, (row, sample) in enumerate(zip(rows, samples, strict=True)):
    prompt, slot, prefix = prompt_of(texts, row)
    start, end = len(prompt), len(prompt) + len(sample.tokens)
    tokens[place, :start], tokens[place, start:end] = prompt, sample.tokens
    valid[place, :end] = True
    slots[place, :start] = slot
    causal[place, :prefix] = False
    targets[place, : end - start] = np.arange(start, end)
  return Batch(
    tokens_BT=tokens,
    valid_BT=valid,
    image_slot_BT=None if texts.image_slot_BT is None else slots,
    mask_ar_BT=None if texts.mask_ar_BT is None else causal,
    target_index_BK=targets,
    example_mask_B=np.ones(B, bool),
  )


def texts_of(batch: Batch, accumulation: int) -> Batch:
  """What of a step's batch is text, on the host, microbatches one after the other."""
  flat = lambda x: np.asarray(x).reshape(-1, *x.shape[2:]) if accumulation > 1 else np.asarray(x)
  names = ("tokens_BT", "valid_BT", "image_slot_BT", "mask_ar_BT", "target_index_BK", "example_mask_B")
  fields = {name: getattr(batch, name) for name in names}
  return Batch(**{name: None if value is None else flat(value) for name, value in fields.items()})


def prompt_of(texts: Batch, row: int) -> tuple[np.ndarray, np.ndarray, int]:
  """Tokens of a row before its first answer, their image slots, and how many of them all see each other."""
  targets = texts.target_index_BK[row]
  end = int(targets[targets > 0].min())
  slots = np.full(end, -1, np.int32) if texts.image_slot_BT is None else texts.image_slot_BT[row, :end]
  prefix = 0 if texts.mask_ar_BT is None else int((~texts.mask_ar_BT[row, :end]).sum())
  return texts.tokens_BT[row, :end], slots, prefix


def _blind(batch: Batch) -> bool:
  return batch.pixels_NHWC is None and batch.vision is None and batch.features_NPD is None
