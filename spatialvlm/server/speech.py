"""From tokens to text, piece by piece: nothing is said that a later token may take back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence

from spatialvlm.serving.lane import Token


@dataclasses.dataclass(frozen=True)
class Piece:
  """A stretch of an answer: its text, and the tokens that are complete with it."""

  text: str
  tokens: tuple[Token, ...]


class Speech:
  """The text of one answer, as its tokens come.

  What is held back: the beginning of what may become a stop text, a character of which tokens are missing,
  and white space that may be the last. Put together, pieces are the answer without white space around it, cut
  before the first stop text; a token belongs to it if all of its text stands before that.
  """

  def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()):
    self._decode, self._stop = decode, tuple(stop)
    self._ids: list[int] = []
    self._tokens: list[Token] = []  # that are not given out yet
    self._ends: list[int] = []  # of each of them, where its text ends
    self._text, self._given = "", 0
    self._from, self._to = 0, 0  # tokens whose text is the context of what comes, and how far it is known

  def add(self, tokens: Sequence[Token]) -> tuple[Piece, bool]:
    """What can be said now, and whether a stop text came: then that was the rest."""
    for token in tokens:
      before = len(self._text)
      self._ids.append(token.id)
      self._tokens.append(token)
      self._read(last=False)
      self._ends.append(len(self._text))
      if (at := self._stopped(before)) is not None:
        return self._piece(at, last=True), True
    return self._piece(self._sure()), False

  def end(self) -> Piece:
    """What was held back; no token follows."""
    self._read(last=True)
    at = self._stopped(0)
    return self._piece(len(self._text) if at is None else at, last=True)

  def _read(self, last: bool) -> None:
    """The text of the tokens that are new, read behind a few before them, on which it may depend."""
    known = self._decode(self._ids[self._from : self._to])
    whole = self._decode(self._ids[self._from :])
    if last or not whole.endswith("\ufffd"):
      self._text += whole[len(known) :]
      self._from, self._to = self._to, len(self._ids)

  def _stopped(self, before: int) -> int | None:
    """Where the first stop text begins, if it ends behind what was known before."""
    longest = max(map(len, self._stop), default=0)
    found = [self._text.find(stop, max(before - longest, 0)) for stop in self._stop]
    return min((at for at in found if at >= 0), default=None)

  def _sure(self) -> int:
    """Up to where text may be said: no stop text begins before, nor white space that may be the last."""
    tail = min(max(map(len, self._stop), default=1) - 1, len(self._text))
    begun = (n for n in range(tail, 0, -1) if any(stop.startswith(self._text[-n:]) for stop in self._stop))
    return len(self._text[: len(self._text) - next(begun, 0)].rstrip())

  def _piece(self, until: int, last: bool = False) -> Piece:
    """Everything up to a place that was not given out before."""
    text = self._text[self._given : until]
    # White space at the end is held back, so that before the first word nothing was given.
    text = text if self._given else text.lstrip()
    text = text.rstrip() if last else text
    self._given = max(self._given, until)
    count = sum(end <= until for end in self._ends)
    if last and until == len(self._text):
      count = len(self._tokens)
    taken, self._tokens, self._ends = self._tokens[:count], self._tokens[count:], self._ends[count:]
    return Piece(text, tuple(taken))


class Vocabulary:
  """What single tokens are called in log-probabilities."""

  def __init__(self, tokenizer):
    """`tokenizer`: a `tokenizers.Tokenizer`."""
    self._tokenizer = tokenizer
    self._added = {id: token.content for id, token in tokenizer.get_added_tokens_decoder().items()}
    state = json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder is not None else {}
    parts = state.get("decoders", [state])
    self._bytes = _byte_alphabet() if any(p.get("type") == "ByteLevel" for p in parts) else None

  def bytes(self, id: int) -> bytes:
    """The bytes that a token stands for; those of several make whole characters where single ones do not."""
    if id in self._added:
      return self._added[id].encode()
    written = self._tokenizer.id_to_token(id) or ""
    if self._bytes is not None:
      return b"".join(self._bytes.get(sign, sign.encode()) for sign in written)
    if len(written) == 6 and written.startswith("<0x") and written.endswith(">"):
      return bytes([int(written[3:5], 16)])
    return written.replace("\u2581", " ").encode()


def _byte_alphabet() -> dict[str, bytes]:
  """The sign that stands for each byte in vocabularies of GPT-2's kind (its `bytes_to_unicode`)."""
  plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [byte for byte in range(256) if byte not in plain]
  signs = {chr(byte): bytes([byte]) for byte in plain}
  return signs | {chr(256 + n): bytes([byte]) for n, byte in enumerate(others)}
