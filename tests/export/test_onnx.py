"""Models as ONNX files, in onnxruntime beside the model itself."""

import copy
import dataclasses
import json
import re
import types
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from flax import nnx

import spatialvlm
from spatialvlm import Wants, export, hub
from spatialvlm.config import ModelConfig
from spatialvlm.deployed import client, runtimes
from spatialvlm.deployed.asked import Asker
from spatialvlm.deployed.onnx_runtime import SUFFIXES, OnnxModel, Runtime
from spatialvlm.export.onnx import graph as graphs
from spatialvlm.export.onnx import numbers, sight
from spatialvlm.models.positions import patch_mask, position_ids
from spatialvlm.processing.processor import load_processor
from spatialvlm.types import Note, UserError
from tests import tiny_edge, tiny_encoder, tiny_language, tiny_model
from tests.evaluation.support import questions
from tests.launch import command
from tests.oracle import record_onnx_js

TEXTS = ["<image>Which object is closer?", "Left<image> or <image>right?"]
SIZES = [[(40, 70)], [(30, 30), (90, 20)]]


def exported(vlm, folder, out, said="", **trained):
  settings = ModelConfig(str(folder), **trained) if trained else None
  return export.export(export.Exportable(vlm, str(folder), folder, settings), "onnx", out, said)


def pictures(sizes, seed=0):
  rng = np.random.default_rng(seed)
  return [[rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in row] for row in sizes]


def close(got, wanted, most=1e-4):
  """By the size of the wanted numbers."""
  assert np.abs(got - wanted).max() <= most * np.abs(wanted).max()


def computed(vlm, arrays):
  """Image tokens and logits (B, T, V) of the model itself, in one pass."""
  read = vlm.read(Wants(image=True, hidden=True), **arrays)
  return np.asarray(read.image), np.asarray(vlm.model.unembed(read.hidden))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Grouped heads, several tiles, squares of patches joined, a head of its own."""
  return tiny_edge.write("smolvlm", tmp_path_factory.mktemp("onnx") / "tiny-smolvlm")


@pytest.fixture(scope="module")
def loaded(folder):
  return spatialvlm.load_vlm(folder)


@pytest.fixture(scope="module")
def wanted(loaded, arrays):
  return computed(loaded, arrays)


@pytest.fixture(scope="module")
def out(loaded, folder, tmp_path_factory):
  """In every form."""
  return exported(loaded.model, folder, tmp_path_factory.mktemp("out") / "a", ",".join(numbers.FORMS))


@pytest.fixture(scope="module")
def arrays(loaded):
  """Two prompts, padded on the left, of which one has fewer tiles."""
  made = loaded.processor(text=TEXTS, images=pictures(SIZES))
  assert not made["attention_mask"].all() and not made["pixel_attention_mask"].all()
  return made


def test_graphs_are_valid_and_of_standard_operators(out):
  for file in sorted((out / "onnx").iterdir()):
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == 17
    others = {node.op_type for node in model.graph.node if node.domain}
    wanted = {"MatMulNBits"} if "_q4" in file.stem and not file.stem.startswith("embed") else set()
    assert others == wanted, file.name


def test_a_folder_computes_what_the_model_does(out, arrays, wanted):
  model = OnnxModel(out, "fp32")
  got = model.features(arrays["pixel_values"], arrays["pixel_attention_mask"])
  assert got.shape == wanted[0].shape
  close(got, wanted[0], 1e-5)
  got, _ = model.read(**arrays, keep=0)
  valid = arrays["attention_mask"].astype(bool)
  close(got[valid], wanted[1][valid])
  last, _ = model.read(**arrays, keep=2)
  np.testing.assert_allclose(last, got[:, -2:], atol=1e-4)


def test_cached_is_uncached_and_greedy_is_the_models(out, loaded, arrays):
  model = OnnxModel(out, "fp32")
  ids, mask = arrays["input_ids"], arrays["attention_mask"]
  whole, _ = model.read(**arrays, keep=0)
  behind = 4  # text alone
  first = arrays | {"input_ids": ids[:, :-behind], "attention_mask": mask[:, :-behind]}
  got, cache = model.read(**first)
  close(got[:, 0], whole[:, -behind - 1])
  for place in range(-behind, 0):
    seen = mask[:, : ids.shape[1] + place + 1]
    got, cache = model.read(ids[:, place : place + 1 or None], seen, cache=cache)
    close(got[:, 0], whole[:, place])
  new = loaded.generate(**arrays, max_new_tokens=12, stop=False)
  for row in range(2):
    alone = loaded.processor(text=[TEXTS[row]], images=[pictures(SIZES)[row]])
    assert model.generate(12, **alone) == new[row].tolist()


def test_the_shipped_model(tmp_path):
  """Tied, of one tile; with the letters of an evaluation, as a runtime's process is asked for them."""
  vlm = record_onnx_js.model("shipped", tmp_path)
  out = exported(vlm.model, vlm.folder, tmp_path / "a", "fp32,q8,q4")
  arrays = record_onnx_js.arrays(vlm, "shipped")
  features, logits = computed(vlm, arrays)
  model = OnnxModel(out, "fp32")
  close(model.features(arrays["pixel_values"]), features, 1e-5)
  close(model.read(**arrays, keep=0)[0], logits)
  np.savez(tmp_path / "arrays.npz", **arrays)
  letters = list(vlm.processor.letter_ids(3))
  asked = {"arrays": str(tmp_path / "arrays.npz"), "options": letters}
  last = logits[0, -1].astype(np.float64)
  for name, most in (("fp32", 1e-3), ("q8", 0.3), ("q4", 3.0)):
    tokens, got = Runtime(out, {"numbers": name, "threads": 1}).letters(asked)
    assert tokens == arrays["input_ids"].shape[1]
    assert np.abs(got - (last - np.log(np.exp(last).sum()))[letters]).max() < most
  came = []
  assert Runtime(out, {"numbers": "fp32"}).generate(asked, 2, came.append)[0] == last.argmax()
  assert came == [1, 1]
  with pytest.raises(ValueError, match="holds fp32, q8, q4; name one"):
    OnnxModel(out)


