"""A teacher's logits on disk: found by what is read, refused for another teacher, made anew where damaged."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialvlm.data.samples import Sample
from spatialvlm.processing.processor import Encoded
from spatialvlm.training import taught
from spatialvlm.training.objectives import Distil, Other
from spatialvlm.training.objectives.distil import DistilSettings, divergence, of_likeliest, taught_names
from spatialvlm.types import Example, Turn, UserError

WHERE = "config.teachers.large.cache"


def pair(number, answers=2, facts=None):
  """A sample and what is read of it."""
  loss = np.arange(6) >= 6 - answers
  encoded = Encoded(
    np.arange(6, dtype=np.int32) + number, loss, np.full(6, -1, np.int32), np.zeros((0, 4, 4, 3))
  )
  return Sample("own", number, Example((), (Turn("?", "!"),), facts=facts)), encoded


def said(number, answers=2):
  rng = np.random.default_rng(number)
  return taught.Taught(
    rng.integers(0, 9, (answers, 3)).astype(np.int32), rng.normal(size=(answers, 3)).astype(np.float32)
  )


def store(folder, told=False, **identity):
  return taught.Store(str(folder), {"teacher": "t", "top": 3} | identity, told=told, where=WHERE)


def filled(folder, numbers=range(4)):
  first = store(folder)
  first.add({first.key(*pair(n, 1 + n % 2)): said(n, 1 + n % 2) for n in numbers})
  return first


def test_what_is_kept_is_found_by_what_is_read(tmp_path):
  filled(tmp_path / "new")
  again = store(tmp_path / "new")
  assert len(again) == 4 and not again.damaged
  for n in range(4):
    found = again.get(*pair(n, 1 + n % 2))
    assert np.array_equal(found.ids, said(n, 1 + n % 2).ids)
    assert np.array_equal(found.logits, said(n, 1 + n % 2).logits)
  extra = taught.extras({"large": again}, *pair(1))
  assert set(extra) == set(taught_names("large")) and {e.axis for e in extra.values()} == {"target"}
  sample, encoded = pair(0, 1)
  renamed = dataclasses.replace(sample, source="other", index=7)
  assert again.get(renamed, encoded) is again.get(sample, encoded)
  for changed in (
    pair(0, 2)[1],
    dataclasses.replace(encoded, tokens=encoded.tokens + 1),
    dataclasses.replace(encoded, tiles=np.zeros((1, 4, 4, 3))),
  ):
    with pytest.raises(UserError, match=r"large\.cache: .* holds nothing of own\[0\]; run launch/teach\.py"):
      again.get(sample, changed)


def test_facts_count_where_they_are_told():
  one, other = pair(0, facts=lambda: "red"), pair(0, facts=lambda: "blue")
  assert taught.key_of(*one, told=True) != taught.key_of(*other, told=True)
  assert (
    taught.key_of(*one, told=False) == taught.key_of(*other, told=False) == taught.key_of(*pair(0), told=True)
  )


def test_depth_counts_where_it_is_told():
  sample, encoded = pair(0)
  with_depth = lambda metres: dataclasses.replace(
    sample, example=dataclasses.replace(sample.example, dense={"depth": np.full((2, 2), metres)})
  )
  key = lambda metres, depth: taught.key_of(with_depth(metres), encoded, False, depth)
  assert key(1.0, True) != key(2.0, True) and key(1.0, True) == key(1.0, True)
  assert key(1.0, False) == key(2.0, False) == taught.key_of(sample, encoded, False)


def test_another_teacher_is_refused(tmp_path):
  filled(tmp_path)
  with pytest.raises(UserError, match=r"of another teacher or other settings \(teacher, top differ\)"):
    store(tmp_path, teacher="u", top=4)
  (tmp_path / taught.ABOUT).write_text("{")
  with pytest.raises(UserError, match=r"about\.json: is no JSON"):
    store(tmp_path)


@pytest.mark.parametrize("harm", ["cut", "flipped", "empty"])
def test_a_damaged_file_is_named_and_made_anew(tmp_path, harm):
  filled(tmp_path)
  filled(tmp_path, range(4, 6))
  file = tmp_path / "logits-00001.safetensors"
  data = bytearray(file.read_bytes())
  data[-9] ^= 1
  file.write_bytes({"cut": bytes(data[:-20]), "flipped": bytes(data), "empty": b""}[harm])
  found = store(tmp_path)
  assert len(found) == 4 and list(found.damaged) == [file]
  (text,) = found.drop_damaged()
  assert text.startswith(f"{file}: damaged (") and "made anew" in text and not file.exists()
  found.add({found.key(*pair(5)): said(5)})
  assert len(store(tmp_path)) == 5


def test_all_likeliest_tokens_are_the_whole_divergence():
  student, teacher = jax.random.normal(jax.random.key(0), (2, 4, 7))
  logits, ids = jax.lax.top_k(jax.nn.log_softmax(teacher), 7)
  whole = divergence(student, teacher, 0.0, 1.7)
  np.testing.assert_allclose(of_likeliest(student, ids, logits, 1.7), whole, rtol=1e-5)
  part = of_likeliest(student, ids[:, :2], logits[:, :2], 1.7)
  p = jax.nn.softmax(logits[:, :2] / 1.7)
  picked = jnp.take_along_axis(jax.nn.log_softmax(student / 1.7), ids[:, :2], axis=-1)
  np.testing.assert_allclose(part, (p * (jnp.log(p) - picked)).sum(-1), rtol=1e-5)


def test_a_cached_teacher_is_asked_nothing():
  objective = Distil(DistilSettings())
  model = types.SimpleNamespace()
  objective.meet({"teacher": Other(model)})
  assert set(objective.asks) == {"teacher"} and objective.extra == ()
  objective.meet({"teacher": Other(model, cached=True)})
  assert not objective.asks and objective.extra == taught_names("teacher")
  Distil(DistilSettings(beta=0.5)).meet({"teacher": Other(model, cached=True)})
  with pytest.raises(UserError, match=r"temperature: a cache .* with beta=0\.5 use 1, or beta=0"):
    Distil(DistilSettings(beta=0.5, temperature=0.9)).meet({"teacher": Other(model, cached=True)})


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_what_is_left_out_is_one_outcome_more(beta):
  """Never more than the whole divergence, nearer with every token kept, and all of it with all."""
  draw = lambda n: 3 * jax.random.normal(jax.random.key(n), (32, 512))
  teacher = draw(0)
  student = teacher + 0.3 * draw(1)  # a student that has learned something, as far as a temperature apart
  whole = divergence(student, teacher, beta, 1.0)

  @functools.partial(jax.jit, static_argnames="top")
  def kept(student, top):
    logits, ids = jax.lax.top_k(jax.nn.log_softmax(teacher), top)
    return of_likeliest(student, ids, logits, 1.0, beta)

  tops = (1, 8, 64, 256, 512)
  lost = [float((1 - kept(student, top) / whole).mean()) for top in tops]
  assert all((kept(student, top) <= whole * (1 + 1e-4) + 1e-6).all() for top in tops)
  assert lost == sorted(lost, reverse=True) and lost[0] > 0.2 and 0 < lost[2] < 0.1, lost
  np.testing.assert_allclose(kept(student, 512), whole, rtol=1e-4, atol=1e-6)
  gradient = jax.grad(lambda s: divergence(s, teacher, beta, 1.0).sum())(student)
  near = jax.grad(lambda s: kept(s, 256).sum())(student)
  assert np.isfinite(near).all() and np.linalg.norm(near - gradient) < 0.1 * np.linalg.norm(gradient)
  # Padding: one token over and over, its logit 0.
  none = of_likeliest(student[:1], jnp.zeros((1, 8), jnp.int32), jnp.zeros((1, 8)), 1.0, beta)
  assert np.isfinite(none).all()
