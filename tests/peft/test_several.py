"""Several adapters on one base: switching, sums, and what cannot be added."""

import numpy as np
import pytest

from spatialvlm import peft
from spatialvlm.config import PeftConfig, from_config_dict
from spatialvlm.types import UserError
from tests.peft import support


def adapter(folder, seed, **settings):
  """An adapter of `support.build()`, as a folder; its model."""
  vlm = support.moved(peft.apply(support.build(), from_config_dict(settings, PeftConfig)), 0.1, seed)
  peft.save_adapter(vlm, folder)
  return vlm


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  root = tmp_path_factory.mktemp("adapters")
  first = adapter(root / "a", 1, target=r".*(q|k)_proj", rank=2, alpha=6.0)
  second = adapter(root / "b", 2, target=r".*(k|v)_proj|.*fc1", rank=3, rslora=True, init="olora")
  return root, support.logits(first), support.logits(second)


def test_adapters_are_switched_and_the_base_keeps_its_bits(folders):
  root, first, second = folders
  base = support.build()
  plain = support.logits(base)
  several = peft.Adapters(base)
  several.load(root / "a", "a")
  several.load(root / "b", "b")
  assert several.names == ("a", "b")
  for _ in range(2):
    assert np.array_equal(support.logits(several["a"]), first)
    assert np.array_equal(support.logits(several["b"]), second)
    assert np.array_equal(support.logits(several.base), plain)
  assert several["a"].decoder.embed.embedding[...] is base.decoder.embed.embedding[...]
  with pytest.raises(UserError, match="called 'a' already"):
    several.load(root / "b", "a")
  several.delete("a")
  with pytest.raises(UserError, match="no adapter is called 'a'; there are 'b'"):
    several["a"]
  with pytest.raises(UserError, match=r"already carries an adapter \(lora\)"):
    peft.Adapters(several["b"])


def test_a_weighted_sum_is_exact(folders, tmp_path):
  """Of every weight the sum of what each adapter changes, also where only one of them changes it."""
  root, *_ = folders
  several = peft.Adapters(support.build())
  a, b = several.load(root / "a", "a"), several.load(root / "b", "b")
  vlm = several.add({"a": 0.7, "b": -1.5}, "both")
  kernel = lambda model, name: np.float64(
    getattr(peft.merge(model).vision.stack.layers[0].attn, name).kernel[...]
  )
  for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
    base = np.float64(getattr(several.base.vision.stack.layers[0].attn, name).kernel[...])
    expected = base + 0.7 * (kernel(a, name) - base) - 1.5 * (kernel(b, name) - base)
    np.testing.assert_allclose(kernel(vlm, name), expected, atol=2e-6)
  ranks = {name: spec.rank for name, (_, spec) in peft.METHODS["lora"].adapted_sites(vlm).items()}
  assert {ranks[f"model.text_model.layers.0.self_attn.{n}_proj"] for n in "q"} == {2}
  assert ranks["model.text_model.layers.0.self_attn.k_proj"] == 2 + 2 * 3
  again = peft.load_adapter(support.build(), peft.save_adapter(vlm, tmp_path / "sum"))
  assert np.array_equal(support.logits(again), support.logits(vlm))


def test_what_is_subtracted_from_itself_is_gone(folders):
  root, *_ = folders
  several = peft.Adapters(support.build())
  one = several.load(root / "a", "a")
  none = peft.weighted_sum(several.base, {"a": (one, 1.0), "minus a": (one, -1.0)})
  plain = support.logits(several.base)
  np.testing.assert_allclose(support.logits(none), plain, atol=1e-5 * np.abs(plain).max())


def test_other_starts_become_plain_lora(folders, tmp_path):
  root, _, second = folders
  vlm = peft.load_adapter(support.build(), root / "b")
  plain = peft.as_plain_lora(vlm)
  specs = [spec for _, spec in peft.METHODS["lora"].adapted_sites(plain).values()]
  assert {(spec.rank, spec.init, spec.rslora) for spec in specs} == {(6, "default", False)}
  np.testing.assert_allclose(support.logits(plain), second, atol=1e-5 * np.abs(second).max())
  again = peft.load_adapter(support.build(), peft.save_adapter(plain, tmp_path / "plain"))
  assert np.array_equal(support.logits(again), support.logits(plain))
  assert np.array_equal(support.logits(vlm), second)


@pytest.mark.parametrize(
  ("settings", "words"),
  [
    ({"method": "ia3"}, "only LoRA adapters can be added, and this is one of 'ia3'"),
    ({"dora": True}, "DoRA or lora_bias cannot be added"),
    ({"full": "lm_head"}, "trained in full, which do not add"),
    ({"target": r".*fc1", "bias": "lora_only"}, "trained in full, which do not add"),
  ],
)
def test_what_cannot_be_added(settings, words, tmp_path):
  vlm = peft.apply(support.build(), from_config_dict(settings, PeftConfig))
  with pytest.raises(UserError) as caught:
    peft.weighted_sum(support.build(), {"x": (vlm, 1.0)})
  assert words in str(caught.value) and "adapter 'x'" in str(caught.value) and "\n" not in str(caught.value)
