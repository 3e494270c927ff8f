"""Distillation by the command line: teachers of every kind, interrupted, and what cannot teach."""

import json
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.launch import command, tiny
from tests.launch.bad_files import edit_json
from tests.tiny_model import write_checkpoint

pytestmark = pytest.mark.slow  # `make oracle` runs them

ADAPTER = "adapter/adapter_model.safetensors"
ADDED = re.compile(r"(\d+) examples, (\d+) of them new")
ONLY = ["--config.losses.answer.weight=0", "--config.losses.teach.kind=distil"]


def metrics(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def filled(text, places):
  for name, place in places.items():
    text = text.replace(f"{{{name}}}", str(place))
  return text


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  """Another model of the same tokenizer: of one layer more."""
  return write_checkpoint(tmp_path_factory.mktemp("teacher"), seed=3, depth=2, longest_edge=16, split=False)


def test_from_another_model_interrupted_and_continued(world, teacher, tmp_path, typed, capfd):
  settings = [*ONLY, f"--config.teachers.teacher.path={teacher}", "--config.optim.learning_rate=0.01"]
  done = typed("train", *settings)
  assert done.code == 0, done
  workdir = tmp_path / "run"
  rows = metrics(workdir)
  assert rows[-1]["teach/loss"] < rows[0]["teach/loss"] and 0 <= rows[0]["teach/agreement"] <= 1
  assert json.loads((workdir / "identity.json").read_text())["teachers"]["teacher"]
  done = typed("train", *settings)
  assert done.code == 0 and "this run is finished" in done.out, done
  copy = shutil.copytree(workdir, tmp_path / "copy")
  (copy / "summary.json").unlink()
  for name in ("checkpoints/3", "adapter", "model"):
    shutil.rmtree(copy / name)
  again = [f"--config={world}/train.py", *settings, f"--workdir={copy}"]
  assert command.run(capfd, "train", *again).code == 0
  one, other = load_file(workdir / ADAPTER), load_file(copy / ADAPTER)
  assert all(np.array_equal(one[name], other[name]) for name in one)


def test_from_the_model_itself_and_from_its_adapter(world, typed, tmp_path):
  """A fresh adapter says what its base says; another adapter of the base is a teacher, too."""
  done = typed("train", *ONLY, "--config.losses.teach.kwargs.teacher=base", "--config.train.steps=1")
  assert done.code == 0, done
  row = metrics(tmp_path / "run")[0]
  assert row["teach/loss"] == pytest.approx(0, abs=1e-6) and row["teach/agreement"] == 1
  shutil.rmtree(tmp_path / "run")
  adapted = {"path": world / "model", "adapter": world / "adapter"}
  adapted = [f"--config.teachers.teacher.{key}={place}" for key, place in adapted.items()]
  done = typed("train", *ONLY, *adapted, "--config.train.steps=1")
  assert done.code == 0 and metrics(tmp_path / "run")[0]["teach/loss"] == pytest.approx(0, abs=1e-5), done


def test_from_a_cache_as_from_the_teacher_itself(world, teacher, typed, tmp_path, capfd):
  """With all of the vocabulary kept the run is the same; what is damaged or missing is said and made."""
  folder = tmp_path / "taught"
  data = f"--config.data.sources.own.path={tiny.write_data(tmp_path)}"
  settings = [*ONLY, data, f"--config.teachers.teacher.path={teacher}", "--config.optim.learning_rate=0.01"]
  cached = [*settings, f"--config.teachers.teacher.cache={folder}", "--config.teachers.teacher.top=9999"]
  teach = lambda *more: command.run(capfd, "teach", f"--config={world}/train.py", *cached, *more)
  done = typed("train", *cached)
  assert done.code == 2 and "holds nothing of own[" in done.err and done.err.count("\n") == 1, done
  assert not (tmp_path / "run").exists()
  done = teach()
  assert done.code == 0, done
  # The run reads six examples, some of them equal: those are asked about once.
  (count,) = {int(a) for a, b in ADDED.findall(done.out) if a == b}
  assert 1 < count <= 6
  done = typed("train", *cached)
  assert done.code == 0, done
  from_cache = metrics(tmp_path / "run")
  shutil.rmtree(tmp_path / "run")
  assert typed("train", *settings).code == 0
  for ours, theirs in zip(from_cache, metrics(tmp_path / "run"), strict=True):
    for name in ("teach/loss", "teach/agreement", "teach/teacher_accuracy", "grad_norm"):
      assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6), name
  file = folder / "logits-00000.safetensors"
  file.write_bytes(file.read_bytes()[:-30])
  done = teach()
  assert (
    done.code == 0
    and f"{file}: damaged (" in done.out
    and f"{count} examples, {count} of them new" in done.out
  ), done
  done = teach()
  assert done.code == 0 and f"{count} examples, 0 of them new" in done.out, done
  done = teach("--config.teachers.teacher.top=2")
  assert done.code == 2 and "of another teacher or other settings (top differ)" in done.err, done


