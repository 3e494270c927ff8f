"""A question is put to the model as training puts it, and read off where training puts the answer."""

import numpy as np
import pytest

from spatialvlm.config import ScoreConfig
from spatialvlm.data.pipeline import question_to_example
from spatialvlm.evaluation.asking import protocols
from spatialvlm.evaluation.asking.protocols import ProcessorPrompter
from spatialvlm.types import UserError
from tests.evaluation import support


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
  return support.processor(tmp_path_factory.mktemp("processor"))


def test_native_scores_what_training_teaches(processor):
  for question in support.questions():
    prompt, letters = ProcessorPrompter(processor)(question)
    trained = processor.encode(question_to_example(question))
    place = int(np.flatnonzero(trained.loss_mask)[0])
    np.testing.assert_array_equal(prompt.tokens, trained.tokens[:place])
    assert trained.tokens[place] == letters[question.answer]
    assert len(set(letters.tolist())) == len(question.choices)
    np.testing.assert_array_equal(prompt.tiles, trained.tiles)


def test_native_text(processor):
  question = support.questions()[1]
  text = processor.decode(ProcessorPrompter(processor)(question).encoded.tokens)
  assert text.endswith(f"{question.prompt}\nAssistant:")


def user_turn(processor, question, protocol):
  text = processor.decode(ProcessorPrompter(processor)(question, protocol).encoded.tokens)
  return text.split("User:", 1)[1].rsplit("\nAssistant:", 1)[0].strip()


def test_the_harnesses_texts(processor):
  """To the letter, as their own code puts them together."""
  (six,) = [q for q in support.questions() if len(q.choices) == 6][:1]
  prompt, question = six.prompt, six.question
  letters = "Note: You only need to respond with A, B, C, D, E without providing any additional information."
  directly = "Answer with the option's letter from the given choices directly."
  options = "\n".join(f"{letter}. {text}" for letter, text in zip("ABCDEF", six.choices, strict=True))
  assert user_turn(processor, six, "lmms_eval") == f"{letters}\n\n{prompt}"
  assert user_turn(processor, six, "vlmevalkit") == prompt
  assert user_turn(processor, six, "cambrian") == f"{prompt}\n{directly}"
  assert user_turn(processor, six, "options") == prompt
  assert (
    user_turn(processor, six, "vsi")
    == f"These are frames of a video.\n{question}\nOptions:\n{options}\n{directly}"
  )
  two = support.questions()[1]
  assert "respond with A, B without" in user_turn(processor, two, "lmms_eval")
  limits = {name: p.limit for name, p in protocols.PROTOCOLS.items() if p.reading == "generated"}
  assert limits == {"lmms_eval": 1024, "vlmevalkit": 2048, "cambrian": 512, "vsi": 16}


def test_prefill_ends_after_the_prefix(processor):
  question = support.questions()[0]
  prompt, letters = ProcessorPrompter(processor)(question, "native-prefill")
  assert processor.decode(prompt.tokens).endswith("Assistant: Answer:")
  assert [processor.decode([i]) for i in letters] == [" A", " B", " C", " D"]


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    (dict(protocols=("nativ",)), r"score\.protocols: unknown protocol 'nativ'; did you mean 'native'"),
    (dict(protocols=()), "at least one"),
    (dict(protocols=("native", "vsi", "native")), "one stands twice"),
    (dict(controls=("gray",)), r"score\.controls: unknown control 'gray'; did you mean 'grey'"),
    (dict(new_tokens=-1), "new_tokens: must be at least 0"),
  ],
)
def test_settings_that_cannot_be_asked(settings, message):
  with pytest.raises(UserError, match=message):
    protocols.check(ScoreConfig(**settings))