def test_a_process_of_its_own(out, loaded, tmp_path):
  """As `launch/edge.py` asks one: what the graphs give here."""
  module = runtimes.RUNTIMES["onnx"].module
  asker = Asker(loaded.processor, "native", tmp_path / "arrays.npz")
  (question,) = questions(count=1, images=1)
  asked = asker(question)
  with client.Child(module, out, {"threads": 1, "numbers": "fp32"}) as child:
    tokens, logprobs = child.letters(asked.given)
    came, new = child.generate(asked.given, 3)
  assert tokens == asked.tokens and len(came) == len(new) == 3
  np.testing.assert_allclose(
    logprobs, Runtime(out, {"threads": 1, "numbers": "fp32"}).letters(asked.given)[1], atol=1e-5
  )


@pytest.mark.parametrize(("form", "most"), [("fp16", 0.01), ("q8", 0.08), ("q4", 0.6), ("q4f16", 0.6)])
def test_fewer_bits_are_the_same_model(form, most, out, loaded, arrays, wanted):
  """And what a prompt gives depends on no neighbour, however it is padded."""
  model = OnnxModel(out, form)
  got, cache = model.read(**arrays, keep=0)
  valid = arrays["attention_mask"].astype(bool)
  close(got[valid], wanted[1][valid], most)
  kept = np.float16 if numbers.FORMS[form].half else np.float32
  assert next(iter(cache.values())).numpy().dtype == kept
  for row in range(2):
    alone = loaded.processor(text=[TEXTS[row]], images=[pictures(SIZES)[row]])
    close(model.read(**alone, keep=0)[0][0], got[row][valid[row]], 0.005 if kept == np.float16 else 1e-4)


def test_the_names_of_a_form_are_one_form(out):
  sizes = {}
  for name in ("q8", "int8", "uint8"):
    sizes[name] = [
      (out / "onnx" / f"{part}{SUFFIXES[name]}.onnx").read_bytes()
      for part in ("vision_encoder", "embed_tokens", "decoder_model_merged")
    ]
  assert sizes["q8"] == sizes["int8"] == sizes["uint8"]
  assert {name: form.suffix for name, form in numbers.FORMS.items()} == SUFFIXES


