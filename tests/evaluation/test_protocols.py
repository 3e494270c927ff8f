"""A question is put to the model as training puts it, and read off where training puts the answer."""

import numpy as np
import pytest

from spatialvlm.data.pipeline import question_to_example
from spatialvlm.evaluation.protocols import ProcessorEncoder
from spatialvlm.types import UserError
from tests.evaluation import support


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
  return support.processor(tmp_path_factory.mktemp("processor"))


def test_native_scores_what_training_teaches(processor):
  for question in support.questions():
    prompt, letters = ProcessorEncoder(processor)(question)
    trained = processor.encode(question_to_example(question))
    place = int(np.flatnonzero(trained.loss_mask)[0])
    np.testing.assert_array_equal(prompt.tokens, trained.tokens[:place])
    assert trained.tokens[place] == letters[question.answer]
    assert len(set(letters.tolist())) == len(question.choices)
    np.testing.assert_array_equal(prompt.tiles, trained.tiles)


def test_native_text(processor):
  question = support.questions()[1]
  text = processor.decode(ProcessorEncoder(processor)(question).encoded.tokens)
  assert text.endswith(f"{question.prompt}\nAssistant:")


def test_prefill_ends_after_the_prefix(processor):
  question = support.questions()[0]
  prompt, letters = ProcessorEncoder(processor, "native-prefill")(question)
  assert processor.decode(prompt.tokens).endswith("Assistant: Answer:")
  assert [processor.decode([i]) for i in letters] == [" A", " B", " C", " D"]


def test_an_unknown_protocol_names_the_nearest(processor):
  with pytest.raises(UserError, match="did you mean 'native'"):
    ProcessorEncoder(processor, "nativ")
