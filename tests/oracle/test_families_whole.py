"""InternVL and PaliGemma through everything a user does: chat, scores, LoRA, its folders, evaluation."""

import copy
import dataclasses
import json

import numpy as np
import peft
import pytest
import torch
import transformers
from PIL import Image

import spatialvlm
from spatialvlm import cli
from spatialvlm.config import (
  CVBenchConfig,
  DataConfig,
  EvalConfig,
  EvaluateConfig,
  LlavaConfig,
  ModelConfig,
  OptimConfig,
  PeftConfig,
  RunConfig,
  ScoreConfig,
  TrainConfig,
)
from spatialvlm.data.sources.cvbench import write_cvbench
from spatialvlm.evaluation.records import read
from spatialvlm.evaluation.run import run
from spatialvlm.training import one_run, runs, stages
from tests.evaluation import support
from tests.launch import tiny
from tests.models.support import tokens_per_tile
from tests.oracle import hf_processor, reference
from tests.tiny_encoder import write_encoder
from tests.tiny_families import write_internvl, write_paligemma

TEXT = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT |= {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
KINDS = {
  "internvl": ("qwen2", {}),
  "paligemma": ("gemma", {}),
  "paligemma2": ("gemma2", {"sliding_window": 6, "query_pre_attn_scalar": 8}),
}


def build(kind: str, folder):
  """A folder with processor and random weights; its model in transformers."""
  text_type, more = KINDS[kind]
  write = write_internvl if kind == "internvl" else write_paligemma
  write(folder)
  written = json.loads((folder / "config.json").read_text())
  vocabulary = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]) + 1400
  text = {**written["text_config"], **TEXT, **more, "model_type": text_type, "vocab_size": vocabulary}
  if kind == "internvl":
    config = transformers.InternVLConfig(
      text_config=text,
      vision_config={**VISION, **written["vision_config"], "attention_bias": True},
      image_token_id=written["image_token_id"],
      image_seq_length=written["image_seq_length"],
      tie_word_embeddings=False,
    )
    model = transformers.InternVLForConditionalGeneration(config)
  else:
    vision = {**VISION, **written["vision_config"], "vision_use_head": False}
    config = transformers.PaliGemmaConfig(
      text_config=text,
      vision_config={**vision, "model_type": "siglip_vision_model"},
      image_token_index=written["image_token_index"],
      projection_dim=24,
    )
    config._attn_implementation = "eager"
    model = transformers.PaliGemmaForConditionalGeneration(config)
  reference.randomise(model, seed=1)
  model.eval().save_pretrained(folder)
  return model


@pytest.fixture(scope="module", params=KINDS)
def made(request, tmp_path_factory):
  """(theirs, folder, ours, their processor)."""
  folder = tmp_path_factory.mktemp(request.param) / "model"
  theirs = build(request.param, folder)
  processor = hf_processor.load(folder, "internvl" if request.param == "internvl" else "paligemma")
  return theirs, folder, spatialvlm.load_vlm(folder), processor


def test_the_model_cuts_images_as_its_processor_does(made):
  _, _, ours, _ = made
  config, layout = ours.model.config, ours.processor.layout
  assert (layout.tile_size, layout.tokens_per_tile) == (config.vision.image_size, tokens_per_tile(config))
  assert (layout.image_token_id, layout.max_length) == (config.image_token_id, config.text.max_length)


def images():
  rng = np.random.default_rng(0)
  return [
    rng.integers(0, 256, (16, 16, 3), dtype=np.uint8),
    rng.integers(0, 256, (20, 44, 3), dtype=np.uint8),
  ]


