"""Answers of many at a time, without a socket: held to the model's own, asked alone."""

import dataclasses

import numpy as np
import pytest
from flax import nnx
from scipy.special import log_softmax

from spatialvlm.server.errors import Refused
from spatialvlm.serving import rows
from spatialvlm.serving.scheduler import Full, Scheduler
from tests.server import support
from tests.server.support import QUESTIONS, SMALL, ask, body, picture, text, tokens, turns

SHOWN = [picture(0), picture(1, (24, 40)), picture(2)]
DRAWS = ({}, {"temperature": 0.8, "seed": 5}, {"temperature": 1.3, "top_p": 0.7, "seed": 2**40 + 3})


@pytest.fixture(scope="module")
def service(models):
  return support.service(models)


def many():
  """(fields of a request, its pictures): on shared pictures and on none, greedy and drawn."""
  found = []
  for i in range(12):
    shown = SHOWN[i % 3 : i % 3 + 1] if i % 4 else [SHOWN[0], SHOWN[1]] if i else []
    fields = body(QUESTIONS[i % 3] * (1 + i % 2), *shown, **DRAWS[i % len(DRAWS)])
    found.append((fields | {"max_tokens": (5, 14)[i % 2]}, shown))
  return found


def own(vlm, fields, shown):
  """What the model itself says, one prompt by itself."""
  drawn = {name: fields[name] for name in ("temperature", "top_p") if name in fields}
  question = fields["messages"][0]["content"][-1]["text"]
  seed = fields.get("seed", 0) % 2**32
  return vlm.chat(shown, question, max_new_tokens=fields["max_tokens"], seed=seed, **drawn)


def test_answers_among_many_are_those_of_the_model_alone(service, vlm):
  asked = many()
  found = [ask(service, fields) for fields, _ in asked]
  assert service.scheduler.waiting == 12
  turns(service)
  answers = [text(one) for one in found]
  assert answers == [own(vlm, *one) for one in asked]
  assert len(set(answers)) > 6  # they say something, and not all the same
  assert service.scheduler.waiting == service.scheduler.running == 0
  # Three pictures, alone and as a pair, beside a prompt without any: no prefix was read twice.
  shared = service.scheduler.lane("base").shared
  assert shared.read <= 5 and shared.prefixes.found >= 7


def test_an_answer_that_comes_in_between_changes_no_other(service, vlm):
  asked = many()[3:7]
  found = [ask(service, asked[0][0])]
  for one in asked[1:]:
    service.scheduler.turn()
    found.append(ask(service, one[0]))
  turns(service)
  assert [text(one) for one in found] == [own(vlm, *one) for one in asked]


def test_logprobs_are_those_of_one_forward(service, vlm, models):
  fields = body(QUESTIONS[0], SHOWN[0], logprobs=True, top_logprobs=5, temperature=0.7, seed=1, stop=["@#"])
  beside = ask(service, body(QUESTIONS[1], SHOWN[1]))
  found = ask(service, fields)
  turns(service)
  said = tokens(found)
  assert len(said) == 9 and not any(token.top for token in tokens(beside))
  arrays = vlm.processor(text=models["base"][1].template.render(
    [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTIONS[0]}]}], True
  ), images=[SHOWN[0]])  # fmt: skip
  prompt = arrays["input_ids"].shape[1]
  for name, more in (("input_ids", [token.id for token in said]), ("attention_mask", [1] * len(said))):
    arrays[name] = np.concatenate([arrays[name], [more]], axis=1)
  logprobs = log_softmax(vlm.logits(**arrays)[0].astype(np.float64), axis=-1)
  for at, token in enumerate(said):
    expected = logprobs[prompt - 1 + at]
    assert token.logprob == pytest.approx(expected[token.id], abs=1e-4)
    assert [value for _, value in token.top] == pytest.approx(np.sort(expected)[::-1][:20], abs=1e-4)
    assert [expected[id] for id, _ in token.top] == pytest.approx([v for _, v in token.top], abs=1e-4)


