"""One run, one worker: claims among threads and processes, and what is left by those that died."""

import json
import os
import queue
import threading
import time

import pytest

from spatialvlm.study.claims import Claims
from spatialvlm.types import UserError


def old(folder, name, seconds):
  """Makes a claim look as if it had last been renewed so long ago."""
  file = folder / "claims" / name
  then = time.time() - seconds
  os.utime(file, (then, then))


def test_a_claim_is_of_one_worker_until_it_is_released(tmp_path):
  mine, theirs = Claims(tmp_path, 60), Claims(tmp_path, 60)
  claim = mine.take("lora.seed-0")
  assert claim and theirs.take("lora.seed-0") is None and mine.take("lora.seed-0") is None
  other = theirs.take("lora.seed-01")  # another name, though it begins alike
  assert other and theirs.holder("lora.seed-0").startswith(f"process {os.getpid()} on ")
  claim.release()
  assert theirs.take("lora.seed-0") and mine.take("lora.seed-0") is None
  names = sorted(path.name for path in (tmp_path / "claims").iterdir())
  assert names == ["lora.seed-0.000", "lora.seed-0.001", "lora.seed-01.000"]
  assert json.loads((tmp_path / "claims" / "lora.seed-0.000").read_text())["released"]


def test_a_dead_workers_claim_runs_out(tmp_path):
  dead, claims = Claims(tmp_path, 60), Claims(tmp_path, 60)
  claim = dead.take("a")
  claim._done.set()  # renews no more
  old(tmp_path, "a.000", 50)
  assert claims.take("a") is None
  old(tmp_path, "a.000", 70)
  taken = claims.take("a")
  assert taken and dead.take("a") is None
  # What it had not written to its end is a claim all the same, for as long.
  (tmp_path / "claims" / "b.000").touch()
  assert claims.take("b") is None and claims.holder("b") == "another worker"
  old(tmp_path, "b.000", 70)
  assert claims.take("b")


def test_a_claim_is_renewed_and_lost_to_the_next_one(tmp_path):
  claim = Claims(tmp_path, 0.4).take("a")
  old(tmp_path, "a.000", 1000)
  file = tmp_path / "claims" / "a.000"
  deadline = time.monotonic() + 10
  while time.time() - file.stat().st_mtime > 500:
    assert time.monotonic() < deadline
    time.sleep(0.02)
  (tmp_path / "claims" / "a.001").write_text("{}")
  assert claim.lost.wait(10)
  claim.release("late")
  assert not json.loads(file.read_text())["released"]


def test_why_another_worker_gave_up(tmp_path):
  """Told to those who are at work; who comes later tries again."""
  first, second = Claims(tmp_path, 60), Claims(tmp_path, 60)
  old_claim = first.take("a")
  old_claim.release("no such file")
  assert second.failed_elsewhere("a") == "no such file" and not second.failed_elsewhere("b")
  old(tmp_path, "a.000", 30)
  late = Claims(tmp_path, 60)
  assert not late.failed_elsewhere("a") and late.take("a")


def race(folder, numbers, taken):
  claims = Claims(folder, 60)
  taken.put([number for number in numbers if claims.take(f"run-{number}")])


def test_many_at_once(tmp_path):
  """Of workers that reach for the same runs each has its own, also where half were left by the dead."""
  for number in range(0, 60, 2):
    (tmp_path / "claims").mkdir(exist_ok=True)
    (tmp_path / "claims" / f"run-{number}.000").touch()
    old(tmp_path, f"run-{number}.000", 100)
  found = queue.SimpleQueue()
  threads = [threading.Thread(target=race, args=(tmp_path, range(60), found)) for _ in range(4)]
  for one in threads:
    one.start()
  for one in threads:
    one.join()
  taken = sorted(number for _ in threads for number in found.get(timeout=30))
  assert taken == list(range(60))


def test_a_folder_that_cannot_be_written(tmp_path):
  (tmp_path / "claims").write_text("a file")
  with pytest.raises(UserError, match="claims: cannot be written"):
    Claims(tmp_path, 60)
