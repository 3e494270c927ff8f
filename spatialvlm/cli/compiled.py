"""Compiled programs are kept on disk, so that a second run of the same shapes starts within seconds."""

from __future__ import annotations

import hashlib
import os
import pathlib
import platform
import tempfile

from spatialvlm import caches

FOLDER, LIMIT = "JAX_COMPILATION_CACHE_DIR", "JAX_COMPILATION_CACHE_MAX_SIZE"
LEAST = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
# JAX's own second leaves out most programs of a small model's evaluator.
LEAST_SECONDS = 0.3
# Least recently used programs go first. A program is about 1 to 20 MB.
MOST_BYTES = 2 << 30


def keep() -> pathlib.Path | None:
  """Turns JAX's persistent compilation cache on, in the user's cache folder.

  Where `JAX_COMPILATION_CACHE_DIR` is set, JAX has read it already and nothing is changed. Where the folder
  cannot be written, every run compiles for itself.

  Returns:
    The folder; None where nothing was changed.
  """
  if FOLDER in os.environ:
    return None
  if (own := caches.user()) is None:
    return None
  try:
    folder = own / "spatialvlm" / "compiled" / _processor()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
      pass
  except OSError:
    return None
  import jax

  jax.config.update("jax_compilation_cache_dir", str(folder))
  if LIMIT not in os.environ:
    jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
  if LEAST not in os.environ:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
  return folder


def _processor() -> str:
  """Names this machine's instruction set: unlike machines may share a home folder, but no CPU program."""
  facts = {platform.machine(), platform.processor()}
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    facts |= {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
  except OSError:  # no Linux
    pass
  return hashlib.sha256("\n".join(sorted(facts)).encode()).hexdigest()[:12]
