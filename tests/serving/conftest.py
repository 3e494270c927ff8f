"""A model whose every weight is random, and its kin whose prompts are bidirectional."""

import dataclasses

import pytest
from flax import nnx

from spatialvlm.models.vlm import Vlm
from tests.evaluation import support

IMAGE_ID = 5


@pytest.fixture(scope="module")
def vlm():
  return support.model(IMAGE_ID)


@pytest.fixture(scope="module")
def prefix_lm(vlm):
  """A model of the same weights whose prompts are bidirectional; one layer sees a window of its text."""
  text = dataclasses.replace(vlm.config.text, windows=(5, 0))
  other = Vlm(dataclasses.replace(vlm.config, text=text, prefix_lm=True), rngs=nnx.Rngs(0))
  nnx.update(other, nnx.state(vlm))
  return other
