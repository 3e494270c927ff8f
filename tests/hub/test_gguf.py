"""GGUF files as folders: header, numbers, names, tokenizer, and what is refused."""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from tokenizers import Tokenizer

import spatialvlm
from spatialvlm import hub
from spatialvlm.hub.gguf import file as gguf_file
from spatialvlm.hub.gguf import folder as gguf_folder
from spatialvlm.hub.gguf import models as gguf_models
from spatialvlm.hub.gguf import words as gguf_words
from spatialvlm.hub.resolve import read_entries, resolve, weight_files
from spatialvlm.types import UserError
from tests import tiny_gguf, tiny_language
from tests.models.support import batch_of, call
from tests.tiny_encoder import write_encoder
from tests.tiny_text import write_text

RECORDED = Path(__file__).parents[1] / "recorded"
KINDS = ("llama", "qwen2", "gemma", "gemma2")
TEXTS = (
  "Which object is closer to the camera, the red box or the blue box?",
  "It's  a   test\n\n\nof 12345 digits,\ttabs and ümläuts: ñ, 漢字, 🙂!",
  "<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\n",
  "<start_of_turn>user\nA <end_of_turn>\n",
  " leading and trailing ",
  "e\u0301 \u00e9 \ufb01 IT'S we'll",
  "",
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  return tmp_path / "cache" / "spatialvlm" / "gguf"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """By kind, a Hugging Face folder whose embedding has three rows more than its tokenizer."""
  root = tmp_path_factory.mktemp("language")
  made = {}
  for kind in KINDS:
    words = tiny_language.tokenizer(kind)
    size = {"vocab_size": words.get_vocab_size() + 3, "hidden_size": 32, "intermediate_size": 64}
    if kind == "gemma2":
      size |= {"sliding_window": 5, "head_dim": 16, "query_pre_attn_scalar": 16}
    made[kind] = tiny_language.write_checkpoint(root / kind, kind, **size)
  return made


@pytest.fixture
def file(folders, tmp_path):
  return tiny_gguf.write(folders["llama"], tmp_path / "model.gguf")


def logits(vlm):
  ids = np.arange(3, 27).reshape(2, 12)
  return np.asarray(call(vlm, batch_of({"input_ids": ids, "attention_mask": ids >= 0}, -1)))


# What a file holds.


def test_the_header_is_what_the_library_reads(file):
  header, theirs = gguf_file.read_header(file), gguf.GGUFReader(file)
  keys = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
  assert header.keys == keys
  assert list(header.tensors) == [tensor.name for tensor in theirs.tensors]
  for tensor in theirs.tensors:
    ours = header.tensors[tensor.name]
    assert (ours.quant, ours.shape) == (tensor.tensor_type.name, tuple(map(int, tensor.shape[::-1])))
    assert (ours.start, ours.count) == (tensor.data_offset, tensor.n_bytes)


@pytest.mark.parametrize("quant", [*gguf_file.PLAIN, *gguf_file.BLOCKS])
def test_numbers_are_those_of_the_library(quant, tmp_path):
  """Blocks of random bits, their scales apart, which must be numbers."""
  kind = gguf.GGMLQuantizationType[quant]
  block, size = gguf.GGML_QUANT_SIZES[kind]
  rng, rows = np.random.default_rng(0), 5
  raw = rng.integers(0, 256, (rows, 512 // block * size), dtype=np.uint8)
  bits = raw.view(np.uint16)
  bits[...] = np.where((bits & 0x7C00) == 0x7C00, bits & 0x83FF, bits)  # no infinity of 16 bits, no NaN
  writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
  writer.add_tensor("x", raw, raw_dtype=kind)
  writer.add_tensor("y", rng.normal(size=3).astype(np.float32))
  writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file()
  writer.close()
  tensor = gguf_file.read_header(tmp_path / "a.gguf").tensors["x"]
  dtype = gguf_file.PLAIN.get(quant, "F32")
  entry = gguf_file.GgufEntry(tmp_path / "a.gguf", dtype, tensor.shape, tensor.start, tensor.count, quant)
  got, wanted = entry.read(), gguf.quants.dequantize(raw, kind)
  assert got.shape == (rows, 512)
  np.testing.assert_array_equal(got.astype(np.float32), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_the_model_of_its_folder(kind, folders, tmp_path, cache):
  file = tiny_gguf.write(folders[kind], tmp_path / "a.gguf")
  ours, wanted = hub.load_model(file), hub.load_model(folders[kind])
  assert ours.config.text == wanted.config.text and ours.config.family == kind
  np.testing.assert_allclose(logits(ours), logits(wanted), atol=1e-5)
  (folder,) = cache.iterdir()
  assert (folder / "model.gguf").is_symlink() and not list(folder.glob("*.safetensors"))


@pytest.mark.parametrize(("quant", "most"), [("F16", 5e-4), ("BF16", 4e-3), ("Q8_0", 5e-3), ("Q4_1", 0.07)])
def test_rounded_matrices_are_near_the_folders(quant, most, folders, tmp_path):
  file = tiny_gguf.write(folders["llama"], tmp_path / "a.gguf", quant)
  dtypes = set()
  for name, entry in read_entries(weight_files(resolve(file)))[0].items():
    wanted, dtypes = _stored(folders["llama"])[name], dtypes | {entry.dtype}
    error = np.abs(entry.read().astype(np.float32) - wanted).max() / np.abs(wanted).max()
    assert error <= most and (error > 0) == (wanted.ndim > 1), name
  assert dtypes == {"F32", gguf_file.PLAIN.get(quant, "F32")}
  if quant == "Q4_1":
    assert np.isfinite(logits(hub.load_model(file, dtype="bfloat16"))).all()


def _stored(folder) -> dict[str, np.ndarray]:
  return {name: entry.read() for name, entry in read_entries(weight_files(folder))[0].items()}


def test_the_scale_of_gemma_2s_scores(folders, tmp_path):
  """As llama.cpp has it: by a head's size, but for 46 layers, the 27B model, by the width over the heads."""
  for depth, scale in ((2, 16), (46, 8)):
    file = tiny_gguf.write(folders["gemma2"], tmp_path / "a.gguf", gemma2__block_count=depth)
    assert gguf_models.config_json(gguf_file.read_header(file))["query_pre_attn_scalar"] == scale


def test_names_go_both_ways():
  for kind, arch in gguf_models.ARCHITECTURES.items():
    for name, theirs in (*gguf_models._NAMES, *arch.names):
      name, theirs = (f"{x.replace('{i}', '17')}.weight" for x in (name, theirs))
      assert gguf_models.to_hf(name, kind) == theirs and gguf_models.to_gguf(theirs, kind) == name
  rows = np.arange(48).reshape(24, 2)
  np.testing.assert_array_equal(gguf_models.unpaired(gguf_models.paired(rows, 3), 3), rows)


def test_llama_3_rotation(folders, tmp_path):
  """The factors of each frequency that a converter writes for Llama 3.2, and others."""
  said = json.loads((folders["llama"] / "config.json").read_text())
  waves = 2 * np.pi * 5e5 ** (np.arange(0, 8, 2) / 8)
  smooth = (8192 / waves - 1.0) / (4.0 - 1.0)
  blended = 1 / ((1 - smooth) / 32 + smooth)
  factors = np.where(waves < 8192 / 4.0, 1.0, np.where(waves > 8192, 32.0, blended)).astype(np.float32)
  assert factors.max() == 32 and said["head_dim"] == 8
  for wrong in (False, True):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    for key, value in tiny_gguf._sizes(said | {"rope_theta": 5e5}).items():
      tiny_gguf._add(writer, f"llama.{key}", value)
    writer.add_tensor("token_embd.weight", np.zeros((said["vocab_size"], 32), np.float32))
    writer.add_tensor("rope_freqs.weight", factors * (1.0 + 0.1 * wrong * (factors < 32)).astype(np.float32))
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file()
    writer.close()
    header = gguf_file.read_header(tmp_path / "a.gguf")
    if wrong:
      with pytest.raises(UserError, match=r"rope_freqs\.weight: a rotation scaled otherwise"):
        gguf_models.config_json(header)
      continue
    rope = gguf_models.config_json(header)["rope_parameters"]
    assert rope == {
      "rope_type": "llama3",
      "rope_theta": 5e5,
      "factor": 32.0,
      "low_freq_factor": 1.0,
      "high_freq_factor": 4.0,
      "original_max_position_embeddings": 8192,
    }


# Its words.


@pytest.mark.parametrize("kind", KINDS[:3])
def test_texts_have_the_ids_of_the_folders_tokenizer(kind, folders, tmp_path):
  folder = resolve(tiny_gguf.write(folders[kind], tmp_path / "a.gguf"))
  ours, wanted = (Tokenizer.from_file(str(f / "tokenizer.json")) for f in (folder, folders[kind]))
  assert ours.get_vocab() == wanted.get_vocab()
  for text in TEXTS:
    for special in (False, True):
      one, other = (t.encode(text, add_special_tokens=special) for t in (ours, wanted))
      assert one.ids == other.ids, text
    assert ours.decode(one.ids) == wanted.decode(other.ids)


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_pieces_with_scores_are_sentencepieces_own(name):
  """Recorded by tests/oracle/record_sentencepiece.py."""
  recorded = json.loads((RECORDED / "sentencepiece.json").read_text(encoding="utf-8"))[name]
  made = gguf_words.files(gguf_file.Header("a.gguf", recorded["keys"], {}), 64)
  words = Tokenizer.from_str(json.dumps(made["tokenizer.json"]))
  for text, ids, said in recorded["cases"]:
    assert words.encode(text, add_special_tokens=False).ids == ids, text
    assert words.encode(text).ids == [2, *ids] and words.decode(ids) == said, text


def test_llama_3_cuts_digits_by_threes_and_takes_whole_words():
  words = Tokenizer.from_str(json.dumps(_tokenizer_of("llama-bpe")))
  pieces = [words.id_to_token(i) for i in words.encode("ab 12345", add_special_tokens=False).ids]
  # "ab" is a piece that no merge makes; merges alone would leave a and b.
  assert pieces == ["ab", "Ġ", "1", "2", "3", "4", "5"]
  assert words.pre_tokenizer.pre_tokenize_str("x 12345 it's")[1:4] == [
    ("Ġ", (1, 2)),
    ("123", (2, 5)),
    ("45", (5, 7)),
  ]
  assert words.encode("ab").ids[0] == words.token_to_id("<bos>")


def _tokenizer_of(pre: str) -> dict:
  alphabet = sorted({*"abcdeĠ12345", "<bos>"})
  tokens = [*alphabet, "ab", "cd"]
  keys = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": pre,
    "tokenizer.ggml.tokens": tokens,
    "tokenizer.ggml.token_type": [3 if t == "<bos>" else 1 for t in tokens],
    "tokenizer.ggml.merges": ["c d"],
    "tokenizer.ggml.bos_token_id": tokens.index("<bos>"),
  }
  return gguf_words.files(gguf_file.Header("a.gguf", keys, {}), 64)["tokenizer.json"]


# As a user has it.


def test_a_file_a_folder_with_one_and_a_folder_saved_from_it(file, tmp_path):
  vlm, inside = spatialvlm.load_vlm(file), spatialvlm.load_vlm(file.parent)
  assert vlm.folder == inside.folder == resolve(vlm.folder)
  answer = vlm.chat(None, "Which is closer?", max_new_tokens=4)
  assert answer == inside.chat(None, "Which is closer?", max_new_tokens=4)
  assert vlm.processor.stop_ids == (vlm.processor.tokenizer.token_to_id("<|im_end|>"),)
  saved = spatialvlm.load_vlm(vlm.save(tmp_path / "saved"))
  assert (tmp_path / "saved" / "model.safetensors").is_file()
  np.testing.assert_array_equal(saved.logits([[5, 6, 7]]), vlm.logits([[5, 6, 7]]))
  assert saved.chat(None, "Which is closer?", max_new_tokens=4) == answer


def test_weights_are_known_by_their_bytes_and_a_replaced_file_by_its_header(folders, file):
  before, folder = hub.identity(file), resolve(file)
  raw = bytearray(file.read_bytes())
  raw[-9] ^= 1
  file.write_bytes(raw)
  assert resolve(file) == folder and hub.identity(file)["sha256"] != before["sha256"]
  places = set()
  for name in ("one", "two"):
    tiny_gguf.write(folders["llama"], file, general__name=name)
    places.add(resolve(file))
  assert len(places | {folder}) == 3


def test_tensors_are_read_one_at_a_time(file, monkeypatch):
  read = []
  plain = gguf_file.GgufEntry.read
  monkeypatch.setattr(gguf_file.GgufEntry, "read", lambda self: read.append(self.count) or plain(self))
  entries, _ = read_entries(weight_files(resolve(file)))
  assert not read and "model.layers.1.self_attn.q_proj.weight" in entries
  entries["model.norm.weight"].read()
  assert read == [4 * 32]


def test_encoders_before_a_file_are_those_before_its_folder(tmp_path):
  write_text(tmp_path / "text")
  file = tiny_gguf.write(tmp_path / "text", tmp_path / "a.gguf", tokenizer__ggml__pre="gpt-2")
  write_encoder(tmp_path / "siglip", "siglip_vision_model", patch=4)
  make = lambda base: hub.assemble(base, [tmp_path / "siglip"], tmp_path / base.stem, connector="smolvlm")
  one, other = (_stored(make(base)) for base in (tmp_path / "text", file))
  assert one.keys() == other.keys() and "model.text_model.layers.1.self_attn.q_proj.weight" in one
  for name, tensor in one.items():
    np.testing.assert_array_equal(tensor, other[name], err_msg=name)
  ours, wanted = (spatialvlm.load_processor(tmp_path / name) for name in ("a", "text"))
  for text in TEXTS:
    assert ours(text)["input_ids"].tolist() == wanted(text)["input_ids"].tolist()


# What is refused.

BAD = {
  "another architecture": (
    dict(general__architecture="mamba"),
    "GGUF of the architecture 'mamba', which is not",
  ),
  "the vision half": (dict(general__architecture="clip"), "a vision tower and projector"),
  "an adapter": (dict(general__type="adapter"), "a LoRA adapter in GGUF"),
  "one of several": (dict(split__count=3), "one of 3 parts of a model"),
  "experts": (dict(llama__expert_count=8), "llama.expert_count = 8 is a setting that is not known here"),
  "a setting": (dict(llama__wkv__head_size=64), "llama.wkv.head_size = 64 is a setting that is not known"),
  "a scaled rotation": (
    dict(llama__rope__scaling__type="yarn"),
    "llama.rope.scaling.type = 'yarn' is a setting",
  ),
  "half a rotation": (dict(llama__rope__dimension_count=4), "keys, values and rotation differ in size"),
  "no depth": (dict(llama__block_count=None), "holds no llama.block_count"),
  "another vocabulary": (dict(llama__vocab_size=7), "llama.vocab_size says 7, but token_embd has"),
  "no tokenizer": (dict(tokenizer__ggml__model=None), "holds no tokenizer"),
  "no words": (dict(tokenizer__ggml__tokens=None), "holds no tokenizer"),
  "a kind of tokenizer": (
    dict(tokenizer__ggml__model="bert"),
    "a tokenizer of kind 'bert', which is not read",
  ),
  "a way to cut": (
    dict(tokenizer__ggml__pre="tekken"),
    "pre is 'tekken', a way to cut texts that is not known",
  ),
  "no way to cut": (dict(tokenizer__ggml__pre=None), "pre is None, a way to cut texts that is not known"),
  "a setting of words": (
    dict(tokenizer__ggml__remove_extra_whitespaces=True),
    "remove_extra_whitespaces is a",
  ),
  "no merges": (dict(tokenizer__ggml__merges=None), "merges does not fit its pieces"),
  "merges of others": (dict(tokenizer__ggml__merges=["§ §"]), "merges does not fit its pieces"),
  "few types": (dict(tokenizer__ggml__token_type=[1, 1]), "tokens and token_type do not fit each other"),
  "a token that is none": (dict(tokenizer__ggml__eos_token_id=9999), "eos_token_id 9999 is no piece"),
  "words for numbers": (
    dict(llama__context_length="long"),
    "llama.context_length holds 'long', which it cannot",
  ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_not_read(name, folders, tmp_path, cache):
  keys, message = BAD[name]
  file = tmp_path / "bad.gguf"
  if "general__architecture" in keys:
    writer = gguf.GGUFWriter(file, keys["general__architecture"])
    writer.add_tensor("x", np.zeros(4, np.float32))
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file()
    writer.close()
  else:
    tiny_gguf.write(folders["llama"], file, **keys)
  with pytest.raises(UserError) as refused:
    hub.load_model(file)
  assert str(file) in str(refused.value) and message in str(refused.value) and "\n" not in str(refused.value)
  assert not cache.exists()


def test_a_quantisation_and_a_tensor_that_are_not_read(folders, tmp_path, cache):
  file = tiny_gguf.write(folders["llama"], tmp_path / "bad.gguf", "MXFP4")
  with pytest.raises(UserError, match=r"is MXFP4, which is not read \(known: F32, F16, BF16, Q8_0, Q4_0"):
    hub.load_model(file)
  file = tiny_gguf.write(folders["qwen2"], tmp_path / "bad.gguf")
  raw = file.read_bytes()
  file.write_bytes(raw.replace(b"blk.1.attn_q.bias", b"blk.1.attn_q.boas"))
  with pytest.raises(UserError, match=r"tensors that a qwen2 does not have here: blk\.1\.attn_q\.boas"):
    hub.load_model(file)
  file.write_bytes(raw.replace(b"blk.1.attn_q.bias", b"blk.7.attn_q.bias"))
  with pytest.raises(UserError, match=r"layers\.7\.self_attn\.q_proj\.bias: no place for it in this model"):
    hub.load_model(file)


def test_a_file_cut_anywhere_is_truncated(file, cache):
  whole = file.read_bytes()
  start = min(tensor.start for tensor in gguf_file.read_header(file).tensors.values())
  for size in (*range(0, 64), *range(64, start, 997), start, start + 5, len(whole) - 1):
    file.write_bytes(whole[:size])
    with pytest.raises(UserError, match=r"truncated|not a GGUF file"):
      resolve(file)
  assert not cache.exists()


def test_versions_byte_order_and_other_files(file, tmp_path):
  raw = bytearray(file.read_bytes())
  for change, message in (
    ({4: 1}, "version 1"),
    ({4: 0, 7: 3}, "of the other byte order"),
    ({0: 0}, "not a GGUF"),
  ):
    other = bytearray(raw)
    for at, byte in change.items():
      other[at] = byte
    file.write_bytes(other)
    with pytest.raises(UserError, match=message):
      resolve(file)
  (tmp_path / "b.gguf").write_bytes(raw)
  with pytest.raises(UserError, match=r"holds several GGUF files \(b\.gguf, model\.gguf\); name one of them"):
    resolve(tmp_path)


def test_the_library_is_asked_for_by_name(file, monkeypatch):
  monkeypatch.setitem(sys.modules, "gguf", None)
  with pytest.raises(UserError, match=r'GGUF needs the gguf library: pip install "spatialvlm\[gguf\]"'):
    resolve(file)


def test_one_file_of_a_hub_repository(file, tmp_path, monkeypatch):
  import huggingface_hub

  asked = []
  fetch = lambda repository, name, revision: asked.append((repository, name, revision)) or str(file)
  with pytest.raises(UserError, match=r"^some/one/b\.gguf: no such folder, not in the hub's cache"):
    resolve("some/one/b.gguf")
  with pytest.raises(UserError, match=r"^/nowhere/b\.gguf: no such file$"):
    resolve("/nowhere/b.gguf")
  monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
  assert resolve("some/one/sub/b.gguf", "v1") == resolve(file)
  assert asked == [("some/one", "sub/b.gguf", "v1")]


def test_a_full_disk_leaves_nothing(file, cache, monkeypatch):
  def full(self, target):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr("pathlib.Path.symlink_to", full)
  with pytest.raises(UserError, match=r"could not be written .No space left on device"):
    resolve(file)
  assert not list(cache.iterdir())
  assert gguf_folder.lies_in(file.parent) == file
