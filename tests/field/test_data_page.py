"""Every example of docs/data.md: its rows are read, and read as the page says."""

import pathlib
import re

import datasets
import pytest
from PIL import Image

from spatialvlm.config import HFConfig, LlavaConfig
from spatialvlm.data import pipeline
from spatialvlm.types import UserError

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "data.md"
KINDS = {"llava": LlavaConfig, "hf": HFConfig}
_PAIR = re.compile(r"```json ([^\n]+)\n(.*?)```\n\n```text\n(.*?)```", re.DOTALL)
PAIRS = _PAIR.findall(PAGE.read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_every_block_of_the_page_is_one_of_a_pair():
  assert len(PAIRS) > 10 and PAGE.read_text(encoding="utf-8").count("```") == 4 * len(PAIRS)


def shown(example):
  count = len(example.images)
  lines = [f"{count} picture{'' if count == 1 else 's'}"]
  return "\n".join(lines + [f"user: {t.prompt}\nassistant: {t.answer}" for t in example.turns]) + "\n"


@pytest.mark.parametrize(("settings", "rows", "said"), PAIRS)
def test_rows_are_read_as_the_page_says(tmp_path, settings, rows, said):
  for name in ("a.png", "b.png"):
    Image.new("RGB", (3, 2)).save(tmp_path / name)
  (tmp_path / "rows.jsonl").write_text(rows, encoding="utf-8")
  words = settings.split()
  given = {"path": str(tmp_path / "rows.jsonl")}
  for name, value in (word.split("=") for word in words if "=" in word):
    group, _, key = name.partition(".")
    given[group] = given.get(group, {}) | {key: value} if key else value
  for kind in [KINDS[word] for word in words if word in KINDS]:
    if "refused" in words:
      with pytest.raises(UserError) as error:
        pipeline.open_source(kind(**given))
      assert said.strip() in str(error.value)
      continue
    source = pipeline.open_source(kind(**given))
    assert "".join(shown(source[i]) for i in range(len(source))) == said
