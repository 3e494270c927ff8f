"""Checkpoints of a run, with Orbax v1; the only file that knows Orbax.

A checkpoint holds the trainables, optimizer state, step, moving average, the data iterator, and what the loop
must remember as JSON. Arrays stand by the names of `training.state`: those of the model, and of the heads of
its objectives under `heads.`, so that what is older than heads reads as before. Of the base model it holds
nothing: the workdir keeps its id, revision and hash.
"""

from __future__ import annotations

import contextlib
import errno
import json
import pathlib
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from spatialvlm import agreed
from spatialvlm.training.position import Position
from spatialvlm.training.state import Params, TrainState, schedule_free_average, schedule_free_names
from spatialvlm.types import UserError

# What tells the best checkpoint, but for the scores of the evaluation.
VALIDATION = "validation"
# Bytes that a checkpoint takes beside its arrays.
HEADROOM = 1 << 20
# Of an array that several devices hold whole, each writes its part from so many bytes on: cutting one costs a
# program for each shape and part, more than it saves in small ones.
_SHARED_BYTES = 16 << 20


def cost(measured: float, by: str) -> float:
  """What is lower where it is better: a loss as it is, a score negated."""
  return measured if by == VALIDATION else -measured


class Damaged(UserError):
  """A checkpoint whose files cannot be read, though what is wanted of them is what they held."""


