"""Dense supervision of image tokens in the decoder's own vocabulary.

An image token is asked which of a few words says what its part of the picture shows: its colour, its shape,
the box drawn around it. The words are rows of the decoder's (tied) embedding, so no auxiliary head has to be
learned and thrown away, and the decoder finds in an image token what it would find in the words themselves.
The readout is a "logit lens" (nostalgebraist, 2020) applied to the connector's output.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from spatialvlm.models.outputs import Outputs, Wants
from spatialvlm.training.objectives.cells import token_cells
from spatialvlm.training.objectives.objective import Models, Objective
from spatialvlm.types import Batch, UserError


@dataclasses.dataclass(frozen=True)
class WordsSettings:
  """Which words, for which map.

  Attributes:
    target: an array of `Batch.extra` of axis "tile": integers (N, H, W), -1 where there is nothing; it is cut
      into the grid of image tokens, and a token's class is the commonest of its pixels.
    first: vocabulary id of the first class's word.
    classes: number of classes, whose words have neighbouring ids.
    none: vocabulary id of the word for tokens with less than `share` of labelled pixels; -1 leaves them out.
    share: least part of a token's pixels that must be labelled.
  """

  target: str = ""
  first: int = -1
  classes: int = 0
  none: int = -1
  share: float = 0.1


class Words(Objective):
  """Cross-entropy over neighbouring words of the vocabulary, at every image token.

  Metrics: `accuracy` of the likeliest of the words, where there is something to say.
  """

  Settings = WordsSettings
  wants = Wants(image=True)

  def __init__(self, settings: WordsSettings, where: str = "config.losses"):
    super().__init__(settings, where)
    first, classes, none = settings.first, settings.classes, settings.none
    if not settings.target or first < 0 or classes < 2:
      raise UserError(f"{where}: a loss of kind 'words' needs a target, first and classes of 2 or more")
    words = range(first, first + classes)
    self.words = np.array([*words, none] if none >= 0 else words)
    self.extra = (settings.target,)

  def __call__(self, outputs: Outputs, models: Models, batch: Batch, key: jax.Array):
    del key
    settings, features_NPD = self.settings, outputs.image
    if features_NPD is None or settings.target not in batch.extra:  # text alone, or nothing that is labelled
      return jnp.float32(0), jnp.float32(0), {"accuracy": (jnp.float32(0), jnp.float32(0))}
    map_NHW, classes = batch.extra[settings.target].array, settings.classes
    label_NP, weight_NP = token_labels(
      map_NHW, features_NPD.shape[1], classes, settings.none >= 0, settings.share
    )
    x_NPD = features_NPD.astype(jnp.float32)
    x_NPD *= jax.lax.rsqrt(jnp.square(x_NPD).mean(-1, keepdims=True) + 1e-6)
    logits_NPK = models.vlm.unembed(x_NPD)[..., self.words].astype(jnp.float32)
    log_p_NPK = jax.nn.log_softmax(logits_NPK)
    nll_NP = -jnp.take_along_axis(log_p_NPK, label_NP[..., None], axis=-1)[..., 0]
    foreground_NP = weight_NP * (label_NP < classes)
    right_NP = (logits_NPK.argmax(-1) == label_NP).astype(jnp.float32)
    metrics = {"accuracy": ((right_NP * foreground_NP).sum(), foreground_NP.sum())}
    return (nll_NP * weight_NP).sum(), weight_NP.sum(), metrics


def token_labels(
  map_NHW: jax.Array, tokens: int, classes: int, background: bool, share: float
) -> tuple[jax.Array, jax.Array]:
  """Class and weight (0 or 1) of each token of a square grid, both (N, tokens), from a map of pixels.

  With `background`, tokens with less than `share` of labelled pixels are one class more, else of no weight.

  Raises:
    UserError: the map does not divide into the grid.
  """
  N, cells = map_NHW.shape[0], token_cells(map_NHW, tokens)
  share_NPK = jnp.stack([(cells == k).mean((2, 4)) for k in range(classes)], -1).reshape(N, tokens, classes)
  label_NP = share_NPK.argmax(-1)
  seen_NP = share_NPK.sum(-1) >= share
  if not background:
    return label_NP, seen_NP.astype(jnp.float32)
  # A tile without any such target (it belongs to another example) is all -1 and must not teach "nothing".
  given_N1 = (map_NHW >= 0).any((1, 2))[:, None]
  weight_NP = jnp.broadcast_to(given_N1, seen_NP.shape).astype(jnp.float32)
  return jnp.where(seen_NP, label_NP, classes), weight_NP
