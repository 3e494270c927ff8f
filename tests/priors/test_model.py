"""Priors on a model: it begins as it was, what knows nothing stays so; on disk, on devices, learning."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from spatialvlm import hub, peft, priors
from spatialvlm.config import PeftConfig, PriorConfig
from spatialvlm.core import axes
from spatialvlm.data.batch import collate
from spatialvlm.models.outputs import Wants
from spatialvlm.priors import PRIORS, PriorParam
from spatialvlm.processing.encoded import Encoded
from spatialvlm.training import state as state_lib
from spatialvlm.training import step as step_lib
from spatialvlm.types import Extra, UserError, prior_array, prior_values
from spatialvlm.worlds import world
from tests.peft import support
from tests.tiny_model import write_checkpoint

ALL = {kind: PriorConfig(kind, kwargs={"width": 8}) for kind in PRIORS}


def values(count=2, seed=0):
  """Something that each prior might say of the four tokens of each tile, axis "tile"."""
  rng = np.random.default_rng(seed)
  made = priors.make_priors(ALL)
  draw = lambda c: rng.uniform(1, 4, (count, 4, c)).astype(np.float32)
  return {prior_array(name): Extra(jnp.asarray(draw(p.channels)), "tile") for name, p in made.items()}


@pytest.fixture(scope="module")
def batch():
  return dataclasses.replace(support.batch(), extra=values())


def logits(vlm, batch):
  graph, state = nnx.split(vlm)
  read = jax.jit(lambda state, batch: nnx.merge(graph, state)(batch))
  return np.asarray(read(state, batch))


@pytest.fixture(scope="module")
def plain():
  return support.build()


@pytest.fixture(scope="module")
def learned():
  """A model whose priors have something to say."""
  return support.moved(priors.attach(support.build(), ALL), size=0.3)


def test_a_model_begins_as_it_was(plain, batch):
  fresh = priors.attach(support.build(), ALL)
  np.testing.assert_array_equal(logits(fresh, batch), logits(plain, batch))
  vision = plain.read(batch, Wants(vision=True)).vision
  seen = dataclasses.replace(batch, pixels_NHWC=None, vision=vision)
  np.testing.assert_array_equal(logits(fresh, seen), logits(plain, seen))


def test_each_prior_changes_what_is_said(learned, plain, batch):
  at_rest = logits(plain, batch)
  for name in ALL:
    nothing = {
      key: Extra(e.array if key == prior_array(name) else e.array * np.nan, "tile")
      for key, e in batch.extra.items()
    }
    found = logits(learned, dataclasses.replace(batch, extra=nothing))
    assert np.isfinite(found).all() and np.abs(found - at_rest).max() > 1e-3, name


def test_tokens_that_know_nothing_are_those_of_the_plain_model(learned, plain, batch):
  nothing = {name: Extra(e.array * np.nan, "tile") for name, e in batch.extra.items()}
  blind = dataclasses.replace(batch, extra=nothing)
  np.testing.assert_array_equal(logits(learned, blind), logits(plain, batch))


def test_features_hold_priors_or_are_told_them(learned, batch):
  """Image tokens that an engine keeps have them already; those of a frozen connector come beside them."""
  close = lambda found: np.testing.assert_allclose(logits(learned, found), whole, rtol=1e-4, atol=1e-5)
  whole, image = logits(learned, batch), learned.read(batch, Wants(image=True)).image
  close(dataclasses.replace(batch, pixels_NHWC=None, features_NPD=image, extra={}))
  bare = priors.without(learned).read(batch, Wants(image=True)).image
  close(dataclasses.replace(batch, pixels_NHWC=None, features_NPD=bare))
  given = prior_values(batch.extra)
  found = learned.encode_images(batch.pixels_NHWC, priors=given)
  np.testing.assert_allclose(found, image, rtol=1e-5, atol=1e-5)
  assert np.abs(found - bare).max() > 0.1


def test_images_without_their_values_are_refused(learned, batch):
  for extra in ({}, {prior_array("rays"): batch.extra[prior_array("rays")]}):
    with pytest.raises(UserError, match="prior 'depth_map': the model was made with it"):
      learned(dataclasses.replace(batch, extra=extra))
  text = dataclasses.replace(batch, pixels_NHWC=None, image_slot_BT=None, extra={})
  assert np.isfinite(logits(learned, text)).all()


def encoded(row, tiles):
  """An example of so many tiles, each token of which a prior knows something of."""
  rng = np.random.default_rng(row)
  tokens = np.concatenate([np.full(4 * tiles, 60), rng.integers(3, 59, 5)]).astype(np.int32)
  image = tokens == 60
  return Encoded(
    tokens=tokens,
    loss_mask=~image & (np.arange(len(tokens)) > len(tokens) - 2),
    image_slot=np.where(image, np.cumsum(image) - 1, -1).astype(np.int32),
    tiles=rng.normal(size=(tiles, 16, 16, 3)).astype(np.float32),
    images=(tiles,),
    extra={name: Extra(np.asarray(e.array), "tile") for name, e in values(tiles, row).items()},
  )


def test_batches_of_many_are_those_of_one(learned):
  """Of one tile and of two, in a bucket with room for three; the row that fills the batch says nothing."""
  rows = [encoded(0, 1), encoded(1, 2)]
  sizes = dict(length=16, tiles=3, targets=2, pad_id=0)
  together = logits(learned, collate(rows, **sizes, batch_size=4))
  for number, row in enumerate(rows):
    alone = logits(learned, collate([row], **sizes | {"tiles": len(row.tiles)}, batch_size=1))
    valid = len(row.tokens)
    np.testing.assert_allclose(together[number, :valid], alone[0, :valid], rtol=2e-4, atol=2e-4)
  assert np.isfinite(together).all()


def test_eight_devices_say_what_one_does(learned):
  batch = collate([encoded(n, 1) for n in range(8)], length=16, tiles=1, targets=2, pad_id=0, batch_size=8)
  found = []
  for count in (1, 8):
    mesh = axes.make_mesh({"data": 2, "fsdp": 4} if count == 8 else {}, jax.devices()[:count])
    split = state_lib.Split(learned, PriorParam, mesh)
    assert all(name.startswith("priors.") for name in split.params)
    read = jax.jit(lambda p, f, b, split=split: split.model(p, f)(b))
    with jax.set_mesh(mesh):
      found.append(np.asarray(read(split.params, split.frozen, step_lib.to_devices(batch, mesh))))
  np.testing.assert_allclose(*found, rtol=2e-4, atol=2e-4)


def test_what_is_written_is_read(learned, batch, tmp_path):
  priors.save(learned, tmp_path)
  again = priors.attach_from(support.build(), tmp_path)
  np.testing.assert_array_equal(logits(again, batch), logits(learned, batch))
  assert priors.read(tmp_path) == ALL == priors.configs_of(again)
  priors.check_start(ALL, tmp_path)
  priors.save(support.build(), tmp_path)  # another model takes their place: they are not its own
  assert not list(tmp_path.iterdir())


def test_nobody_reads_a_folder_without_its_priors(tmp_path):
  write_checkpoint(tmp_path / "model")
  base = hub.load_model(tmp_path / "model")
  priors.save(priors.attach(base, {"rays": ALL["rays"]}), tmp_path / "model")
  with pytest.raises(UserError, match=r"a model with priors \(rays\), which this would leave out"):
    hub.load_model(tmp_path / "model")
  with pytest.raises(UserError, match="have no name there"):
    hub.save_model(base, tmp_path / "other")
  with pytest.raises(UserError, match=r"which config\.priors lacks; set config\.priors\.rays\.kind=rays"):
    priors.check_start({"depth": ALL["depth_map"]}, tmp_path / "model")
  with pytest.raises(UserError, match="make them the same"):
    priors.check_start({"rays": PriorConfig("rays")}, tmp_path / "model")
  (tmp_path / "model" / "priors.safetensors").unlink()
  with pytest.raises(UserError, match=r"priors\.safetensors: missing"):
    priors.attach_from(hub.load_model(tmp_path / "model", takes_priors=True), tmp_path / "model")


def test_only_a_model_that_sees_has_priors(plain):
  blind = support.build()
  blind.vision = None
  with pytest.raises(UserError, match="reads no images"):
    priors.attach(blind, ALL)
  with pytest.raises(UserError, match="has priors already"):
    priors.attach(priors.attach(support.build(), ALL), ALL)


def test_adapters_beside_priors_are_claimed_and_parted():
  vlm = peft.apply(support.build(), PeftConfig(target=".*text_model.*q_proj", options={"rank": 2}))
  priors.attach(vlm, ALL)
  with pytest.raises(UserError, match="nothing would export it: priors"):
    peft.check_claims(vlm)
  peft.check_claims(vlm, priors.claims(vlm))
  assert not priors.claims(priors.without(vlm)) and peft.carries(priors.without(vlm)) == ("lora",)


def test_a_map_is_learned_where_pixels_say_nothing():
  """Whether a scene is near or far, behind pictures that are all alike: priors alone are trained. With the
  map it is learned, and with the map taken away, or another scene's, it is a guess. Scenes of seed 3; seed 1
  of the layers."""
  vlm = priors.attach(support.build(), {"depth_map": PriorConfig("depth_map", kwargs={"width": 16})}, seed=1)
  rng = np.random.default_rng(0)
  whole = np.stack([frame.depth[1::3, 1::3] for frame in world.frames(3, range(32), 48)])
  # Two tokens by two, of four cells by four each; the sky has no depth.
  cells = np.where(whole > 0, whole, np.nan)[:, ::2, ::2].reshape(32, 2, 4, 2, 4)
  depth = cells.transpose(0, 1, 3, 2, 4).reshape(32, 4, 16)
  means = np.nanmean(depth, axis=(1, 2))
  near = (means < np.median(means)).astype(int)
  one = support.batch()
  repeat = lambda x: jnp.repeat(x[:1], 32, axis=0)
  batch = jax.tree.map(repeat, dataclasses.replace(one, extra={}))
  told = lambda x: dataclasses.replace(
    batch, extra={prior_array("depth_map"): Extra(jnp.asarray(x, jnp.float32), "tile")}
  )
  graph, params, rest = nnx.split(vlm, PriorParam, ...)

  @jax.jit
  def cost(params, batch):
    found = nnx.merge(graph, params, rest)(batch)[:, -1, 10:12]
    return optax.softmax_cross_entropy_with_integer_labels(found, jnp.asarray(near)).mean()

  tx = optax.adam(0.02)
  slope, moments = jax.jit(jax.value_and_grad(cost)), tx.init(params)
  for _ in range(60):
    _, grads = slope(params, told(depth))
    updates, moments = tx.update(grads, moments)
    params = optax.apply_updates(params, updates)
  assert cost(params, told(depth)) < 0.1
  assert cost(params, told(np.full_like(depth, np.nan))) > 0.6
  assert cost(params, told(depth[rng.permutation(32)])) > 0.6
