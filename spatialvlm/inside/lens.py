"""The residual stream read by the model's own head: the logit lens, and with translators the tuned lens.

Logit lens: nostalgebraist, "interpreting GPT: the logit lens" (2020); the last layer's is the model's own
answer.
Tuned lens: Belrose et al. (arXiv 2303.08112), an affine map a layer before the head.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spatialvlm.inside.record import Lens
from spatialvlm.models.vlm import Vlm

# The likeliest tokens that are kept of a patch, and of the answer's place.
OF_PATCH, OF_ANSWER = 3, 5


class Translator(NamedTuple):
  """One layer's affine map: x + x A + b, (D, D) and (D,) float32. Zeros change nothing."""

  a_DD: jax.Array
  b_D: jax.Array


def read(
  model: Vlm,
  streams: Mapping[int, jax.Array],
  option_ids: Sequence[int],
  patch_layers: Sequence[int],
  translators: Mapping[int, Translator] | None = None,
) -> Lens:
  """What the stream says at each layer.

  Args:
    streams: by layer from 0 to the last, (1 + M, D): the answer's place, then the image tokens.
    option_ids: tokens whose log-probability at the answer's place is given.
    patch_layers: layers of which the image tokens are read.
    translators: by layer; None or a layer that is not there reads the stream as it is.
  """
  graphdef, state = nnx.split(model.decoder)
  layers = sorted(streams)
  says = lambda layer, x_KD: _says(
    graphdef, state, x_KD, (translators or {}).get(layer), np.asarray(option_ids, np.int32)
  )
  answers = [jax.device_get(says(layer, streams[layer][:1])) for layer in layers]
  patches = [jax.device_get(says(layer, streams[layer][1:])) for layer in patch_layers]
  return Lens(
    layers=np.asarray(patch_layers, np.int32),
    patch_ids=np.stack([p[0][:, :OF_PATCH] for p in patches]).astype(np.int32),
    patch_shares=np.stack([p[1][:, :OF_PATCH] for p in patches]),
    answer_ids=np.stack([a[0][0] for a in answers]).astype(np.int32),
    answer_shares=np.stack([a[1][0] for a in answers]),
    options=np.stack([a[2][0] for a in answers]),
  )


def translated(x_KD: jax.Array, translator: Translator | None) -> jax.Array:
  """The stream as the last layer would have it, float32 where there is a translator."""
  if translator is None:
    return x_KD
  x_KD = x_KD.astype(jnp.float32)
  return x_KD + jnp.matmul(x_KD, translator.a_DD, precision="highest") + translator.b_D


@functools.partial(jax.jit, static_argnames="graphdef")
def _says(graphdef, state, x_KD, translator, option_ids):
  """The likeliest tokens (K, 5), their probabilities, and log-probabilities of the options (K, O)."""
  decoder = nnx.merge(graphdef, state)
  dtype = x_KD.dtype
  logits_KV = decoder.unembed(decoder.norm(translated(x_KD, translator).astype(dtype)))
  logs_KV = jax.nn.log_softmax(logits_KV, axis=-1)
  top, ids = jax.lax.top_k(logs_KV, OF_ANSWER)
  return ids, jnp.exp(top), logs_KV[:, option_ids]