@pytest.mark.parametrize("name", ["fp32", "fp16", "q8", "q4"])
def test_a_product_is_what_the_form_says(name, tmp_path):
  """A matrix whose blocks are not full, and a column of zeros; against NumPy."""
  rng = np.random.default_rng(0)
  x, kernel = rng.normal(size=(2, 3, 40)).astype(np.float32), rng.normal(size=(40, 6)).astype(np.float32)
  kernel[:, 2] = 0
  form = numbers.FORMS[name]
  graph = graphs.Graph("product", form)
  graph.op("Identity", form.product(graph, "x", kernel, "kernel"), out="y")
  graph.op("Identity", form.rows(graph, "ids", kernel, "table"), out="rows")
  value = lambda *of: graphs.Value(of[0], of[1], of[2:])
  graph.write(
    tmp_path / "a.onnx",
    [value("x", "float32", "B", "T", 40), value("ids", "int64", "B", "T")],
    [value("y", "float32", "B", "T", 6), value("rows", "float32", "B", "T", 6)],
  )
  session = onnxruntime.InferenceSession(str(tmp_path / "a.onnx"), providers=["CPUExecutionProvider"])
  ids = rng.integers(0, 40, (2, 5))
  y, rows = session.run(None, {"x": x, "ids": ids})
  told, table, inputs = kernel, kernel, x
  if name == "fp16":
    told, table = kernel.astype(np.float16).astype(np.float32), kernel.astype(np.float16).astype(np.float32)
  if name in ("q8", "q4"):
    told, scale = numbers.bytes_of(kernel, 0)
    told = (told.astype(np.float32) - 128) * scale
    table, scale = numbers.bytes_of(kernel, 1)
    table = (table.astype(np.float32) - 128) * scale
  if name == "q8":
    step = np.abs(x).max(axis=-1, keepdims=True) / 127
    inputs = np.rint(x / step) * step
  if name == "q4":
    packed, scale = numbers.nibbles_of(kernel)
    told = np.stack([packed & 15, packed >> 4], -1).reshape(6, 2, 32).astype(np.float32) - 8
    told = (told * scale[..., None]).reshape(6, 64)[:, :40].T
    assert np.abs(told - kernel).max() <= np.abs(scale).max() / 2 + 1e-6
  np.testing.assert_allclose(y, inputs @ told, atol=2e-2 if name == "fp16" else 1e-5)
  np.testing.assert_allclose(rows, table[ids], atol=1e-6)


def test_a_tile_that_is_partly_real(out, loaded, arrays):
  """Its patches stretch over the whole table, and what is not real is not seen."""
  mask = np.zeros(arrays["pixel_attention_mask"].shape, bool)
  mask[:, :, :20, :] = True
  mask[0, 0, :, 24:] = False
  made = {"pixel_values": arrays["pixel_values"], "pixel_attention_mask": mask}
  ids = {name: arrays[name] for name in ("input_ids", "attention_mask")}
  wanted = np.asarray(loaded.read(Wants(image=True), **ids, **made).image)
  got = OnnxModel(out, "fp32").features(**made)
  seen = np.broadcast_to(wanted, got.shape)
  np.testing.assert_allclose(got, seen, atol=1e-5 * max(1, np.abs(seen).max()))


def test_places_are_those_of_every_count(tmp_path):
  """Also of counts whose inverse onnxruntime rounds otherwise, as 25 and 49."""
  grid, rows, columns, patch = 50, 50, 49, 2
  graph = graphs.Graph("places", numbers.FORMS["fp32"])
  config = types.SimpleNamespace(grid=grid, patch_size=patch)
  places, _ = sight._navit(graph, "mask", (rows, columns), config)
  graph.op("Identity", places, out="places")
  mask = np.zeros((rows, rows * patch, columns * patch), bool)
  for count in range(rows):
    mask[count, : (count + 1) * patch, : max(count, 1) * patch] = True
  graph.write(
    tmp_path / "a.onnx",
    [graphs.Value("mask", "bool", ("N", *mask.shape[1:]))],
    [graphs.Value("places", "int64", ("N", rows * columns))],
  )
  session = onnxruntime.InferenceSession(str(tmp_path / "a.onnx"), providers=["CPUExecutionProvider"])
  wanted = np.asarray(position_ids(patch_mask(mask, patch), grid)).reshape(rows, -1)
  np.testing.assert_array_equal(session.run(None, {"mask": mask})[0], wanted)


# The folder.


