"""Distillation of hidden states and relations: what is compared, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spatialvlm.models.outputs import Outputs
from spatialvlm.training.objectives import DistilHidden, DistilRelations, Models, Other
from spatialvlm.training.objectives.distil_hidden import DistilHiddenSettings, at_slots
from spatialvlm.training.objectives.distil_relations import DistilRelationsSettings, relations
from spatialvlm.types import Batch, UserError
from tests import tiny_model
from tests.peft import support

KEY = jax.random.key(0)


def batch(**fields):
  index = jnp.asarray([[6, 7], [7, -1]], jnp.int32)
  return dataclasses.replace(support.batch(), target_index_BK=index, **fields)


def hidden(settings, other=None):
  """The objective, having met a teacher, and its head."""
  config = tiny_model.build().config
  objective = DistilHidden(settings, "config.losses.states")
  objective.meet({"teacher": other or Other(config)})
  objective.check(config)
  return objective, objective.head(config, nnx.Rngs(0))


def states(seed, layers, width=24):
  rng = np.random.default_rng(seed)
  return {layer: jnp.asarray(rng.normal(size=(2, 8, width)), jnp.float32) for layer in layers}


def value(objective, head, ours, theirs, given, view=None):
  image = jnp.zeros((2, 4, 24))
  given = given if view is None else dataclasses.replace(given, views={"teacher": view})
  models = Models(None, head, {}, {"teacher": Outputs(decoder_layers=theirs)})
  return objective(Outputs(image=image, decoder_layers=ours), models, given, KEY)


def unit(x):
  return x / np.sqrt((x**2).mean(-1, keepdims=True))


@pytest.mark.parametrize("measure", ["mse", "cosine"])
def test_states_at_the_targets(measure):
  """By hand: projections are the identity between equal widths, and three targets count, by two pairs."""
  settings = DistilHiddenSettings(layers=(1, -1), teacher_layers=(2, 1), measure=measure)
  objective, head = hidden(settings)
  ours, theirs = states(0, (1, -1)), states(1, (2, 1))
  total, weight, metrics = value(objective, head, ours, theirs, batch())
  wanted, cosines = 0.0, []
  for a, b in ((1, 2), (-1, 1)):
    for row, place in ((0, 5), (0, 6), (1, 6)):
      x, y = unit(np.asarray(ours[a])[row, place]), unit(np.asarray(theirs[b])[row, place])
      cosines.append((x * y).mean())
      wanted += 1 - cosines[-1] if measure == "cosine" else ((x - y) ** 2).mean()
  assert weight == 6
  np.testing.assert_allclose(total, wanted, rtol=1e-4)
  np.testing.assert_allclose(metrics["cosine"][0], sum(cosines), rtol=1e-4, atol=1e-4)
  same = value(objective, head, ours, {2: ours[1], 1: ours[-1]}, batch())
  np.testing.assert_allclose(same[0], 0, atol=1e-5)


def test_image_tokens_meet_their_own_behind_any_prompt():
  """A teacher that reads more words before the picture: token by token, not place by place."""
  objective, head = hidden(DistilHiddenSettings(at="image"))
  ours = states(0, (-1,))
  given = batch()
  moved = {-1: jnp.roll(ours[-1], 2, axis=1)}
  slots = jnp.roll(given.image_slot_BT, 2, axis=1)
  view = dataclasses.replace(given, image_slot_BT=slots)
  total, weight, _ = value(objective, head, ours, moved, given, view)
  assert weight == 8
  np.testing.assert_allclose(total, 0, atol=1e-5)
  assert value(objective, head, ours, moved, given)[0] > 1
  found, there = at_slots(ours[-1], given.image_slot_BT.at[1].set(-1), 4)
  assert np.array_equal(found[0], ours[-1][0, 1:5]) and there.tolist() == [[True] * 4, [False] * 4]


def test_other_widths_are_projected_and_learned():
  config = tiny_model.build().config
  block = config.text.block
  wide = dataclasses.replace(block, attention=dataclasses.replace(block.attention, width=40))
  other = Other(dataclasses.replace(config, text=dataclasses.replace(config.text, block=wide)))
  objective, head = hidden(DistilHiddenSettings(), other)
  assert objective.settings.width == 40 and head.maps[0].kernel.shape == (24, 40)
  ours, theirs = states(0, (-1,)), states(1, (-1,), 40)
  graph, state = nnx.split(head)
  loss = lambda state: value(objective, nnx.merge(graph, state), ours, theirs, batch())[0]
  gradient = jax.grad(loss)(state)
  assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))
  again = DistilHidden(objective.settings).head(config, nnx.Rngs(0))  # as it is loaded, without the teacher
  assert again.maps[0].kernel.shape == (24, 40)


def relate(of, ours, theirs, given, **settings):
  settings = DistilRelationsSettings(of=of, **settings)
  objective = DistilRelations(settings, "config.losses.relations")
  field = "attention" if of == "attention" else "decoder_layers"
  models = Models(None, None, {}, {"teacher": Outputs(**{field: theirs})})
  return objective(Outputs(**{field: ours}), models, given, KEY)


def test_attention_of_as_many_heads_or_of_their_mean():
  rng = np.random.default_rng(0)
  draw = lambda heads: jax.nn.softmax(jnp.asarray(rng.normal(size=(2, heads, 8, 8)), jnp.float32))
  student, teacher = draw(4), draw(4)
  given = batch(valid_BT=jnp.ones((2, 8), bool).at[1, 6:].set(False))
  total, weight, metrics = relate("attention", {-1: student}, {-1: teacher}, given)
  kl = (np.asarray(teacher) * np.log(np.asarray(teacher) / np.asarray(student))).sum(-1)
  assert weight == 4 * 14 and 0 < metrics["agreement"][0] < 56
  np.testing.assert_allclose(total, kl[0].sum() + kl[1, :, :6].sum(), rtol=1e-4)
  total, weight, _ = relate("attention", {-1: student}, {-1: draw(3)}, given)
  assert weight == 14 and total > 0
  mean = jnp.stack([student.mean(1)] * 3, 1)
  np.testing.assert_allclose(relate("attention", {-1: student}, {-1: mean}, given)[0], 0, atol=1e-4)


def test_relations_of_states_ignore_rotations_and_other_conversations():
  x = states(0, (-1,))[-1]
  turn = np.linalg.qr(np.random.default_rng(1).normal(size=(12, 12)))[0]
  turned = (x.reshape(2, 8, 2, 12) @ jnp.asarray(turn, jnp.float32)).reshape(2, 8, 24)
  segments = jnp.asarray([[0] * 5 + [1] * 3, [0] * 8], jnp.int32)
  given = batch(segment_BT=segments)
  total, weight, _ = relate("states", {-1: x}, {-1: turned}, given, heads=2)
  assert weight == 32
  np.testing.assert_allclose(total, 0, atol=1e-3)
  probability = jnp.exp(relations(x, given, 2))
  np.testing.assert_allclose(probability.sum(-1), 1, rtol=1e-5)
  assert probability[0, :, :5, 5:].max() == 0 and probability[0, :, 5:, :5].max() == 0
  alone = Batch(tokens_BT=given.tokens_BT[:1, 5:], valid_BT=given.valid_BT[:1, 5:])
  np.testing.assert_allclose(probability[0, :, 5:, 5:], jnp.exp(relations(x[:1, 5:], alone, 2))[0], rtol=1e-4)


def test_what_cannot_be_compared_is_refused():
  config = tiny_model.build().config
  with pytest.raises(UserError, match="layers and teacher_layers go in pairs"):
    DistilHidden(DistilHiddenSettings(layers=(1, 2), teacher_layers=(1,)))
  for settings, other, message in (
    (
      DistilHiddenSettings(layers=(7,)),
      None,
      r"teacher_layers: the decoder has 2 blocks; 7 is outside -3 \.\. 2",
    ),
    (DistilHiddenSettings(layers=(7,), teacher_layers=(1,)), None, r"kwargs\.layers: the decoder has 2"),
    (
      DistilHiddenSettings(at="image"),
      Other(config, False, False),
      "kwargs.at: the teacher cuts pictures into",
    ),
    (DistilHiddenSettings(width=7), None, "the teacher's states are 24 wide"),
  ):
    with pytest.raises(UserError, match=message):
      hidden(settings, other)
  for settings, other, message in (
    (DistilRelationsSettings(), Other(config, False), "relations are between the same tokens"),
    (DistilRelationsSettings(teacher_layer=0), Other(config), "no block makes layer 0"),
    (DistilRelationsSettings(of="states", heads=5), Other(config), "5 do not divide states 24 wide"),
  ):
    with pytest.raises(UserError, match=message):
      DistilRelations(settings).meet({"teacher": other})
  with pytest.raises(UserError, match="heads: 0; one at least"):
    DistilRelations(DistilRelationsSettings(heads=0))