class Checkpoints:
  """The checkpoints below one folder: the last `keep`, and the best, the first of equals.

  A save that was interrupted leaves a temporary folder that counts for nothing and is removed here.
  """

  def __init__(self, folder: pathlib.Path, keep: int, best: str = VALIDATION, reads: bool = False):
    """Opens them.

    Args:
      best: what `save` is told of a step: `VALIDATION`, the lowest is best, or a score, the highest is.
      reads: only; a run may be saving there right now, whose half-written folder must stay.
    """
    policies = ocp.training.preservation_policies
    self.folder = folder.absolute()
    self._by = best
    with _saving(self.folder):
      self._orbax = ocp.training.Checkpointer(
        self.folder,
        save_decision_policy=_Always(),
        preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(max(keep, 1)), _Best(best)]),
        cleanup_tmp_directories=not reads,
      )

  @property
  def steps(self) -> list[int]:
    """Steps that can be restored, ascending."""
    return sorted(found.step for found in self._orbax.checkpoints)

  @property
  def latest(self) -> int | None:
    return max(self.steps, default=None)

  @property
  def best(self) -> int | None:
    """The step that measured best; None where none was measured."""
    return _best(self._orbax.checkpoints, self._by)

  def save(
    self, state: TrainState, data: Any, memory: Mapping[str, Any], measured: float | None = None
  ) -> None:
    """Begins to save `state`; the disk is written in the background, from copies.

    Args:
      data: the iterator of batches, as it stands after the batch of this step.
      memory: JSON that `memory` gives back.
      measured: the loss or score of this very step that tells the best, None where there was none.

    Raises:
      UserError: the disk is full, now or while the save before this one was written.
    """
    step = int(state.step)
    if step in self.steps:
      return
    context = ocp.Context()
    context.array.saving.min_slice_bytes_for_replica_parallel = _SHARED_BYTES
    with _saving(self.folder), context:
      # Orbax waits as well, but only after it has put the new save's parts in the place of those at work.
      self._orbax.wait()
      _check_space(self.folder, state)
      self._orbax.save_checkpointables_async(
        step,
        {"state": _named(state), "data": Position(data)},
        metrics=None if measured is None else {_key(self._by): measured},
        custom_metadata=dict(memory),
      )

  def newest(self, like: TrainState, data: Any = None) -> tuple[TrainState, dict[str, Any], list[str]] | None:
    """The newest state that can be read, what is remembered with it, and what was passed over; None: no save.

    Damaged checkpoints after it are moved out of the way, into `damaged_checkpoints` beside the folder.

    Raises:
      UserError: none can be read, or one does not fit `like`. Nothing is moved then.
    """
    passed: dict[int, str] = {}
    for step in reversed(self.steps):
      found = self._attempt(step, like, data)
      if not isinstance(found, str):
        return *found, [self._put_away(number, why) for number, why in passed.items()]
      passed[step] = found
    if passed:
      raise UserError(f"{'; '.join(passed.values())}; there is no other: name another --workdir")
    return None

  def restore_or_put_away(self, step: int, like: TrainState) -> TrainState | str:
    """The state of a step as `restore` gives it; where it is damaged, what is to be said of that.

    A damaged one is moved out of the way as by `newest`.
    """
    found = self._attempt(step, like)
    return self._put_away(step, found) if isinstance(found, str) else found[0]

  def _attempt(
    self, step: int, like: TrainState, data: Any = None
  ) -> tuple[TrainState, dict[str, Any]] | str:
    """A state and what is remembered with it, or why the checkpoint is damaged: of all processes alike."""
    several = jax.process_count() > 1
    # One process may read what another cannot, and would wait for it: the first looks for all of them.
    if several and (why := agreed.from_first(lambda: self._damage(step))):
      return why
    try:
      memory = self.memory(step)
      return self.restore(step, like, data), memory
    except Damaged as error:
      if several:
        raise
      return str(error)

  def _damage(self, step: int) -> str:
    """What of a checkpoint's files this process cannot read, or "".

    Without Orbax, whose every call waits for the other processes.
    """
    import tensorstore

    folder = self.folder / str(step)
    try:
      for file in (folder / "_CHECKPOINT_METADATA", folder / "state/_METADATA", *folder.glob("data/*.json")):
        _read_json(file, folder)
      files = {"driver": "file", "path": f"{folder}/state/"}
      values = tensorstore.KvStore.open({"driver": "ocdbt", "base": files}).result()
      for key in values.list().result():
        values.read(key).result()
    except Damaged as error:
      return str(error)
    except ValueError as error:
      return f"{folder}: checkpoint is damaged ({' '.join(str(error).split())[:300]})"
    return ""

  def _put_away(self, step: int, why: str) -> str:
    place = agreed.from_first(lambda: self._moved(step))
    self._orbax.reload()
    return f"{why}; it was moved to {place}"

  def _moved(self, step: int) -> str:
    folder = self.folder.with_name(f"damaged_{self.folder.name}")
    with _saving(folder):
      folder.mkdir(exist_ok=True)
      place = next(p for n in range(1000) if not (p := folder / f"{step}{f'-{n}' if n else ''}").exists())
      (self.folder / str(step)).rename(place)
    return str(place)

  def memory(self, step: int) -> dict[str, Any]:
    """What `save` was told to remember. Raises `Damaged` where it cannot be read."""
    # Orbax takes a file that it cannot read for one that is not there.
    folder = self.folder / str(step)
    _read_json(folder / "_CHECKPOINT_METADATA", folder)
    return dict(self._orbax.checkpointables_metadata(step).custom_metadata)

  def restore(self, step: int, like: TrainState, data: Any = None) -> TrainState:
    """The state of a step, laid out as `like` on its mesh, whatever mesh it was saved from.

    `data` is set to where it was, if it is given.
    """
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _named(like)
    )
    found = self._read(step, abstract, data)
    # Restored arrays are not donatable, so that the first step would hold the state twice, without a word;
    # what a program of our own returns is. https://github.com/jax-ml/jax/issues/18617
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    found = jax.jit(lambda tree: jax.tree.map(lambda x: x.copy(), tree), out_shardings=shardings)(found)
    return _unnamed(found, like)

  def weights(self, step: int, like: Params) -> Params:
    """The trainables that count of a step (`state.weights`), without optimizer, step or data.

    Args:
      like: arrays, or their shapes with shardings, by name: which ones are read, and where they go. A
        checkpoint may hold more (heads, where the model alone is wanted).

    Raises:
      UserError: the checkpoint cannot be read, or lacks one of these names or has it in another shape.
    """
    held = self._held(step)
    if not held:
      others = ", ".join(str(self.folder / str(other)) for other in self.steps if other != step)
      hint = f"; name another one: {others}" if others else ""
      raise Damaged(f"{self.folder / str(step)}: checkpoint is damaged (it does not say what it holds){hint}")
    if missing := sorted(set(like) - set(held["params"])):
      raise UserError(
        f"{self.folder / str(step)}: checkpoint holds no {missing[0]}{_and_more(missing)}; it is of another "
        "config.peft or config.losses"
      )
    for name, value in like.items():
      if tuple(held["params"][name].shape) != value.shape:
        raise UserError(
          f"{self.folder / str(step)}: {name} is {tuple(held['params'][name].shape)} in the checkpoint, "
          f"{value.shape} in this model"
        )
    abstract = {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=v.sharding) for k, v in like.items()}
    if held.get("ema"):
      return self._read(step, {"ema": abstract}, partial=True)["ema"]
    free = schedule_free_names(held["opt_state"], like)
    if not free:
      return self._read(step, {"params": abstract}, partial=True)["params"]
    everywhere = NamedSharding(next(iter(like.values())).sharding.mesh, PartitionSpec())
    rate, moving = free
    wanted = {name: abstract[ours] for ours, name in moving.items()}
    wanted[rate] = jax.ShapeDtypeStruct((), held["opt_state"][rate].dtype, sharding=everywhere)
    found = self._read(step, {"params": abstract, "opt_state": wanted}, partial=True)
    own = {ours: found["opt_state"][name] for ours, name in moving.items()}
    return schedule_free_average(found["params"], own, found["opt_state"][rate])

  def _read(self, step: int, abstract: Mapping[str, Any], data: Any = None, partial: bool = False) -> Any:
    wanted = {"state": abstract} | ({"data": Position(data)} if data is not None else {})
    context = ocp.Context()
    context.pytree.loading.partial_load = partial
    try:
      with context, _quiet():
        return self._orbax.load_checkpointables(step, wanted)["state"]
    except (ValueError, KeyError, FileNotFoundError) as e:
      reason = " ".join(str(_root(e)).split())[:300]
      if self._holds(step, abstract):
        raise Damaged(f"{self.folder / str(step)}: checkpoint is damaged ({reason})") from e
      raise UserError(f"{self.folder / str(step)}: checkpoint cannot be restored: {reason}") from e

  def _held(self, step: int) -> Mapping[str, Any] | None:
    """Names and shapes in a checkpoint's state; None where it does not say them."""
    try:
      return ocp.metadata(self.folder / str(step), checkpointable_name="state").metadata
    except (ValueError, KeyError, FileNotFoundError):
      return None

  def _holds(self, step: int, abstract: Any) -> bool:
    """Whether a checkpoint was saved with all of `abstract`, or does not even say what it was saved with."""
    held = self._held(step)
    if not held:
      return True
    shapes = lambda tree: {
      jax.tree_util.keystr(path): tuple(leaf.shape)
      for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }
    return shapes(abstract).items() <= shapes(held).items()

  def wait(self) -> None:
    """Until everything is on the disk. Raises as `save`."""
    with _saving(self.folder):
      self._orbax.wait()

  def close(self) -> None:
    with _saving(self.folder):
      self._orbax.close()


