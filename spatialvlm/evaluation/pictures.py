"""The pictures of questions, looked at before the first is asked, so that none is found broken half-way."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import time
from collections.abc import Sequence

from spatialvlm.reporting import terminal
from spatialvlm.types import Question, UserError

# Seconds that a check takes without a word.
QUIET = 3.0


def check(questions: Sequence[Question], limit: int = 0) -> None:
  """Looks at the pictures of questions in threads; where that takes long, shows how far it is.

  Of CV-Bench it takes some seconds. Pictures that are rendered (no `check_pictures`; `data.sources`) have
  nothing that could be broken.

  Args:
    limit: only the first so many questions, 0 for all.

  Raises:
    UserError: the first that cannot be read, by file, row and column, and how many others there are.
  """
  if not hasattr(questions, "check_pictures"):
    return
  count = min(len(questions), limit or len(questions))
  broken: list[UserError] = []

  def error_of(index: int) -> UserError | None:
    try:
      return questions.check_pictures(index)
    except UserError as error:
      return error

  workers = min(max(os.cpu_count() or 2, 2), 8)
  began, show = time.monotonic(), None
  with contextlib.ExitStack() as stack:
    pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(workers))
    for done, error in enumerate(pool.map(error_of, range(count)), start=1):
      broken += [error] if error else []
      if show is None and time.monotonic() - began > QUIET:
        show = stack.enter_context(terminal.progress("checking pictures"))
      if show is not None:
        show(done, count)
  if broken:
    others = f"; so it is with {len(broken) - 1} more of the questions" if broken[1:] else ""
    raise UserError(f"{broken[0]}{others}")
