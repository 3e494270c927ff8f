"""One small model for all tests of the server, and an adapter that answers otherwise."""

import pytest

import spatialvlm
from spatialvlm import hub, peft
from spatialvlm.config import PeftConfig
from tests.peft.support import moved
from tests.tiny_model import write_checkpoint


@pytest.fixture(scope="session")
def world(tmp_path_factory):
  """Folders of a model and of an adapter for it."""
  folder = tmp_path_factory.mktemp("served")
  write_checkpoint(folder / "model", longest_edge=32)
  adapted = peft.apply(hub.load_model(folder / "model"), PeftConfig(options={"rank": 2}))
  peft.save_adapter(moved(adapted), folder / "adapter")
  return folder


@pytest.fixture(scope="session")
def vlm(world):
  """The model with the adapter beside it, the base switched on."""
  return spatialvlm.load_vlm(world / "model").load_adapter(world / "adapter", "other").disable_adapters()


@pytest.fixture(scope="session")
def models(vlm):
  """As a service takes them."""
  base = vlm.model, vlm.processor
  other = vlm.set_adapter("other").model, base[1]
  vlm.disable_adapters()
  return {"base": base, "other": other}
