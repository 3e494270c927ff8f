"""Text out of tokens, piece by piece, whatever the turns in which they come."""

import numpy as np
import pytest

from spatialvlm.server.speech import Speech, Vocabulary
from spatialvlm.serving.lane import Token
from tests.tiny_processor import tokenizer

WORDS = tokenizer()
HOSTILE = (" The sphere is é 球 🙂🙂 left\n\n", "   ", "", "🙂", "Answer: A\nAnswer: B  ", "aaab aab aaaab")


def said(text, sizes, stop=()):
  """The pieces of a text that comes in turns of these sizes, and whether a stop text ended it."""
  decode = lambda ids: WORDS.decode(ids, skip_special_tokens=True)
  speech, ids, pieces = Speech(decode, stop), WORDS.encode(text, add_special_tokens=False).ids, []
  while ids:
    size = next(sizes)
    piece, stopped = speech.add([Token(id) for id in ids[:size]])
    pieces.append(piece)
    ids = ids[size:]
    if stopped:
      return pieces, True
  return [*pieces, speech.end()], False


def turns(seed):
  rng = np.random.default_rng(seed)
  while True:
    yield int(rng.integers(1, 5))


@pytest.mark.parametrize("text", HOSTILE)
def test_pieces_make_the_text(text):
  for seed in range(5):
    pieces, stopped = said(text, turns(seed))
    assert "".join(piece.text for piece in pieces) == text.strip() and not stopped
    assert not any("\ufffd" in piece.text for piece in pieces)
    ids = [token.id for piece in pieces for token in piece.tokens]
    assert ids == WORDS.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
  "stop", [("\n",), (" is", "left"), ("aab",), ("🙂",), ("B  x", "\nAns"), ("球 🙂🙂",)]
)
@pytest.mark.parametrize("text", HOSTILE)
def test_a_stop_text_is_never_said(text, stop):
  places = [text.find(one) for one in stop if one in text]
  expected = text[: min(places)].strip() if places else text.strip()
  kept = set()
  for seed in range(5):
    pieces, stopped = said(text, turns(seed), stop)
    assert "".join(piece.text for piece in pieces) == expected and stopped == bool(places)
    kept.add(sum(len(piece.tokens) for piece in pieces))
  assert len(kept) == 1  # which tokens count does not depend on how they came


def test_half_of_a_character_at_the_end_is_shown_as_such():
  decode = lambda ids: WORDS.decode(ids)
  speech = Speech(decode)
  half = WORDS.encode("🙂").ids[:-1]
  assert len(half) and speech.add([Token(id) for id in half])[0].text == ""
  assert "\ufffd" in speech.end().text


def test_names_of_tokens_are_their_bytes():
  vocabulary = Vocabulary(WORDS)
  for text in (*HOSTILE, "<end_of_utterance>", "\x00\x7f\xad"):
    ids = WORDS.encode(text, add_special_tokens=False).ids
    assert b"".join(map(vocabulary.bytes, ids)) == text.encode()


def test_names_of_tokens_of_other_vocabularies():
  from tokenizers import Tokenizer, decoders, models

  words = Tokenizer(models.BPE({"\u2581left": 0, "<0xE7>": 1, "of": 2}, []))
  words.decoder = decoders.Sequence(
    [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
  )
  vocabulary = Vocabulary(words)
  assert [vocabulary.bytes(id) for id in (0, 1, 2)] == [b" left", b"\xe7", b"of"]
