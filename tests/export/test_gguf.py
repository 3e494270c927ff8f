"""Models as GGUF files, beside what llama.cpp's own converter makes of the same folders (recorded)."""

import copy
import dataclasses
import functools
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

import spatialvlm
from spatialvlm import export, hub, peft
from spatialvlm.config import ModelConfig
from spatialvlm.hub.gguf import file as gguf_file
from spatialvlm.hub.gguf import models
from spatialvlm.models.connector import ConnectorConfig
from spatialvlm.types import Note, UserError
from tests import tiny_edge, tiny_language
from tests.models.support import batch_of, call
from tests.oracle.record_gguf import CASES, summary

RECORDED = json.loads((Path(__file__).parents[1] / "recorded" / "gguf.json").read_text(encoding="utf-8"))


def written(folder: Path, out: Path, numbers: str) -> Path:
  model = export.Exportable(hub.load_model(folder), str(folder), folder)
  return export.export(model, "gguf", out, numbers)


@pytest.mark.parametrize("case", CASES)
def test_files_are_those_of_llama_cpps_converter(case, tmp_path):
  """Every tensor to the bit and every key, but for what is written otherwise on purpose."""
  kind, quant, text = CASES[case]
  folder = tiny_edge.write(kind, tmp_path / f"tiny-{kind}", **text)
  out = written(folder, tmp_path / "out", quant)
  assert {file.stem for file in out.iterdir()} == set(RECORDED[case])
  for part, wanted in RECORDED[case].items():
    ours = summary(out / f"{part}.gguf")
    for names in (ours, wanted):
      names["keys"].pop("tokenizer.chat_template", None)  # a server's: see tests/processing/test_mtmd.py
    ours["keys"].pop("clip.vision.preproc_min_tiles", None)  # not in the converter's, which mtmd completes
    assert ours["keys"].pop("clip.vision.preproc_max_tiles", 4) == 4
    assert ours["keys"] == wanted["keys"], part
    rolled = "v.position_embd.weight" if (kind, part) == ("internvl", "mmproj") else None
    assert set(ours["tensors"]) == set(wanted["tensors"])
    for name, tensor in wanted["tensors"].items():
      if name == rolled:
        assert ours["tensors"][name] != tensor and ours["tensors"][name][:2] == tensor[:2]
      else:
        assert ours["tensors"][name] == tensor, name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tiny_edge.write("smolvlm", tmp_path_factory.mktemp("edge") / "tiny-smolvlm")


@pytest.fixture(scope="module")
def vlm(folder):
  return hub.load_model(folder)


def exported(vlm, folder, out, numbers="f32", to="gguf", **trained):
  settings = ModelConfig(str(folder), **trained) if trained else None
  return export.export(export.Exportable(vlm, str(folder), folder, settings), to, out, numbers)


def quants(file: Path) -> dict[str, str]:
  return {name: tensor.quant for name, tensor in gguf_file.read_header(file).tensors.items()}


def test_numbers_of_parts(vlm, folder, tmp_path):
  out = exported(vlm, folder, tmp_path / "a", "q4_0,embedding=q8_0,mmproj=f16")
  found = quants(out / "language.gguf")
  assert found["token_embd.weight"] == found["output.weight"] == "Q8_0"
  assert found["blk.0.attn_q.weight"] == found["blk.1.ffn_down.weight"] == "Q4_0"
  assert found["output_norm.weight"] == "F32"
  eyes = quants(out / "mmproj.gguf")
  assert eyes["mm.model.fc.weight"] == "F16" and eyes["v.position_embd.weight"] == "F32"
  header = gguf_file.read_header(out / "language.gguf")
  assert (
    header.keys["general.file_type"],
    gguf_file.read_header(out / "mmproj.gguf").keys["general.file_type"],
  ) == (2, 1)


