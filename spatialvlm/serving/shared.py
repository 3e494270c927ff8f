"""What single requests share: an image's tokens and a prompt's beginning, computed once while it is kept.

`engine` reads prefixes in full batches, as a long list of requests allows; here they are read one by one, as
requests come, and kept in arrays of their own, so that a budget in tokens bounds them whatever their lengths.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spatialvlm import generation
from spatialvlm.serving import padding
from spatialvlm.serving.kept import Kept
from spatialvlm.serving.requests import Request
from spatialvlm.serving.scorer import Prefixes, Scorer
from spatialvlm.types import Batch

# Tiles that one call of the vision tower encodes: one compiled shape. A CPU is kept busy by a single one.
CHUNK, CHUNK_ON_CPU = 16, 1


class Shared:
  """The images and prefixes of one model. Belongs to one thread.

  Attributes:
    images, prefixes: what is kept of them, in tiles and in tokens.
    encoded, read: tiles that were encoded and prefixes that were read so far.
  """

  def __init__(
    self, scorer: Scorer, *, pad_id: int, normal: np.ndarray | None, image_tiles: int, prefix_tokens: int
  ):
    """`normal`: float32 (256, C), what the vision tower takes for each value of a pixel; None where pictures
    are normalised already."""
    self._scorer, self._pad_id, self._normal = scorer, pad_id, normal
    self._chunk = CHUNK_ON_CPU if jax.default_backend() == "cpu" else CHUNK
    self.images: Kept[Any] = Kept(image_tiles)
    self.prefixes: Kept[Prefixes] = Kept(prefix_tokens)
    self.encoded = self.read = 0

  def has(self, request: Request) -> bool:
    """Whether a request's prefix is kept."""
    return _key(request) in self.prefixes

  def prefix(self, request: Request) -> Prefixes:
    """Keys and values of a request's prefix, one row."""
    found = self.prefixes.get(_key(request))
    if found is None:
      found = self._read(request)
      self.prefixes.put(_key(request), found, found.valid_BS.shape[1])
    return found

  def _read(self, request: Request) -> Prefixes:
    length, tiles = generation.bucket(request.prefix, 16), generation.bucket(max(request.tile_count, 1))
    tokens = request.tokens[: request.prefix]
    tokens_BT, valid_BT = padding.texts([tokens], 1, length, self._pad_id)
    batch = Batch(tokens_BT=tokens_BT, valid_BT=valid_BT)
    if request.image is not None:
      slot_BT = np.full(tokens_BT.shape, -1, np.int32)
      slot_BT[0, : request.prefix] = request.image_slot[: request.prefix]
      index_BI = np.full((1, tiles), -1, np.int32)
      index_BI[0, : request.tile_count] = np.arange(request.tile_count)
      features = self._image(request, tiles)
      batch = Batch(
        tokens_BT=tokens_BT,
        valid_BT=valid_BT,
        features_NPD=features,
        tile_index_BI=index_BI,
        image_slot_BT=slot_BT,
      )
    self.read += 1
    return self._scorer.prefix(batch)

  def _image(self, request: Request, tiles: int) -> Any:
    """Features (tiles, P, D), zeros behind those of the request's tiles."""
    features = self.images.get(request.image)
    if features is None:
      picture = request.picture()
      if len(picture.tiles) != request.tile_count:
        raise ValueError(
          f"{request.name}: {len(picture.tiles)} tiles, where its prompt has {request.tile_count}"
        )
      chunks = [picture.tiles[i : i + self._chunk] for i in range(0, request.tile_count, self._chunk)]
      rows = [self._scorer.encode(padding.stacked(chunk, self._chunk), self._normal) for chunk in chunks]
      features = jnp.concatenate(rows)[: request.tile_count]
      features = jnp.pad(features, ((0, tiles - request.tile_count), (0, 0), (0, 0)))
      self.encoded += request.tile_count
      self.images.put(request.image, features, tiles)
    return features


def _key(request: Request) -> Any:
  return request.image, request.tokens[: request.prefix].tobytes()