class _Always(ocp.training.save_decision_policies.SaveDecisionPolicy):
  """The loop decides when; Orbax's own policies would skip steps."""

  def should_save(self, step, previous_steps, *, context) -> bool:
    del step, previous_steps, context
    return True


class _Best(ocp.training.preservation_policies.PreservationPolicy):
  """Keeps the first of the best; Orbax's own policy the last, and scores of few questions are often equal."""

  def __init__(self, by: str):
    self._by = by

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    del context
    best = _best(checkpoints, self._by)
    return [c.step == best for c in checkpoints]


def _best(checkpoints: Iterable[Any], by: str) -> int | None:
  measured = [(cost(c.metrics[_key(by)], by), c.step) for c in checkpoints if c.metrics]
  return min(measured)[1] if measured else None


def _key(by: str) -> str:
  """The name of a measurement in a checkpoint: the loss has had its name since before there were scores."""
  return "validation_loss" if by == VALIDATION else by


def _named(state: TrainState) -> dict[str, Any]:
  """Flat dicts only: optimizers hold tuples, empty and masked nodes that a file need not know."""
  flat, _ = jax.tree_util.tree_flatten_with_path(state.opt_state)
  return {
    "step": state.step,
    "params": state.params,
    "ema": state.ema,
    "opt_state": {jax.tree_util.keystr(path): leaf for path, leaf in flat},
  }


def _unnamed(found: Mapping[str, Any], like: TrainState) -> TrainState:
  flat, structure = jax.tree_util.tree_flatten_with_path(like.opt_state)
  leaves = [found["opt_state"][jax.tree_util.keystr(path)] for path, _ in flat]
  opt_state = jax.tree_util.tree_unflatten(structure, leaves)
  return TrainState(found["step"], found["params"], opt_state, found.get("ema") or {})


def _read_json(file: pathlib.Path, checkpoint: pathlib.Path) -> Any:
  try:
    return json.loads(file.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise Damaged(f"{checkpoint}: checkpoint is damaged ({file.name}: {error})") from None


def _and_more(names: list[str]) -> str:
  return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _check_space(folder: pathlib.Path, state: TrainState) -> None:
  """Looks before it writes: a save that fails half-way may keep Orbax waiting for minutes."""
  size = sum(x.nbytes for x in jax.tree.leaves(state))
  if jax.process_index() == 0 and shutil.disk_usage(folder).free < 1.1 * size + HEADROOM:
    raise OSError(errno.ENOSPC, "no space left on the disk", str(folder))


@contextlib.contextmanager
def _saving(folder: pathlib.Path) -> Iterator[None]:
  """A full disk, however deep it was wrapped, becomes one line; the checkpoints before it stay whole."""
  try:
    yield
  except Exception as e:
    if _is_full(e):
      raise UserError(
        f"{folder}: no space left on the disk for a checkpoint; earlier ones are whole: free some space and "
        "run the same command again"
      ) from e
    raise


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps from the screen what Orbax's threads say of a load that has failed: that their loop is closed."""
  others = sys.unraisablehook

  def hook(unraisable: sys.UnraisableHookArgs) -> None:
    if "Event loop is closed" not in str(unraisable.exc_value):
      others(unraisable)

  sys.unraisablehook = hook
  try:
    yield
  finally:
    sys.unraisablehook = others


def _root(error: BaseException) -> BaseException:
  """What an error came of: Orbax says of all that goes wrong that a handler is incompatible."""
  while cause := error.__cause__ or error.__context__:
    error = cause
  return error


def _is_full(error: BaseException | None) -> bool:
  while error is not None:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
      return True
    # TensorStore passes the system's words on, not its number.
    if any(words in str(error).lower() for words in ("no space left", "quota exceeded", "file too large")):
      return True
    error = error.__cause__ or error.__context__
  return False
