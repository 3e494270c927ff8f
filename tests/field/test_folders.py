"""What users' folders hold: more than one thing, what other libraries left, something else than is wanted."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from spatialvlm import hub, loading, peft
from spatialvlm.config import ModelConfig, PeftConfig
from spatialvlm.hub import tensors
from spatialvlm.hub.resolve import read_entries, weight_files
from spatialvlm.types import Note, UserError
from tests.tiny_encoder import write_encoder

SMOLVLM = Path(__file__).parents[1] / "fixtures" / "smolvlm"
LAYER = "base_model.model.model.text_model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def model():
  return hub.load_model(SMOLVLM)


@pytest.fixture
def folder(tmp_path):
  shutil.copytree(SMOLVLM, tmp_path / "m")
  return tmp_path / "m"


def stored(folder, files=None):
  return {n: e.read() for n, e in read_entries(files or weight_files(folder))[0].items()}


def write(file, arrays):
  tensors.write(file, {name: tensors.lazy(array) for name, array in arrays.items()})


def write_adapter(folder, scale=1.0, base=str(SMOLVLM)):
  """An adapter with a B of ones, so that it shows."""
  vlm = peft.apply(
    hub.load_model(SMOLVLM), PeftConfig(target=r".*text_model.*\.0\..*q_proj", options={"rank": 2})
  )
  for _, variable in nnx.iter_graph(vlm):
    if isinstance(variable, peft.AdapterParam):
      variable.set_raw_value(variable.get_raw_value() * 0 + 0.1 * scale)
  return peft.save_adapter(vlm, folder, base)


def kernel(vlm):
  """Of the layer that `write_adapter` adapts, with what is laid over it."""
  layer = vlm.decoder.stack.layers[0].attn.q_proj
  extra = 0.0
  if hasattr(layer, "lora_a"):
    extra = np.asarray(layer.lora_a[...]) @ np.asarray(layer.lora_b[...])
  return np.asarray(layer.kernel[...]), extra


def notes(call):
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    result = call()
  return result, [str(w.message) for w in caught if issubclass(w.category, Note)]


def test_a_newer_single_file_beside_the_shards_of_an_older_save(folder):
  arrays = stored(folder)
  tensors.write_sharded(folder, {n: tensors.lazy(a + 1) for n, a in arrays.items()}, most=30_000)
  assert len(list(folder.glob("model-0*"))) > 1
  assert weight_files(folder) == [folder / "model.safetensors"]
  np.testing.assert_array_equal(kernel(hub.load_model(folder))[0], kernel(hub.load_model(SMOLVLM))[0])


def test_an_index_left_behind_without_its_shards(folder):
  lost = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
  (folder / "model.safetensors.index.json").write_text(json.dumps(lost))
  hub.load_model(folder)
  (folder / "model.safetensors").unlink()
  with pytest.raises(UserError, match="shards that are not there"):
    hub.load_model(folder)


def test_weights_of_another_name_are_named(folder):
  (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
  with pytest.raises(UserError, match=r"no weights .*other names: model\.fp16\.safetensors"):
    hub.load_model(folder)


def test_an_adapter_saved_into_its_models_folder_is_loaded_with_it(folder):
  write_adapter(folder)
  found, said = notes(lambda: loading.find(ModelConfig(str(folder))))
  assert len(said) == 1 and "a model and an adapter" in said[0]
  base, extra = kernel(found.load(None))
  np.testing.assert_array_equal(base, kernel(hub.load_model(SMOLVLM))[0])
  np.testing.assert_allclose(extra, 0.02, rtol=1e-6)
  identity = found.identity()
  assert identity["model"]["sha256"] == hub.identity(SMOLVLM)["sha256"] and identity["adapter"]


def test_training_on_such_a_folder_says_how(folder):
  write_adapter(folder)
  with pytest.raises(UserError, match=r"peft\.resume_from="):
    loading.check_base(ModelConfig(str(folder)), folder, resumes=False)
  loading.check_base(ModelConfig(str(folder)), folder, resumes=True)


def test_training_from_an_adapters_folder_names_its_base(tmp_path):
  adapter = write_adapter(tmp_path / "a", base="org/base")
  with pytest.raises(UserError, match=r"base \(org/base\) as model\.path.*peft\.resume_from=.*/a"):
    loading.check_base(ModelConfig(str(adapter)), adapter, resumes=False)


def test_an_adapter_with_others_in_folders_below(tmp_path):
  adapter = write_adapter(tmp_path / "a")
  write_adapter(adapter / "second", scale=3)
  (adapter / "logs").mkdir()
  found, said = notes(lambda: loading.find(ModelConfig(str(adapter))))
  assert said == [f"{adapter}: the adapter at its top is taken; others are in second (adapter)"]
  np.testing.assert_allclose(kernel(found.load(None))[1], 0.02, rtol=1e-6)


def test_what_lies_below_a_model_is_passed_by_with_a_word(folder):
  shutil.copytree(SMOLVLM, folder / "checkpoint-5")
  write_adapter(folder / "mine")
  (folder / "runs").mkdir()
  for call in (
    lambda: loading.find(ModelConfig(str(folder))),
    lambda: loading.check_base(ModelConfig(str(folder)), folder, resumes=False),
  ):
    _, said = notes(call)
    below = "checkpoint-5 (model), mine (adapter)"
    assert said == [f"{folder}: the model at its top is taken; passed by are {below}"]


def test_a_folder_of_checkpoints_is_none_itself(tmp_path):
  for step in (100, 200):
    write_adapter(tmp_path / "out" / f"checkpoint-{step}")
  for call in (
    lambda: loading.find(ModelConfig(str(tmp_path / "out"))),
    lambda: loading.check_base(ModelConfig("out"), tmp_path / "out", resumes=False),
    lambda: hub.load_encoder(tmp_path / "out"),
  ):
    with pytest.raises(UserError, match=r"checkpoint-100 \(adapter\), checkpoint-200 \(adapter\): name one"):
      call()


def test_a_checkpoint_below_an_adapters_name_is_offered(tmp_path, model):
  write_adapter(tmp_path / "out" / "checkpoint-7")
  with pytest.raises(UserError, match=r"missing.*checkpoint-7 \(adapter\): name one of them"):
    peft.load_adapter(model, tmp_path / "out")


def test_a_run_within_a_folder_is_named(tmp_path):
  (tmp_path / "runs" / "mine").mkdir(parents=True)
  (tmp_path / "runs" / "mine" / "config.json").write_text("{}")
  (tmp_path / "runs" / "mine" / "identity.json").write_text("{}")
  with pytest.raises(UserError, match=r"mine \(run\): name one of them"):
    loading.find(ModelConfig(str(tmp_path / "runs")))
  with pytest.raises(UserError, match="the workdir of a run, where a model is wanted"):
    loading.check_base(ModelConfig("mine"), tmp_path / "runs" / "mine", resumes=False)


@pytest.mark.parametrize(
  ("said", "kind"),
  [
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes, 4 bits"),
    ({"load_in_8bit": True, "load_in_4bit": False}, "bitsandbytes, 8 bits"),
    ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq, 4 bits"),
    ({"quant_method": "awq", "bits": 4, "version": "gemm"}, "awq, 4 bits"),
    ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
  ],
)
def test_quantised_weights_of_other_libraries(folder, said, kind):
  config = json.loads((folder / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps(config | {"quantization_config": said}))
  for load in (hub.load_model, hub.load_encoder):
    with pytest.raises(UserError) as error:
      load(folder)
    assert f"quantised ({kind})" in str(error.value) and "name the model that they were made from" in str(
      error.value
    )
  adapter = write_adapter(folder.parent / "a", base=str(folder))
  with pytest.raises(UserError, match=r"quantised.*as config\.model\.path, and .*/a as config\.adapter"):
    loading.find(ModelConfig(str(adapter)))


@pytest.mark.parametrize(
  ("file", "said", "kind"),
  [
    ("quantize_config.json", {"bits": 4}, "gptq"),
    ("quant_config.json", {"w_bit": 4}, "awq"),
    ("config.json", {"quantization": {"group_size": 64, "bits": 4}}, "mlx, 4 bits"),
  ],
)
def test_quantised_weights_that_another_place_tells_of(folder, file, said, kind):
  there = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
  (folder / file).write_text(json.dumps(there | said))
  with pytest.raises(UserError, match=rf"its weights are quantised \({kind}\).*they were made from"):
    hub.load_model(folder)


@pytest.mark.parametrize(
  ("tensor", "kind"),
  [
    ("qweight", "gptq or awq"),
    ("weight.quant_state.bitsandbytes__nf4", "bitsandbytes"),
    ("weight_scale", "compressed-tensors or fp8"),
    ("scales", "mlx"),
  ],
)
def test_quantised_weights_that_only_their_tensors_tell_of(folder, tensor, kind):
  name = f"model.text_model.layers.0.self_attn.q_proj.{tensor}"
  write(folder / "model.safetensors", stored(folder) | {name: np.zeros(3, np.float32)})
  with pytest.raises(UserError, match=rf"its weights are quantised \({kind}\)") as error:
    hub.load_model(folder)
  assert len(str(error.value)) < 500


@pytest.mark.parametrize(("file", "kind"), [("onnx/model.onnx", "ONNX"), ("flax_model.msgpack", "Flax")])
def test_weights_of_another_format_are_named(folder, file, kind):
  (folder / "model.safetensors").unlink()
  (folder / file).parent.mkdir(exist_ok=True)
  (folder / file).write_bytes(b"x")
  with pytest.raises(UserError, match=rf"no weights .*it holds {kind} \({file}\).*it was made from"):
    hub.load_model(folder)


def test_an_encoder_of_timm_is_named(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_small_patch14_dinov2"}))
  with pytest.raises(UserError, match=r"a model of timm \(vit_small_patch14_dinov2\).*dinov2"):
    hub.load_encoder(tmp_path)


@pytest.mark.parametrize("name", ["default", "my-adapter"])
def test_adapter_tensors_with_the_adapters_name_in_them(tmp_path, name):
  adapter = write_adapter(tmp_path / "a")
  file = adapter / "adapter_model.safetensors"
  arrays = stored(adapter, [file])
  assert f"{LAYER}.lora_A.weight" in arrays
  write(file, {n.replace(".weight", f".{name}.weight"): a for n, a in arrays.items()})
  extra = kernel(peft.load_adapter(hub.load_model(SMOLVLM), adapter))[1]
  np.testing.assert_allclose(extra, 0.02, rtol=1e-6)
  write(file, arrays | {f"{LAYER}.lora_A.{n}.weight": arrays[f"{LAYER}.lora_A.weight"] for n in ("x", "y")})
  with pytest.raises(UserError, match=r"several adapters \(x, y\).*selected_adapters"):
    peft.load_adapter(hub.load_model(SMOLVLM), adapter)


@pytest.mark.parametrize(
  ("kind", "prefix"),
  [("dinov2", "dinov2."), ("clip_vision_model", "vision_model."), ("siglip_vision_model", "")],
)
def test_the_encoder_of_an_image_classifier(tmp_path, kind, prefix):
  plain = write_encoder(tmp_path / "plain", kind)
  classifier = shutil.copytree(plain, tmp_path / "classifier")
  arrays = {prefix + n.removeprefix("vision_model."): a for n, a in stored(plain).items()}
  head = {"classifier.weight": np.ones((3, 8), np.float32), "classifier.bias": np.ones(3, np.float32)}
  write(classifier / "model.safetensors", arrays | head)
  (one, _), said = notes(lambda: hub.load_encoder(classifier))
  assert len(said) == 1 and "without classifier.bias, classifier.weight" in said[0]
  (other, _), said = notes(lambda: hub.load_encoder(plain))
  assert not said
  pairs = zip(nnx.to_flat_state(nnx.state(one)), nnx.to_flat_state(nnx.state(other)), strict=True)
  assert all(np.array_equal(x[1][...], y[1][...]) for x, y in pairs)
