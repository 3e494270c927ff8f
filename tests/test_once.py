"""A value is made once for all threads, and a failure reaches all of them and does not stay."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from spatialvlm.once import OnceCache


def test_the_least_recently_used_go():
  made, cache = [], OnceCache()

  def get(key):
    return cache.get(key, lambda: made.append(key) or 10 * key, keep=2)

  assert [get(k) for k in (1, 2, 1, 3, 1, 2)] == [10, 20, 10, 30, 10, 20]
  assert made == [1, 2, 3, 2] and len(cache) == 2
  # One that is asked for with less room makes room for itself alone.
  assert cache.get(4, lambda: 40, keep=1) == 40 and len(cache) == 1


def together(count, ask):
  """Runs `ask(gate)` in threads, whose maker waits at the gate until all have asked."""
  asked = threading.Semaphore(0)

  def one(_):
    asked.release()
    return ask()

  with ThreadPoolExecutor(count) as pool:
    running = [pool.submit(one, i) for i in range(count)]
    for _ in range(count):
      asked.acquire()
    return running


def test_one_makes_it_and_the_others_wait():
  made, gate, cache = [], threading.Event(), OnceCache()

  def make():
    made.append(threading.get_ident())
    assert gate.wait(10)
    return object()

  timer = threading.Timer(0.2, gate.set)
  timer.start()
  running = together(8, lambda: cache.get("key", make, keep=4))
  assert len({id(f.result()) for f in running}) == 1 and len(made) == 1


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_a_failure_reaches_all_and_is_not_kept(error):
  tries, gate, cache = [], threading.Event(), OnceCache()

  def fail():
    tries.append(1)
    assert gate.wait(10)
    raise error

  def ask():
    try:
      return cache.get("key", fail, keep=4)
    except BaseException as caught:
      return caught

  threading.Timer(0.2, gate.set).start()
  found = [f.result() for f in together(6, ask)]
  assert all(f is error for f in found) and len(tries) == 1
  assert len(cache) == 0 and cache.get("key", lambda: 5, keep=4) == 5


def test_what_is_evicted_while_it_is_made_still_arrives():
  cache, gate = OnceCache(), threading.Event()

  def slow():
    assert gate.wait(10)
    return "slow"

  with ThreadPoolExecutor(2) as pool:
    first = pool.submit(cache.get, "slow", slow, 1)
    while not len(cache):
      pass
    assert cache.get("quick", lambda: "quick", keep=1) == "quick"
    gate.set()
    assert first.result() == "slow"
  assert cache.get("slow", lambda: "anew", keep=1) == "anew"


def test_a_maker_may_ask_for_other_keys():
  cache = OnceCache()
  assert cache.get("a", lambda: cache.get("b", lambda: 2, keep=4) + 1, keep=4) == 3
