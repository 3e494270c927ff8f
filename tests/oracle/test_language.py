"""Language models by themselves against transformers and peft, on random weights."""

import json
import logging

import jax.numpy as jnp
import numpy as np
import peft as their_peft
import pytest
import torch
import transformers

import spatialvlm
from spatialvlm import hub, peft
from spatialvlm.config import PeftConfig, from_config_dict
from spatialvlm.models.outputs import Wants
from tests.models.support import batch_of, call, jit
from tests.oracle import reference
from tests.oracle.reference import assert_close, real

KINDS = {
  "llama": {},
  "llama-tied": {"tied": True},
  "llama-biases": {"text": {"attention_bias": True, "mlp_bias": True}},
  "qwen2": {},
  "gemma": {"tied": True},
  "gemma2": {"tied": True},
}
CASES = {
  "left": reference.cases()["left"],
  "right": reference.cases()["right"],
  "text": reference.cases()["text"],
}
CASES = {name: {key: case[key] for key in ("input_ids", "attention_mask")} for name, case in CASES.items()}


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
  """(theirs, ours, folder): one model twice, the second through the files of the first."""
  theirs = reference.build_language(request.param.partition("-")[0], **KINDS[request.param])
  folder = tmp_path_factory.mktemp(request.param)
  theirs.save_pretrained(folder)
  return theirs, hub.load_model(folder), folder


@pytest.mark.parametrize("name", CASES)
def test_logits(pair, name):
  theirs, ours, _ = pair
  case = CASES[name]
  got, wanted = np.asarray(call(ours, batch_of(case, -1))), reference.logits(theirs, case)
  assert np.abs(got - wanted)[real(case)].max() <= 1e-4
  assert_close(got[real(case)], wanted[real(case)])


def test_hidden_states(pair):
  theirs, ours, _ = pair
  case = CASES["left"]
  depth = ours.config.text.depth
  wants = Wants(hidden=True, decoder_layers=range(depth + 1))
  with torch.no_grad():
    *streams, last = theirs(**reference.tensors(case), output_hidden_states=True).hidden_states
  out = ours.read(batch_of(case, -1), wants)
  assert len(streams) == depth
  for layer, wanted in enumerate(streams):
    assert_close(np.asarray(out.decoder_layers[layer])[real(case)], wanted.numpy()[real(case)])
  assert_close(np.asarray(out.hidden)[real(case)], last.numpy()[real(case)])


def test_loss_and_gradients(pair):
  theirs, ours, _ = pair
  case = CASES["right"]
  reference.assert_loss_and_gradients(theirs, ours, case, case, reference.labels_of(case))


@pytest.mark.parametrize("name", ["left", "right"])
def test_cached_decoding_picks_the_same_tokens(pair, name):
  theirs, ours, _ = pair
  steps = 6
  options = dict(max_new_tokens=steps, min_new_tokens=steps, do_sample=False, eos_token_id=None)
  with torch.no_grad():  # theirs knows padding on the left alone
    wanted = theirs.generate(**reference.tensors(CASES["left"]), **options).numpy()[:, -steps:]
  batch = batch_of(CASES[name], -1)
  B, T = batch.tokens_BT.shape
  hidden, cache = jit(lambda batch: ours.prefill(batch, ours.init_cache(B, T + steps)))(batch)
  step = jit(lambda tokens, cache: ours.decode_step(tokens, cache))
  for i in range(steps):
    tokens = jnp.argmax(ours.unembed(hidden), axis=-1)
    np.testing.assert_array_equal(np.asarray(tokens), wanted[:, i])
    hidden, cache = step(tokens, cache)


def test_saved_folder_is_theirs_again(pair, tmp_path, caplog):
  theirs, ours, folder = pair
  hub.save_model(ours, tmp_path / "saved", folder)
  with caplog.at_level(logging.WARNING):
    logging.getLogger("transformers").propagate = True
    again, info = transformers.AutoModelForCausalLM.from_pretrained(
      tmp_path / "saved", output_loading_info=True, attn_implementation="eager"
    )
  assert type(again) is type(theirs) and not any(info.values()), info
  assert not [r for r in caplog.records if "weight" in r.getMessage() or "ignored" in r.getMessage()]
  for key, one in theirs.state_dict().items():
    assert torch.equal(one, again.state_dict()[key]), key
  assert json.loads((tmp_path / "saved" / "config.json").read_text())["model_type"] == ours.config.family


def test_a_base_model_without_head_is_tied(tmp_path):
  """As `AutoModel` saves it: no head, and names without a prefix."""
  theirs = reference.build_language("llama", tied=True)
  theirs.model.save_pretrained(tmp_path)
  ours = hub.load_model(tmp_path)
  case = CASES["text"]
  assert_close(call(ours, batch_of(case, -1))[real(case)], reference.logits(theirs, case)[real(case)])


