"""Writes the untrained folder of the tiny model: `python launch/make_tiny.py --out=checkpoints/smolvlm-tiny`.

Config, tokenizer, chat template and image settings, in Hugging Face's format; `launch/train.py
--config=configs/base.py:tiny` then draws and trains the weights.
"""

from __future__ import annotations

from absl import app, flags

_OUT = flags.DEFINE_string("out", None, "folder to write", required=True)


def main(argv) -> None:
  del argv
  from spatialvlm.data.scenes import tiny

  print(tiny.write(_OUT.value))


def run() -> None:
  app.run(main)


if __name__ == "__main__":
  run()
