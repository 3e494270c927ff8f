"""The tiny model's tokenizer: SmolVLM's kind, trained on the project's own text.

Byte-level BPE with single digits, so that any text works; every word of the scenes is one token. Words that
dense losses predict at image tokens (`training.objectives.words`) have neighbouring ids, in the order of the
classes of `targets.dense_targets`: a loss then needs only the first id of each group (`dense_losses`).
"""

from __future__ import annotations

import json
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from spatialvlm.config import LossConfig
from spatialvlm.types import CHOOSE, lettered
from spatialvlm.worlds import skills, targets, world

START = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
GRID = tuple(f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7))
ADDED = ("<global-img>", *GRID, "<fake_token_around_image>", "<image>", "<|reserved|>", "<end_of_utterance>")
_BYTES_END = len(START) + 256  # ids of the special tokens, then of the bytes
NONE = "none"
# Classes of each dense target, as the words that say them; NONE is what a token says that has no class.
DENSE_WORDS = {
  "color": world.COLORS,
  "shape": world.SHAPES,
  "box": (*skills.BOXES, NONE),
  "depth_step": targets.DEPTH_WORDS,
  "row": targets.ROWS,
  "column": targets.COLUMNS,
}
# The same for published tokenizers, to which "middling" is three tokens.
SPOKEN_WORDS = DENSE_WORDS | {
  "depth_step": tuple(w.replace("middling", "medium") for w in DENSE_WORDS["depth_step"])
}
_TEMPLATES = (
  "How many {}s are in the image?",
  "Considering the relative positions of the {} and the {} in the image provided, where is the {} located "
  "with respect to the {}?",
  "Considering the relative positions of the {} (annotated by the red box) and the {} in the image provided",
  "Which object is closer to the camera taking this photo, the {} (highlighted by a red box) or the {} "
  "(highlighted by a blue box)?",
  "Estimate the real-world distances between objects in this image. Which object is closer to the {} "
  "(highlighted by a red box), the {} (highlighted by a blue box) or the {} (highlighted by a green box)?",
  "Answer with the option's letter from the given choices directly.",
  "What is in the {} box? What color is in the {} box? What shape is in the {} box? Where is the {} box?",
  "Which box is around the {}? Where is the {}? Is there a {}? List the objects from left to right.",
  "Describe the image. What can you see? The answer is {}. Can you answer this question about the picture?",
)
_WORDS = (
  "yes no left right above below top middle bottom center image picture photo object objects color shape "
  "box boxes camera red blue green near far small large front behind between under over one two three four "
  "five six seven eight nine ten and or not of the a an is are there what which where how many this that"
)
_ROLES = "User:\nAssistant: System:\nAnswer: "


def corpus() -> list[str]:
  """The text that the tokenizer is trained on, each word of the scenes often enough to become one token."""
  words = [*world.COLORS, *world.SHAPES, *world.PLURALS.values(), *skills.BOXES, *_WORDS.split()]
  words += [w for group in DENSE_WORDS.values() for w in group]
  lines = [" " + word for word in words] * 40
  for word in (*world.COLORS, *world.SHAPES, *skills.BOXES):
    lines += [t.replace("{}", word) for t in _TEMPLATES] * 4
  lines += [_ROLES] * 200
  lines += [f"{CHOOSE}\n{lettered(words[:6])}", " A B C D E F", "\n\n", "., , : ? ! ( )"] * 200
  return lines


def build() -> Tokenizer:
  """Trains the tokenizer; always the same one."""
  tokenizer = Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
  )
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=4096,
    min_frequency=40,
    special_tokens=list(START),
    show_progress=False,
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
  )
  tokenizer.train_from_iterator(corpus(), trainer)
  tokenizer = _ordered(tokenizer)
  tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in ADDED])
  return tokenizer


def word_id(word: str) -> int:
  """Vocabulary id of one of `DENSE_WORDS`.

  It follows from how `build` numbers the vocabulary, so that a recipe needs no tokenizer; a test holds it to
  the one that ships.
  """
  return _BYTES_END + [w for words in DENSE_WORDS.values() for w in words].index(word)


def dense_losses(objects: bool = False, **weights: float) -> dict[str, LossConfig]:
  """A loss of kind "words" for each dense target: an image token says the word of what it shows.

  Args:
    objects: an image token without an object says "none" for every target but depth_step, which every surface
      has. Otherwise it is left out, except for "box": most tokens have no drawn box, and say so.
    **weights: target -> weight of its term in the objective.

  Returns:
    The terms by target, for `RunConfig.losses`.
  """
  terms = {}
  for target, weight in weights.items():
    words = [word for word in DENSE_WORDS[target] if word != NONE]
    kwargs = {"first": word_id(words[0]), "classes": len(words)}
    if target == "box" or (objects and target != "depth_step"):
      kwargs["none"] = word_id(NONE)
    terms[target] = LossConfig("words", target=target, weight=weight, kwargs=kwargs)
  return terms


def spoken_losses(objects: bool = False, **weights: float) -> dict[str, LossConfig]:
  """As `dense_losses`, for a model with any tokenizer: the words are named; the tokenizer gives their ids."""
  terms = {}
  for target, weight in weights.items():
    words = [word for word in SPOKEN_WORDS[target] if word != NONE]
    kwargs: dict[str, Any] = {"words": words}
    if target == "box" or (objects and target != "depth_step"):
      kwargs["none_word"] = NONE
    terms[target] = LossConfig("words", target=target, weight=weight, kwargs=kwargs)
  return terms


def _ordered(tokenizer: Tokenizer) -> Tokenizer:
  """Renumbers the vocabulary: special tokens, bytes, the words of dense targets, the rest."""
  state = json.loads(tokenizer.to_str())
  vocabulary = state["model"]["vocab"]
  by_id = sorted(vocabulary, key=vocabulary.get)
  dense = ["Ġ" + word for words in DENSE_WORDS.values() for word in words]
  missing = set(dense) - set(by_id)
  assert not missing, f"no tokens: {missing}"
  rest = [t for t in by_id[_BYTES_END:] if t not in set(dense)]
  order = by_id[:_BYTES_END] + dense + rest
  state["model"]["vocab"] = {token: index for index, token in enumerate(order)}
  return Tokenizer.from_str(json.dumps(state))
