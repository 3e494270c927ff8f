"""A term that would teach nothing but its head is refused, and no other; against the gradients themselves."""

import jax
import pytest
from flax import nnx

from spatialvlm.config import LossConfig
from spatialvlm.training import objectives
from spatialvlm.types import UserError
from tests import tiny_model

NAMES = (
  "vision.stack.layers.0.mlp.up_proj.kernel",
  "connector.proj.kernel",
  "decoder.embed.embedding",
  "decoder.stack.layers.0.attn.q_proj.kernel",
  "decoder.stack.layers.1.mlp.up_proj.kernel",
  "decoder.norm.scale",
)
IMAGE, ALL = set(NAMES[:2]), set(NAMES)


@pytest.fixture(scope="module")
def model():
  return nnx.eval_shape(tiny_model.build)


@pytest.mark.parametrize(
  ("kind", "settings", "reached"),
  [
    ("answer", {}, ALL),
    ("dense_depth", dict(detach=False), IMAGE),
    ("dense_depth", dict(detach=False, decoder_layers=(1,)), ALL - {NAMES[4], NAMES[5]}),
    ("dense_depth", dict(detach=False, image=False, decoder_layers=(-1,)), ALL - {NAMES[5]}),
    ("depth_probe", dict(detach=False, read="encoder"), {NAMES[0]}),
    ("field_features", dict(detach=False, target="field"), IMAGE),
    ("words", dict(target="depth", first=1, classes=3), IMAGE | {NAMES[2]}),
    ("dense_depth", {}, ALL),  # detached, as is meant
  ],
)
def test_what_a_term_teaches(model, kind, settings, reached):
  terms = objectives.make_objectives({"mine": LossConfig(kind, kwargs=settings)})
  for name in NAMES:
    if name in reached:
      objectives.check_reach(terms, [name], model.config)
      continue
    with pytest.raises(UserError, match=rf"config\.losses\.mine: reads .*nothing that is trained \({name}"):
      objectives.check_reach(terms, [name], model.config)


def test_names_are_those_of_the_model(model):
  """The table above would prove nothing of names that no model has."""
  found = {".".join(map(str, path)) for path, _ in nnx.state(model, nnx.Param).flat_state()}
  assert {name for name in NAMES if not name.startswith("connector.")} <= found
  assert any(name.startswith("connector.") for name in found)
  assert jax.tree.leaves(nnx.state(model))
