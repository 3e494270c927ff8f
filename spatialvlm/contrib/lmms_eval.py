"""A model class for lmms-eval: `lmms-eval --model spatialvlm --model_args pretrained=runs/mine --tasks ...`.

The installed package names it (the entry point `lmms_eval.models` of pyproject.toml), so that lmms-eval finds
it by itself. Written for its interface as of 0.7 (`lmms_eval.api.model.lmms`, chat models).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmms_eval.api.model import lmms

from spatialvlm.contrib import asking
from spatialvlm.server.chat import Chat, Message
from spatialvlm.types import UserError

if TYPE_CHECKING:
  from lmms_eval.api.instance import Instance

# Settings of generation at the values that ask for what is done anyway.
_NEUTRAL = {"num_beams": (1, None), "use_cache": (True, None), "do_sample": (True, False, None)}


def manifest():
  """What lmms-eval's registry is told."""
  from lmms_eval.models.registry_v2 import ModelManifest

  return ModelManifest("spatialvlm", chat_class_path="spatialvlm.contrib.lmms_eval.SpatialVlm")


class SpatialVlm(lmms):
  """Answers by the library's own engine, in this process."""

  is_simple = False

  def __init__(
    self,
    pretrained: str,
    batch_size: int | str = 16,
    max_batch_size: int | None = None,
    device: str | None = None,
    **settings: Any,
  ):
    """Loads a model.

    Args:
      pretrained: a model's or adapter's folder or hub id, or a training run's workdir.
      batch_size: requests that are answered at the same time.
      max_batch_size, device: lmms-eval's own; jax chooses the device.
      settings: of `spatialvlm.load_vlm`, and `context`.
    """
    super().__init__()
    rows = int(batch_size) if str(batch_size).isdecimal() else 16
    self._asker = asking.Asker(pretrained, rows=rows, **settings)

  def generate_until(self, requests: list[Instance]) -> list[str]:
    """The answers to generation requests, in their order."""
    answers = self._asker.answers([self._chat(request) for request in requests])
    for request, answer in zip(requests, answers, strict=True):
      self.cache_hook.add_partial("generate_until", (request.args[0], request.args[2]), answer)
    return answers

  def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
    raise NotImplementedError("spatialvlm: tasks of several rounds are not supported")

  def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
    raise NotImplementedError("spatialvlm: tasks of log-likelihoods are not supported; generate an answer")

  def _chat(self, request: Instance) -> Chat:
    _, doc_to_messages, settings, doc_id, task, split = request.args
    messages = [_message(m) for m in doc_to_messages(self.task_dict[task][split][doc_id])]
    return asking.chat(messages, **_drawn(dict(settings), task))


def _message(message: dict[str, Any]) -> Message:
  content = message["content"]
  if isinstance(content, str):
    return Message(message["role"], (content,))
  return Message(message["role"], tuple(map(_part, content)))


def _part(part: dict[str, Any]) -> Any:
  if part["type"] == "text":
    return part["text"]
  if part["type"] == "image":
    return asking.picture(part["url"])
  raise UserError(f"spatialvlm reads texts and pictures; this task shows: {part['type']}")


def _drawn(settings: dict[str, Any], task: str) -> dict[str, Any]:
  """lmms-eval's settings of generation as fields of a `Chat`; what would change answers unseen is refused."""
  for name, known in _NEUTRAL.items():
    if settings.get(name) not in known:
      raise UserError(f"task {task}: generation_kwargs.{name}={settings[name]!r} is not supported")
  samples = settings.get("do_sample")
  found: dict[str, Any] = {"max_tokens": settings.pop("max_new_tokens", 1024)}
  temperature = settings.pop("temperature", None)
  top_p = settings.pop("top_p", None)
  if samples is not False and (temperature or samples):
    found |= {"temperature": 1.0 if temperature is None else float(temperature), "top_p": top_p or 1.0}
    found["seed"] = 0
  until = settings.pop("until", None) or []
  found["stop"] = tuple(one for one in ([until] if isinstance(until, str) else until) if one)
  rest = sorted(settings.keys() - _NEUTRAL.keys())
  if rest:
    raise UserError(f"task {task}: generation_kwargs.{rest[0]} is not known")
  return found
