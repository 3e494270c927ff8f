"""What users get wrong, through the commands: exit code 2, one line on stderr, nothing half-written."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from spatialvlm import hub, peft
from spatialvlm.config import CVBenchConfig, LlavaConfig, PeftConfig
from spatialvlm.data.sources.registry import open_questions, open_source
from spatialvlm.training import one_run
from spatialvlm.types import UserError
from tests.launch import bad_files
from tests.tiny_model import write_checkpoint

ROOT = Path(__file__).resolve().parents[2]


# Checkpoints and adapters.


@pytest.mark.parametrize("harm", bad_files.CHECKPOINTS)
def test_a_broken_checkpoint(world, tmp_path, refused, harm):
  change, message = bad_files.CHECKPOINTS[harm]
  model = bad_files.broken_copy(world / "model", tmp_path / "model", change)
  refused(message, "chat", f"--model={model}", "hello")
  if harm in ("no weights", "truncated", "wrong shapes", "unknown architecture", "no tokenizer"):
    refused(message, "evaluate", f"--config.model.path={model}")
    refused(message, "train", f"--config.model.path={model}")
  if harm in ("no image settings", "a group that is none"):
    refused(message, "inspect_data", f"--config.model.path={model}")
    refused(message, "skills", f"--model={model}")


def test_no_folder_and_no_network(tmp_path, refused):
  offline = "not in the hub's cache, and no network.*download it where there is a network"
  for command_, flag in (
    ("chat", "--model"),
    ("train", "--config.model.path"),
    ("evaluate", "--config.model.path"),
  ):
    question = ["hello"] if command_ == "chat" else []
    refused(r"nowhere: no such folder$", command_, f"{flag}={tmp_path}/nowhere", *question)
    refused(f"someone/else: no such folder, {offline}", command_, f"{flag}=someone/else", *question)
  refused("a file, where a folder", "chat", f"--model={__file__}", "hello")
  refused("data set 'someone/else' is neither a local path", "evaluate", "--config.data.path=someone/else")


@pytest.mark.parametrize("harm", bad_files.ADAPTERS)
def test_a_broken_adapter(world, tmp_path, refused, harm):
  change, message = bad_files.ADAPTERS[harm]
  adapter = bad_files.broken_copy(world / "adapter", tmp_path / "adapter", change)
  refused(message, "chat", f"--model={world}/model", f"--adapter={adapter}", "hello")


def test_an_adapter_of_another_base(world, tmp_path, refused):
  write_checkpoint(tmp_path / "deep", depth=2, longest_edge=16, split=False)
  deep = peft.apply(hub.load_model(tmp_path / "deep"), PeftConfig(options={"rank": 2}))
  adapter = peft.save_adapter(deep, tmp_path / "adapter")
  for name, flag in (("evaluate", "--config.adapter"), ("train", "--config.peft.resume_from")):
    refused("8 tensor.s. do not fit the model: .*no such linear layer", name, f"{flag}={adapter}")


# Settings.


@pytest.mark.parametrize(
  ("argument", "message"),
  [
    ("--config.optim.learning_rat=1", r"optim\.learning_rat: unknown key; did you mean 'learning_rate'\?"),
    ("--config.data.sources.own.pth=x", r"sources\.own\.pth: unknown key; did you mean 'path'\?"),
    ("--config.train.steps=many", r"config\.train\.steps: expected int, got 'many'"),
    ("--config.data.lengths=96", r"config\.data\.lengths: expected tuple, got 96"),
    (
      "--config=nothing.py",
      r"nothing\.py: no such file; recipes of ours are assemble, base, benchmarks, contrast, cvbench",
    ),
    ("--config=lra", r"no such recipe; did you mean 'lora'\?"),
    ("--workdr=x", r"Unknown command line flag 'workdr'\. Did you mean: workdir"),
    ("lora", "unexpected argument 'lora'"),
    ("--config.model.dtype=float16", "'float16' is not offered .*use float32 or bfloat16"),
    ("--config.model.attention=flash", "attention 'flash': expected xla, blocked, whole, cudnn or splash"),
    ("--config.model.attention=cudnn", "attention cudnn: needs an NVIDIA GPU and dtype bfloat16; use xla"),
    ("--config.mesh.tensor=3", r"mesh data=-1, fsdp=1, tensor=3 does not fit 8 device\(s\)"),
    ("--config.train.accumulation=3", r"batch_size: 2 is not divided by 1 shards .*use a multiple of 3"),
    ("--config.peft.target=.*q_porj", "matches no layer in full; did you mean '.*self_attn.q_proj'"),
    ("--config.peft.target=q_proj", r"names are matched as a whole: '\.\*q_proj\.\*' would find 2"),
    ("--config.peft.target=*q(", r"'\*q\(' is not a regular expression"),
    ("--config.optim.name=adamv", "unknown optimizer 'adamv'; did you mean 'adam"),
    ("--config.losses.answer.kind=answr", r"losses\.answer\.kind: unknown 'answr'; did you mean 'answer'"),
    ("--config.data.sources.own.kind=lava", r"own\.kind: unknown kind 'lava'; did you mean 'llava'"),
    ("--config.data.tiles=()", r"data\.tiles: buckets must be positive and ascend"),
  ],
)
def test_settings_of_a_training(refused, argument, message):
  refused(message, "train", argument)


@pytest.mark.parametrize(
  ("argument", "message"),
  [
    ("--config.score.batchsize=2", r"config\.score\.batchsize: unknown key; did you mean 'batch_size'\?"),
    ("--config.model.dtype=float16", "'float16' is not offered .*use float32 or bfloat16"),
    ("--config.mesh.data=3", r"does not fit 8 device\(s\)"),
    ("--config.score.protocols=('naive',)", "unknown protocol 'naive'; did you mean 'native'"),
    ("--config.score.controls=('gray',)", "unknown control 'gray'; did you mean 'grey'"),
    ("--config.data.kind=llava", r"data\.split: .*'llava' reads no split; kinds that do: cvbench, hf"),
    ("--config.data={'kind': 'llava', 'path': 'x'}", "kind 'llava' holds no questions"),
  ],
)
def test_settings_of_an_evaluation(refused, argument, message):
  refused(message, "evaluate", argument)


def test_a_recipe_that_gives_no_settings(tmp_path, refused):
  recipe = tmp_path / "list.py"
  recipe.write_text("def get_config():\n  return [1]\n")
  refused(
    r"get_config\(\) returns list, where RunConfig or ConfigDict is wanted", "train", f"--config={recipe}"
  )
  refused("--out is missing", "make_tiny")
  refused(r"x\.md: cannot be written", "skills", f"--out={recipe}/x.md")


def test_a_tilde_is_the_home_folder(world, refused, monkeypatch, tmp_path_factory):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
  monkeypatch.setenv("HOME", str(world))  # a shell leaves the one of --config.data.path=~/x as it is
  refused(f"^error: {world}/none: no such file or folder", "evaluate", "--config.data.path=~/none")
  own = "--config.data.sources.own"
  refused(f"^error: .*{world}/none.jsonl: no such file", "train", f"{own}.path=~/none.jsonl")
  refused("~/none: no such folder", "chat", "--model=~/none", "--image=~/good/rgb.png", "hello")


# Images.


def test_readable_images_are_read_rightly(world, tmp_path, typed):
  truth = bad_files.write_readable_images(tmp_path / "good")
  for name, wanted in truth.items():
    talk = bad_files.write_talk(tmp_path / "talk.jsonl", 1, image=f"good/{name}")
    (spoken,) = open_source(LlavaConfig(path=str(talk)))[0].images
    cell = {"bytes": (tmp_path / "good" / name).read_bytes(), "path": None}
    table = bad_files.write_table(tmp_path / "one.parquet", world / "table.parquet", image=cell)
    asked = open_questions(CVBenchConfig(path=str(table)))[0].images[0]
    np.testing.assert_array_equal(spoken, asked)
    assert spoken.shape == wanted.shape and spoken.dtype == np.uint8
    # JPEG is near, everything else exact.
    assert np.abs(spoken.astype(int) - wanted).mean() <= (3 if name.endswith(".jpg") else 0), name
  images = [f"--image={tmp_path}/good/{name}" for name in truth]
  done = typed("chat", f"--model={world}/model", *images, "--max_new_tokens=1", "Which is closer?")
  assert done.code == 0 and done.err == ""


def test_unreadable_images(world, tmp_path, refused):
  for name, message in bad_files.write_unreadable_images(tmp_path / "bad").items():
    file = tmp_path / "bad" / name
    refused(message, "chat", f"--model={world}/model", f"--image={file}", "Which is closer?")
    talk = bad_files.write_talk(tmp_path / "talk.jsonl", 3, image=f"bad/{name}")
    # The page is still written, and shows the sample: that is what it is for.
    refused(message, "inspect_data", f"--config.data.sources.own.path={talk}", "--scan=2", writes=True)
    cell = {"bytes": file.read_bytes(), "path": None} if file.exists() else {"bytes": None, "path": name}
    table = bad_files.write_table(tmp_path / "one.parquet", world / "table.parquet", 5, image=cell)
    with pytest.raises(UserError, match=rf"one\.parquet, row 5, column 'image': .*({message})"):
      open_questions(CVBenchConfig(path=str(table)))[5]


# Tables and lengths.


def test_tables_of_another_schema(world, tmp_path, refused):
  source, table = world / "table.parquet", tmp_path / "table.parquet"
  path = f"--config.data.path={table}"
  for name in ("choices", "image"):
    pq.write_table(pq.read_table(source).drop_columns([name]), table)
    refused(rf"table\.parquet: column '{name}' of CV-Bench's schema is missing", "evaluate", path)
  bad_files.write_table(table, source, 3, answer="(Z)")
  refused(r"table\.parquet, row 3, column 'answer': '\(Z\)' is not one of \(A\) to \(B\)", "evaluate", path)
  bad_files.write_table(table, source, 3, idx=100)
  refused(r"row 3, column 'idx': 100 stands already in .*row 0", "evaluate", path)
  pq.write_table(pq.read_table(source).slice(0, 0), table)
  refused(r"table\.parquet: holds no questions", "evaluate", path)
  table.write_bytes(source.read_bytes()[:2000])
  refused(r"table\.parquet: cannot be read as parquet", "evaluate", path)
  refused(r"none\.parquet: no such file or folder", "evaluate", f"--config.data.path={tmp_path}/none.parquet")


def test_a_prompt_longer_than_the_context(world, tmp_path, refused):
  long = "many words " * 300
  exceeds = "tokens .*exceed the model's context of 512; shorten the"
  refused(exceeds, "chat", f"--model={world}/model", long)
  table = bad_files.write_table(tmp_path / "t.parquet", world / "table.parquet", 9, prompt=long)
  refused(rf"t\.parquet, row 9, column 'prompt': .*{exceeds}", "evaluate", f"--config.data.path={table}")
  talk = bad_files.write_talk(tmp_path / "talk.jsonl", 3, answer="A cube. " * 60)
  path = f"--config.data.sources.own.path={talk}"
  refused(r"'own', example \d.*more than the longest sequence of 96; shorten", "train", path)


# What is no mistake of the user.


def test_a_mistake_of_ours_is_no_one_liner(typed, monkeypatch):
  def broken(*_):
    raise TypeError("ours")

  monkeypatch.setattr(one_run, "train", broken)
  with pytest.raises(TypeError, match="ours"):
    typed("train")


def test_only_foreign_code_may_raise_anything():
  """`except Exception` hides mistakes of ours, so it may stand around calls of other libraries alone."""
  allowed = {
    "spatialvlm/data/elsewhere.py": "pickled classes' own; a process's, handed to who asks it for a batch",
    "spatialvlm/data/sources/cvbench.py": "huggingface_hub, on the network",
    "spatialvlm/data/sources/hf_files.py": "datasets",
    "spatialvlm/data/sources/rgbd_files.py": "Pillow, NumPy and h5py on malformed bytes",
    "spatialvlm/processing/images.py": "Pillow on malformed bytes",
    "spatialvlm/processing/processor_files.py": "tokenizers raises bare Exception",
    "spatialvlm/worlds/pools.py": "handed on to every thread that waits, and raised there",
    "spatialvlm/once.py": "handed on to every thread that waits, and raised there",
    "spatialvlm/hub/resolve.py": "huggingface_hub, on the network",
    "spatialvlm/wheels/dinov2_onnx.py": "onnx, whose errors are protobuf's",
    "spatialvlm/cli/command.py": "told to all where several processes run, else raised again",
    "spatialvlm/cli/interrupts.py": "raised again, unless the user has interrupted the command",
    "spatialvlm/deployed/child.py": "a runtime's, in a process of its own, and said to the one that asked",
    "spatialvlm/plan/targets.py": "a compiler's plugin, which raises what it likes; told in one line",
    "spatialvlm/serving/lane.py": "of one request among many, and told to who asked it",
    "spatialvlm/serving/scheduler.py": "told to all who wait, and to the server's log",
    "spatialvlm/server/pictures.py": "Pillow on malformed bytes",
    "spatialvlm/server/service.py": "of one answer among many, and told to who asked for it",
    "spatialvlm/study/running.py": "printed, told by the run's name; the study goes on, and ends in 1",
    "spatialvlm/training/checkpoint.py": "Orbax; raised again unless the disk is full",
  }
  found = set()
  for file in [*(ROOT / "spatialvlm").rglob("*.py"), *(ROOT / "launch").glob("*.py")]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
      if isinstance(node, ast.ExceptHandler) and not _raises_again(node):
        caught = "" if node.type is None else ast.unparse(node.type)
        if caught == "" or re.search(r"\b(Base)?Exception\b", caught):
          found.add(str(file.relative_to(ROOT)))
  assert found <= set(allowed), found - set(allowed)


def _raises_again(handler):
  return isinstance(handler.body[-1], ast.Raise) and handler.body[-1].exc is None and len(handler.body) < 3


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["train", "--config=nothing.py"], "nothing.py: no such file"),
    (["chat", "--model=/nowhere", "hello"], "/nowhere: no such folder"),
  ],
)
def test_as_a_process_of_its_own(tmp_path, arguments, message):
  script = [sys.executable, ROOT / "launch" / f"{arguments[0]}.py", *arguments[1:]]
  done = subprocess.run(script, capture_output=True, text=True, timeout=300, cwd=tmp_path)
  assert done.returncode == 2 and done.stdout == "" and not list(tmp_path.iterdir())
  assert message in done.stderr and done.stderr.count("\n") == 1
