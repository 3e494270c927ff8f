"""Processes that watch each other, while their main threads wait for something that never comes."""

import signal
import socket
import struct
import subprocess
import sys

import pytest

from spatialvlm.cli import watch
from tests import joined

SCRIPT = """
import pathlib, sys, time
from spatialvlm.cli.watch import Watch
from spatialvlm.cli import watch
folder, index, count = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
watch.GRACE = float(sys.argv[5])
mine = Watch(index, count)
if index == 0:
  port, word = mine.listen()
  (folder / "new").write_text(f"{port} {word.hex()}")
  (folder / "new").rename(folder / "place")
else:
  while not (folder / "place").exists():
    time.sleep(0.01)
  port, word = (folder / "place").read_text().split()
  mine.reach("localhost", int(port), bytes.fromhex(word))
while len(mine._connections) < (count - 1 if index == 0 else 1):
  time.sleep(0.01)
(folder / f"there{index}").touch()
what = input()
if what == "wrong":
  print(f"error: {sys.argv[4]}", file=sys.stderr, flush=True)
  mine.end(2)
if what == "done":
  mine.leave()
  sys.exit(0)
time.sleep(600)
"""
LEFT = (watch.LEFT, f"error: {watch.SAID}\n")
KILLED, DONE = (-signal.SIGKILL, ""), (0, "")
WRONG = (2, "error: no such file\n")


@pytest.fixture
def four(request, tmp_path):
  """Four processes that give each other two seconds, or as many as a test says."""
  grace = str(getattr(request, "param", 2.0))
  command = lambda i: [sys.executable, "-c", SCRIPT, str(tmp_path), str(i), "4", "no such file", grace]
  pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  started = [subprocess.Popen(command(i), cwd=joined.ROOT, **pipes) for i in range(4)]
  joined.until(lambda: all((tmp_path / f"there{i}").exists() for i in range(4)))
  yield started
  for process in started:
    process.kill()


def tell(processes, what):
  for process in processes:
    process.stdin.write(what + "\n")
    process.stdin.flush()


def ends(started):
  return [(code, said) for code, _, said in joined.wait(started, 60)]


@pytest.mark.parametrize("which", range(4))
def test_a_killed_process_ends_all_that_wait(four, which):
  tell(four, "wait")
  four[which].kill()
  assert ends(four) == [KILLED if i == which else LEFT for i in range(4)]


@pytest.mark.parametrize("four", [40.0], indirect=True)  # on however busy a computer
def test_what_ails_all_of_them_each_says_itself(four):
  tell(four, "wrong")
  assert ends(four) == [WRONG] * 4


@pytest.mark.parametrize("which", [0, 2])
def test_the_error_of_one_ends_the_others_when_they_had_time_for_it(four, which):
  tell([p for i, p in enumerate(four) if i != which], "wait")
  tell([four[which]], "wrong")
  assert ends(four) == [WRONG if i == which else LEFT for i in range(4)]


def test_who_has_done_its_work_may_go(four):
  tell([four[0], four[2]], "done")
  assert four[0].wait(60) == four[2].wait(60) == 0
  assert four[1].poll() is None and four[3].poll() is None
  tell([four[1], four[3]], "done")
  assert ends(four) == [DONE] * 4


def test_a_process_that_dies_is_noticed_when_others_are_done(four):
  tell([four[1]], "done")
  assert four[1].wait(60) == 0
  tell([four[0], four[2], four[3]], "wait")
  four[3].kill()
  assert ends(four) == [LEFT, DONE, LEFT, KILLED]


def test_strangers_are_sent_away():
  mine = watch.Watch(0, 2)
  port, word = mine.listen()
  with socket.create_connection(("localhost", port)) as stranger:
    stranger.sendall(struct.pack("16sI", bytes(16), 1))
    assert stranger.recv(1) == b"" and not mine._connections
  with socket.create_connection(("localhost", port)) as friend:
    friend.sendall(struct.pack("16sI", word, 1))
    joined.until(lambda: 1 in mine._connections)
    friend.sendall(b".")  # else its end would be that of this process
    joined.until(lambda: mine._said.get(1) == b".")
