"""What must hold of the model by itself: caches, padding, batches, meshes, initial values."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spatialvlm.core.axes import batch_sharding, create_sharded, make_mesh
from spatialvlm.models.families import FAMILIES
from spatialvlm.models.vlm import Vlm
from spatialvlm.types import Batch
from tests.models.support import answer_loss, batch_of, call, jit

IMAGE = 60
SOURCE = {
  "model_type": "smolvlm",
  "text_config": {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
  },
  "vision_config": {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
  },
  "image_token_id": IMAGE,
}


def config(**changes):
  source = {**SOURCE, **changes}
  return FAMILIES["smolvlm"].parse_config(source, dtype="float32", where="test")


@pytest.fixture(scope="module")
def model():
  return create_sharded(lambda: Vlm(config(), rngs=nnx.Rngs(0)), None)


def arrays(counts=(12, 9, 5, 12), left=False):
  """Four samples with 2, 1, 0 and 2 tiles of four tokens, padded to twelve places."""
  rng = np.random.default_rng(0)
  ids = rng.integers(3, IMAGE - 1, (4, 12))
  pixels = rng.normal(size=(4, 2, 3, 16, 16)).astype(np.float32)
  ids[0, 1:5] = ids[0, 6:10] = ids[1, 2:6] = ids[3, 0:4] = ids[3, 8:12] = IMAGE
  pixels[1, 1], pixels[2] = 0, 0
  mask = (np.arange(12) < np.array(counts)[:, None]).astype(int)
  if left:
    for row, count in enumerate(counts):
      ids[row], mask[row] = np.roll(ids[row], 12 - count), np.roll(mask[row], 12 - count)
  return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}


def run(model, method, *args):
  return call(model, *args, method=method)


def real(case):
  return case["attention_mask"].astype(bool)


def test_left_and_right_padding_agree(model):
  right, left = arrays(), arrays(left=True)
  one = np.asarray(run(model, "__call__", batch_of(right, IMAGE)))[real(right)]
  other = np.asarray(run(model, "__call__", batch_of(left, IMAGE)))[real(left)]
  np.testing.assert_allclose(one, other, atol=2e-5)


def test_rows_of_a_batch_do_not_see_each_other(model):
  case = arrays()
  together = np.asarray(run(model, "__call__", batch_of(case, IMAGE)))
  alone = [
    np.asarray(
      run(model, "__call__", batch_of({key: value[i : i + 1] for key, value in case.items()}, IMAGE))
    )
    for i in range(4)
  ]
  np.testing.assert_allclose(together[real(case)], np.concatenate(alone)[real(case)], atol=2e-5)


def test_shared_tiles_equal_aligned_ones_and_cached_features(model):
  case = arrays()
  aligned, shared = batch_of(case, IMAGE), batch_of(case, IMAGE, shared=True)
  want = np.asarray(run(model, "__call__", aligned))
  np.testing.assert_allclose(run(model, "__call__", shared), want, atol=2e-5)
  features = run(model, "encode_images", aligned.pixels_NHWC)
  assert features.shape == (8, 4, 32)
  cached = dataclasses.replace(aligned, pixels_NHWC=None, features_NPD=features)
  np.testing.assert_allclose(run(model, "__call__", cached), want, atol=2e-5)


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_cached_decoding_equals_reading_all_again(model, left):
  case = arrays(left=left)
  new = np.random.default_rng(1).integers(3, IMAGE - 1, (4, 3))
  cache = model.init_cache(4, 12 + 3 + 2)  # longer than needed
  hidden, cache = run(model, "prefill", batch_of(case, IMAGE), cache)
  got = [np.asarray(model.unembed(hidden))]
  some = np.array([7, 3])
  np.testing.assert_allclose(model.unembed(hidden, some), got[0][:, some], rtol=1e-5, atol=1e-6)
  for i in range(3):
    hidden, cache = run(model, "decode_step", jnp.asarray(new[:, i]), cache)
    got.append(np.asarray(model.unembed(hidden)))
  assert int(cache.length) == 15

  # All at once: every row's own tokens, its new ones after them, padding last.
  right, counts = arrays(), case["attention_mask"].sum(1)
  ids = np.concatenate([right["input_ids"], np.zeros((4, 3), int)], axis=1)
  for row, count in enumerate(counts):
    ids[row, count : count + 3] = new[row]
  whole = {**right, "input_ids": ids, "attention_mask": (np.arange(15) < counts[:, None] + 3).astype(int)}
  whole["input_ids"] = np.where(whole["attention_mask"] == 1, ids, 0)
  want = np.asarray(run(model, "__call__", batch_of(whole, IMAGE)))
  for i in range(4):
    np.testing.assert_allclose(got[i], want[np.arange(4), counts - 1 + i], atol=3e-5)


def test_a_prompt_read_in_two_parts(model):
  """What `score_choices` does: a shared prompt, then option texts of unequal length."""
  rng = np.random.default_rng(2)
  first, second = rng.integers(3, IMAGE - 1, (2, 6)), rng.integers(3, IMAGE - 1, (2, 4))
  valid = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool)
  part = lambda ids, valid: Batch(tokens_BT=jnp.asarray(ids, jnp.int32), valid_BT=jnp.asarray(valid))
  _, cache = run(model, "prefill", part(first, np.ones((2, 6), bool)), model.init_cache(2, 10))
  got, _ = run(model, "extend", part(second, valid), cache)
  whole = part(np.concatenate([first, second], 1), np.concatenate([np.ones((2, 6), bool), valid], 1))
  want = run(model, "hidden", whole)[:, 6:]
  np.testing.assert_allclose(np.asarray(got)[valid], np.asarray(want)[valid], atol=2e-5)


def test_generated_image_token_is_an_ordinary_token(model):
  ids = jnp.full((1, 3), IMAGE, jnp.int32)
  x = run(model, "embed", Batch(tokens_BT=ids, valid_BT=jnp.ones((1, 3), bool)))
  np.testing.assert_array_equal(x[0, 0], model.decoder.embed.embedding[...][IMAGE])


def test_fully_padded_sample_makes_no_nan(model):
  case = arrays(counts=(12, 9, 0, 12))
  labels = jnp.asarray(np.where(real(case) & (case["input_ids"] != IMAGE), case["input_ids"], -100))
  grads = gradients(model, batch_of(case, IMAGE), labels)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
  assert np.isfinite(run(model, "__call__", batch_of(case, IMAGE))).all()


def test_a_bidirectional_prefix_sees_itself_and_the_rest_does_not(model):
  ids = np.random.default_rng(3).integers(3, IMAGE - 1, (1, 6))
  changed = ids.copy()
  changed[0, 3] = 3 + (ids[0, 3] - 2) % 50
  late = ids.copy()
  late[0, 5] = 3 + (ids[0, 5] - 2) % 50
  ar = jnp.asarray([[False, False, False, False, True, True]])
  hidden = lambda ids: np.asarray(
    run(
      model,
      "hidden",
      Batch(tokens_BT=jnp.asarray(ids, jnp.int32), valid_BT=jnp.ones((1, 6), bool), mask_ar_BT=ar),
    )
  )
  assert np.abs(hidden(ids) - hidden(changed))[0, 0].max() > 1e-4  # token 0 sees token 3
  np.testing.assert_array_equal(hidden(ids)[0, :5], hidden(late)[0, :5])  # nobody before sees token 5


@pytest.fixture(scope="module")
def one_device(model):
  """(batch, labels, case, logits, gradients) on one device."""
  case = {key: np.concatenate([value, value[::-1]]) for key, value in arrays().items()}
  batch, labels = batch_of(case, IMAGE), jnp.asarray(np.where(real(case), case["input_ids"], -100))
  return case, batch, labels, *gradients(model, batch, labels)


def gradients(model, batch, labels):
  """(logits, gradients), of one program."""
  graphdef, params = nnx.split(model)

  def loss(params, batch, labels):
    logits = nnx.merge(graphdef, params)(batch)
    return answer_loss(logits, labels), logits

  return jit(jax.grad(loss, has_aux=True))(params, batch, labels)[::-1]


def test_logits_and_gradients_are_the_same_on_a_mesh_of_all_axes(model, one_device):
  case, batch, labels, logits, want = one_device
  mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  spread = create_sharded(lambda: Vlm(config(), rngs=nnx.Rngs(0)), mesh)
  for one, other in zip(jax.tree.leaves(nnx.state(model)), jax.tree.leaves(nnx.state(spread)), strict=True):
    np.testing.assert_allclose(one, other, atol=1e-6)  # the same seed, the same weights
    assert other.sharding.num_devices == 8
  kernel = spread.decoder.stack.layers[0].mlp.up_proj.kernel[...]
  assert kernel.addressable_shards[0].data.size == kernel.size // 4
  with jax.set_mesh(mesh):
    found, got = gradients(spread, *jax.device_put((batch, labels), batch_sharding(mesh)))
  np.testing.assert_allclose(np.asarray(found)[real(case)], np.asarray(logits)[real(case)], atol=3e-5)
  for one, other in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
    np.testing.assert_allclose(one, other, atol=2e-6, rtol=1e-3)


def test_initial_values(model):
  again = create_sharded(lambda: Vlm(config(), rngs=nnx.Rngs(0)), None)
  other = create_sharded(lambda: Vlm(config(), rngs=nnx.Rngs(1)), None)
  kernel = lambda m: np.asarray(m.decoder.stack.layers[0].mlp.up_proj.kernel[...])
  np.testing.assert_array_equal(kernel(model), kernel(again))
  assert np.abs(kernel(model) - kernel(other)).max() > 0.1
  assert kernel(model).std() == pytest.approx(32**-0.5, rel=0.1)
  # Layers that write into the residual stream are smaller by sqrt(2 * depth).
  down = np.asarray(model.decoder.stack.layers[0].mlp.down_proj.kernel[...])
  assert down.std() == pytest.approx(0.5 * 48**-0.5, rel=0.1)
  assert np.asarray(model.decoder.embed.embedding[...]).std() == pytest.approx(0.02, rel=0.1)
  assert not np.asarray(model.vision.stack.layers[0].attn.q_proj.bias[...]).any()
  # Fresh logits are near uniform, so that the first loss is near log(V).
  case = arrays()
  logits = np.asarray(run(model, "__call__", batch_of(case, IMAGE)))
  assert np.abs(logits[real(case)]).max() < 1.0
