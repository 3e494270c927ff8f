"""Kept answers are read anew, without a model, and give what the run gave."""

import dataclasses
import json
import shutil

import pytest

from spatialvlm import config as config_lib
from spatialvlm import workdir
from spatialvlm.config import EvalConfig, EvaluateConfig, ModelConfig, RunConfig, ScoreConfig
from spatialvlm.evaluation import extract_choice, records, rescore
from spatialvlm.evaluation.asking.protocols import ProcessorPrompter
from spatialvlm.evaluation.evaluate import evaluate
from spatialvlm.evaluation.report import run_page, run_tables
from spatialvlm.evaluation.scoring.summary import summarize
from spatialvlm.launch import rescore as command
from spatialvlm.reporting import page
from spatialvlm.types import UserError
from tests.evaluation import support
from tests.evaluation.test_passes import Words

SCORE = ScoreConfig(
  batch_size=4,
  protocols=("lmms_eval", "native", "vsi"),
  controls=("circular", "no_image"),
  tiles=(5,),
  bootstrap=20,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A run whose headline is generated, so that rotated answers are read anew as well."""
  folder = tmp_path_factory.mktemp("run")
  processor = support.processor(tmp_path_factory.mktemp("processor"))
  workdir.claim(folder, EvaluateConfig(score=SCORE), {"questions": 8})
  questions = support.questions(count=8, images=5)
  return folder, evaluate(questions, Words(processor), ProcessorPrompter(processor), SCORE, folder=folder)


def test_rescoring_equals_the_run(finished, capsys):
  folder, result = finished
  before = (folder / records.FILE).read_bytes()
  command.main([str(folder)])
  assert (folder / records.FILE).read_bytes() == before
  kept = json.loads((folder / rescore.FILE).read_text())
  assert kept["summary"] == json.loads((folder / "summary.json").read_text())
  assert kept["summary"] == json.loads(json.dumps(result.summary))
  assert set(kept["extractors"]) == {"lmms_eval", "vsi"}
  for protocol, read in kept["extractors"].items():
    rows = result.passes[protocol, "sighted"]
    assert read[protocol]["scores"] == kept["summary"]["protocols"][protocol]["scores"]
    for rule, part in read.items():
      found = [extract_choice(row.output, row.choices, rule) for row in rows]
      right = sum(choice == row.gold for choice, row in zip(found, rows, strict=True))
      assert part["scores"]["plain"]["score"] == pytest.approx(right / len(rows))
      assert part["answered"] == pytest.approx(sum(c != "" for c in found) / len(rows))
      assert part["differs"] == sum(c != row.choice for c, row in zip(found, rows, strict=True))
  shown = capsys.readouterr().out
  assert "lmms_eval, read by cambrian" in shown and str(folder / rescore.FILE) in shown


def test_a_changed_choice_is_put_right(finished, tmp_path):
  """What counts is the raw answer; rotated ones are read under the letters that were shown."""
  result = finished[1]
  rows = [dataclasses.replace(r, choice="", correct=False) if r.output else r for r in result.all_rows]
  records.rewrite(tmp_path, rows)
  assert rescore.rescore(tmp_path)["summary"]["scores"]["plain"] != {}
  again = [rescore.extracted(row, row.protocol) for row in rows]
  assert again == list(result.all_rows)


def test_the_report_is_written_anew_with_its_pictures(finished, tmp_path):
  folder, result = finished
  for name in (workdir.CONFIG_FILE, "identity.json"):
    (tmp_path / name).write_bytes((folder / name).read_bytes())
  wrong = [dataclasses.replace(r, choice="", correct=False) if r.output else r for r in result.all_rows]
  records.rewrite(tmp_path, wrong)
  title = "a <model> & its run"
  run_page.write(tmp_path, wrong, summarize(wrong, SCORE), title, support.questions(count=8, images=5))
  pictures, tables = page.pictures_of(tmp_path / "report.html"), (tmp_path / "tables.md").read_text()
  assert len(pictures) == 8
  rescore.write(tmp_path)
  assert page.pictures_of(tmp_path / "report.html") == pictures
  assert page.title_of(tmp_path / "report.html") == title
  other = tmp_path / "other"
  other.mkdir()
  run_page.write(other, result.all_rows, result.summary, title)
  for name in ("tables.md", "tables.tex"):
    assert (tmp_path / name).read_text() == (other / name).read_text()
  assert (tmp_path / "tables.md").read_text() != tables


def test_the_scores_of_a_training_take_its_settings(finished, tmp_path):
  _, result = finished
  folder = tmp_path / "evaluation" / "after"
  folder.mkdir(parents=True)
  records.rewrite(folder, result.all_rows)
  score = {f.name: getattr(SCORE, f.name) for f in dataclasses.fields(SCORE)}
  config = RunConfig(eval=EvalConfig(**score), model=ModelConfig(path="the base"))
  workdir.write_json(tmp_path / workdir.CONFIG_FILE, config_lib.to_dict(config))
  assert rescore.write(folder)["summary"] == result.summary
  assert "<dd>the base</dd>" in (folder / "report.html").read_text()


def test_published_numbers_stand_beside_each_protocol(finished, tmp_path, capsys):
  table = run_tables.published(finished[1].summary, {"somebody": 43.18})
  assert [row[0].text for row in table.rows] == ["lmms_eval", "native", "vsi"]
  score = finished[1].summary["protocols"]["vsi"]["scores"]["plain"]["score"]
  assert f"{100 * score - 43.18:+.1f}".replace("-", "−") in [cell.text for cell in table.rows[2]]
  # They stand in what is kept, and stay there when the run is read again.
  folder = tmp_path / "run"
  shutil.copytree(finished[0], folder)
  stored = json.loads((folder / "config.json").read_text()) | {"published": {"somebody": 43.18}}
  (folder / "config.json").write_text(json.dumps(stored))
  command.main([str(folder)])
  texts = [(folder / name).read_text() for name in ("report.html", "tables.md", "tables.tex")]
  for kept in (*texts, capsys.readouterr().out):
    assert "Beside what was published" in kept and "43.18" in kept


def test_bad_input(finished, tmp_path):
  with pytest.raises(UserError, match="name one run"):
    command.main([])
  with pytest.raises(UserError, match=r"holds no predictions\.jsonl; name the workdir"):
    rescore.rescore(tmp_path)
  folder, result = finished
  for name in ("config.json", "identity.json"):
    (tmp_path / name).write_bytes((folder / name).read_bytes())
  for rows in (result.all_rows[:-1], [r for r in result.all_rows if r.idx != 100]):
    records.rewrite(tmp_path, rows)
    with pytest.raises(UserError, match="is not finished"):
      rescore.rescore(tmp_path)
