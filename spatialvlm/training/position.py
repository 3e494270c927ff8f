"""Where a stream of batches stands, as a checkpoint keeps it: read by a run of any number of processes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from typing import Any

import jax

FILE = "position.json"
# What each process wrote for itself, with the same content, before there was one file for all.
EARLIER = "*.json"


class Position:
  """What Orbax saves and loads of a stream (its `StatefulCheckpointable`).

  A stream's state is the number of its next batch, over all processes (`data.pipeline.training_stream`), so
  that what eight processes have saved four go on from.
  """

  def __init__(self, stream: Any):
    """`stream`: has `get_state`, a JSON value that is the same in all processes, and `set_state`."""
    self._stream = stream

  async def save(self, directory: Any) -> Awaitable[None]:
    """Takes the state as it is now; the coroutine writes it, in the first process."""
    said = json.dumps(self._stream.get_state(), indent=2)

    async def write() -> None:
      folder = await directory.await_creation()
      if jax.process_index() == 0:
        await asyncio.to_thread((folder / FILE).write_text, said)

    return write()

  async def load(self, directory: Any) -> Awaitable[None]:
    """The coroutine sets the stream; a ValueError where no file says where, or several say other things."""

    async def read() -> None:
      files = [directory / FILE] if (directory / FILE).exists() else sorted(directory.glob(EARLIER))
      states = [json.loads(await asyncio.to_thread(file.read_text)) for file in files]
      if not states or any(state != states[0] for state in states):
        raise ValueError(f"{directory}: {'no file' if not states else 'its files do not agree'}")
      self._stream.set_state(states[0])

    return read()
