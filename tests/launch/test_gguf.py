"""Models as GGUF files, as a user types it."""

import pytest

from tests import tiny_edge
from tests.launch import command


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tiny_edge.write("smolvlm", tmp_path_factory.mktemp("model") / "tiny-smolvlm")


def test_one_command_and_what_it_refuses(folder, tmp_path, capfd):
  out = tmp_path / "out"
  export = lambda *more: command.run(capfd, "export", f"--model={folder}", "--to=gguf", f"--out={out}", *more)
  for numbers, message in (
    ("q4_k_m", "does not write them"),
    ("q8", "is no type of numbers that is written"),
  ):
    done = export(f"--numbers={numbers}")
    assert done.code == 2 and done.err.count("\n") == 1 and message in done.err, done
  assert not list(tmp_path.iterdir())
  done = export("--numbers=q4_0,embedding=q8_0")
  assert done.code == 0 and str(out) in done.out and "llama.cpp" in done.out, done
  before = command.files(tmp_path)
  done = export()
  assert done.code == 2 and "already holds something; name a new folder" in done.err, done
  assert command.files(tmp_path) == before and len(before) == 3
