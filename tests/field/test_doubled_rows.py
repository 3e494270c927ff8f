"""What a row says twice: two conversations, two values of one key; and columns that nothing reads."""

import json

import datasets
import pytest

from spatialvlm.config import HFConfig, LlavaConfig
from spatialvlm.data.sources.registry import open_source
from spatialvlm.types import UserError

ASK, OTHER = "What?", "Which?"


def llava(prompt):
  return [{"from": "human", "value": prompt}, {"from": "gpt", "value": "Grey."}]


def openai(prompt):
  return [{"role": "user", "content": prompt}, {"role": "assistant", "content": "Grey."}]


def written(path, *rows):
  path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
  return str(path)


@pytest.fixture
def talks(tmp_path):
  """Its first row says the same in two spellings, its second two different things."""
  rows = [{"messages": openai(ASK), "conversations": llava(prompt)} for prompt in (ASK, OTHER)]
  return written(tmp_path / "a.jsonl", *rows)


@pytest.mark.parametrize("kind", [LlavaConfig, HFConfig])
def test_two_conversations_of_one_row(talks, kind):
  with pytest.raises(UserError, match=r"(a.jsonl:2|row 1): .*both hold conversations, and they differ"):
    open_source(kind(path=talks))
  source = open_source(kind(path=talks), defer=True)
  assert source[0].turns[0].prompt == ASK
  with pytest.raises(UserError, match="they differ; leave out one, or set"):
    source[1]
  chosen = open_source(kind(path=talks, ignore=("messages",))) if kind is LlavaConfig else None
  for name, prompt in (("messages", ASK), ("conversations", OTHER)) if kind is HFConfig else ():
    chosen = open_source(kind(path=talks, columns={"messages": name}))
    assert chosen[1].turns[0].prompt == prompt
  assert chosen[1].turns[0].prompt == OTHER


def test_two_conversations_of_a_row_of_a_saved_data_set(tmp_path):
  rows = [{"messages": openai(ASK), "texts": [{"user": ask, "assistant": "Grey."}]} for ask in (ASK, OTHER)]
  datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
  with pytest.raises(UserError, match=r"row 1: 'messages' and 'texts' both hold .*columns.messages"):
    open_source(HFConfig(path=str(tmp_path / "saved")))
  source = open_source(HFConfig(path=str(tmp_path / "saved")), defer=True)
  with pytest.raises(UserError, match="they differ"):
    source[1]
  plain = [{"messages": openai(ASK), "texts": ["a caption"]}]  # no conversation
  datasets.Dataset.from_list(plain).save_to_disk(str(tmp_path / "plain"))
  assert open_source(HFConfig(path=str(tmp_path / "plain")))[0].turns[0].prompt == ASK


@pytest.mark.parametrize("kind", [LlavaConfig, HFConfig])
@pytest.mark.parametrize("form", ["lines", "list"])
def test_a_key_that_stands_twice_in_an_object(tmp_path, kind, form):
  good = json.dumps({"conversations": llava(ASK)})
  inside = good.replace('"value": "What?"', '"value": "What?", "value": "Which?"')
  outside = f'{{"id": "1", "id": "2", {good[1:]}'
  rows = [good, inside, outside]
  path = tmp_path / "a.jsonl"
  path.write_text("\n".join(rows) if form == "lines" else f"[{', '.join(rows)}]")
  place = "a.jsonl:2" if form == "lines" else "a.jsonl, row 1"
  with pytest.raises(UserError, match=f"{place}: the key 'value' stands twice in one object"):
    open_source(kind(path=str(path)))
  source = open_source(kind(path=str(path)), defer=True)
  assert source[0].turns[0].prompt == ASK
  for index, key in ((1, "value"), (2, "id")):
    with pytest.raises(UserError, match=f"the key '{key}' stands twice"):
      source[index]


@pytest.mark.parametrize("kind", [LlavaConfig, HFConfig])
def test_a_column_that_nothing_reads_is_no_broken_row(tmp_path, kind):
  path = written(tmp_path / "a.jsonl", {"messages": openai(ASK)}, {"messages": openai(ASK), "video": "a.mp4"})
  for defer in (False, True):
    with pytest.raises(UserError, match=r"(a.jsonl:2|row 1).*'video' holds video or sound, which nothing"):
      open_source(kind(path=path), defer=defer)
  assert len(open_source(kind(path=path, ignore=("video",)), defer=True)) == 2