def test_a_text_of_several_pieces(service, vlm, monkeypatch):
  monkeypatch.setattr(rows, "PIECES", (16,))
  fields = body(QUESTIONS[1] * 4, SHOWN[0])
  found, short = ask(service, fields), ask(service, body(QUESTIONS[0]))
  request = found.asked.job.request
  assert len(request.tokens) - request.prefix > 32
  turns(service)
  assert text(found) == own(vlm, fields, [SHOWN[0]]) and text(short) == own(vlm, body(QUESTIONS[0]), [])


def test_an_adapter_answers_by_its_name(service, vlm):
  both = [ask(service, body(QUESTIONS[2], SHOWN[0], model=name)) for name in ("base", "other")]
  turns(service)
  found = [text(one) for one in both]
  assert found[0] == vlm.chat([SHOWN[0]], QUESTIONS[2], max_new_tokens=9)
  assert found[1] == vlm.set_adapter("other").chat([SHOWN[0]], QUESTIONS[2], max_new_tokens=9)
  vlm.disable_adapters()
  assert found[0] != found[1]


def test_several_turns_of_a_conversation_and_a_system_prompt(service, vlm):
  first = body(QUESTIONS[0], SHOWN[0])
  more = [{"role": "assistant", "content": "the sphere"}, {"role": "user", "content": QUESTIONS[1]}]
  found = ask(service, first | {"messages": [*first["messages"], *more]})
  system = [{"role": "system", "content": "Answer: B"}, {"role": "user", "content": "3"}]
  other = ask(service, first | {"messages": system})
  turns(service)
  parts = [{"type": "image"}, {"type": "text", "text": QUESTIONS[0]}]
  for one, conversation, shown in (
    (found, [{"role": "user", "content": parts}, *more], [SHOWN[0]]),
    (other, system, []),
  ):
    prompt = vlm.processor.apply_chat_template(conversation, add_generation_prompt=True)
    arrays = vlm.processor(text=prompt, images=[shown] if shown else None)
    expected = vlm.generate(**arrays, max_new_tokens=9)[0].tolist()
    stops = [i for i, token in enumerate(expected) if token in vlm.processor.stop_ids]
    expected = expected[: stops[0]] if stops else expected
    assert text(one) == vlm.processor.decode(expected).strip()


