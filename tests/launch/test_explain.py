"""`launch/explain.py` as a user runs it."""

import json

import numpy as np
import pytest
from PIL import Image

from spatialvlm.causes import record as causes_record
from spatialvlm.inside import record
from tests import tiny_language
from tests.inside import support
from tests.launch import command
from tests.tiny_model import write_checkpoint

WORDS = "Which object is closer to the camera?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), longest_edge=32)


@pytest.fixture(scope="module")
def photo(folder):
  Image.fromarray(support.picture(32, 32)).save(folder / "photo.png")
  return folder / "photo.png"


def test_a_question_with_options(capfd, folder, photo, tmp_path):
  asked = [f"--model={folder}", f"--image={photo}", "--options=near,far", "--right=B", WORDS]
  done = command.run(capfd, "explain", *asked, f"--out={tmp_path / 'x'}")
  assert done.code == 0 and done.err == "", done.err
  assert done.out.startswith("says '") and f"page, record and drawings: {tmp_path}/x/explain.html" in done.out
  found = record.read(tmp_path / "x" / "record.npz")
  assert found.options == ("near", "far") and found.right == 1 and found.attention.shape[:2] == (1, 4)
  page = (tmp_path / "x" / "explain.html").read_text()
  assert "A near" in page and "closer" in page
  # The same words again: over what it has written itself, and with less.
  less = ["--layers=-1", "--noheads", "--nowords", "--norollout", "--nogradient", "--novision"]
  assert command.run(capfd, "explain", *asked, *less, f"--out={tmp_path / 'x'}").code == 0
  assert record.read(tmp_path / "x" / "record.npz").attention.shape[:3] == (1, 1, 1)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["hello"], "--model is missing"),
    (["--model={folder}", "hello"], "the question has no image; give one with --image=FILE"),
    (["--model={folder}", "--image={photo}"], "one question is wanted, got 0"),
    (["--model={folder}", "--image=/nowhere.png", "hello"], "/nowhere.png: no such image file"),
    (["--model={language}", "--image={photo}", "hello"], "without a vision tower: it looks at no picture"),
    (["--model={folder}", "--image={photo}", "--layers=9", "hello"], "layer 9: this decoder's attention has"),
    (["--model={folder}", "--image={photo}", "--layers=all", "hello"], "--layers: expected numbers"),
    (["--model={folder}", "--image={photo}", "--memory=0.0001", "hello"], "ask for less with --layers=8,16"),
    (["--model={folder}", "--image={photo}", "--right=A", "hello"], "no letter without --options"),
    (["--model={folder}", "--image={photo}", "--out={folder}", "hello"], "name another folder with --out"),
    (["--model={folder}", "--image={photo}", "--lens={out}/l", "hello"], "holds no tuned lens"),
    (["--model={folder}", "--image={photo}", "--fit_lens=8", "hello"], "add --lens=FOLDER"),
    (["--model={folder}", "--image={photo}", "--ids=3", "hello"], "--ids: belongs to --run"),
    (["--run={folder}", "--ids=3"], "holds no answers (predictions.jsonl)"),
    (["--run={folder}"], "--ids is missing"),
    (["--run={folder}", "--ids=3", "--model={folder}"], "--model: the run says it"),
    (["--run={folder}", "--ids=3", "hello"], "the questions are those of --run"),
  ],
)
def test_mistakes_end_in_one_line_and_exit_code_2(capfd, folder, photo, tmp_path, arguments, message):
  names = dict(folder=folder, photo=photo, out=tmp_path / "out")
  if any("{language}" in a for a in arguments):
    names["language"] = tiny_language.write_checkpoint(tmp_path / "language")
  out = [] if any("--out" in a or "--run" in a for a in arguments) else [f"--out={tmp_path / 'out'}"]
  done = command.run(capfd, "explain", *[a.format(**names) for a in arguments], *out)
  assert done.code == 2 and done.out == "" and message in done.err and done.err.count("\n") == 1, done
  assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_questions_of_an_evaluation(capfd, tmp_path):
  """As the run asked them, so that they are answered alike; its report links to their pages afterwards."""
  run = tmp_path / "run"
  done = command.run(capfd, "evaluate", "--config=cvbench:tiny", "--config.data.size=6", f"--workdir={run}")
  assert done.code == 0, done.err
  rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
  report = (run / "report.html").read_text()
  assert f"launch/explain.py --run={run} --ids=" in report and '"p":' not in report
  ids = [rows[1]["idx"], rows[4]["idx"]]
  less = ["--novision", "--nogradient"]
  done = command.run(capfd, "explain", f"--run={run}", f"--ids={ids[0]},{ids[1]}", *less)
  assert done.code == 0, done.err
  for idx, row in zip(ids, (rows[1], rows[4]), strict=True):
    found = record.read(run / "explain" / str(idx) / "record.npz")
    assert found.said == row["choice"] and "ABCDEF"[found.right] == row["gold"]
    np.testing.assert_allclose(found.lens.options[-1], list(row["logprobs"].values()), atol=1e-4)
  report = (run / "report.html").read_text()
  assert report.count('"p":"explain/') == 2 and f'"p":"explain/{ids[0]}/explain.html"' in report
  done = command.run(capfd, "explain", f"--run={run}", "--ids=123456")
  assert done.code == 2 and "asked no question 123456" in done.err


