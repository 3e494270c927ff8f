"""Chat templates for llama.cpp's server, by which its prompts are those that a model was trained on.

A server hands the template one text, in which pictures are marks (`<__media__>`), in place of a list of
parts. A template that asks whether a message begins with a picture then answers no: SmolVLM's would write
`User: ` for `User:`, and InternVL's leaves out the line break behind a picture.
"""

from __future__ import annotations

from spatialvlm.processing.prompts import ChatTemplate

_MARKER = "<__media__>"
_QUESTION = "What is it?"
# (what a family's template says, what it must say for a server as well). A mark may have a random name.
_FIXES: tuple[tuple[str, str], ...] = (
  (
    "message['content'][0]['type'] == 'image'",
    "message['content'][0]['type'] == 'image' or (message['content'][0]['type'] == 'text' and"
    " message['content'][0]['text'].startswith('<__media'))",
  ),
  ("{{ content['text'] }}", "{{ content['text'].replace('__>', '__>\\n') }}"),
  ("{{ message['content'] }}", "{{ message['content'].replace('__>', '__>\\n') }}"),
)


def served(template: ChatTemplate, mark: str) -> tuple[str, str]:
  """The source of a template that gives the same prompts within a server as without.

  Args:
    mark: the family's own, which stands for a picture in the text of its prompts.

  Returns:
    The source; and the prompt that a server still makes otherwise, empty where there is none.
  """
  parts = [{"type": "image"}, {"type": "text", "text": _QUESTION}]
  trained = template.render(_asked(parts), add_generation_prompt=True).replace(mark, _MARKER)
  mended = template.source
  for old, new in _FIXES:
    mended = mended.replace(old, new)
  for source in (template.source, mended):
    if _by_server(source, template) == trained:
      return source, ""
  return template.source, _by_server(template.source, template)


def _by_server(source: str, template: ChatTemplate) -> str:
  """A server hands on a string where a template asks for one, else a list of one part."""
  text = _MARKER + _QUESTION
  content = text if "is string" in source else [{"type": "text", "text": text}]
  made = ChatTemplate(source, template.tokens, template.where)
  return made.filled(_asked(content), add_generation_prompt=True)


def _asked(content: str | list[dict[str, str]]) -> list[dict]:
  return [{"role": "user", "content": content}]