def test_what_transformers_js_asks_for(out, folder, loaded):
  config, own = (json.loads((path / "config.json").read_text()) for path in (out, folder))
  assert config["transformers.js_config"] == {"kv_cache_dtype": {"fp16": "float16", "q4f16": "float16"}}
  assert config["model_type"] == "smolvlm" and config["text_config"]["num_key_value_heads"] == 2
  assert config["text_config"].items() >= own["text_config"].items()
  images = json.loads((out / "preprocessor_config.json").read_text())
  assert images["processor_class"] == "SmolVLMProcessor" and images["size"] == {"longest_edge": 64}
  said = json.loads((out / "processor_config.json").read_text())
  assert said["image_seq_len"] == loaded.processor.tokens_per_tile == 4
  ends = json.loads((out / "generation_config.json").read_text())
  assert ends["eos_token_id"] == list(loaded.processor.stop_ids)
  template = loaded.processor.template.source
  assert json.loads((out / "tokenizer_config.json").read_text())["chat_template"] == template
  names = {value.name: value for value in onnxruntime.InferenceSession(
    str(out / "onnx" / "decoder_model_merged.onnx"), providers=["CPUExecutionProvider"]
  ).get_inputs()}  # fmt: skip
  assert names["past_key_values.1.value"].shape == ["batch_size", 2, "past_sequence_length", 16]
  again = load_processor(out)(text=TEXTS, images=pictures(SIZES))
  for name, value in loaded.processor(text=TEXTS, images=pictures(SIZES)).items():
    np.testing.assert_array_equal(again[name], value)


@pytest.mark.parametrize(
  ("trained", "split", "edge", "told"),
  [
    ({"longest_edge": 96}, True, 96, ""),
    ({"split_images": False}, False, 64, ""),
    ({"max_tiles": 1}, False, 64, ""),
    ({"max_tiles": 4, "longest_edge": 128}, False, 128, "is 1 x 2 tiles and the whole here and the whole"),
    ({"max_tiles": 5, "longest_edge": 128}, True, 64, ""),
    ({"enlarge": False}, True, 64, "is the whole alone here and 2 x 2 tiles and the whole there"),
    ({"pixels": "fast"}, True, 64, "made of the enlarged picture there, and of the picture itself here"),
    ({"layout": "mtmd"}, True, 64, ""),
  ],
)
def test_pictures_are_shown_as_in_the_run(trained, split, edge, told, loaded, folder, tmp_path):
  """As near as transformers.js can be told; what is left is told the user."""
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    out = exported(loaded.model, folder, tmp_path / "a", **trained)
  images = json.loads((out / "preprocessor_config.json").read_text())
  assert (images["do_image_splitting"], images["size"]) == (split, {"longest_edge": edge})
  notes = [str(w.message) for w in caught if issubclass(w.category, Note)]
  assert len(notes) == bool(told) and told in "".join(notes), notes


def test_arrays_beside_a_large_file(loaded, folder, arrays, tmp_path, monkeypatch):
  whole = OnnxModel(exported(loaded.model, folder, tmp_path / "a"))
  monkeypatch.setattr(graphs, "LARGEST", 150_000)
  out = exported(loaded.model, folder, tmp_path / "b")
  beside = json.loads((out / "config.json").read_text())["transformers.js_config"]["use_external_data_format"]
  assert beside["decoder_model_merged.onnx"] > 1 and "embed_tokens.onnx" not in beside
  wanted = {f"{name}_data" + (f"_{i}" if i else "") for name, count in beside.items() for i in range(count)}
  files = {file.name: file.stat().st_size for file in (out / "onnx").iterdir()}
  assert wanted == {name for name in files if "_data" in name}
  assert max(size for name, size in files.items() if "_data" in name) <= 150_000
  np.testing.assert_array_equal(OnnxModel(out).read(**arrays)[0], whole.read(**arrays)[0])


# Other models.


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2"])
def test_a_language_model_by_itself(kind, tmp_path):
  """Biases of queries and keys, bounded scores, windows, four norms; on either side of padding."""
  more = {"sliding_window": 4, "query_pre_attn_scalar": 8} if kind == "gemma2" else {}
  folder = tiny_language.write_checkpoint(tmp_path / kind, kind, **more)
  vlm = spatialvlm.load_vlm(folder)
  model = OnnxModel(exported(vlm.model, folder, tmp_path / "a"))
  assert not model.sees
  ids = np.random.default_rng(0).integers(3, 60, (2, 12))
  mask = np.ones_like(ids)
  mask[1, :3] = 0
  wanted = vlm.logits(ids, mask)
  got, cache = model.read(ids[:, :8], mask[:, :8], keep=0)
  valid = mask[:, :8].astype(bool)
  close(got[valid], wanted[:, :8][valid])
  close(model.read(ids[:, 8:], mask, cache=cache, keep=0)[0], wanted[:, 8:])


