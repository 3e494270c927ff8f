"""Phases: what happens to a batch between the stream and the step. None is the default, and costs nothing.

A phase of `config.phases` is one class of `PHASES`, in a file of its own here:

    class Mine(Phase):
      Settings = MySettings            # frozen dataclass: what `config.phases.NAME.kwargs` may hold
      packing = False                  # whether it may be given rows of several examples (`data.packing`)
      gives = ()                       # arrays of `Batch.extra` that it can give to objectives
      repeats = 1                      # steps that are taken with what it gave once
      answers = False                  # whether it puts answers of its own in the place of the data's
      def reads(self, size): ...       # examples it must be given to give `size`
      def start(self, parts): ...      # -> prepare

    prepare(state, frozen, batch, info, key) -> batch

`prepare` runs in every step, on the host, with the state that the step will start from; what it computes on
devices it compiles itself (`step.Programs`). The batch lies on the mesh as `step.to_devices` puts it, with a
leading axis of microbatches where there are several, before and after. All that is random comes from `key`,
the step's own: a phase keeps nothing between steps, so that an interrupted run continues with the same bits.
Where a phase `repeats`, it runs before every so many steps, and checkpoints are written between them alone.
Phases follow each other in the order of their names, each with what the one before gave.
"""

from __future__ import annotations

from collections.abc import Mapping

from spatialvlm.config import PhaseConfig, nearest
from spatialvlm.training.objectives import typed
from spatialvlm.training.phases.hard_examples import HardExamples
from spatialvlm.training.phases.on_policy import OnPolicy
from spatialvlm.training.phases.phase import Phase, PhaseParts, Prepare
from spatialvlm.training.phases.rollouts import Rollouts
from spatialvlm.types import UserError

__all__ = ["PHASES", "Phase", "PhaseParts", "Prepare", "examples_read", "make_phases", "repeats", "start"]

PHASES: dict[str, type[Phase]] = {
  "hard_examples": HardExamples,
  "on_policy": OnPolicy,
  "rollouts": Rollouts,
}


def make_phases(configs: Mapping[str, PhaseConfig]) -> tuple[Phase, ...]:
  """The phases of a run, in their order.

  Raises:
    UserError: an unknown kind, a setting that the kind does not have, or several that sample answers.
  """
  phases = []
  for name, config in sorted(configs.items()):
    where = f"config.phases.{name}"
    if config.kind not in PHASES:
      raise UserError(f"{where}.kind: unknown {config.kind!r}; {nearest(config.kind, PHASES)}")
    kind = PHASES[config.kind]
    phases.append(kind(typed(kind.Settings, config.kwargs, f"{where}.kwargs"), where))
  sampling = [phase.where for phase in phases if phase.answers]
  if len(sampling) > 1:
    raise UserError(
      f"{sampling[1]}: {sampling[0]} puts sampled answers in the place of the data's, too; leave one out"
    )
  return tuple(phases)


def examples_read(phases: tuple[Phase, ...], size: int) -> int:
  """Examples of the stream that become a step's `size`.

  Raises:
    UserError: a phase cannot give so many.
  """
  for phase in reversed(phases):
    size = phase.reads(size)
  return size


def repeats(phases: tuple[Phase, ...]) -> int:
  """Steps that are taken with a batch, once it has gone through the phases."""
  return max((phase.repeats for phase in phases), default=1)


def start(phases: tuple[Phase, ...], parts: PhaseParts) -> tuple[Prepare, ...]:
  """Each phase's `prepare`, for a step of `parts.gives` examples."""
  prepares = []
  for number, phase in enumerate(phases):
    gives = examples_read(phases[number + 1 :], parts.gives)
    prepares.append(phase.start(parts.giving(gives)))
  return tuple(prepares)
