"""A run that is stopped by a signal while it reads a batch, as `kill` would stop it."""

import contextlib
import os
import signal

from spatialvlm.training import one_run


@contextlib.contextmanager
def at_each_batch(monkeypatch):
  """Every batch that `one_run.train` reads in here comes behind a SIGTERM: the run ends with that step."""
  opened = one_run.open_streams

  def stopping(*arguments):
    stream, validation = opened(*arguments)
    read = type(stream).__next__

    class Stream(type(stream)):
      def __next__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        return read(self)

    stream.__class__ = Stream
    return stream, validation

  with monkeypatch.context() as patch:
    patch.setattr(one_run, "open_streams", stopping)
    yield