def test_an_average_or_the_base_sees_plain_pictures_where_the_model_sees_others(world, typed, tmp_path):
  settings = {
    "losses.answer.weight": 0,
    "data.sources.own.path": tiny.write_data(tmp_path),
    "data.augment.brightness": 0.8,
    "data.augment.noise": 60,
    "optim.ema": 0.5,
    "optim.learning_rate": 0.05,
    "train.steps": 3,
  }
  for name, path, plain in (("slow", "ema", True), ("own", "base", True), ("same", "base", False)):
    settings |= {f"teachers.{name}.path": path, f"teachers.{name}.plain": plain}
    settings |= {f"losses.{name}.kind": "distil", f"losses.{name}.kwargs.teacher": name}
  settings |= {"losses.eyes.kind": "distil_hidden", "losses.eyes.kwargs.teacher": "own"}
  settings |= {"losses.eyes.kwargs.at": "image", "losses.eyes.kwargs.measure": "cosine"}
  done = typed("train", *(f"--config.{key}={value}" for key, value in settings.items()))
  assert done.code == 0, done
  first, *_, last = metrics(tmp_path / "run")
  # At first all are the same model, and what differs is the picture that it sees; then they part.
  assert first["slow/loss"] == pytest.approx(first["own/loss"], rel=1e-3) and first["own/loss"] > 1e-6
  assert first["same/loss"] == pytest.approx(0, abs=1e-6) and last["same/loss"] > 1e-6
  assert first["eyes/loss"] > 1e-6  # image tokens are matched one by one, of the same tiles in other light
  assert abs(last["slow/loss"] - last["own/loss"]) > 1e-7


