"""The tuned lens is fitted, kept, and read back for its own model alone."""

import numpy as np
import pytest

from spatialvlm.inside import translators
from spatialvlm.inside.translators import FitSettings
from spatialvlm.types import UserError
from tests.inside import support

SETTINGS = FitSettings(
  prompts=16, heldout=8, rounds=12, batch=8, positions=8, learning_rate=0.02
)  # a few seconds


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
  vlm = support.load(tmp_path_factory.mktemp("model"), max_tiles=1)
  questions = ("How many cones are in the image?", "The sphere is left of the cube.", "Describe the picture.")
  prompts = [vlm.processor.encode_prompt([support.picture(seed=n)], questions[n % 3]) for n in range(24)]
  return vlm, prompts, translators.fit(vlm.model, prompts, SETTINGS)


def test_it_says_more_of_what_the_model_says(fitted):
  """On prompts that were held out; and the logit lens is where it starts."""
  _, _, found = fitted
  assert set(found.translators) == {0, 1}
  for layer in found.after:
    assert 0 < found.after[layer] < 0.8 * found.before[layer]


def test_kept_and_read_back(fitted, tmp_path):
  _, _, found = fitted
  translators.write(found, tmp_path / "lens", {"model": {"sha256": "a"}}, SETTINGS)
  again = translators.read(tmp_path / "lens", {"model": {"sha256": "a"}})
  for layer, maps in found.translators.items():
    np.testing.assert_array_equal(again[layer].a_DD, maps.a_DD)
    np.testing.assert_array_equal(again[layer].b_D, maps.b_D)
  with pytest.raises(UserError, match="the tuned lens of another model"):
    translators.read(tmp_path / "lens", {"model": {"sha256": "b"}})
  with pytest.raises(UserError, match="holds no tuned lens"):
    translators.read(tmp_path, {})


def test_too_few_prompts(fitted):
  vlm, prompts, _ = fitted
  with pytest.raises(UserError, match="24 prompts are wanted, there are 8"):
    translators.fit(vlm.model, prompts[:8], SETTINGS)