def test_a_stop_text_ends_an_answer_and_frees_its_row(service, vlm):
  fields = body(QUESTIONS[0], SHOWN[0], max_tokens=14)
  whole = own(vlm, fields, [SHOWN[0]])
  stop = whole[len(whole) // 2 : len(whole) // 2 + 2]
  found = ask(service, fields | {"stop": [stop, "@#@"]})
  turns(service)
  assert text(found) == whole[: whole.index(stop)].rstrip()
  assert found.events[-1].finish == "stop" and found.events[-1].said < 14
  assert service.scheduler.running == 0


def test_cancelled_requests_leave_row_and_queue(service, vlm):
  asked = many()[4:11]
  found = [ask(service, fields | {"max_tokens": 14}) for fields, _ in asked]
  service.scheduler.turn()
  assert (service.scheduler.running, service.scheduler.waiting) == (4, 3)
  for index in (0, 2, 5):  # two that run, one that waits
    service.cancel(found[index].asked)
  assert service.scheduler.waiting == 2
  service.scheduler.turn()
  assert (service.scheduler.running, service.scheduler.waiting) == (4, 0)
  turns(service)
  assert service.scheduler.running == 0
  for index, ((fields, shown), one) in enumerate(zip(asked, found, strict=True)):
    if index in (0, 2, 5):
      assert not any(event.last for event in one.events)
    else:
      assert text(one) == own(vlm, fields | {"max_tokens": 14}, shown)


def test_the_queue_is_bounded_and_requests_have_their_time(models):
  served = support.service(models, dataclasses.replace(SMALL, queue=2, rows=1, seconds=10))
  now = [0.0]
  served.scheduler._clock = lambda: now[0]
  found = [ask(served, body(QUESTIONS[0])) for _ in range(2)]
  with pytest.raises(Refused) as refused:
    ask(served, body(QUESTIONS[0]))
  assert refused.value.status == 429 and "Retry-After" in refused.value.headers
  served.scheduler.turn()
  assert (served.scheduler.running, served.scheduler.waiting) == (1, 1)
  now[0] = 10.0  # too late for both
  served.scheduler.turn()
  assert served.scheduler.running == served.scheduler.waiting == 0
  for one in found:
    with pytest.raises(Refused, match="no answer within 10 seconds") as refused:
      one.wait(0)
    assert refused.value.status == 504


def test_what_goes_wrong_with_one_request_is_its_own(models, vlm):
  broken = nnx.clone(models["base"][0], variables=True)
  broken.decoder.lm_head.kernel[...] *= np.nan
  served = support.service({"base": models["base"], "broken": (broken, models["base"][1])})
  good, bad = ask(served, body(QUESTIONS[0], SHOWN[0])), ask(served, body(QUESTIONS[0], model="broken"))
  torn = ask(served, body(QUESTIONS[0], SHOWN[2]))
  object.__setattr__(torn.asked.job.request, "picture", lambda: 1 / 0)
  turns(served)
  assert text(good) == vlm.chat([SHOWN[0]], QUESTIONS[0], max_new_tokens=9)
  for one in (bad, torn):
    with pytest.raises(Refused) as refused:
      one.wait(0)
    assert refused.value.status == 500 and "\n" not in refused.value.body["error"]["message"]
  assert served.scheduler.running == 0


def test_a_turn_that_fails_fails_its_rows_alone(models, vlm, monkeypatch):
  heard = []
  served = support.service(models)
  served.scheduler._on_error = heard.append
  found = ask(served, body(QUESTIONS[0]))
  lane = served.scheduler.lane("base")
  with monkeypatch.context() as patch:
    patch.setattr(lane._rows, "turn", lambda *a: 1 / 0)
    served.scheduler.turn()
  with pytest.raises(Refused) as refused:
    found.wait(0)
  assert refused.value.status == 500 and len(heard) == 1 and served.scheduler.running == 0
  again = ask(served, body(QUESTIONS[0]))
  turns(served)
  assert text(again) == vlm.chat(None, QUESTIONS[0], max_new_tokens=9)


def test_a_scheduler_that_stops_leaves_nobody_waiting(models):
  served = support.service(models)
  served.scheduler.start()
  assert served.scheduler.alive
  done = ask(served, body(QUESTIONS[0]))
  assert done.wait(60)[-1].finish
  served.scheduler.stop()
  assert not served.scheduler.alive
  with pytest.raises(Refused) as refused:
    ask(served, body(QUESTIONS[0]))
  assert refused.value.status == 503
  left = support.service(models)
  found = ask(left, body(QUESTIONS[0]))
  left.scheduler.stop()
  with pytest.raises(Refused, match="stops"):
    found.wait(0)


@pytest.mark.parametrize(
  ("fields", "message", "code"),
  [
    ({"model": "third"}, "model 'third' does not exist; there are 'base', 'other'", "model_not_found"),
    ({"messages": support.messages("a <image> b")}, "a text holds <image>", "invalid_value"),
    ({"messages": support.messages("word " * 900)}, "exceed the model's context of 512", "invalid_value"),
    ({"messages": support.messages("5 " * 200)}, "no room for an answer", "context_length_exceeded"),
    ({"messages": support.messages("", *[SHOWN[0]] * 3)}, "3 pictures are more than the 2", "invalid_value"),
  ],
)
def test_refusals_before_any_work(models, fields, message, code):
  served = support.service(models, most_images=2)
  with pytest.raises(Refused) as refused:
    ask(served, body(QUESTIONS[0]) | fields)
  error = refused.value.body["error"]
  assert message in error["message"] and error["code"] == code and served.scheduler.waiting == 0


def test_names_are_checked_by_the_scheduler_too(models):
  with pytest.raises(Exception, match="no model is called 'x'"):
    Scheduler({}, SMALL).submit("x", None, None)
  assert issubclass(Full, Exception)