def test_told_sharper_and_by_its_states(world, teacher, typed, tmp_path):
  """Teachers that read otherwise, and all kinds of losses in one step; as much with the tower in the step."""
  file = tiny.write_data(tmp_path)
  rows = [json.loads(line) for line in file.read_text().splitlines()]
  file.write_text("".join(json.dumps(row | {"facts": "a red box"}) + "\n" for row in rows))
  settings = {
    "data.sources.own.path": file,
    "data.lengths": (96, 192),
    "data.tiles": (1, 5),
    "losses.answer.weight": 0,
    "teachers.told.prompt": "{facts} {prompt}",
    "losses.told.kind": "distil",
    "losses.told.kwargs.teacher": "told",
    "losses.told.kwargs.beta": 0.5,
    "losses.states.kind": "distil_hidden",
    "losses.states.kwargs.teacher": "told",
    "losses.states.kwargs.at": "image",
    "teachers.sharp.split_images": True,
    "teachers.sharp.longest_edge": 32,
    "losses.sharp.kind": "distil",
    "losses.sharp.kwargs.teacher": "sharp",
    "teachers.other.path": teacher,
    "losses.other.kind": "distil",
    "losses.other.kwargs.teacher": "other",
    "losses.relations.kind": "distil_relations",
    "losses.relations.kwargs.teacher": "base",
    "train.steps": 2,
  }
  arguments = [f"--config.{key}={value}" for key, value in settings.items()]
  done = typed("train", *arguments)
  assert done.code == 0, done
  first = metrics(tmp_path / "run")[0]
  # What is told or seen makes a difference, where the plain base would make none.
  assert min(first[f"{name}/loss"] for name in ("told", "sharp", "other")) > 1e-4
  # What is told stands behind the picture: its tokens, wherever they stand, are the same.
  assert first["states/loss"] == pytest.approx(0, abs=1e-5)
  assert first["relations/loss"] == pytest.approx(0, abs=1e-5)
  assert (tmp_path / "run/heads/states.safetensors").is_file()
  shutil.rmtree(tmp_path / "run")
  done = typed("train", *arguments, "--config.train.cache_vision=off", "--config.train.steps=1")
  assert done.code == 0, done
  again = metrics(tmp_path / "run")[0]
  for name in (name for name in first if name.endswith("/loss") or name == "grad_norm"):
    assert again[name] == pytest.approx(first[name], rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], r"config\.losses\.teach: asks a teacher 'teacher', but config\.teachers has none; .*\.path"),
    (["--config.teachers.other.path={teacher}"], r"has none; did you mean 'other'\?"),
    (
      ["--config.losses.teach.kwargs.teacher=base", "--config.teachers.x.path={teacher}"],
      r"config\.teachers\.x: no loss asks it",
    ),
    (["--config.teachers.teacher.path=/nowhere"], r"config\.teachers\.teacher: /nowhere: no such folder"),
    (
      ["--config.teachers.teacher.path={world}/adapter"],
      r"; give the base as config\.teachers\.teacher\.path",
    ),
    (["--config.teachers.teacher.path={small}"], r"has a vocabulary of \d+, smaller than the \d+ of"),
    (["--config.teachers.teacher.path={words}"], r"has another tokenizer than the model \('.*' .* here\)"),
    (["--config.teachers.teacher.dtype=bfloat16"], r"teacher\.dtype: with path 'base' it is the run's own"),
    (
      ["--config.teachers.teacher.path={teacher}", "--config.teachers.teacher.dtype=float16"],
      r"config\.teachers\.teacher\.dtype: 'float16' is not offered",
    ),
    (
      ["--config.teachers.teacher.prompt=x"],
      r"teacher\.prompt: 'x' leaves the question out; write \{prompt\}",
    ),
    (["--config.teachers.teacher.prompt={facts} {prompt}"], r"has \{facts\}, but this example says none"),
    (
      [
        "--config.teachers.teacher.cache=x",
        "--config.losses.teach.kwargs.beta=1",
        "--config.losses.teach.kwargs.temperature=0.9",
      ],
      r"losses\.teach\.kwargs\.temperature: a cache holds the teacher's likeliest tokens alone",
    ),
    (
      [
        "--config.teachers.teacher.cache=x",
        "--config.losses.reward.kind=grpo",
        "--config.phases.own.kind=rollouts",
        "--config.phases.own.kwargs.group=2",
      ],
      r"config\.teachers\.teacher\.cache: config\.phases\.own samples answers, of which no cache can know",
    ),
    (["--config.teachers.teacher.plain=true"], r"teacher\.plain: config\.data\.augment is not set, so that"),
    (
      ["--config.teachers.teacher.cache=x", "--config.data.augment.blur=1"],
      r"teacher\.cache: config\.data\.augment changes pictures anew each time",
    ),
    (
      ["--config.teachers.teacher.plain=true", "--config.data.augment.flip=0.5"],
      r"teacher\.plain: config\.data\.augment\.flip moves what the pictures show",
    ),
    (
      ["--config.teachers.teacher.prompt={facts} {prompt}", "--config.data.augment.roll=5"],
      r"teacher\.prompt: has \{facts\}, of which nobody knows .*turned by config\.data\.augment\.roll",
    ),
    (
      ["--config.losses.teach.kwargs.teacher=base", "--config.data.augment.hue=0.7"],
      r"config\.data\.augment\.hue: 0\.7 is out of range",
    ),
    (["--config.teachers.teacher.path=ema"], r"teacher\.path: 'ema' is the moving average of the run"),
    (
      ["--config.teachers.teacher.path=ema", "--config.optim.ema=0.9", "--config.teachers.teacher.cache=x"],
      r"teacher\.cache: the moving average changes with every step",
    ),
    (
      ["--config.teachers.teacher.path=ema", "--config.optim.ema=0.9", "--config.teachers.teacher.adapter=x"],
      r"teacher\.adapter: with path 'ema' it is the run's own model; leave it out",
    ),
    (["--config.teachers.teacher.prompt={depth} {prompt}"], r"has \{depth\}, but this example has no depth"),
    (
      ["--config.teachers.teacher.path={teacher}", "--config.teachers.teacher.mesh.fsdp=3"],
      r"config\.teachers\.teacher\.mesh: mesh data=-1, fsdp=3, tensor=1 does not fit 1 device\(s\)",
    ),
    (
      ["--config.teachers.teacher.path={teacher}", "--config.teachers.teacher.mesh.cpu_devices=2"],
      r"teacher\.mesh\.cpu_devices: the devices are the run's",
    ),
    (
      ["--config.losses.teach.kwargs.teacher=base", "--config.teachers.base.mesh.fsdp=8"],
      r"config\.teachers\.base\.mesh: with path 'base' it is the run's own model; leave it out",
    ),
    (["--config.teachers.teacher.top=0"], r"config\.teachers\.teacher\.top: 0; one token at least"),
    (["--config.losses.teach.kwargs.bet=1"], r"config\.losses\.teach\.kwargs\.bet: .*did you mean 'beta'"),
    (["--config.teachers.teacher.pth=x"], r"config\.teachers\.teacher\.pth: .*did you mean 'path'"),
  ],
)
def test_what_cannot_teach(refused, world, teacher, tmp_path_factory, arguments, message):
  places = {"teacher": teacher, "world": world}
  if "{small}" in str(arguments):
    places["small"] = shutil.copytree(teacher, tmp_path_factory.mktemp("small") / "model")
    said = json.loads((places["small"] / "config.json").read_text())["text_config"]
    edit_json(places["small"] / "config.json", text_config=said | {"vocab_size": said["vocab_size"] - 1})
  if "{words}" in str(arguments):
    places["words"] = shutil.copytree(teacher, tmp_path_factory.mktemp("words") / "model")
    file = places["words"] / "tokenizer.json"
    said = json.loads(file.read_text())
    vocab = said["model"]["vocab"]
    first, second = sorted(vocab, key=vocab.get)[10:12]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    file.write_text(json.dumps(said))
  refused(message, "train", *ONLY, *(filled(argument, places) for argument in arguments))
