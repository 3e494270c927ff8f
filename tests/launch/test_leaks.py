"""`launch/leaks.py` as a user runs it."""

import json

import numpy as np
from PIL import Image

from spatialvlm import cli
from spatialvlm.config import RunConfig
from spatialvlm.data import pipeline
from spatialvlm.data.sources.cvbench import write_cvbench
from tests.evaluation.support import questions
from tests.launch import command

RECIPE = """
def get_config():
  return dict(name="x", data=dict(sources=dict(mine=dict(kind="llava", path="{folder}/talk.jsonl"))))
"""


def write(folder, images):
  lines = []
  for i, image in enumerate(images):
    Image.fromarray(image).save(folder / f"{i}.png")
    talk = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A."}]
    lines.append(json.dumps({"id": f"talk {i}", "image": f"{i}.png", "conversations": talk}))
  (folder / "talk.jsonl").write_text("\n".join(lines))
  (folder / "recipe.py").write_text(RECIPE.replace("{folder}", str(folder)))


def test_leaks(tmp_path, capfd):
  asked = questions(count=5, images=5)
  write_cvbench(tmp_path / "bench.parquet", asked)
  fresh = np.random.default_rng(99).integers(0, 256, (2, 30, 30, 3), dtype=np.uint8)
  write(tmp_path, [fresh[0], asked[3].images[0], fresh[1]])
  flags = (f"--config={tmp_path}/recipe.py", f"--benchmark={tmp_path}/bench.parquet")
  done = command.run(capfd, "leaks", *flags, f"--output={tmp_path}/out/leaks.json")
  assert done.code == 1, done.err
  assert "mine[1] talk 1: picture" in done.out and f"questions {asked[3].idx}" in done.out
  (leak,) = json.loads((tmp_path / "out" / "leaks.json").read_text())["leaks"]
  assert (leak["source"], leak["index"], leak["questions"]) == ("mine", 1, [asked[3].idx])

  config = cli.load(f"{tmp_path}/recipe.py", [("data.leave_out", f"{tmp_path}/out/leaks.json")], RunConfig)
  kept = pipeline.training_mixture(config.data)
  assert sorted(s.example.id for s in kept.read(range(2))) == ["talk 0", "talk 2"]

  (tmp_path / "0.png").write_bytes(b"no picture")
  broken = command.run(capfd, "leaks", *flags)
  assert broken.code == 2 and "0.png" in broken.err
  passed = command.run(capfd, "leaks", *flags, "--config.data.bad_rows=skip")
  assert passed.code == 1 and "mine[1]" in passed.out
  Image.fromarray(fresh[0]).save(tmp_path / "0.png")

  clean = command.run(capfd, "leaks", *flags, "--scan=1")
  assert clean.code == 0 and "None of the benchmark's 5 pictures was found." in clean.out

  wrong = command.run(capfd, "leaks", flags[0], f"--benchmark={tmp_path}/none.parquet")
  assert wrong.code == 2 and wrong.err.count("\n") == 1 and "no such file" in wrong.err
