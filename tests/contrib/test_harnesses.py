"""Plug-ins of other harnesses, against their interfaces as recorded from lmms-eval 0.7.3 and VLMEvalKit 0.2.

Both bring more packages than all of this project; what a plug-in touches of them is written out here.
"""

import abc
import importlib
import sys
import types

import numpy as np
import pytest
from PIL import Image

import spatialvlm
from spatialvlm.types import UserError
from tests.tiny_model import write_checkpoint

QUESTIONS = ("Which is closer?", "How many cones are in the image?", "Describe the picture.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = write_checkpoint(tmp_path_factory.mktemp("asked"), longest_edge=32)
  for i in range(3):
    pixels = np.random.default_rng(i).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f"{i}.png")
  return folder


@pytest.fixture(scope="module")
def alone(folder):
  """The model's own answers."""
  vlm = spatialvlm.load_vlm(folder)
  return [vlm.chat([folder / f"{i}.png"], QUESTIONS[i], max_new_tokens=6) for i in range(3)]


def installed(monkeypatch, **modules):
  """Packages of these names, and the plug-in imported anew."""
  for name, values in modules.items():
    parts = name.split("__")
    for n in range(1, len(parts) + 1):
      dotted = ".".join(parts[:n])
      if dotted not in sys.modules:
        monkeypatch.setitem(sys.modules, dotted, types.ModuleType(dotted))
    vars(sys.modules[".".join(parts)]).update(values)


def plug_in(monkeypatch, name):
  monkeypatch.delitem(sys.modules, f"spatialvlm.contrib.{name}", raising=False)
  return importlib.import_module(f"spatialvlm.contrib.{name}")


class Lmms(abc.ABC):
  """`lmms_eval.api.model.lmms`."""

  is_simple = True

  def __init__(self):
    self.cache_hook, self.task_dict = types.SimpleNamespace(add_partial=lambda *a: None), {}

  @abc.abstractmethod
  def loglikelihood(self, requests): ...

  @abc.abstractmethod
  def generate_until(self, requests): ...

  @abc.abstractmethod
  def generate_until_multi_round(self, requests): ...


@pytest.fixture
def lmms_eval(monkeypatch):
  class Manifest:
    def __init__(self, model_id, simple_class_path=None, chat_class_path=None, aliases=()):
      self.model_id, self.chat_class_path = model_id, chat_class_path

  installed(
    monkeypatch,
    lmms_eval__api__model={"lmms": Lmms},
    lmms_eval__models__registry_v2={"ModelManifest": Manifest},
  )
  return plug_in(monkeypatch, "lmms_eval")


def request(i, folder, content=None, **settings):
  """An `Instance` of a chat task, as `ConfigurableMessagesTask.construct_requests` makes it."""
  image = {"type": "image", "url": Image.open(folder / f"{i}.png")}
  found = content or [image, {"type": "text", "text": QUESTIONS[i]}]
  messages = lambda doc: [{"role": "user", "content": found}]
  return types.SimpleNamespace(args=(QUESTIONS[i], messages, settings, i, "task", "test"))


def test_lmms_eval_asks_the_model(lmms_eval, folder, alone):
  manifest = lmms_eval.manifest()
  assert manifest.model_id == "spatialvlm"
  path, _, name = manifest.chat_class_path.rpartition(".")
  assert path == lmms_eval.__name__ and getattr(lmms_eval, name) is lmms_eval.SpatialVlm
  model = lmms_eval.SpatialVlm(str(folder), batch_size="2", device="cpu", max_tiles=5)
  model.task_dict = {"task": {"test": list(range(3))}}
  plain = {"max_new_tokens": 6, "temperature": 0, "do_sample": False, "num_beams": 1, "until": []}
  assert model.generate_until([request(i, folder, **plain) for i in range(3)]) == alone
  stop = alone[1][1]
  found = model.generate_until([request(1, folder, **plain | {"until": [stop]})])
  assert found == [alone[1][: alone[1].index(stop)].strip()]
  for settings, message in (
    ({"num_beams": 4}, "generation_kwargs.num_beams=4 is not supported"),
    ({"repetition_penalty": 2}, "generation_kwargs.repetition_penalty is not known"),
  ):
    with pytest.raises(UserError, match=message):
      model.generate_until([request(0, folder, **settings)])
  with pytest.raises(UserError, match="this task shows: video"):
    model.generate_until([request(0, folder, [{"type": "video", "url": "x"}])])
  with pytest.raises(NotImplementedError):
    model.loglikelihood([])


def test_a_setting_that_is_not_known_is_named(lmms_eval, folder):
  with pytest.raises(UserError, match="max_tile"):
    lmms_eval.SpatialVlm(str(folder), max_tile=5)


def test_vlmevalkit_asks_the_model(monkeypatch, folder, alone, tmp_path):
  class BaseModel:
    """`vlmeval.vlm.base.BaseModel`; `generate` checks the parts and hands them on."""

    INTERLEAVE = False
    allowed_types = ("text", "image")

    def generate(self, message, dataset=None):
      assert all(item["type"] in self.allowed_types for item in message)
      return self.generate_inner(message, dataset)

  known = {}
  installed(
    monkeypatch, vlmeval__vlm__base={"BaseModel": BaseModel}, vlmeval__config={"supported_VLM": known}
  )
  sys.modules["vlmeval"].config = sys.modules["vlmeval.config"]
  ours = plug_in(monkeypatch, "vlmevalkit")
  (tmp_path / "run.py").write_text("import sys; sys.modules['vlmeval'].asked = sys.argv")
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "argv", ["before"])
  ours.main([str(folder), "--data", "CV-Bench-2D"])
  assert sys.modules["vlmeval"].asked == ["run.py", "--data", "CV-Bench-2D", "--model", "spatialvlm"]
  model = known["spatialvlm"](max_new_tokens=6)
  for i in range(3):
    image, text = str(folder / f"{i}.png"), QUESTIONS[i]
    message = [{"type": "image", "value": image}, {"type": "text", "value": text}]
    assert model.generate(message, dataset="CV-Bench-2D") == alone[i]
