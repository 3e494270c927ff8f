"""Images on their way to the device: cut by the threads that read ahead, and only where somebody needs it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

import numpy as np

from spatialvlm.once import OnceCache
from spatialvlm.serving.feature_store import FeatureStore
from spatialvlm.serving.requests import Picture

# Images whose tiles stay on the host for a moment, since the next requests may show them too.
KEPT = 16


class Pictures:
  """Loads pictures once for all requests that show them. Safe to use from several threads."""

  def __init__(
    self, store: FeatureStore | None = None, placed: Callable[[Hashable], bool] = lambda key: False
  ):
    """`placed` tells whether the device has an image already; whether it stays there is no matter."""
    self._store, self._placed = store, placed
    self._kept: OnceCache[Picture] = OnceCache()

  def ahead(
    self,
    key: Hashable,
    count: int,
    cut: Callable[[], np.ndarray],
    priors: Mapping[str, np.ndarray] | None = None,
  ) -> Callable[[], Picture]:
    """Loads a picture now, or later where the device seems to have it; returns what gives it.

    Args:
      key, count: of the image and its tiles, as in `Request`.
      cut: makes the tiles, where their features are not kept on disk. Whatever is done to an image before (it
        is mirrored, say) is done in here, and `key` tells of it.
      priors: what a model's priors say of the tiles, of which `key` tells, too.
    """
    load = lambda: self._kept.get(key, lambda: self._make(key, count, cut, priors or {}), KEPT)
    if self._placed(key):
      return load
    picture = load()
    return lambda: picture

  def _make(
    self, key: Hashable, count: int, cut: Callable[[], np.ndarray], priors: Mapping[str, np.ndarray]
  ) -> Picture:
    if self._store is not None and (features := self._store.get(key, count)) is not None:
      return Picture(features=features)
    return Picture(tiles=cut(), priors=priors)