def test_other_eyes_run_too(tmp_path):
  """Three encoders on grids of their own are one graph, so that the rest is a SmolVLM."""
  tiny_model.write_checkpoint(tmp_path / "base")
  tiny_encoder.write_encoder(tmp_path / "dino", "dinov2", patch=3, seed=1)
  tiny_encoder.write_encoder(tmp_path / "clip", "clip_vision_model", patch=5, width=4, seed=2)
  names = [tmp_path / "dino", tmp_path / "clip", "own"]
  folder = hub.assemble(tmp_path / "base", names, tmp_path / "joined", connector="linear")
  vlm = spatialvlm.load_vlm(folder)
  out = exported(vlm.model, folder, tmp_path / "a")
  config = json.loads((out / "config.json").read_text())
  assert config["model_type"] in ("smolvlm", "idefics3")
  arrays = load_processor(out)(text=TEXTS, images=pictures(SIZES))
  features, logits = computed(vlm, arrays)
  model = OnnxModel(out)
  got = model.features(arrays["pixel_values"], arrays["pixel_attention_mask"])
  close(got, features, 3e-5)
  valid = arrays["attention_mask"].astype(bool)
  close(model.read(**arrays, keep=0)[0][valid], logits[valid])


def test_adapters_are_merged(loaded, folder, arrays, wanted, tmp_path):
  adapted = tiny_edge.adapted(loaded.model, method="lora", target=r".*\.(q_proj|v_proj|fc1|proj)")
  model = OnnxModel(exported(adapted, folder, tmp_path / "a"))
  other = copy.copy(loaded)
  other.model = adapted
  valid = arrays["attention_mask"].astype(bool)
  merged = other.logits(**arrays)[valid]
  close(model.read(**arrays, keep=0)[0][valid], merged)
  assert np.abs(merged - wanted[1][valid]).max() > 0.01


# What is refused.


def test_what_cannot_be_written(loaded, folder, tmp_path):
  vlm = loaded.model
  for changed, said, message in (
    (
      {"family": "paligemma"},
      "",
      "models of the family 'paligemma' are not written as ONNX (with eyes: smolvlm",
    ),
    ({"family": "internvl"}, "", "models of the family 'internvl' are not written"),
    ({}, "fp8", "--numbers: 'fp8' is no form that ONNX files have here"),
    ({}, "q8,Q8", "names one form twice"),
  ):
    other = copy.copy(vlm)
    other.config = dataclasses.replace(vlm.config, **changed)
    with pytest.raises(UserError, match=re.escape(message)):
      exported(other, folder, tmp_path / "a", said)
  for method in ("prefix", "prompt"):
    with pytest.raises(UserError, match=f"method '{method}' cannot be merged"):
      exported(tiny_edge.adapted(vlm, method=method), folder, tmp_path / "a")
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "model.onnx").write_bytes(b"1")
  with pytest.raises(UserError, match="already holds something; name a new folder"):
    exported(vlm, folder, tmp_path / "full")
  assert [file.name for file in tmp_path.iterdir()] == ["full"]


def test_a_full_disk_and_numbers_that_are_none_leave_nothing(loaded, folder, tmp_path, monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr("os.fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(
      UserError, match=r"could not be written \(No space left on device\); nothing was left"
    ):
      exported(loaded.model, folder, tmp_path / "a")
  other = nnx.clone(loaded.model)
  head = other.decoder.lm_head.kernel
  head[...] = head[...] * 1e6
  with pytest.raises(UserError, match="beyond 65504, which float16 does not; leave out fp16"):
    exported(other, folder, tmp_path / "a", "fp32,fp16")
  head[...] = head[...] * np.nan
  with pytest.raises(UserError, match=r"decoder\.lm_head\.kernel: holds numbers that are not finite"):
    exported(other, folder, tmp_path / "a")
  with monkeypatch.context() as patch:
    patch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(UserError, match=r"need the package onnx; pip install 'spatialvlm\[edge\]'"):
      exported(loaded.model, folder, tmp_path / "a")
  assert not list(Path(tmp_path).iterdir())


# Encoders alone.


@pytest.mark.parametrize("kind", ["dinov2", "siglip_vision_model", "clip_vision_model", "dinov3_vit"])
def test_an_encoder_by_itself(kind, tmp_path):
  """At the size that its image processor makes, which is another than the trained one."""
  tiny_encoder.COLOURS.setdefault("dinov3_vit", tiny_encoder.COLOURS["dinov2"])
  folder = tiny_encoder.write_encoder(tmp_path / kind, kind, patch=4, image=12)
  images = json.loads((folder / "preprocessor_config.json").read_text())
  more = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 24}, "crop_size": 20}
  (folder / "preprocessor_config.json").write_text(json.dumps(images | more))
  found = export.EXPORTERS["onnx-encoder"].find(ModelConfig(str(folder)))
  out = export.export(found, "onnx-encoder", tmp_path / "a", "fp32,q8")
  assert json.loads((out / "config.json").read_text())["model_type"] == kind
  loaded = spatialvlm.load_encoder(folder)
  (row,) = pictures([[(40, 70), (30, 30)]])
  pixels = loaded.preprocess(row)
  assert pixels.shape[2:] == (20, 20)
  wanted = np.asarray(loaded(pixels))
  for name, most in (("", 1e-5), ("_quantized", 0.05)):
    file = str(out / "onnx" / f"model{name}.onnx")
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    close(session.run(["last_hidden_state"], {"pixel_values": pixels})[0], wanted, most)