@pytest.mark.parametrize("quant", ["f32", "bf16", "q8_0", "q5_0"])
def test_what_is_written_is_read(quant, folder, vlm, tmp_path, monkeypatch):
  """The language model of a file has the logits of the decoder, as far as its numbers go."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  out = exported(vlm, folder, tmp_path / "a", quant)
  ours = hub.load_model(out / "language.gguf")
  ids = np.arange(3, 27).reshape(2, 12)
  batch = batch_of({"input_ids": ids, "attention_mask": ids >= 0}, -1)
  wanted, got = (np.asarray(call(model, batch)) for model in (vlm, ours))
  most = {"f32": 1e-5, "bf16": 0.05, "q8_0": 0.1, "q5_0": 0.6}[quant]
  assert np.abs(got - wanted).max() <= most < np.abs(wanted).max()


@pytest.mark.parametrize("kind", ["smolvlm", "internvl"])
def test_both_files_of_a_folder_are_the_model_again(kind, tmp_path, monkeypatch):
  """Image tokens, logits, pixels and prompts; the eyes by themselves belong to no other model."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  folder = tiny_edge.write(kind, tmp_path / kind)
  out = written(folder, tmp_path / "out", "f32")
  images = [np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)]
  arrays, logits = [], []
  for path in (folder, out):
    vlm = spatialvlm.load_vlm(path, layout="mtmd")
    arrays.append(vlm.processor(text="<image>Which object?", images=images))
    logits.append(vlm.logits(**arrays[-1]))
    prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which?"}]}]
    arrays[-1]["prompt"] = vlm.processor.apply_chat_template(prompt, add_generation_prompt=True)
  assert arrays[0].keys() == arrays[1].keys()
  for name, value in arrays[0].items():
    np.testing.assert_array_equal(value, arrays[1][name])
  np.testing.assert_array_equal(*logits)
  other = tiny_edge.write("llama", tmp_path / "other")
  stranger = written(other, tmp_path / "stranger", "f32")
  (stranger / "mmproj.gguf").write_bytes((out / "mmproj.gguf").read_bytes())
  if kind == "internvl":
    with pytest.raises(UserError, match=r"has no token <IMG_CONTEXT>; it belongs to another"):
      hub.resolve(stranger)
  with pytest.raises(UserError, match="a vision tower and projector"):
    hub.resolve(out / "mmproj.gguf")


@pytest.mark.parametrize("kind", ["gemma", "gemma2"])
def test_gemmas_words_are_read_back(kind, tmp_path, monkeypatch):
  """SentencePiece's kind of tokenizer, with scores for merges: ids, prompts and logits."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  more = tiny_language.GEMMA2 if kind == "gemma2" else {}
  folder = tiny_language.write_checkpoint(tmp_path / kind, kind, **more)
  out = written(folder, tmp_path / "out", "f32")
  ours, again = spatialvlm.load_vlm(folder), spatialvlm.load_vlm(out)
  for text in HOSTILE:
    assert ours.processor.word_ids(text) == again.processor.word_ids(text), text
  ask = [{"role": "user", "content": "Which object is closer?"}]
  prompts = [v.processor.apply_chat_template(ask, add_generation_prompt=True) for v in (ours, again)]
  assert prompts[0] == prompts[1] and "<start_of_turn>" in prompts[0]
  ids = np.array([ours.processor.word_ids(prompts[0])])
  np.testing.assert_array_equal(ours.logits(ids), again.logits(ids))


HOSTILE = (
  "Which object is closer to the camera, the red box or the blue box?",
  " a  b   c\n\n\td ",
  "<start_of_turn>user\nHow many? 1234<end_of_turn>",
  "naïve café 東京 🙂\u0301 \u200b ▁under▁score",
  "<unk><bos><0x41> <pad>",
  "",
)
BAD = {
  "q9": ("q9", {}, "'q9' is no type of numbers that is written (known: f32, "),
  "decoded alone": ("q4_k_m", {}, "reads such blocks and does not write them"),
  "part": ("eyes=f16", {}, "there is no part 'eyes'; "),
  "twice": ("f16,f32", {}, "names the type of all parts twice"),
  "rows": (
    "language=tq1_0",
    {},
    "has rows of 96 numbers, which blocks of 256 do not divide; write language=f16",
  ),
}


@pytest.mark.parametrize("name", BAD)
def test_numbers_that_cannot_be(name, vlm, folder, tmp_path):
  numbers, trained, message = BAD[name]
  with pytest.raises(UserError) as refused:
    exported(vlm, folder, tmp_path / "a", numbers, **trained)
  assert message in str(refused.value) and "\n" not in str(refused.value)
  assert not list(tmp_path.iterdir())


def test_what_llama_cpp_cannot_run(vlm, folder, tmp_path):
  """By the models' configs alone."""
  for changed, message in (
    ({"family": "paligemma"}, "llama.cpp runs no model of the family 'paligemma'"),
    ({"family": "smolvlm+dinov2"}, "llama.cpp runs no model with other encoders"),
    ({"connector": ConnectorConfig(1)}, "stops at a scale_factor of 1"),
    ({"vision.block.mlp_width": 64}, "as wide within (64) as without"),
    ({"vision.block.activation": "silu"}, "computes gelu, not silu"),
  ):
    other = copy.copy(vlm)
    other.config = changed_config(vlm.config, changed)
    with pytest.raises(UserError, match=re.escape(message)):
      exported(other, folder, tmp_path / "a")
  assert not list(tmp_path.iterdir())


