"""The shipped tokenizer is the one that is built here, and says every word of the scenes in one token."""

import json

import pytest

from spatialvlm import shipped
from spatialvlm.processing.processor import load_processor
from spatialvlm.worlds import questions, skills, targets, tiny, vocabulary, world

SHIPPED = shipped.checkpoints()["smolvlm-tiny"]


@pytest.fixture(scope="module")
def tokenizer():
  return vocabulary.build()


def test_shipped_folder_is_what_is_written(tmp_path):
  tiny.write(tmp_path)
  for name in ("tokenizer.json", "preprocessor_config.json", "chat_template.json"):
    assert (SHIPPED / name).read_bytes() == (tmp_path / name).read_bytes(), name
  shipped, written = (json.loads((folder / "config.json").read_text()) for folder in (SHIPPED, tmp_path))
  for key in ("image_token_id", "scale_factor", "model_type"):
    assert shipped[key] == written[key]


def test_every_word_is_one_token(tokenizer):
  for word in (*world.COLORS, *world.SHAPES, *world.PLURALS.values(), *skills.BOXES, *"ABCDEF"):
    assert len(tokenizer.encode(" " + word).ids) == 1, word
  for axis in questions.AXES:
    for word in axis:
      assert len(tokenizer.encode(" " + word).ids) == 1, word


def test_any_text_comes_back(tokenizer):
  for text in ("Grüße, 東京!\n\ttab  12345", "(A) yellow cone\n(B) 17", "🙂 emoji"):
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_dense_losses_name_the_ids_that_the_tokenizer_gives(tokenizer):
  terms = vocabulary.dense_losses(**dict.fromkeys(vocabulary.DENSE_WORDS, 0.5))
  assert list(terms) == list(vocabulary.DENSE_WORDS)
  for target, term in terms.items():
    words = [word for word in vocabulary.DENSE_WORDS[target] if word != "none"]
    first, classes = term.kwargs["first"], term.kwargs["classes"]
    assert [tokenizer.id_to_token(first + i) for i in range(classes)] == ["Ġ" + word for word in words]
    assert (term.kind, term.target, term.weight) == ("words", target, 0.5)
  assert [target for target, term in terms.items() if "none" in term.kwargs] == ["box"]
  objects = vocabulary.dense_losses(objects=True, box=1.0, depth_step=1.0, row=1.0)
  assert [target for target, term in objects.items() if "none" in term.kwargs] == ["box", "row"]
  assert tokenizer.id_to_token(objects["row"].kwargs["none"]) == "Ġnone"


def test_classes_of_dense_targets_have_words():
  assert vocabulary.DENSE_WORDS["color"] == world.COLORS
  assert vocabulary.DENSE_WORDS["shape"] == world.SHAPES
  assert vocabulary.DENSE_WORDS["box"][: len(skills.BOXES)] == skills.BOXES
  assert len(vocabulary.DENSE_WORDS["depth_step"]) == targets.DEPTH_STEPS


def test_processor_reads_the_folder():
  processor = load_processor(SHIPPED)
  assert processor.tokens_per_tile == tiny.TOKENS_PER_TILE and processor.tiler.most_tiles == 1
  assert len(set(processor.letter_ids(6))) == 6
