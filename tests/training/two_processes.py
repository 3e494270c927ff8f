"""Two real processes of JAX, on one machine, that know each other."""

import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def start(script: str, *arguments: str) -> None:
  """Runs `script` in both until they end, each with one device; fails where one does not end well."""
  with socket.socket() as s:
    s.bind(("localhost", 0))
    port = s.getsockname()[1]
  started = []
  for process in range(2):
    environment = dict(
      os.environ,
      PYTHONPATH=str(ROOT),
      XLA_FLAGS="--xla_force_host_platform_device_count=1",
      JAX_COORDINATOR_ADDRESS=f"localhost:{port}",
      JAX_NUM_PROCESSES="2",
      JAX_PROCESS_ID=str(process),
    )
    command = [sys.executable, "-c", script, *arguments]
    started.append(subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True))
  try:
    errors = [process.communicate(timeout=400)[1] for process in started]
  finally:
    for process in started:
      process.kill()
  assert [process.returncode for process in started] == [0, 0], errors
