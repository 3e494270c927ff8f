import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from spatialvlm.config import MeshConfig
from spatialvlm.core.axes import (
  constrain,
  create_sharded,
  logical,
  make_mesh,
  sharding_of,
  spec,
  towards_weight,
  unsplit,
)
from spatialvlm.core.init import truncated_normal
from spatialvlm.core.mlp import Mlp, linear
from spatialvlm.types import UserError


def test_mesh_takes_what_remains():
  assert dict(make_mesh(MeshConfig()).shape) == {"data": 8, "fsdp": 1, "tensor": 1}
  assert dict(make_mesh({"data": 2, "fsdp": -1, "tensor": 2}).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
  assert dict(make_mesh({}, jax.devices()[:1]).shape) == {"data": 1, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize(
  "sizes",
  [{"data": 3}, {"data": -1, "fsdp": 3}, {"data": 16}, {"data": -1, "fsdp": -1}, {"fsdp": 0}, {"x": 8}],
)
def test_mesh_that_does_not_fit(sizes):
  with pytest.raises(UserError, match="mesh"):
    make_mesh(sizes)


def test_spec_leaves_out_what_does_not_divide():
  mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  assert spec(("embed", "mlp"), (4, 6), mesh) == P("fsdp", "tensor")
  assert spec(("vocab", "embed"), (7, 4), mesh) == P(None, "fsdp")  # an odd vocabulary stays whole
  assert spec(("batch", None), (4, 3), mesh) == P(("data", "fsdp"), None)
  assert spec(("batch",), (2,), mesh) == P("data")
  assert spec(("batch",), (1,), mesh) == P(None)
  assert spec((None, "nothing"), (8, 8), mesh) == P(None, None)


def test_parameters_are_born_on_their_shards():
  mesh = make_mesh({"fsdp": 4, "tensor": 2})
  make = lambda: Mlp(
    8, 16, activation="silu", gated=True, bias=True, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0)
  )
  born, alone = create_sharded(make, mesh), make()
  assert born.up_proj.kernel[...].sharding.spec == P("fsdp", "tensor")
  assert born.down_proj.bias[...].sharding.spec == P(None)  # along fsdp vectors lie whole
  assert born.up_proj.bias[...].sharding.spec == P("tensor")
  np.testing.assert_allclose(born.gate_proj.kernel[...], alone.gate_proj.kernel[...], atol=1e-6)
  # Drawn there at once, not moved: even inside set_mesh alone the array lies on its shards.
  with jax.set_mesh(mesh):
    drawn = truncated_normal(1.0, "embed", "mlp")(jax.random.key(0), (8, 16), jnp.float32)
  assert drawn.sharding.spec == P("fsdp", "tensor")


def test_truncated_normal_has_the_deviation_it_says():
  x = np.asarray(truncated_normal(0.3)(jax.random.key(0), (8, 16), jnp.float32))
  many = np.concatenate(
    [np.asarray(truncated_normal(0.3)(jax.random.key(i), (8, 16), jnp.float32)) for i in range(99)]
  )
  assert x.std() == pytest.approx(0.3, rel=0.25)
  assert many.std() == pytest.approx(0.3, rel=0.02) and abs(many.mean()) < 0.01
  assert np.abs(many).max() < 0.3 * 2 / 0.8796 + 1e-3


def test_a_layer_names_its_axes_without_a_mesh():
  layer = linear(4, 6, ("embed", "mlp"), bias=True, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
  assert layer.kernel.get_metadata()["out_sharding"] == ("embed", "mlp")
  assert layer.bias.get_metadata()["out_sharding"] == ("mlp",)
  mesh = make_mesh({"fsdp": 4, "tensor": 2})
  assert sharding_of(nnx.Param(jnp.zeros((4, 6))), mesh).spec == P(None, None)
  assert sharding_of(nnx.Param(jnp.zeros((4, 6)), **logical("embed", None)), mesh).spec == P("fsdp", None)


def test_what_is_small_lies_whole_along_fsdp():
  assert unsplit("embed", "mlp", None, "heads") == (None, "mlp", None, "heads")
  mesh = make_mesh({"fsdp": 4, "tensor": 2})
  assert sharding_of(nnx.Param(jnp.zeros(8), **logical("embed")), mesh).spec == P(None)
  assert sharding_of(nnx.Param(jnp.zeros(8), **logical("heads")), mesh).spec == P("tensor")


def test_few_vectors_go_to_the_weight_and_many_do_not():
  x = jnp.zeros((8, 2, 64))
  assert towards_weight(x) is x
  mesh = make_mesh({"data": 2, "fsdp": 4})
  with jax.set_mesh(mesh):
    few = jax.jit(towards_weight)(x)
    many = jax.jit(towards_weight)(jnp.zeros((64, 4, 64)))
    odd = jax.jit(towards_weight)(jnp.zeros((3, 6)))
  assert few.sharding.spec == P("data", None, "fsdp")
  assert many.sharding.is_fully_replicated and odd.sharding.is_fully_replicated
  with jax.set_mesh(mesh):  # a batch that its axis does not divide
    assert jax.jit(towards_weight)(jnp.zeros((3, 64))).sharding.spec == P(None, "fsdp")


def test_constrain_pins_only_under_a_mesh():
  x = jnp.zeros((8, 2))
  assert constrain(x, "batch", None) is x
  with jax.set_mesh(make_mesh({"data": 8})):
    pinned = jax.jit(lambda x: constrain(x, "batch", None))(x)
  assert {shard.data.shape for shard in pinned.addressable_shards} == {(1, 2)}
