"""q4_0 and q8_0: the base that is trained over is the one that the exported file holds, to the bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spatialvlm import export, hub, loading, peft
from spatialvlm.config import ModelConfig
from spatialvlm.core.quantised import QuantisedParam, decode
from spatialvlm.hub.gguf import numbers
from spatialvlm.hub.gguf.file import library
from spatialvlm.processing.processor import load_processor
from spatialvlm.quantise.ggml import BLOCK, Q4, Q8
from spatialvlm.types import UserError
from tests import tiny_edge
from tests.models.support import batch_of, call

FORMATS = {"q4_0": Q4(), "q8_0": Q8()}


def weights(shape=(96, 7), seed=0) -> np.ndarray:
  """(d_in, d_out) with a block of zeros, a block of equal numbers, and one whose largest stands twice."""
  kernel = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
  kernel[:BLOCK, 0], kernel[:BLOCK, 1], kernel[:2, 2] = 0, 0.3, (-9, 9)
  return kernel


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", FORMATS)
def test_decoded_weights_are_those_that_gguf_reads(name, dtype):
  kernel, gguf = weights().astype(dtype), library()
  made = FORMATS[name].quantise(kernel)
  rows = numbers.encode(kernel.T, name.upper())
  wanted = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[name.upper()]).T
  decoded = np.asarray(decode(jax.tree.map(jnp.asarray, made)))
  assert decoded.dtype == dtype and made.shape == decoded.shape == kernel.shape
  np.testing.assert_array_equal(decoded, wanted.astype(dtype))
  assert made.nbytes == rows.nbytes and not decoded[:BLOCK, 0].any()
  again = FORMATS[name].quantise(np.asarray(decoded, np.float32))
  assert all(map(np.array_equal, jax.tree.leaves(made), jax.tree.leaves(again))) or dtype != np.float32


def test_inputs_that_are_no_whole_blocks():
  assert Q4().why_not((96, 7)) == "" and "no multiple of a block of 32" in Q8().why_not((100, 7))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tiny_edge.write("smolvlm", tmp_path_factory.mktemp("ggml") / "tiny-smolvlm")


def kernels(vlm) -> dict[str, np.ndarray]:
  found = {".".join(map(str, path)): v for path, v in nnx.iter_graph(vlm) if isinstance(v, nnx.Param)}
  return {name: np.asarray(v[...]) for name, v in found.items() if name.endswith("kernel")}


def test_an_adapter_is_trained_over_what_the_file_computes(folder, tmp_path):
  """Kernels equal to the bit, and logits with the same adapter over the written files read back."""
  trained = loading.load_base(ModelConfig(str(folder), quantize="q4_0"), None)
  few = [v for _, v in nnx.iter_graph(trained) if isinstance(v, QuantisedParam)]
  assert len(few) == 2 * 7
  plain = hub.load_model(folder)
  exported = export.Exportable(plain, str(folder), folder)
  out = export.export(exported, "gguf", tmp_path / "base", "q4_0,embedding=f32,mmproj=f32")
  deployed = loading.find(ModelConfig(str(out))).load(None)
  ours, theirs = kernels(trained), kernels(deployed)
  assert ours.keys() == theirs.keys()
  assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
  rounded = {name for name, kernel in kernels(plain).items() if not np.array_equal(kernel, ours[name])}
  assert rounded == {name for name in ours if name.startswith("decoder.stack")}
  adapted = tiny_edge.adapted(trained, **tiny_edge.LORA)
  peft.save_adapter(adapted, tmp_path / "adapter", str(folder))
  over = peft.load_adapter(deployed, tmp_path / "adapter")
  image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
  arrays = load_processor(folder, layout="mtmd")(text="<image>Which is closer?", images=[image])
  batch = batch_of(arrays, trained.config.image_token_id)
  np.testing.assert_allclose(call(over, batch), call(adapted, batch), rtol=0, atol=2e-5)
  lora = export.Exportable(adapted, str(folder), folder)
  assert (export.export(lora, "gguf-lora", tmp_path / "lora") / "adapter.gguf").is_file()


def test_a_setting_that_belongs_to_another_format(folder):
  with pytest.raises(UserError, match=r"quantize_block: q4_0 has no block; formats that do: nf4"):
    loading.load_base(ModelConfig(str(folder), quantize="q4_0", quantize_block=32), None)
