"""The tuned lens: one affine map a layer, fitted so that the head reads an inner layer as it reads the last.

Belrose et al., "Eliciting Latent Predictions from Transformers with the Tuned Lens" (arXiv 2303.08112): of
each layer's stream x the map x + x A + b, from A = 0, b = 0 (the logit lens) on, by the least divergence of
what the head then says from what the model says, KL(model || lens), over the positions of some prompts. The
model itself stays as it is. On disk: tuned_lens.safetensors, float32 `LAYER.a` (D, D) and `LAYER.b` (D,), and
tuned_lens.json with the model's identity, the settings, and the divergence on prompts that were held out,
before and after.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from spatialvlm import generation, workdir
from spatialvlm.config import read_json, to_dict
from spatialvlm.hub import tensors
from spatialvlm.inside.lens import Translator, translated
from spatialvlm.models.outputs import Wants
from spatialvlm.models.vlm import Vlm
from spatialvlm.processing.encoded import Encoded
from spatialvlm.reporting import tables
from spatialvlm.types import Batch, UserError

FORMAT = "spatialvlm-tuned-lens-1"
WEIGHTS, ABOUT = "tuned_lens.safetensors", "tuned_lens.json"


@dataclasses.dataclass(frozen=True)
class FitSettings:
  """How a tuned lens is fitted.

  Attributes:
    prompts: how many are fitted; `heldout`: how many more tell how well.
    rounds: how often they are gone through.
    batch: prompts of one step; `positions`: how many of each count, the last always, the others drawn.
    learning_rate: of Adam at its highest; it falls to 0 along a cosine.
    seed: of what is drawn.
  """

  prompts: int = 512
  heldout: int = 64
  rounds: int = 2
  batch: int = 8
  positions: int = 24
  learning_rate: float = 1e-3
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class Fitted:
  """A tuned lens.

  Attributes:
    translators: by layer, from 0 to the last but one.
    before, after: by layer, KL(model || lens) in nats on held-out prompts, of the logit lens and of this one.
  """

  translators: Mapping[int, Translator]
  before: Mapping[int, float]
  after: Mapping[int, float]


def fit(
  model: Vlm,
  prompts: Sequence[Encoded],
  settings: FitSettings = FitSettings(),
  on_progress: Callable[[int, int], None] | None = None,
) -> Fitted:
  """Fits the maps of all layers at once.

  Args:
    prompts: as many as `settings.prompts` and `heldout` together, all of as many tiles.
    on_progress: called with steps done and all.

  Raises:
    UserError: too few prompts, or of different numbers of tiles; numbers that are not finite.
  """
  if len(prompts) < settings.prompts + settings.heldout:
    raise UserError(f"{settings.prompts + settings.heldout} prompts are wanted, there are {len(prompts)}")
  if len({len(prompt.tiles) for prompt in prompts}) != 1:
    raise UserError("a tuned lens is fitted on prompts of as many tiles; set max_tiles=1, or take one size")
  depth, width = model.config.text.depth, model.config.text.block.width
  longest = generation.bucket(max(len(prompt.tokens) for prompt in prompts), 16)
  graphdef, state = nnx.split(model)
  rng = np.random.default_rng(settings.seed)
  maps = {layer: _fresh(width) for layer in range(depth)}
  fitted, heldout = prompts[: settings.prompts], prompts[settings.prompts :][: settings.heldout]
  order = np.concatenate([rng.permutation(len(fitted)) for _ in range(settings.rounds)])
  steps = len(order) // settings.batch
  optimizer = optax.adam(optax.cosine_decay_schedule(settings.learning_rate, max(steps, 1)))
  memory = optimizer.init(maps)
  read = lambda chosen: _read(graphdef, state, *_batch(model, chosen, longest, settings.positions, rng))
  learn = functools.partial(_learn, graphdef, optimizer)
  for step in range(steps):
    chosen = [fitted[i] for i in order[step * settings.batch :][: settings.batch]]
    maps, memory = learn(state, maps, memory, read(chosen))
    if on_progress is not None:
      on_progress(step + 1, steps)
  groups = [heldout[at : at + settings.batch] for at in range(0, len(heldout), settings.batch)]
  whole = [group for group in groups if len(group) == settings.batch] or groups
  streams = [read(group) for group in whole]
  mean = lambda maps: np.mean(
    [jax.device_get(_divergence(graphdef, state, maps, s)) for s in streams], axis=0
  )
  before, after = mean({layer: _fresh(width) for layer in maps}), mean(maps)
  if not (np.isfinite(before).all() and np.isfinite(after).all()):
    raise UserError("the tuned lens is not finite: the model's numbers overflow; try dtype float32")
  by_layer = lambda values: {layer: float(values[layer]) for layer in range(depth)}
  return Fitted(jax.device_get(maps), by_layer(before), by_layer(after))


def write(fitted: Fitted, folder: Path, identity: Mapping[str, Any], settings: FitSettings) -> None:
  """Writes both files, the description last.

  Args:
    identity: what the model was (`loading.Found.identity`).

  Raises:
    UserError: the disk is full, or the folder cannot be written.
  """
  arrays = {}
  for layer, maps in sorted(fitted.translators.items()):
    arrays |= {f"{layer}.a": np.asarray(maps.a_DD), f"{layer}.b": np.asarray(maps.b_D)}
  with workdir.writing(folder):
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / (WEIGHTS + ".tmp")
    tensors.write(part, {name: tensors.lazy(array) for name, array in arrays.items()})
    part.replace(folder / WEIGHTS)
  kl = {str(layer): [fitted.before[layer], fitted.after[layer]] for layer in sorted(fitted.before)}
  about = {"format": FORMAT, "model": identity, "settings": to_dict(settings), "kl_before_and_after": kl}
  workdir.write_json(folder / ABOUT, about)


def read(folder: Path, identity: Mapping[str, Any]) -> dict[int, Translator]:
  """The maps that lie in a folder, by layer.

  Raises:
    UserError: none there, damaged ones, or those of another model.
  """
  if not (folder / ABOUT).is_file() or not (folder / WEIGHTS).is_file():
    raise UserError(f"{folder}: holds no tuned lens ({WEIGHTS}); fit one with --fit_lens=512 --lens={folder}")
  about = read_json(folder / ABOUT, damaged="fit it again")
  if about.get("format") != FORMAT:
    raise UserError(f"{folder}: a tuned lens of another version; fit it again with --fit_lens")
  if about.get("model") != to_dict(identity):
    raise UserError(f"{folder}: the tuned lens of another model; fit one for this with --fit_lens")
  found: dict[int, Translator] = {}
  entries = tensors.read_header(folder / WEIGHTS)
  for layer in sorted({int(name.partition(".")[0]) for name in entries}):
    found[layer] = Translator(*(jnp.asarray(entries[f"{layer}.{part}"].read()) for part in "ab"))
  return found


def table(fitted: Fitted) -> tables.Table:
  """How far each layer is from what the model says, by either lens."""
  rows = [
    (str(layer), f"{fitted.before[layer]:.3f}", f"{fitted.after[layer]:.3f}")
    for layer in sorted(fitted.after)
  ]
  note = "Mean KL(model || lens) in nats, on prompts that were not fitted."
  return tables.make("lens", "Tuned lens", ("layer", "logit lens", "tuned lens"), rows, note=note)


def _fresh(width: int) -> Translator:
  return Translator(jnp.zeros((width, width), jnp.float32), jnp.zeros((width,), jnp.float32))


def _batch(model: Vlm, prompts: Sequence[Encoded], length: int, count: int, rng: np.random.Generator):
  """The prompts in one batch, and (B, K) positions that count: the last, and others drawn."""
  pad = lambda array, value: np.pad(array, (0, length - len(array)), constant_values=value)
  at = [np.append(rng.integers(0, len(p.tokens), count - 1), len(p.tokens) - 1) for p in prompts]
  names = prompts[0].extra
  extra = {
    name: dataclasses.replace(value, array=np.concatenate([p.extra[name].array for p in prompts]))
    for name, value in names.items()
  }
  batch = Batch(
    tokens_BT=np.stack([pad(p.tokens, 0) for p in prompts]),
    valid_BT=np.stack([np.arange(length) < len(p.tokens) for p in prompts]),
    pixels_NHWC=np.concatenate([p.tiles for p in prompts]),
    normal=prompts[0].normal,
    image_slot_BT=np.stack([pad(p.image_slot, -1) for p in prompts]),
    mask_ar_BT=np.stack([np.arange(length) >= p.prefix for p in prompts]) if model.config.prefix_lm else None,
    extra=extra,
  )
  return batch, np.stack(at).astype(np.int32)


@functools.partial(jax.jit, static_argnames="graphdef")
def _read(graphdef, state, batch: Batch, at_BK: jax.Array) -> jax.Array:
  """(L + 1, B * K, D): every layer's stream at these positions."""
  model = nnx.merge(graphdef, state)
  layers = tuple(range(model.config.text.depth + 1))
  streams = model.read(batch, Wants(decoder_layers=layers)).decoder_layers
  pick = lambda x_BTD: jnp.take_along_axis(x_BTD, at_BK[..., None], axis=1).reshape(-1, x_BTD.shape[-1])
  return jnp.stack([pick(streams[layer]) for layer in layers])


def _divergences(graphdef, state, maps: Mapping[int, Translator], streams_LKD: jax.Array) -> jax.Array:
  """(L,) mean KL(model || lens) in nats, of each layer but the last."""
  decoder = nnx.merge(graphdef, state).decoder
  logs = lambda x_KD: jax.nn.log_softmax(decoder.unembed(decoder.norm(x_KD)), axis=-1)
  wanted_KV = jax.lax.stop_gradient(logs(streams_LKD[-1]))
  found = []
  for layer, translator in sorted(maps.items()):
    said_KV = logs(translated(streams_LKD[layer], translator).astype(streams_LKD.dtype))
    found.append((jnp.exp(wanted_KV) * (wanted_KV - said_KV)).sum(axis=-1).mean())
  return jnp.stack(found)


_divergence = jax.jit(_divergences, static_argnums=0)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _learn(graphdef, optimizer, state, maps, memory, streams_LKD):
  loss = lambda maps: _divergences(graphdef, state, maps, streams_LKD).sum()
  slopes = jax.grad(loss)(maps)
  changes, memory = optimizer.update(slopes, memory)
  return optax.apply_updates(maps, changes), memory
