"""Ctrl-C at a real command, at moments of its start."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
COMMAND = [sys.executable, "launch/evaluate.py", "--config=configs/cvbench.py:tiny", "--config.data.size=8"]


def loaded(process: subprocess.Popen) -> str:
  """The files that a process has mapped, libraries among them."""
  try:
    return pathlib.Path(f"/proc/{process.pid}/maps").read_text()
  except OSError:
    return ""


@pytest.mark.skipif(not pathlib.Path("/proc/self/maps").exists(), reason="moments are read from /proc")
@pytest.mark.parametrize(
  ("library", "delay"),
  [("_multiarray_umath", 0.0), ("jaxlib", 0.0), ("jaxlib", 0.7)],
  ids=["among the first imports", "while JAX is imported", "thereafter"],
)
def test_it_says_so_and_ends_with_130(tmp_path, library, delay):
  process = subprocess.Popen(
    [*COMMAND, f"--workdir={tmp_path}/run"],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  while process.poll() is None and library not in loaded(process):
    time.sleep(0.002)
  time.sleep(delay)
  process.send_signal(signal.SIGINT)
  out, err = process.communicate(timeout=60)
  assert (process.returncode, out, err) == (130, "", "interrupted\n")
  assert not list(tmp_path.iterdir())


# A command without anything heavy, whose work behaves as `{body}` says; it tells when it has begun.
SCRIPT = """
import importlib.util, pathlib, sys, time
sys.argv[0] = "launch/some.py"
spec = importlib.util.spec_from_file_location("interrupts", {file!r})
interrupts = importlib.util.module_from_spec(spec)
spec.loader.exec_module(interrupts)
interrupts.watch()
interrupts.GRACE = 0.5

def work():
  print("begun", flush=True)
{body}

sys.exit(interrupts.in_order(work))
"""
BODIES = {
  "an ordinary one": "  time.sleep(60)",
  "one that cleans up": """
  try:
    time.sleep(60)
  finally:
    pathlib.Path({mark!r}).touch()""",
  "one that swallows it": """
  end = time.time() + 60
  while time.time() < end:
    try:
      time.sleep(60)
    except KeyboardInterrupt:
      pass""",
  "one whose library makes an error of it": """
  try:
    time.sleep(60)
  except BaseException:
    raise RuntimeError("internal error")""",
  "one that it meets in a callback": """
  class Slow:
    def __del__(self):
      time.sleep(60)
  Slow()
  time.sleep(60)""",
}


@pytest.mark.parametrize("kind", BODIES)
def test_a_command_that_has_begun_ends_in_order_or_else_soon(tmp_path, kind):
  body = BODIES[kind].replace("{mark!r}", repr(str(tmp_path / "clean")))
  script = SCRIPT.format(file=str(ROOT / "spatialvlm/cli/interrupts.py"), body=body)
  process = subprocess.Popen(
    [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
  )
  assert process.stdout.readline() == "begun\n"
  time.sleep(0.1)
  process.send_signal(signal.SIGINT)
  _, err = process.communicate(timeout=10)
  assert (process.returncode, err) == (130, "interrupted\n")
  assert (tmp_path / "clean").exists() == (kind == "one that cleans up")
