"""Dense supervision of image tokens in the decoder's own vocabulary.

An image token is asked which of a few words says what its part of the picture shows: its colour, its shape,
the box drawn around it. The words are rows of the decoder's (tied) embedding, so no auxiliary head has to be
learned and thrown away, and the decoder finds in an image token what it would find in the words themselves.
The readout is a "logit lens" (nostalgebraist, 2020) applied to the connector's output.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

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
    classes: number of classes, whose words have neighbouring ids from `first`.
    none: vocabulary id of the word for tokens with less than `share` of labelled pixels; -1 leaves them out.
    share: least part of a token's pixels that must be labelled.
    words: in place of `first` and `classes`, for any tokenizer: the classes' words, in the order of the map's
      numbers. Each is said as it stands behind a space, by its first token, which must be its alone.
    none_word: in place of `none`, beside `words`; empty leaves such tokens out.
  """

  target: str = ""
  first: int = -1
  classes: int = 0
  none: int = -1
  share: float = 0.1
  words: tuple[str, ...] = ()
  none_word: str = ""


class Words(Objective):
  """Cross-entropy over a few words of the vocabulary, at every image token.

  Metrics: `accuracy` of the likeliest of the words, where there is something to say.
  """

  Settings = WordsSettings
  wants = Wants(image=True)
  names = ("decoder.embed.", "decoder.lm_head.")

  def __init__(self, settings: WordsSettings, where: str = "config.losses"):
    super().__init__(settings, where)
    first, classes, none = settings.first, settings.classes, settings.none
    by_id = first >= 0 or classes or none >= 0
    if not settings.target or bool(settings.words or settings.none_word) == by_id:
      raise UserError(
        f"{where}: a loss of kind 'words' needs a target, and either words or first and classes"
      )
    if (by_id and (first < 0 or classes < 2)) or (not by_id and len(settings.words) < 2):
      raise UserError(f"{where}: a loss of kind 'words' needs two classes or more")
    self.classes = len(settings.words) or classes
    self.background = none >= 0 or bool(settings.none_word)
    words = range(first, first + classes)
    self.ids = np.array([*words, none] if none >= 0 else words)
    self.extra = (settings.target,)

  def read_vocabulary(self, encode: Callable[[str], Sequence[int]]) -> None:
    settings = self.settings
    if not settings.words:
      return
    words = [*settings.words, settings.none_word] if settings.none_word else list(settings.words)
    firsts: dict[int, str] = {}
    for word in words:
      ids = encode(f" {word}")
      if not word.strip() or not ids:
        raise UserError(f"{self.where}.kwargs.words: {word!r} is no word of the model's tokenizer")
      if ids[0] in firsts:
        raise UserError(
          f"{self.where}.kwargs.words: {firsts[ids[0]]!r} and {word!r} begin with the same token of the"
          " model's tokenizer, and an image token says one token; use another word for one of them"
        )
      firsts[ids[0]] = word
    self.ids = np.array(list(firsts))

  def __call__(self, outputs: Outputs, models: Models, batch: Batch, key: jax.Array):
    del key
    settings, features_NPD = self.settings, outputs.image
    if features_NPD is None or settings.target not in batch.extra:  # text alone, or nothing that is labelled
      return jnp.float32(0), jnp.float32(0), {"accuracy": (jnp.float32(0), jnp.float32(0))}
    map_NHW, classes = batch.extra[settings.target].array, self.classes
    label_NP, weight_NP = token_labels(
      map_NHW, features_NPD.shape[1], classes, self.background, settings.share
    )
    x_NPD = features_NPD.astype(jnp.float32)
    x_NPD *= jax.lax.rsqrt(jnp.square(x_NPD).mean(-1, keepdims=True) + 1e-6)
    logits_NPK = models.vlm.unembed(x_NPD, self.ids).astype(jnp.float32)
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
