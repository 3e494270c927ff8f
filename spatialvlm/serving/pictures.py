"""Images on their way to the device: cut by the threads that read ahead, and only where somebody needs it."""

from __future__ import annotations

import collections
import dataclasses
import threading
from collections.abc import Callable, Hashable
from concurrent import futures

import numpy as np

from spatialvlm.evaluation.asking import controls
from spatialvlm.evaluation.asking.protocols import Prompter
from spatialvlm.processing.tiling import Tiles
from spatialvlm.serving.feature_store import FeatureStore

# Images whose tiles stay on the host for a moment, since the next questions may show them too.
KEPT = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
  """An image as the model takes it: tiles uint8 (I, S, S, 3), or features (I, P, D) that were kept."""

  tiles: np.ndarray | None = None
  features: np.ndarray | None = None


class Pictures:
  """Loads pictures once for all questions that show them. Safe to use from several threads."""

  def __init__(
    self,
    prompter: Prompter,
    store: FeatureStore | None = None,
    placed: Callable[[Hashable], bool] = lambda key: False,
  ):
    """`placed` tells whether the device has an image already; whether it stays there is no matter."""
    self._prompter, self._store, self._placed = prompter, store, placed
    self._kept: collections.OrderedDict[Hashable, futures.Future] = collections.OrderedDict()
    self._lock = threading.Lock()

  def layout(self, image: np.ndarray) -> Tiles:
    """The rows, columns and number of an image's tiles, without their pixels."""
    return self._prompter.layout(image)

  def ahead(self, key: Hashable, image: np.ndarray, count: int) -> Callable[[], Picture]:
    """Loads a picture now, or later where the device seems to have it; returns what gives it."""
    if self._placed(key):
      return lambda: self._load(key, image, count)
    picture = self._load(key, image, count)
    return lambda: picture

  def _load(self, key: Hashable, image: np.ndarray, count: int) -> Picture:
    with self._lock:
      future = self._kept.get(key)
      mine = future is None
      if mine:
        future = self._kept[key] = futures.Future()
        while len(self._kept) > KEPT:
          self._kept.popitem(last=False)
      else:
        self._kept.move_to_end(key)
    if mine:
      try:
        future.set_result(self._make(key, image, count))
      except BaseException as error:
        future.set_exception(error)
        raise
    return future.result()

  def _make(self, key: Hashable, image: np.ndarray, count: int) -> Picture:
    if self._store is not None and (features := self._store.get(key, count)) is not None:
      return Picture(features=features)
    grey = isinstance(key, tuple) and key[0] == "grey"
    tiles = self._prompter.cut(controls.grey(image) if grey else image).pixels
    if len(tiles) != count:
      raise RuntimeError(f"image {key}: cut into {len(tiles)} tiles, where its prompt has {count}")
    return Picture(tiles=tiles)
