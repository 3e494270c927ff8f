"""`Vlm.read`: one forward for everything that reads a model from inside."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spatialvlm.core.attention import AttentionConfig
from spatialvlm.core.block import BlockConfig
from spatialvlm.models import execution
from spatialvlm.models.encoders import VisionConfig
from spatialvlm.models.joined import JoinedConfig, JoinedEncoder, JoinedPart
from spatialvlm.models.outputs import Outputs, Wants
from spatialvlm.types import UserError
from tests import tiny_model
from tests.models.support import batch_of, jit

IMAGE = 60
ALL = Wants(
  vision=True,
  image=True,
  encoder_layers=(0, 1, -1),
  encoder_attention=(2,),
  decoder_layers=(0, 1, -1),
  attention=(1, -1),
  encoder_attention_mean=(1,),
  attention_mean=(2,),
  hidden=True,
  logits=True,
)


@pytest.fixture(scope="module")
def model():
  return tiny_model.build()


@pytest.fixture(scope="module")
def batch():
  """Two samples of one tile each, the second padded; three targets and none."""
  rng = np.random.default_rng(0)
  ids = rng.integers(3, IMAGE - 1, (2, 9))
  ids[:, 1:5] = IMAGE
  mask = np.ones_like(ids)
  mask[1, 7:] = 0
  pixels = rng.normal(size=(2, 1, 3, tiny_model.TILE, tiny_model.TILE)).astype(np.float32)
  batch = batch_of({"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}, IMAGE)
  return dataclasses.replace(batch, target_index_BK=jnp.asarray([[7, 8], [6, -1]], jnp.int32))


def read(model, batch, wants):
  graphdef, state = nnx.split(model)
  return jit(lambda state, batch: nnx.merge(graphdef, state).read(batch, wants))(state, batch)


def program(model, batch, wants) -> str:
  graphdef, state = nnx.split(model)
  return str(jax.make_jaxpr(lambda s, b: nnx.merge(graphdef, s).read(b, wants))(state, batch))


def test_wants_join_and_are_alike_in_any_order():
  one = Wants(image=True, decoder_layers=(3, 1)) | Wants(decoder_layers=[2, 1], logits=True)
  assert one == Wants(image=True, logits=True, decoder_layers=(1, 2, 3)) and len({one, one | one}) == 1
  assert Wants() | Wants() == Wants() and not Wants().of_decoder and not Wants(image=True).of_encoder


def test_everything_is_what_the_parts_give_by_themselves(model, batch):
  out = model.read(batch, ALL)
  np.testing.assert_array_equal(out.vision.patches_NPD, model.vision(batch.pixels_NHWC).patches_NPD)
  assert out.vision.grid == (4, 4)
  np.testing.assert_array_equal(out.image, model.encode_images(batch.pixels_NHWC))
  np.testing.assert_array_equal(out.decoder_layers[0], model.embed(batch))
  np.testing.assert_array_equal(out.hidden, model.hidden(batch))
  np.testing.assert_array_equal(model.decoder.norm(out.decoder_layers[-1]), out.hidden)
  np.testing.assert_array_equal(model.vision.norm(out.encoder_layers[-1]), out.vision.patches_NPD)
  logits = np.asarray(model(batch))
  assert out.logits.dtype == jnp.float32 and out.logits.shape == (2, 2, 64)
  np.testing.assert_array_equal(out.logits[0], logits[0, [6, 7]])
  np.testing.assert_array_equal(out.logits[1, 0], logits[1, 5])
  assert out.encoder_attention[2].shape == (2, 2, 16, 16) and set(out.encoder_layers) == {0, 1, -1}
  assert out.attention[-1].shape == (2, 4, 9, 9) and out.attention[1].dtype == jnp.float32


def test_layers_follow_from_each_other(model, batch):
  """Each layer is the block before it on the one before; the last has two names."""
  out = read(model, batch, Wants(decoder_layers=(0, 1, 2, -1), encoder_layers=(0, 1, 2, -1)))
  masks, angles = model.decoder.context(batch.valid_BT)
  for stack, found, given in (
    (model.decoder.stack, out.decoder_layers, (masks[0], angles)),
    (model.vision.stack, out.encoder_layers, ()),
  ):
    for layer in (1, 2):
      want = stack.layers[layer - 1](found[layer - 1], *given)[0]
      np.testing.assert_allclose(found[layer], want, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found[-1], found[2])


def test_attention_is_a_distribution_over_what_is_seen(model, batch):
  p_BNTS = np.asarray(read(model, batch, Wants(attention=(2,))).attention[2])
  np.testing.assert_allclose(p_BNTS.sum(-1), 1, atol=1e-6)
  assert not np.triu(p_BNTS[0], 1).any() and not p_BNTS[1, :, :, 7:].any() and (p_BNTS[0, :, 8] > 0).all()


def test_rows_and_means_are_of_the_same_probabilities(model, batch):
  """Of rows that were named alone no others are computed; means are over heads."""
  wants = Wants(attention=(1, 2), attention_mean=(1, -1), encoder_attention=(2,), encoder_attention_mean=(2,))
  whole = read(model, batch, wants)
  rows_BQ = jnp.asarray([[8, 0, 5], [6, 6, 2]], jnp.int32)
  graphdef, state = nnx.split(model)
  asked = lambda wants: lambda state, rows: nnx.merge(graphdef, state).read(batch, wants, rows_BQ=rows)
  some = jit(asked(wants))(state, rows_BQ)
  alone = jit(asked(Wants(attention=(1, 2))))(state, rows_BQ)
  for layer, p_BNTS in whole.attention.items():
    want = np.stack([np.asarray(p_BNTS)[b][:, rows] for b, rows in enumerate(rows_BQ)])
    np.testing.assert_allclose(some.attention[layer], want, atol=1e-6)
    np.testing.assert_allclose(alone.attention[layer], want, atol=1e-6)
  np.testing.assert_allclose(whole.attention_mean[1], whole.attention[1].mean(1), atol=1e-6)
  np.testing.assert_allclose(whole.attention_mean[-1], whole.attention[2].mean(1), atol=1e-6)
  np.testing.assert_allclose(whole.encoder_attention_mean[2], whole.encoder_attention[2].mean(1), atol=1e-6)
  text = str(jax.make_jaxpr(asked(Wants(attention=(1,))))(state, rows_BQ))
  assert "f32[2,4,3,9]" in text and "f32[2,4,9,9]" not in text


def test_the_gradient_of_probabilities(model, batch):
  """Against a gradient with regard to the probabilities themselves, by head."""
  graphdef, state = nnx.split(model)
  zeros = {layer: jnp.zeros((2, 9, 9)) for layer in (1, 2)}
  pick = lambda out: out.logits[0, 0, 7] + 2 * out.logits[1, 0, 9]

  def traced(zeros):
    return pick(nnx.merge(graphdef, state).read(batch, Wants(logits=True), traces=zeros))

  value, found = jit(jax.value_and_grad(traced))(zeros)
  np.testing.assert_allclose(value, pick(read(model, batch, Wants(logits=True))), rtol=1e-5)
  p = read(model, batch, Wants(attention=(1, 2))).attention

  def moved(shift):
    """Each block's probabilities with something added, by the head."""
    numbers = iter((1, 2))
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr("spatialvlm.core.attention.traced", lambda p_BNTS, _: p_BNTS + shift[next(numbers)])
      return traced(zeros)

  slopes = jax.grad(moved)({layer: jnp.zeros_like(p[layer]) for layer in p})
  for layer, got in found.items():
    want = np.maximum(slopes[layer] * p[layer], 0).mean(1)
    assert want.max() > 1e-4 and np.abs(got - want).max() <= 1e-5 * want.max()