def changed_config(config, changed):
  for name, value in changed.items():
    head, _, rest = name.partition(".")
    inner = changed_config(getattr(config, head), {rest: value}) if rest else value
    config = dataclasses.replace(config, **{head: inner})
  return config


def test_a_full_disk_and_numbers_that_are_none_leave_nothing(vlm, folder, tmp_path, monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr("os.fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(
      UserError, match=r"could not be written \(No space left on device\); nothing was left"
    ):
      exported(vlm, folder, tmp_path / "a")
  other = nnx.clone(vlm)
  norm = other.decoder.norm.scale
  norm[...] = norm[...] * np.nan
  with pytest.raises(
    UserError, match=r"output_norm\.weight: holds numbers that are not finite; the model is damaged"
  ):
    exported(other, folder, tmp_path / "a")
  head = other.decoder.lm_head.kernel
  norm[...] = np.ones(norm.shape, np.float32)
  head[...] = head[...] * 1e6
  with pytest.raises(UserError, match=r"beyond 65504; write --numbers=embedding=bf16"):
    exported(other, folder, tmp_path / "a", "f16")
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("trained", "edge", "told"),
  [
    ({"layout": "mtmd"}, 64, ""),
    ({"layout": "mtmd", "max_tiles": 2}, 32, ""),
    ({"longest_edge": 96}, 96, ""),
    ({"max_tiles": 1}, 32, "is the whole alone here and 1 x 1 tiles and the whole there"),
    ({"split_images": False}, 32, "is the whole alone here and 1 x 1 tiles and the whole there"),
    ({"max_tiles": 4}, 32, "is the whole alone here and 1 x 1 tiles and the whole there"),
    ({"enlarge": False}, 64, "is the whole alone here and 2 x 2 tiles and the whole there"),
  ],
)
def test_eyes_are_shown_what_the_run_was(trained, edge, told, vlm, folder, tmp_path):
  """As near as mtmd can be told; what is left is told the user."""
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    out = exported(vlm, folder, tmp_path / "a", **trained)
  header = gguf_file.read_header(out / "mmproj.gguf")
  assert header.keys["clip.vision.preproc_image_size"] == edge
  notes = [str(w.message) for w in caught if issubclass(w.category, Note)]
  assert len(notes) == bool(told) and told in "".join(notes)


# Adapters.


def folded(out: Path, name: str, heads: int) -> np.ndarray:
  """What llama.cpp adds to a matrix (out, in): alpha / rank of the factors' product, rows in our order."""
  header = gguf_file.read_header(out / "adapter.gguf")
  read = lambda end: np.fromfile(
    header.file,
    np.float32,
    offset=header.tensors[name + end].start,
    count=int(np.prod(header.tensors[name + end].shape)),
  ).reshape(header.tensors[name + end].shape)
  a, b = read(".lora_a"), read(".lora_b")
  product = header.keys["adapter.lora.alpha"] / a.shape[0] * b @ a
  return models.unpaired(product, heads) if heads else product


def kernel(model, layer: int, name: str) -> np.ndarray:
  module = functools.reduce(getattr, name.split("."), model.decoder.stack.layers[layer])
  return np.asarray(module.kernel[...])


