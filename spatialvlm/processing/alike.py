"""Whether two models' texts are made of the same tokens, and whether they read an example alike."""

from __future__ import annotations

import json

from tokenizers import Tokenizer

from spatialvlm.processing.processor import Processor


def other_tokens(ours: Tokenizer, theirs: Tokenizer) -> str:
  """What makes a token mean another thing to one of two models; empty where nothing does.

  Theirs may have tokens beside ours. Vocabularies, merges, and what is done to a text before are compared.
  """
  for token, number in sorted(ours.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1]):
    other = theirs.token_to_id(token)
    if other != number:
      there = "is no token there" if other is None else f"has the id {other} there"
      return f"{token!r} {there} and {number} here"
  ours, theirs = (json.loads(tokenizer.to_str()) for tokenizer in (ours, theirs))
  for part in ("normalizer", "pre_tokenizer"):
    if ours[part] != theirs[part]:
      return f"its {part} is another"
  rules = lambda model: {key: value for key, value in model.items() if key != "vocab"}
  return "" if rules(ours["model"]) == rules(theirs["model"]) else "its merges are others"


def read_alike(a: Processor, b: Processor) -> bool:
  """Whether two processors make the very same tokens and pixels of any example; their tokenizers are equal.

  Templates of other texts count as other ones, though they may say the same.
  """
  template = lambda p: (type(p.template), getattr(p.template, "source", None))
  return a.format == b.format and template(a) == template(b) and see_alike(a, b)


def see_alike(a: Processor, b: Processor) -> bool:
  """Whether two processors make the very same tiles, pixels and image tokens of any picture."""
  sees = lambda p: (repr(p.tiler), p.tokens_per_tile, p.image_id, p.normal.data if p.sees else b"")
  return sees(a) == sees(b)
