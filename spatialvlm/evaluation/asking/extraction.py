"""Which option a free answer names, as each published harness decides it.

Each rule is that of one harness, with its quirks, since a published number rests on them: lmms-eval reads the
first character and so takes `Answer: B` for A; VLMEvalKit gives up on `B because the desk is nearer to ...`.
None of them asks a judge. A letter that is no option of the question is no answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from spatialvlm.config import nearest
from spatialvlm.types import LETTERS, UserError


def extract_choice(output: str, choices: Sequence[str], protocol: str) -> str:
  """The option that a model's raw output names under a protocol's rule.

  Args:
    output: what was generated, without special tokens.
    choices: texts of the options, in the order of their letters.
    protocol: "lmms_eval", "vlmevalkit" (exact matching, no judge), "cambrian" or "vsi".

  Returns:
    An upper-case letter among those of the options, else "".

  Raises:
    UserError: no such rule, or more options than letters.
  """
  if protocol not in EXTRACTORS:
    raise UserError(f"no rule reads answers of protocol {protocol!r}; {nearest(protocol, EXTRACTORS)}")
  if len(choices) > len(LETTERS):
    raise UserError(f"{len(choices)} options, but letters run from A to Z")
  found = EXTRACTORS[protocol](output, [str(choice) for choice in choices])
  return found if len(found) == 1 and found in LETTERS[: len(choices)] else ""


def is_right(output: str, answer: str, prompt: str = "", rule: str = "vlmevalkit") -> bool:
  """Whether a free answer says what the right one says.

  Args:
    answer, prompt: of the data. Where the prompt lists options and the answer names one, by letter or text,
      the letter counts that `rule` finds (`extract_choice`); else all of the text, numbers by their value.
  """
  if choices := choices_of(prompt, answer):
    return extract_choice(output, choices, rule) == right_letter(answer, choices)
  return same_text(output, answer)


def same_text(output: str, answer: str) -> bool:
  """Whether two texts are equal but for white space around them, or are numbers of one value."""
  output, answer = output.strip(), answer.strip()
  number = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)")
  if number.fullmatch(output) and number.fullmatch(answer):
    return float(output) == float(answer)
  return output == answer


def choices_of(prompt: str, answer: str) -> tuple[str, ...]:
  """The options that a prompt lists as `(A) chair`, or as `A. chair` in lines of their own.

  Empty where it lists fewer than two, or where the right answer is none of them.
  """
  for mark in (r"\(([A-Z])\)", r"^\s*([A-Z])[.):]"):
    found = re.findall(rf"{mark}\s*(\S[^\n]*?)\s*(?={mark}|$)", prompt, re.MULTILINE)
    starts = [i for i, option in enumerate(found) if option[0] == "A"]
    options = found[starts[-1] :] if starts else []
    named = "".join(option[0] for option in options)
    if len(options) > 1 and named == LETTERS[: len(named)]:
      choices = tuple(option[1] for option in options)
      return choices if right_letter(answer, choices) else ()
  return ()


def right_letter(answer: str, choices: Sequence[str]) -> str:
  """The letter of a right answer that stands as `B`, `(B)`, `B.` or the option's text; else ""."""
  bare = answer.strip()
  if bare in choices:
    return LETTERS[list(choices).index(bare)]
  match = re.fullmatch(r"\(?([A-Z])[.)]?", bare)
  return match[1] if match and match[1] in LETTERS[: len(choices)] else ""


def _lmms_eval(output: str, choices: Sequence[str]) -> str:
  """The first character that is neither white space nor an opening bracket, in either case."""
  match = re.match(r"[(\s]*([A-Za-z])", output)
  return match[1].upper() if match else ""


# What VLMEvalKit takes for the refusal of a hosted model.
_REFUSALS = (
  "Sorry, I can't help with images of people yet.",
  "I can't process this file.",
  "I'm sorry, but without the image provided",
  "Cannot determine the answer",
)


def _vlmevalkit(output: str, choices: Sequence[str]) -> str:
  """A lone upper-case letter near the end, else `answer is X`, else the text of exactly one option."""
  output = output.strip()  # as its wrapper of the model hands it on; the length counts below
  if any(refusal in output for refusal in _REFUSALS):
    return ""
  letters = LETTERS[: len(choices)]
  tokens = re.sub(r"[.()\[\],:;!*#{}]", " ", output).split()
  named = [letter for letter in letters if letter in tokens]
  if len(named) == 1 and tokens.index(named[0]) >= len(tokens) - 4:
    return named[0]
  if not named and "Z" in tokens:
    return ""  # its own mark of an answer that cannot be read
  match = re.search(r"(?:correct )?answer is \**([ABCD])", output, re.IGNORECASE)
  if match and match[1].upper() in letters:
    return match[1].upper()
  if len(output) > 2 * sum(map(len, choices)):
    return ""
  within = [i for i, choice in enumerate(choices) if choice.lower() in output.lower()]
  return letters[within[0]] if len(within) == 1 else ""


def _cambrian(output: str, choices: Sequence[str]) -> str:
  """The first character after the last `answer is` or `answer:`, brackets and white space passed over."""
  text = output.lower()
  marks = [m.end() for m in re.finditer(r"answer is|answer:", text)]
  text = text[marks[-1] :] if marks else text
  return text.strip().lstrip("(").strip()[:1].upper()


def _vsi(output: str, choices: Sequence[str]) -> str:
  """The first capital from A to F, wherever it stands."""
  match = re.search(r"[A-F]", output)
  return match[0] if match else ""


EXTRACTORS: dict[str, Callable[[str, Sequence[str]], str]] = {
  "lmms_eval": _lmms_eval,
  "vlmevalkit": _vlmevalkit,
  "cambrian": _cambrian,
  "vsi": _vsi,
}