@pytest.mark.slow
def test_a_tuned_lens_is_fitted_and_kept(capfd, photo, tmp_path):
  """On the model that comes with us: nearer to what it says than the logit lens, on held-out scenes."""
  asked = ["--model=smolvlm-tiny", f"--image={photo}", f"--lens={tmp_path / 'lens'}", WORDS]
  done = command.run(capfd, "explain", *asked, "--fit_lens=256", f"--out={tmp_path / 'x'}")
  assert done.code == 0, done.err
  about = json.loads((tmp_path / "lens" / "tuned_lens.json").read_text())
  before, after = np.array(list(about["kl_before_and_after"].values())).T
  assert (after < before).all() and after.mean() < 0.5 * before.mean()
  assert record.read(tmp_path / "x" / "record.npz").tuned is not None
  assert "Tuned lens" in (tmp_path / "x" / "explain.html").read_text()
  assert command.run(capfd, "explain", *asked, f"--out={tmp_path / 'y'}").code == 0


def test_what_an_answer_hangs_on(capfd, folder, photo, tmp_path):
  asked = [
    f"--model={folder}",
    f"--image={photo}",
    "--max_tiles=1",
    "--causes",
    WORDS,
    f"--out={tmp_path / 'x'}",
  ]
  less = ["--noheads", "--nowords", "--norollout", "--nogradient", "--novision"]
  done = command.run(capfd, "explain", *asked, *less, "--options=near,far")
  assert done.code == 0, done.err
  assert "blind control" in (tmp_path / "x" / "explain.html").read_text()
  assert causes_record.read(tmp_path / "x" / "causes.npz").options == ("near", "far")
  done = command.run(capfd, "explain", *asked)
  assert done.code == 2 and "--causes: is of one image and of two options" in done.err


def test_a_benchmark_takes_its_own_settings_alone(capfd, folder, tmp_path):
  benchmark = ["--config=explain:quick", f"--workdir={tmp_path / 'run'}"]
  for wrong, message in (
    ([f"--model={folder}"], "--model: belongs to a single question"),
    (["--causes"], "--causes: belongs to a single question"),
    (["--config.tasks=('Depht',)"], "'Depht' is unknown"),
    (["--config.models.none=/no/such/folder"], "no such folder"),
    (["--config.question=3"], "question"),
  ):
    done = command.run(capfd, "explain", *benchmark, *wrong)
    assert done.code == 2 and message in done.err and done.err.count("\n") == 1, done.err
    assert not (tmp_path / "run").exists()