@pytest.mark.parametrize("remat", [False, True])
def test_what_is_wanted_beside_it_changes_no_number(model, batch, remat):
  plain = model.hidden(batch)
  execution.apply(model, execution.Execution(remat=remat))
  try:
    np.testing.assert_array_equal(model.read(batch, ALL).hidden, plain)
  finally:
    execution.apply(model, execution.Execution())


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Outputs)])
def test_only_what_is_wanted_comes(model, batch, field):
  want = (1,) if field.endswith(("layers", "attention", "attention_mean")) else True
  out = read(model, batch, Wants(**{field: want}))
  given = {f.name for f in dataclasses.fields(out) if getattr(out, f.name) is not None}
  assert given == {field}


def test_what_is_not_wanted_is_not_computed(model, batch):
  """Counted in the program: its matrix products, and the shapes that only a product of that part has."""
  products = lambda wants: program(model, batch, wants).count("dot_general")
  assert products(Wants()) == 0
  vision, image = products(Wants(vision=True)), products(Wants(image=True))
  assert 0 < vision == image - 1
  assert products(Wants(hidden=True)) == products(Wants(hidden=True, image=True, decoder_layers=(1,)))
  # The vocabulary's product is made at the targets alone, and probabilities of one layer cost one product.
  text = program(model, batch, Wants(logits=True))
  assert "f32[2,2,64]" in text and "f32[2,9,64]" not in text
  assert products(Wants(logits=True)) == products(Wants(hidden=True)) + 1
  assert products(Wants(hidden=True, attention=(1,))) == products(Wants(hidden=True)) + 1


def test_text_alone_has_nothing_to_see(model, batch):
  text = dataclasses.replace(batch, pixels_NHWC=None, image_slot_BT=None)
  out = model.read(text, ALL)
  assert out.vision is None and out.image is None and out.encoder_layers is None
  assert out.encoder_attention is None and out.hidden.shape == (2, 9, 24)


