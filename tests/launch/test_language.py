"""A language model by itself as users have it: chat, LoRA on text, its folder, and what it refuses."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import spatialvlm
from spatialvlm import hub
from spatialvlm.core.axes import make_mesh
from spatialvlm.data.sources.cvbench import write_cvbench
from spatialvlm.evaluation.records import read
from spatialvlm.models.families import FAMILIES
from spatialvlm.models.outputs import Wants
from spatialvlm.processing import processor_family
from spatialvlm.training.objectives import DepthProbe
from spatialvlm.types import Note, UserError
from tests.evaluation.support import questions
from tests.launch import bad_files, command
from tests.models.support import batch_of, call
from tests.tiny_language import write_checkpoint, write_words

pytestmark = pytest.mark.slow  # `make oracle` runs them


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return write_checkpoint(tmp_path_factory.mktemp("language") / "model")


def test_both_tables_know_the_same_language_models():
  models = {name for name, family in FAMILIES.items() if not family.vision}
  (texts,) = (family for family in processor_family.FAMILIES if not family.images)
  assert models == set(texts.model_types)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma", "gemma2"])
def test_a_saved_folder_is_the_same_model(kind, tmp_path):
  first = write_checkpoint(tmp_path / "a", kind)
  vlm = hub.load_model(first)
  assert vlm.vision is None and vlm.connector is None
  again = hub.load_model(hub.save_model(vlm, tmp_path / "b", first))
  ids = np.arange(24).reshape(2, 12)
  batch = batch_of({"input_ids": ids, "attention_mask": ids >= 0}, -1)
  assert np.array_equal(call(vlm, batch), call(again, batch))
  if kind == "llama":
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    sharded = hub.load_model(first, mesh=mesh)
    with jax.set_mesh(mesh):
      np.testing.assert_allclose(call(sharded, batch), call(vlm, batch), atol=2e-5)
    alone = batch_of({"input_ids": ids[1:], "attention_mask": ids[1:] >= 0}, -1)
    np.testing.assert_allclose(call(vlm, alone), call(vlm, batch)[1:], atol=2e-5)


def test_chat_is_the_template_and_stops_where_it_ends_an_answer(capfd, folder):
  vlm = spatialvlm.load_vlm(folder)
  encoded = vlm.processor.encode_prompt((), "Which is closer?")
  text = vlm.processor.decode(encoded.tokens, skip_special_tokens=False)
  assert text == (
    "<|im_start|>system\nYou are a box.<|im_end|>\n<|im_start|>user\nWhich is closer?<|im_end|>\n"
    "<|im_start|>assistant\n"
  )
  end = vlm.processor.tokenizer.token_to_id("<|im_end|>")
  assert vlm.processor.stop_ids == (end,) and vlm.processor.end_id == end
  done = command.run(capfd, "chat", f"--model={folder}", "--max_new_tokens=4", "Which is closer?")
  assert (done.code, done.err) == (0, "")
  assert done.out.strip() == vlm.chat(None, "Which is closer?", max_new_tokens=4)


def test_a_base_model_continues_a_text(tmp_path):
  with pytest.warns(Note, match="no chat template: prompts are continued as they stand, to <|im_end|>"):
    vlm = spatialvlm.load_vlm(write_checkpoint(tmp_path / "base", "base"))
    encoded = vlm.processor.encode_prompt((), "The sphere is")
  assert vlm.processor.decode(encoded.tokens, skip_special_tokens=False) == "The sphere is"


def test_lora_on_conversations_without_images(capfd, folder, tmp_path):
  data = bad_files.write_talk(tmp_path / "talk.jsonl", 12, answer="The sphere is left of the cube.")
  settings = {
    "model.path": folder,
    "data.sources.own.kind": "llava",
    "data.sources.own.path": data,
    "data.lengths": "(96,)",
    "data.workers": 0,
    "train.steps": 6,
    "train.batch_size": 4,
    "train.log_every": 2,
    "optim.learning_rate": 1e-2,
    "optim.warmup_steps": 0,
    "mesh.data": 2,
    "mesh.fsdp": 2,
    "mesh.tensor": 2,
    "log.tensorboard": "false",
  }
  flags = [f"--config.{key}={value}" for key, value in settings.items()]
  done = command.run(capfd, "train", "--config=lora:text", f"--workdir={tmp_path}/w", *flags)
  assert done.code == 0, done.err
  rows = [json.loads(line) for line in (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()]
  losses = [row["loss"] for row in rows if "loss" in row]
  assert losses[-1] < losses[0] - 0.1
  said = json.loads((tmp_path / "w" / "adapter" / "adapter_config.json").read_text())
  assert "model.layers.1.mlp.down_proj" in said["target_modules"] and len(said["target_modules"]) == 14
  run, merged = (spatialvlm.load_vlm(path) for path in (tmp_path / "w", tmp_path / "w" / "model"))
  ids = np.arange(12)[None]
  np.testing.assert_allclose(run.logits(ids), merged.logits(ids), atol=2e-4)
  assert np.abs(run.logits(ids) - spatialvlm.load_vlm(folder).logits(ids)).max() > 1e-2


def test_questions_about_images_are_asked_without_them(capfd, folder, tmp_path, refused):
  """The baseline of a model that cannot see; every row is what `score_choices` gives of the text alone."""
  asked = questions(count=6, images=2)
  write_cvbench(tmp_path / "table.parquet", asked)
  settings = {"model.path": folder, "data.path": tmp_path / "table.parquet", "score.bootstrap": 10}
  flags = ["--config=cvbench", *(f"--config.{key}={value}" for key, value in settings.items())]
  done = command.run(capfd, "evaluate", *flags, f"--workdir={tmp_path}/w")
  assert done.code == 0 and "(text alone)" in done.out, done.err
  assert "note: a language model by itself reads no images: every question is asked without" in done.err
  rows = read(tmp_path / "w")
  vlm = spatialvlm.load_vlm(folder)
  for row, question in zip(sorted(rows, key=lambda row: row.idx), asked, strict=True):
    alone = vlm.score_choices(None, question.prompt.replace("<image>", ""), question.choices, letters=True)
    np.testing.assert_allclose(row.logprobs, alone, atol=1e-4)
  refused("'grey' changes the images", "evaluate", *flags, "--config.score.controls=('grey',)")


def test_what_needs_eyes_is_refused_by_name(folder, tmp_path, refused):
  talk = bad_files.write_talk(tmp_path / "talk.jsonl", 4)
  Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "a.png")
  seen = bad_files.write_talk(tmp_path / "seen.jsonl", 4, image="a.png")
  refused(
    "a language model by itself reads no images",
    "chat",
    f"--model={folder}",
    f"--image={tmp_path}/a.png",
    "?",
  )
  refused("an <image> mark in the text", "chat", f"--model={folder}", "<image>?")
  refused("max_tiles=1: a language model cuts no images", "chat", f"--model={folder}", "--max_tiles=1", "?")
  train = ["train", "--config=lora:text", f"--config.model.path={folder}"]
  source = lambda path: ["--config.data.sources.own.kind=llava", f"--config.data.sources.own.path={path}"]
  refused("a language model by itself reads no images", *train, *source(seen))
  depth = ["--config.losses.depth.kind=depth_probe", "--config.losses.depth.target=depth"]
  refused("config.losses.depth: ", *train, *source(talk), *depth)
  refused("data.sources: empty", *train)
  with pytest.raises(UserError, match=r"config\.losses: reads what a model makes of images"):
    DepthProbe().check(hub.load_model(folder).config)
  with pytest.raises(UserError, match=r"a language model by itself .llama., which has no vision"):
    spatialvlm.load_encoder(folder)
  vlm = spatialvlm.load_vlm(folder)
  with pytest.raises(UserError, match="reads no images"):
    vlm.logits([[1, 2]], pixel_values=np.ones((1, 1, 3, 16, 16)))
  with pytest.raises(UserError, match="no vision encoder"):
    vlm.read(Wants(vision=True), [[1, 2]])
  with pytest.raises(UserError, match="reads no images"):
    vlm.processor(text="a", images=[np.zeros((20, 20, 3), np.uint8)])


def test_a_setting_that_is_not_computed(tmp_path, refused):
  folder = write_checkpoint(tmp_path / "model", "gemma")
  bad_files.edit_json(folder / "config.json", use_bidirectional_attention=True)
  refused("use_bidirectional_attention is not computed here", "chat", f"--model={folder}", "?")


def test_a_template_that_ends_an_answer_by_no_special_token(tmp_path, refused):
  folder = write_checkpoint(tmp_path / "model")
  (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}\n{% endfor %}")
  refused("the chat template ends an answer by .*no special token", "chat", f"--model={folder}", "?")
  write_words(folder, "base")
  (folder / "chat_template.jinja").unlink()
  bad_files.edit_json(folder / "tokenizer_config.json", eos_token="</s>")
  refused("neither a chat template nor an eos_token", "chat", f"--model={folder}", "?")
