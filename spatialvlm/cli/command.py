"""The one wrapper around flags: what the user gets wrong becomes one line on stderr and exit code 2."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import app, flags, logging

from spatialvlm import caches
from spatialvlm.cli import compiled, interrupts, processes, recipes, screen
from spatialvlm.types import UserError

# What a run returns that ends in order, as all of its processes do: after all of its work, or by SIGTERM.
ENDED = (0, 143)


def run(main: Callable[..., int | None], config_class: type | None = None, recipe: str | None = None) -> None:
  """Parses the command line and calls `main`; does not return.

  Args:
    main: `main(config, workdir)` of a command with a config, which takes flags alone (`workdir` is what the
      user named, or None); else `main(arguments)` with the arguments that are no flags. Returns the exit
      code, None for 0.
    config_class: what `--config` is read into; None for a command that has only flags of its own.
    recipe: the default of `--config`, None where the user must give one.

  `--config` is the path of a Python file with `get_config(arg)`, which returns a `config_class` or a
  ConfigDict of its settings, or the bare name of a recipe of ours; `:arg` may follow.
  `--config.any.key=value` overrides one setting; later ones win.
  """
  if config_class is not None:
    flags.DEFINE_string("workdir", None, "folder of the run; an interrupted run in it is continued")
    flags.DEFINE_string(
      "config", recipe, "recipe: path or name, with `:argument`; --config.key=value overrides"
    )
  quiet()
  caches.say()
  overrides: list[tuple[str, str]] = []

  def parse(argv: Sequence[str]) -> list[str]:
    argv = list(argv)
    try:
      if config_class is not None:
        argv, found = recipes.take_overrides(argv)
        overrides.extend(found)
      return flags.FLAGS(argv)
    except (flags.Error, UserError) as e:
      _fail(e)

  def wrapped(argv: list[str]) -> int:
    try:
      code = interrupts.in_order(lambda: called(argv))
      if code not in ENDED and processes.joined():
        processes.end(code)
      return code
    except UserError as e:
      _fail(e)
    except Exception as e:
      if isinstance(e, RuntimeError) and "home directory" in str(e):  # pathlib's, about a `~` in a path
        _fail(UserError("~: this user has no home folder; write the path in full"))
      if processes.left_alone(e):
        processes.end_left()
      if processes.joined():
        traceback.print_exc()
        processes.end(1)
      raise

  def called(argv: list[str]) -> int:
    compiled.keep()
    if config_class is None:
      return main(argv[1:]) or 0
    if len(argv) > 1:
      raise UserError(f"unexpected argument {argv[1]!r}; settings are given as --config.key=value")
    config = recipes.load(flags.FLAGS.config, overrides, config_class)
    processes.join()
    if mesh := getattr(config, "mesh", None):  # commands of one device have none
      processes.divide(mesh.cpu_devices)
    return main(config, flags.FLAGS.workdir) or 0

  app.run(wrapped, flags_parser=parse)


def quiet() -> None:
  """Keeps libraries from saying what is no news, and makes what is said fit for the screen."""
  # Orbax logs the traceback of a failed save from its own threads, and raises it as well.
  logging.set_verbosity(logging.FATAL)
  # Without a network its client would tell of every retry, before the one line that matters.
  os.environ.setdefault("HF_HUB_VERBOSITY", "error")
  # Pillow refuses images of twice this size, which is an error of ours; up to there they are read.
  warnings.filterwarnings("ignore", message="Image size .* could be decompression bomb")
  screen.prepare()


def prepare(config: Any) -> None:
  """For a process that a command starts to do what a config of ours says: all of `run` that is no flag.

  Raises:
    UserError: as `processes.join` and `processes.divide`.
  """
  quiet()
  compiled.keep()
  processes.join()
  processes.divide(config.mesh.cpu_devices)


def _fail(error: Exception) -> NoReturn:
  print("error: " + " ".join(str(error).split()), file=sys.stderr, flush=True)
  processes.end(2)
