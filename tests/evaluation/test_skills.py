"""The skill table counts exact answers; the model behind it is replaced by one whose answers are known."""

import numpy as np
import pytest

from spatialvlm import shipped
from spatialvlm.evaluation import skill_scores
from spatialvlm.processing.processor import load_processor
from spatialvlm.types import Example, Turn, UserError

SHIPPED = shipped.checkpoints()["smolvlm-tiny"]
PICTURE = np.zeros((96, 96, 3), np.uint8)


@pytest.fixture(scope="module")
def processor():
  return load_processor(SHIPPED)


def examples(answers):
  return [Example((PICTURE,), (Turn("What is in the red box?", a),), id=a) for a in answers]


def says(monkeypatch, processor, answers):
  """Makes generation give these answers, in turn, each ended and followed by padding."""
  left = list(answers)

  def generate(vlm, batch, *, max_new_tokens, stop_ids, pad_id):
    rows = int(np.sum(batch.example_mask_B))
    out = np.full((len(batch.example_mask_B), max_new_tokens), pad_id, np.int32)
    for row in range(rows):
      ids = [*processor.tokenizer.encode(" " + left.pop(0)).ids, processor.end_id, 65]
      out[row, : len(ids)] = ids
    return out

  monkeypatch.setattr(skill_scores.generation, "generate", generate)


def test_only_exact_answers_count(monkeypatch, processor):
  expected = ["yellow cone", "black block", "white sphere", "cyan cone", "orange block"]
  given = ["yellow cone", "black", "white sphere", "cyan cones", "orange block"]
  says(monkeypatch, processor, given)
  score = skill_scores.score_skill(None, processor, examples(expected), batch_size=2)
  assert (score.right, score.count) == (3, 5)
  assert [(m[1], m[2]) for m in score.misses] == [("black block", "black"), ("cyan cone", "cyan cones")]
  assert (score.low, score.high) == pytest.approx((0.2307, 0.8824), abs=5e-5)  # Wilson's interval of 3 in 5
  (row,) = skill_scores.table({"name": score}).rows
  assert [c.text for c in row] == ["name", "60.0", "23.1 to 88.2", "5"]


def test_nothing_to_ask_and_too_long_a_prompt(processor):
  with pytest.raises(UserError, match="no example"):
    skill_scores.score_skill(None, processor, [])
  with pytest.raises(UserError, match="does not fit"):
    skill_scores.score_skill(None, processor, examples(["cone"]), lengths=(16,))
