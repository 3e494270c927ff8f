"""What a run would cost on devices that are not here, from the compilers that would compile it there.

`launch/plan.py` in a sentence: a config and a topology's name become the very programs that a run of it would
compile, without weights, data or device; the compiler of those devices says what they take.

- `targets.TARGETS`: slices of TPUs and single GPUs by name, with what their makers publish of them, and how
  their compiler is reached. One process a target (`child`), since libraries read the environment once.
- `abstract`: the model and training state of a `RunConfig`, shapes and places alone.
- `programs.PROGRAMS`: what is compiled, by name: `train`, `vision`, `encode`, `prefix`, `read`, `decode`. A
  new one is a function and a line there.
- `collectives` reads what devices send each other out of a compiled program, `training.flops` counts the
  products of a traced one, `bounds` makes times of both.
- `run.plan(config, target, ...) -> [Plan]`, `report` shows them.

Each number is of one kind, and is shown as such: *compiled* (the compiler's own account), *counted* (of
shapes, by us), *published* (of the chip, by its maker) or *measured* (the seconds that compiling took here).
Nothing runs on the devices, so no number says how long a step takes there: bounds say how long it takes at
least.
"""
