"""GGUF against transformers' own reading of it: small models, and the real SmolLM2 where it is at hand."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer

import spatialvlm
from spatialvlm.hub.resolve import resolve
from spatialvlm.processing import smolvlm_files
from tests import tiny_gguf, tiny_language

# `python launch/real_parts.py` brings it.
REAL = Path(os.environ.get("SMOLLM2_GGUF", "runs/real/parts/SmolLM2-135M-Instruct.Q4_1.gguf"))
RECORDED = Path(__file__).parents[1] / "recorded" / "smolvlm_token_ids.json"
real = pytest.mark.skipif(
  not REAL.is_file(), reason=f"no {REAL}: run `python launch/real_parts.py`, or set SMOLLM2_GGUF"
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def theirs_of(file: Path):
  return transformers.AutoModelForCausalLM.from_pretrained(
    file.parent, gguf_file=file.name, dtype=torch.float32, attn_implementation="eager"
  ).eval()


def compare(file: Path, ids: np.ndarray, new: int) -> None:
  """Logits, to 1e-4 of 10 or of a tenth of the largest, and greedy tokens."""
  theirs, ours = theirs_of(file), spatialvlm.load_vlm(file)
  with torch.no_grad():
    wanted = theirs(input_ids=torch.tensor(ids)).logits.numpy()
    tokens = theirs.generate(
      input_ids=torch.tensor(ids), max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0
    )[:, ids.shape[1] :]
  got = ours.logits(ids)
  assert np.abs(got - wanted).max() <= 1e-4 * max(1.0, np.abs(wanted).max() / 10)
  np.testing.assert_array_equal(ours.generate(ids, max_new_tokens=new, stop=False), tokens.numpy())


@pytest.mark.parametrize(("kind", "quant"), [("llama", "Q8_0"), ("qwen2", "Q4_1"), ("gemma2", "F16")])
def test_small_models(kind, quant, tmp_path):
  size = {"hidden_size": 32, "intermediate_size": 64, "rope_theta": 1e4}
  if kind == "gemma2":  # no key says how scores are scaled: transformers takes them to be 256 wide
    size |= {
      "query_pre_attn_scalar": 256,
      "head_dim": 256,
      "num_attention_heads": 2,
      "num_key_value_heads": 1,
    }
  folder = tiny_language.write_checkpoint(tmp_path / "model", kind, **size)
  file = tiny_gguf.write(folder, tmp_path / f"{kind}.gguf", quant)
  compare(file, np.arange(3, 27).reshape(2, 12), 6)


@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_a_folder_saved_from_a_file_is_theirs(kind, tmp_path):
  """Model, tokenizer and chat template."""
  folder = tiny_language.write_checkpoint(tmp_path / "model", kind)
  ours = spatialvlm.load_vlm(tiny_gguf.write(folder, tmp_path / "a.gguf"))
  saved = ours.save(tmp_path / "saved")
  theirs = transformers.AutoModelForCausalLM.from_pretrained(saved, attn_implementation="eager").eval()
  words = transformers.AutoTokenizer.from_pretrained(saved)
  asked = [{"role": "user", "content": "Which box is red?"}]
  ids = words.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)["input_ids"]
  assert ids == ours.processor.encode_prompt((), "Which box is red?").tokens.tolist()
  with torch.no_grad():
    wanted = theirs(input_ids=torch.tensor([ids])).logits.numpy()
  assert np.abs(ours.logits([ids]) - wanted).max() <= 1e-4
  assert theirs.generation_config.eos_token_id == [words.eos_token_id]


@real
def test_the_real_smollm2_is_theirs():
  words = spatialvlm.load_processor(REAL).tokenizer
  compare(REAL, np.array([words.encode("The capital of France is").ids]), 4)
  vlm = spatialvlm.load_vlm(REAL)
  assert (
    vlm.chat(None, "What is the capital of France?", max_new_tokens=12) == "The capital of France is Paris."
  )


@real
def test_the_real_tokenizer_has_smolvlms_ids():
  """Grown by SmolVLM's tokens, as a base of encoders it gives the published ids of 128 texts."""
  grown = Tokenizer.from_str(smolvlm_files.grow(resolve(REAL)).text)
  cases = json.loads(RECORDED.read_text())["cases"]
  assert len(cases) == 128
  for text, ids in cases:
    assert grown.encode(text, add_special_tokens=False).ids == ids, text