LORA = {"method": "lora", "rank": 3, "alpha": 5.0}


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_our_adapter_in_peft_and_theirs_here(kind, tmp_path):
  from tests.oracle.test_peft import moved

  theirs = reference.build_language(kind, tied=kind != "llama")
  theirs.save_pretrained(tmp_path / "base")
  case = CASES["right"]
  logits = lambda vlm: np.asarray(call(vlm, batch_of(case, -1)))[real(case)]
  vlm = moved(peft.apply(hub.load_model(tmp_path / "base"), from_config_dict(LORA, PeftConfig)))
  expected, before = logits(vlm), reference.logits(theirs, case)[real(case)]
  assert np.abs(expected - before).max() > 1e-2
  folder = peft.save_adapter(vlm, tmp_path / "a", "some/base")
  load = lambda: transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / "base", attn_implementation="eager"
  )
  adapted = their_peft.PeftModel.from_pretrained(load(), folder).eval()
  assert_close(reference.logits(adapted, case)[real(case)], expected)
  # The other way round: what peft writes.
  adapted.save_pretrained(tmp_path / "b")
  again = peft.load_adapter(hub.load_model(tmp_path / "base"), tmp_path / "b")
  assert_close(logits(again), expected)
  hub.save_model(peft.merge(vlm), tmp_path / "merged", tmp_path / "base")
  whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", attn_implementation="eager")
  assert_close(reference.logits(whole.eval(), case)[real(case)], expected, 2e-5)


@pytest.fixture(scope="module", params=["qwen2", "llama", "gemma", "base"])
def whole(request, tmp_path_factory):
  """(theirs, folder, their tokenizer): a folder with tokenizer, and template but for "base"."""
  from tests.tiny_language import write_words

  folder = tmp_path_factory.mktemp(request.param)
  words = write_words(folder, request.param)
  kind = "llama" if request.param == "base" else request.param
  text = {"vocab_size": words.get_vocab_size() + 3, "max_position_embeddings": 512}
  theirs = reference.build_language(kind, tied=kind == "gemma", text=text)
  theirs.save_pretrained(folder)
  (folder / "generation_config.json").unlink(missing_ok=True)
  return theirs, folder, transformers.AutoTokenizer.from_pretrained(folder)


QUESTION = "Which box is red? (A) the sphere"


@pytest.mark.filterwarnings("ignore:.*no chat template")
def test_prompts_and_answers_are_theirs(whole):
  theirs, folder, words = whole
  vlm = spatialvlm.load_vlm(folder)
  if words.chat_template:
    said = words.apply_chat_template(
      [{"role": "user", "content": QUESTION}],
      add_generation_prompt=True,
      return_dict=True,
      return_tensors="pt",
    )
  else:
    said = words(QUESTION, return_tensors="pt")
  encoded = vlm.processor.encode_prompt((), QUESTION)
  np.testing.assert_array_equal(encoded.tokens, said["input_ids"][0].numpy())
  with torch.no_grad():
    stops = list(vlm.processor.stop_ids)
    tokens = theirs.generate(
      input_ids=said["input_ids"],
      max_new_tokens=8,
      do_sample=False,
      eos_token_id=stops,
      pad_token_id=stops[0],
    )
  got = vlm.generate(said["input_ids"].numpy(), max_new_tokens=8)[0]
  wanted = tokens[0, said["input_ids"].shape[1] :].numpy()
  np.testing.assert_array_equal(got[: len(wanted)], wanted)
  assert len(wanted) == 8 or wanted[-1] in stops
  assert isinstance(vlm.chat(None, QUESTION, max_new_tokens=8), str)
  # A call with a text is their tokenizer's, tokens of its own included.
  got = vlm.processor(text=[QUESTION, "a"])
  wanted = words([QUESTION, "a"], padding=True, padding_side=vlm.processor.padding_side)
  np.testing.assert_array_equal(got["attention_mask"], wanted["attention_mask"])
  mask = got["attention_mask"] == 1
  np.testing.assert_array_equal(got["input_ids"][mask], np.asarray(wanted["input_ids"])[mask])


@pytest.mark.filterwarnings("ignore:.*no chat template")
def test_choices_have_their_log_probabilities(whole):
  theirs, folder, _ = whole
  vlm = spatialvlm.load_vlm(folder)
  choices = ["red", "the blue box"]
  prompt = vlm.processor.encode_prompt((), QUESTION).tokens
  for choice, value in zip(choices, vlm.score_choices(None, QUESTION, choices), strict=True):
    answer = np.array(vlm.processor.answer_ids(choice))
    ids = torch.tensor(np.concatenate([prompt, answer])[None].astype(np.int64))
    with torch.no_grad():
      logp = theirs(input_ids=ids).logits.log_softmax(-1)[0, -len(answer) - 1 : -1]
    assert float(value) == pytest.approx(float(logp[range(len(answer)), answer].sum()), abs=1e-4)
