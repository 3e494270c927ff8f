"""`launch/serve.py` as a user runs it."""

import os
import pathlib
import signal
import subprocess
import sys

import openai
import pytest

from tests.launch import command

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "launch" / "serve.py"


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "--model is missing"),
    (["--model=/nowhere", "--port=0"], "/nowhere: no such folder"),
    (["--model={world}/model", "--port=0", "--adapter=x"], "write --adapter=NAME=FOLDER"),
    (["--model={world}/model", "--port=0", "--name=x", "--adapter=x=y"], "a model is called 'x' already"),
    (["--model={world}/model", "--port=0", "--adapter=x=/nowhere"], "/nowhere: no such folder"),
    (["--model={world}/model", "--port=0", "--rows=0"], "rows: 0 must be at least 1"),
    (["--model={world}/model", "--port=0", "--images=/nowhere"], "--images: /nowhere is no folder"),
    (["--model={world}/model", "--port=70000"], "cannot be listened at"),
    (["--model={world}/model", "--host=no.such.host.invalid"], "cannot be listened at"),
    (["--model={world}/model", "x"], "unexpected argument 'x'"),
  ],
)
def test_mistakes_end_in_one_line_and_exit_code_2(capfd, world, arguments, message):
  done = command.run(capfd, "serve", *[a.format(world=world) for a in arguments])
  assert done.code == 2 and done.out == ""
  assert message in done.err and done.err.count("\n") == 1


def test_it_serves_until_it_is_interrupted(world, tmp_path):
  arguments = [f"--model={world}/model", "--name=mine", f"--adapter=more={world}/adapter", "--port=0"]
  environment = os.environ | {"SPATIALVLM_API_KEY": "key"}
  started = subprocess.Popen(
    [sys.executable, SCRIPT, *arguments], cwd=tmp_path, env=environment, text=True,
    stdout=subprocess.PIPE, stderr=subprocess.PIPE,
  )  # fmt: skip
  try:
    names, address = started.stdout.readline().split(": ", 1)
    assert names == "mine, more"
    client = openai.OpenAI(base_url=address.strip(), api_key="key", max_retries=0, timeout=120)
    asked = [{"role": "user", "content": "Which is closer?"}]
    for model in ("mine", "more"):
      found = client.chat.completions.create(model=model, messages=asked, max_tokens=2, temperature=0)
      assert found.usage.completion_tokens == 2
    with pytest.raises(openai.AuthenticationError):
      client.with_options(api_key="other").models.list()
    started.send_signal(signal.SIGINT)
    _, errors = started.communicate(timeout=60)
    assert (started.returncode, errors) == (130, "interrupted\n")
  finally:
    started.kill()
