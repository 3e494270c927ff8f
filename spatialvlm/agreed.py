"""What the first of several processes finds on a disk that all of them see, told to the others.

Each of them looking for itself would find what the quicker ones have written meanwhile: a folder that is
taken, by their own run, or half of one. So one looks, and all do as it found, errors of the user included.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TypeVar

import jax

from spatialvlm.types import UserError

Found = TypeVar("Found", bool, str)
# Milliseconds that the others wait for the first. Where it dies they are ended (`cli.watch`), so that this is
# of no matter but to a first process that hangs.
_WAIT = 24 * 3600 * 1000


class _Said:
  count = 0


def from_first(find: Callable[[], Found]) -> Found:
  """What `find` returns in the first process, in all of them; there alone it is called.

  All processes call this in the same order. With one process it is a call of `find`.

  Raises:
    UserError: in all of them, where `find` does; another error of it in the first alone.
  """
  if jax.process_count() == 1:
    return find()
  # JAX has no public name for the store that its processes share. Its collectives would do, at the price of
  # programs to compile, and not before the devices are known.
  from jax._src import distributed

  store = distributed.global_state.client
  name = f"spatialvlm/agreed/{_Said.count}"
  _Said.count += 1
  if jax.process_index() > 0:
    said = json.loads(store.blocking_key_value_get(name, _WAIT))
    if "error" in said:
      raise UserError(said["error"])
    return said["found"]
  try:
    found = find()
  except UserError as error:
    store.key_value_set(name, json.dumps({"error": str(error)}))
    raise
  store.key_value_set(name, json.dumps({"found": found}))
  return found
