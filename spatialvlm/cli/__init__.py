"""What all commands share: flags, recipes, kept programs, and how a user's mistake ends.

A command is one file in `launch/`: its own flags, a function `main`, and `cli.run(main, ...)`. The contract
of `run`: whatever the user gets wrong becomes one line on stderr and exit code 2. `prepare` is for processes
that a command starts itself. This room alone parses flags and runs recipes (Python files); nothing below it
sees an absl flag, an `ml_collections.ConfigDict` or a recipe's path.
"""

from spatialvlm.cli import interrupts

interrupts.watch()  # before anything heavy is imported, which takes seconds

from spatialvlm.cli.command import prepare, run  # noqa: E402
from spatialvlm.cli.recipes import load  # noqa: E402

__all__ = ["load", "prepare", "run"]
