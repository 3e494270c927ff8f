"""Rows that requests enter and leave, for every kind of prompt, against a model that reads each one whole."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spatialvlm import peft
from spatialvlm.config import PeftConfig
from spatialvlm.serving import rows
from spatialvlm.serving.lane import SchedulerConfig, Served
from spatialvlm.serving.requests import Generated
from spatialvlm.serving.scheduler import Scheduler
from tests.peft.support import moved
from tests.serving.test_engine import NORMAL, Plain, images, request

CONFIG = SchedulerConfig(rows=3, together=2, steps=2, context=90, queue=20)


class Heard:
  """Listens to one answer."""

  def __init__(self):
    self.tokens, self.end = [], None

  def said(self, tokens):
    self.tokens += tokens
    return False

  def ended(self, stopped):
    self.end = stopped

  def failed(self, error):
    raise error


def answered(model, requests, stop=(), config=CONFIG):
  """What each request's listener heard; one more of them comes between two turns."""
  scheduler = Scheduler({"m": Served(model, 0, tuple(stop), NORMAL)}, config)
  found = []
  for asked in requests:
    found.append(Heard())
    scheduler.submit("m", asked, found[-1], tells=True)
    scheduler.turn()
  while scheduler.turn():
    pass
  return found


def check(model, bidirectional=False):
  """Requests on shared images and on none say what the whole model says, token by token and in its words."""
  plain, shown, asked = Plain(model), images(2), []
  for i in range(5):
    tiles = None if i == 4 else shown[i % 2]
    wanted = Generated(3 + i % 3)
    asked.append((request(i, tiles, wanted, words=4 + i, key=i % 2, bidirectional=bidirectional), tiles))
  found = answered(model, [one for one, _ in asked])
  for (one, tiles), heard in zip(asked, found, strict=True):
    said, _ = plain.greedy(one, [] if tiles is None else tiles, one.wanted[0].limit)
    assert [token.id for token in heard.tokens] == said and heard.end is False
    logprobs = plain(one, [] if tiles is None else tiles, said[:-1])
    for at, token in enumerate(heard.tokens):
      assert token.logprob == pytest.approx(logprobs[at][token.id], abs=1e-4)
      assert token.top[0] == (token.id, token.logprob) and len(token.top) == rows.TOPS


def test_prompts_of_a_causal_model(vlm):
  check(vlm)


def test_prompts_of_a_prefix_lm(prefix_lm):
  check(prefix_lm, bidirectional=True)


@pytest.mark.parametrize(
  ("method", "options"), [("prompt", {"place": "after_image"}), ("prefix", {"init": "random"})]
)
def test_soft_prompts(vlm, method, options):
  graphdef, state = nnx.split(vlm)
  base = nnx.merge(graphdef, jax.tree.map(jnp.asarray, state))
  config = PeftConfig(method, options={"tokens": 3, **options})
  check(moved(peft.apply(base, config, peft.Given(lambda text: [20, 21, 22])), 0.5))


def test_a_stop_token_ends_an_answer_and_is_not_said(vlm):
  asked = request(1, images(1)[0], Generated(8))
  (whole,) = answered(vlm, [asked])
  said = [token.id for token in whole.tokens]
  stop = next(t for t in said if said.index(t) > 1)
  (cut,) = answered(vlm, [asked], stop=[stop])
  assert [token.id for token in cut.tokens] == said[: said.index(stop)] and cut.end is True


def test_the_context_ends_an_answer(vlm):
  asked = request(1, images(1)[0], Generated(50))
  room = 5
  config = dataclasses.replace(CONFIG, context=len(asked.tokens) + room)
  (found,) = answered(vlm, [asked], config=config)
  (whole,) = answered(vlm, [asked], config=dataclasses.replace(CONFIG, context=60))
  assert len(found.tokens) == room and found.end is False
  assert found.tokens == whole.tokens[:room] and np.isfinite([t.logprob for t in found.tokens]).all()