def inputs(theirs, processor, count: int):
  """What transformers' processor makes of a prompt with `count` images, and ours, which must be the same."""
  pictures = [Image.fromarray(image) for image in images()[:count]]
  if theirs.config.model_type == "internvl":
    content = [{"type": "image"}] * count + [{"type": "text", "text": "Which box is red?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    text = text if isinstance(text, str) else text[0]
  else:
    text = "<image>" * count + "Which box is red?"
  given = {"text": [text], "return_tensors": "pt"} | ({"images": [pictures]} if count else {})
  arrays = dict(processor(**given))
  arrays.pop("labels", None)  # of no suffix: nothing but -100
  return arrays


@pytest.mark.parametrize("count", [1, 2])
def test_logits_and_greedy_tokens_from_their_arrays(made, count):
  theirs, _, ours, processor = made
  arrays = inputs(theirs, processor, count)
  with torch.no_grad():
    wanted = theirs(**arrays).logits.numpy()
    tokens = theirs.generate(
      **arrays, max_new_tokens=5, min_new_tokens=5, do_sample=False, eos_token_id=None
    ).numpy()
  named = {name: value.numpy() for name, value in arrays.items()}
  got = ours.logits(**named)
  assert np.abs(got - wanted).max() <= 1e-4
  new = ours.generate(**named, max_new_tokens=5, stop=False)
  np.testing.assert_array_equal(new, tokens[:, -5:])


def test_chat_says_what_theirs_generates(made):
  theirs, _, ours, processor = made
  for count in (0, 1, 2) if theirs.config.model_type == "internvl" else (1, 2):
    arrays = inputs(theirs, processor, count)
    with torch.no_grad():
      stops = list(ours.processor.stop_ids)
      tokens = theirs.generate(**arrays, max_new_tokens=6, do_sample=False, eos_token_id=stops)
    wanted = ours.processor.decode(tokens[0, arrays["input_ids"].shape[1] :].tolist()).strip()
    assert ours.chat(images()[:count], "Which box is red?", max_new_tokens=6) == wanted


def test_choices_have_their_log_probabilities(made):
  theirs, _, ours, processor = made
  arrays = inputs(theirs, processor, 1)
  choices = ["red", "the blue box"]
  got = ours.score_choices(images()[:1], "Which box is red?", choices)
  for choice, value in zip(choices, got, strict=True):
    answer = torch.tensor([ours.processor.answer_ids(choice)])
    more = dict(arrays)
    more["input_ids"] = torch.cat([arrays["input_ids"], answer], dim=1)
    more["attention_mask"] = torch.ones_like(more["input_ids"])
    if "token_type_ids" in arrays:
      more["token_type_ids"] = torch.cat([arrays["token_type_ids"], torch.ones_like(answer)], dim=1)
    with torch.no_grad():
      logp = theirs(**more).logits.log_softmax(-1)[0, -answer.shape[1] - 1 : -1]
    wanted = logp.gather(1, answer[0][:, None]).sum()
    assert float(value) == pytest.approx(float(wanted), abs=1e-4)


@pytest.fixture(scope="module")
def trained(made, one_device_unless_asked, tmp_path_factory):
  """A run of LoRA, scored before and after; its workdir."""
  _, folder, _, _ = made
  data = tmp_path_factory.mktemp("data")
  tiny.write_data(data)
  write_cvbench(data / "test.parquet", support.questions(count=6, images=3))
  source = {"own": LlavaConfig(path=str(data / "data.jsonl"))}
  questions = CVBenchConfig(path=str(data / "test.parquet"), split="test")
  score = dict(batch_size=4, lengths=(160,), tiles=(1,), bootstrap=10)
  config = RunConfig(
    name="whole",
    model=ModelConfig(path=str(folder), max_tiles=1)
    if "internvl" in str(folder)
    else ModelConfig(str(folder)),
    data=DataConfig(
      sources=source, validation=source, validation_size=4, lengths=(160,), tiles=(1,), workers=0
    ),
    peft=PeftConfig(
      method="lora", target=r".*language_model.*\.(q|v)_proj", full=r".*projector.*", options={"rank": 2}
    ),
    optim=OptimConfig(learning_rate=3e-2, schedule="constant", warmup_steps=0),
    train=TrainConfig(steps=4, batch_size=4, checkpoint_every=0, validate_every=4, log_every=2),
  )
  config = dataclasses.replace(config, eval=EvalConfig(source=questions, **score))
  workdir = tmp_path_factory.mktemp("run") / "w"
  return config, one_run.train(config, workdir), workdir


def test_a_trained_adapter_is_theirs_too(made, trained):
  """The PEFT folder on transformers' model, the merged folder in transformers, and ours: one model."""
  theirs, folder, base, processor = made
  _, _, workdir = trained
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  losses = [row["loss"] for row in rows if "loss" in row]
  assert losses[-1] < losses[0]
  arrays = inputs(theirs, processor, 1)
  named = {name: value.numpy() for name, value in arrays.items()}
  ours = spatialvlm.load_vlm(folder).load_adapter(workdir / "adapter").logits(**named)
  assert np.abs(ours - base.logits(**named)).max() > 1e-2
  adapted = peft.PeftModel.from_pretrained(copy.deepcopy(theirs), workdir / "adapter").eval()
  merged = type(theirs).from_pretrained(workdir / "model", attn_implementation="eager").eval()
  with torch.no_grad():
    for model in (adapted, merged):
      assert np.abs(model(**arrays).logits.numpy() - ours).max() <= 2e-4
  again = spatialvlm.load_vlm(workdir / "model").logits(**named)
  assert np.abs(again - ours).max() <= 2e-4


def test_both_stages_of_other_eyes(made, one_device_unless_asked, tmp_path, monkeypatch):
  """The recipe as it stands, on every family: its pictures, turns and lengths, with fewer of them."""
  _, folder, _, _ = made
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  encoder = write_encoder(tmp_path / "dino")
  flags = {"eval.source.size": 6, "eval.batch_size": 4, "eval.bootstrap": 10, "model.dtype": "float32"}
  for stage in ("1-connector", "2-lora"):
    train = dict(steps=2, batch_size=2, log_every=1, validate_every=2, checkpoint_every=0)
    flags |= {f"stages.{stage}.train.{key}": value for key, value in train.items()}
    flags[f"stages.{stage}.data.validation_size"] = 2
  overrides = [(key, str(value)) for key, value in flags.items()]
  config = cli.load(f"encoders:base={folder},encoder={encoder}", overrides, RunConfig)
  stages.train(config, tmp_path / "w")
  summary = json.loads((tmp_path / "w" / "2-lora" / "summary.json").read_text())
  assert summary["finished"] and len(read(tmp_path / "w" / "2-lora" / "evaluation" / "after")) == 6
  answer = spatialvlm.load_vlm(tmp_path / "w").chat(images()[:1], "Which box is red?", max_new_tokens=3)
  assert isinstance(answer, str)


def test_evaluation_by_every_protocol(made, trained, tmp_path):
  """The run itself and its merged folder answer alike, letters, texts and words."""
  config, _, workdir = trained
  score = dict(protocols=("native", "options", "vlmevalkit"), controls=("no_image", "circular"), new_tokens=4)
  score = ScoreConfig(batch_size=4, lengths=(160,), tiles=(1,), bootstrap=10, **score)
  rows = []
  for path in (workdir, workdir / "model"):
    wanted = EvaluateConfig(
      model=dataclasses.replace(config.model, path=str(path)), data=config.eval.source, score=score
    )
    rows.append(run(wanted, tmp_path / path.name, runs.find).all_rows)
  assert len(rows[0]) == len(rows[1]) > 6 * 4
  for one, other in zip(*rows, strict=True):
    assert one.output == other.output
    np.testing.assert_allclose(one.logprobs, other.logprobs, atol=2e-4)
