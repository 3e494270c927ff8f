"""Which kind of device a program is traced for, where that chooses between two ways to compute the same."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax

_planned: list[str] = []


def platform() -> str:
  """One of "cpu", "gpu" and "tpu": this process's default device, or whatever `tracing_for` says."""
  return _planned[-1] if _planned else jax.default_backend()


@contextlib.contextmanager
def tracing_for(platform: str) -> Iterator[None]:
  """What is traced within is for devices of another kind, which this process need not have.

  jax's cache of traced functions knows nothing of it: a process traces for one kind alone, as
  `spatialvlm.plan` does.
  """
  _planned.append(platform)
  try:
    yield
  finally:
    _planned.pop()