@pytest.mark.parametrize(
  "options",
  [
    {"rank": 4, "alpha": 6.0},
    {"rank": 4, "alpha": 6.0, "rslora": True},
    {"rank": 4, "rank_pattern": {r".*v_proj": 2}, "alpha_pattern": {r".*q_proj": 3.0}},
    {"rank": 2, "init": "pissa"},
  ],
  ids=["plain", "rslora", "patterns", "pissa"],
)
def test_an_adapter_adds_what_merging_adds(options, vlm, folder, tmp_path):
  other = tiny_edge.adapted(vlm, method="lora", target=r".*text_model.*\.(q|k|v|down)_proj", options=options)
  out = exported(other, folder, tmp_path / "a", to="gguf-lora")
  assert [file.name for file in out.iterdir()] == ["adapter.gguf"]
  merged = peft.merge(other)
  for layer in range(2):
    for ours, theirs, heads in (
      ("attn.q_proj", "attn_q", 4),
      ("attn.k_proj", "attn_k", 2),
      ("attn.v_proj", "attn_v", 0),
      ("mlp.down_proj", "ffn_down", 0),
    ):
      after, before = (kernel(model, layer, ours) for model in (merged, vlm))
      change = folded(out, f"blk.{layer}.{theirs}.weight", heads)
      np.testing.assert_allclose(change, (after - before).T, atol=2e-6)
  header = gguf_file.read_header(out / "adapter.gguf")
  assert header.keys["general.type"] == "adapter" and header.keys["adapter.type"] == "lora"
  if options.get("rslora"):
    assert header.keys["adapter.lora.alpha"] == 12.0


def test_an_adapter_is_that_of_llama_cpps_converter(vlm, folder, tmp_path):
  """But for its name, which the converter takes from the adapter's folder."""
  out = exported(tiny_edge.adapted(vlm, **tiny_edge.LORA), folder, tmp_path / "a", to="gguf-lora")
  ours, wanted = summary(out / "adapter.gguf"), RECORDED["lora"]["adapter"]
  assert (ours["keys"].pop("general.name"), wanted["keys"].pop("general.name")) == ("Tiny Smolvlm", "Lora")
  assert ours == wanted


def test_what_was_trained_elsewhere_is_merged_into_the_eyes(vlm, folder, tmp_path):
  other = tiny_edge.adapted(vlm, method="lora", target=r".*\.(q_proj|proj)")
  with pytest.warns(Note, match=r"what was trained in the eyes is merged into mmproj\.gguf"):
    out = exported(other, folder, tmp_path / "a", to="gguf-lora")
  assert {file.name for file in out.iterdir()} == {"adapter.gguf", "mmproj.gguf"}
  whole = exported(other, folder, tmp_path / "b")
  assert (whole / "mmproj.gguf").read_bytes() == (out / "mmproj.gguf").read_bytes()
  plain = exported(vlm, folder, tmp_path / "c")
  differ = lambda name: (whole / name).read_bytes() != (plain / name).read_bytes()
  assert differ("mmproj.gguf") and differ("language.gguf")


def test_adapters_that_llama_cpp_does_not_read(vlm, folder, tmp_path):
  decoder = r".*text_model.*\.q_proj"
  for to, settings, message in (
    ("gguf-lora", None, "carries no adapter; --to=gguf writes the whole model"),
    (
      "gguf-lora",
      {"method": "ia3"},
      "method 'ia3' is none that llama.cpp reads (LoRA alone); --to=gguf merges it",
    ),
    ("gguf-lora", {"method": "lora", "target": decoder, "options": {"dora": True}}, "has a magnitude (DoRA)"),
    ("gguf-lora", {"method": "lora", "target": r".*vision_model.*\.q_proj"}, "nothing in the decoder"),
    (
      "gguf-lora",
      {"method": "lora", "target": decoder, "full": r"model\.text_model\.norm"},
      "decoder.norm.scale is trained too",
    ),
    ("gguf", {"method": "prefix"}, "method 'prefix' cannot be merged; --to=adapter writes it"),
    ("gguf", {"method": "prompt"}, "method 'prompt' cannot be merged; --to=adapter writes it"),
  ):
    other = vlm if settings is None else tiny_edge.adapted(vlm, **settings)
    with pytest.raises(UserError, match=re.escape(message)):
      exported(other, folder, tmp_path / "a", to=to)
  assert not list(tmp_path.iterdir())
