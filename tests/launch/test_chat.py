"""`launch/chat.py` as a user runs it."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.launch import command
from tests.tiny_model import write_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), longest_edge=32)


@pytest.fixture(scope="module")
def photo(folder):
  Image.fromarray(np.full((20, 20, 3), 90, np.uint8)).save(folder / "photo.png")
  return folder / "photo.png"


def test_a_question_about_an_image_and_a_conversation_from_standard_input(capfd, folder, photo, monkeypatch):
  common = [f"--model={folder}", f"--image={photo}", "--max_new_tokens=4"]
  done = command.run(capfd, "chat", *common, "Which is closer?")
  assert done.code == 0 and done.err == ""
  assert done.out.endswith("\n") and len(done.out.strip()) > 0
  monkeypatch.setattr("sys.stdin", io.StringIO("Which is closer?\nWhich is closer?\n\nnot asked\n"))
  assert command.run(capfd, "chat", *common).out == done.out * 2


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["hello"], "--model is missing"),
    (["--model=/nowhere", "hello"], "/nowhere: no such folder"),
    (["--model={folder}", "--image=/nowhere.png", "hello"], "/nowhere.png: no such image file"),
    (["--model={folder}", "two", "questions"], "one question is wanted, got 2"),
    (["--model={folder}", "--max_tiles=0", "hello"], "max_tiles must be at least 1"),
    (["--model={folder}", "--modell=x"], "Unknown command line flag 'modell'"),
    (["--model={folder}", "many words " * 300], "exceed the model's context of 512"),
  ],
)
def test_mistakes_end_in_one_line_and_exit_code_2(capfd, folder, arguments, message):
  done = command.run(capfd, "chat", *[a.format(folder=folder) for a in arguments])
  assert done.code == 2 and done.out == ""
  assert message in done.err and done.err.count("\n") == 1