def test_images_that_a_graph_does_not_read(tmp_path):
  folder = tiny_encoder.write_encoder(tmp_path / "dino", "dinov2")
  images = json.loads((folder / "preprocessor_config.json").read_text())
  found = export.EXPORTERS["onnx-encoder"].find(ModelConfig(str(folder)))
  for more, message in (
    ({"size": {"shortest_edge": 24}, "do_center_crop": False}, "images come out in sizes of their own, and"),
    (
      {"size": {"height": 16, "width": 12}, "do_center_crop": False},
      "images come out in 12 x 16 pixels, and",
    ),
    ({"crop_size": 18}, "images of 18 pixels are no whole number of patches of 4; correct the size in"),
  ):
    said = images | {"image_processor_type": "BitImageProcessor"} | more
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match=re.escape(message)):
      export.export(found, "onnx-encoder", tmp_path / "a")
  assert not (tmp_path / "a").exists()


def test_the_command_exports_both(folder, tmp_path, capfd):
  done = command.run(
    capfd, "export", f"--model={folder}", "--to=onnx", "--numbers=q8", f"--out={tmp_path / 'a'}"
  )
  assert done.code == 0, done.err
  assert {file.name for file in (tmp_path / "a" / "onnx").iterdir()} == {
    f"{part}_quantized.onnx" for part in ("vision_encoder", "embed_tokens", "decoder_model_merged")
  }
  done = command.run(capfd, "export", f"--model={folder}", "--to=onnx-encoder", f"--out={tmp_path / 'b'}")
  assert done.code == 0, done.err
  assert {file.name for file in (tmp_path / "b").iterdir()} == {
    "onnx",
    "config.json",
    "preprocessor_config.json",
  }
  done = command.run(
    capfd, "export", f"--model={folder}", "--adapter=x", "--to=onnx-encoder", f"--out={tmp_path / 'c'}"
  )
  assert done.code == 2 and "--to=onnx-encoder writes what has no adapters" in done.err


# transformers.js, as tests/oracle/record_onnx_js.py has asked it.


def js_answers(vlm, case, got):
  """What it made of a prompt, and its answers to our pixels, beside the model's own."""
  arrays = record_onnx_js.arrays(vlm, case)
  assert got["ids"] == arrays["input_ids"][0].tolist()
  assert got["dims"] == list(arrays["pixel_values"].shape)
  count = record_onnx_js.COUNT
  wanted = vlm.generate(**arrays, max_new_tokens=count)[0].tolist()
  ends = [place + 1 for place, token in enumerate(wanted) if token in vlm.processor.stop_ids]
  wanted = wanted[: min(ends, default=count)]
  for form in ("fp32", "fp16", *(["q8"] if case == "shipped" else [])):
    assert got["answers"][form]["given"] == wanted, form
  return arrays, wanted


@pytest.mark.parametrize("case", record_onnx_js.CASES)
def test_what_transformers_js_answered(case, tmp_path):
  """And what onnxruntime answers here."""
  recorded = json.loads(record_onnx_js.RECORDED.read_text(encoding="utf-8"))
  vlm = record_onnx_js.model(case, tmp_path / "source")
  arrays, wanted = js_answers(vlm, case, recorded[case])
  model = OnnxModel(exported(vlm.model, vlm.folder, tmp_path / "a"))
  assert model.generate(record_onnx_js.COUNT, vlm.processor.stop_ids, **arrays) == wanted