def test_cached_image_tokens_are_given_back(model, batch):
  image = model.encode_images(batch.pixels_NHWC)
  cached = dataclasses.replace(batch, pixels_NHWC=None, features_NPD=image)
  out = model.read(cached, Wants(image=True, hidden=True))
  assert out.image is image
  np.testing.assert_array_equal(out.hidden, model.hidden(batch))
  asked = dict(encoder_layers=(1,)), dict(encoder_attention=(1,)), dict(encoder_attention_mean=(1,))
  for wants in (Wants(vision=True), *(Wants(**one) for one in asked)):
    with pytest.raises(UserError, match="from after the connector, not pixels; give pixels_NHWC"):
      model.read(cached, wants)


@pytest.mark.parametrize(
  "wants, message",
  [
    (Wants(decoder_layers=(3,)), "layer 3: this decoder has layers 0 to 2, or -3 to -1"),
    (Wants(decoder_layers=(-4,)), "layer -4: this decoder has"),
    (Wants(attention=(0,)), "layer 0: this decoder's attention has layers 1 to 2, or -2 to -1"),
    (Wants(encoder_layers=(5,)), "layer 5: this encoder has layers 0 to 2"),
    (Wants(attention_mean=(3,)), "layer 3: this decoder's attention has layers 1 to 2"),
    (Wants(encoder_attention=(-3,)), "layer -3: this encoder's attention has layers 1 to 2"),
  ],
)
def test_layers_that_are_not_there(model, batch, wants, message):
  with pytest.raises(UserError, match=message):
    read(model, batch, wants)


def test_logits_without_targets(model, batch):
  with pytest.raises(UserError, match="logits: the batch has no target_index_BK"):
    model.read(dataclasses.replace(batch, target_index_BK=None), Wants(logits=True))


@pytest.mark.parametrize("remat", [False, True])
def test_logits_alone_are_those_beside_all_else_and_cost_less(model, batch, remat):
  """Of the last block nothing is computed elsewhere than where logits are read, but keys and values."""

  def gradients(wants):
    graphdef, state = nnx.split(model)
    loss = lambda state: (nnx.merge(graphdef, state).read(batch, wants).logits[:, :1] ** 2).sum()
    return jit(jax.value_and_grad(loss))(state)

  execution.apply(model, execution.Execution(remat=remat))
  try:
    (one, some), (other, all_) = gradients(Wants(logits=True)), gradients(Wants(logits=True, hidden=True))
    text = program(model, batch, Wants(logits=True))
    whole = program(model, batch, Wants(logits=True, decoder_layers=(-1,)))
  finally:
    execution.apply(model, execution.Execution())
  np.testing.assert_allclose(one, other, rtol=1e-6)
  for got, want in zip(jax.tree.leaves(some), jax.tree.leaves(all_), strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)  # the largest are of ten and more
  # One block of two, but for the norm before its keys.
  wide, few = (f"f32[2,{places},{model.decoder.config.block.width}]" for places in (9, 2))
  assert text.count(wide) < 0.7 * whole.count(wide) and text.count(few) > whole.count(few)


def joined(count):
  """Encoders of 16 pixels, each with a width of its own."""
  block = lambda width: BlockConfig(
    AttentionConfig(width, 2, 2, width // 2), 16, "layer", 1e-6, "gelu", gated=False, mlp_bias=True
  )
  visions = [
    VisionConfig(block(8 * (j + 1)), depth=2 + j, image_size=16, patch_size=4, channels=3)
    for j in range(count)
  ]
  parts = tuple(JoinedPart("siglip", vision, (2.0,) * 3, (0.5,) * 3) for vision in visions)
  return JoinedEncoder(JoinedConfig(parts, 16), dtype=jnp.float32, rngs=nnx.Rngs(0))


def test_layers_of_an_encoder_in_anothers_place(batch):
  """One encoder has its layers, on pixels as it was trained on them; several joined have none in common."""
  encoder = joined(1)
  out = encoder.read(batch.pixels_NHWC, layers=(0, -1), attention=(1,))
  want = encoder.encoders[0].read(2 * batch.pixels_NHWC + 0.5, layers=(0, -1), attention=(1,))
  np.testing.assert_allclose(out.layers[-1], want.layers[-1], atol=1e-6)
  np.testing.assert_allclose(out.attention[1], want.attention[1], atol=1e-6)
  two = joined(2)
  assert two.read(batch.pixels_NHWC).features.patches_NPD.shape == (2, 16, 24)
  with pytest.raises(UserError, match="this model joins 2 encoders, whose layers have no number in common"):
    two.read(batch.pixels_NHWC, layers=(1,))
  with pytest.raises(UserError, match="joins 2 encoders"):
    two.read(batch.pixels_NHWC, attention=(1,))


def test_blocks_beyond_what_is_wanted_do_not_run(model, batch):
  """Of the encoder alone, whose features may be those of an inner layer."""
  read = lambda wants: lambda pixels: model.vision.read(pixels, **wants).layers
  blocks = lambda **wants: str(jax.make_jaxpr(read(wants))(batch.pixels_NHWC)).count("tanh")  # one a block
  assert blocks(layers=(0,), features=False) == 0
  assert blocks(layers=(1,), features=False) == 1
  assert blocks(layers=(2,), features=False) == blocks(layers=(1,)) == 2
