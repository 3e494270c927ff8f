"""A runtime for tests that knows no model: it answers by what its settings and its folder say."""

import time
from pathlib import Path

MUCH = 64 << 20


class Runtime:
  def __init__(self, folder, settings):
    self._settings, self._folder = settings, Path(folder)
    self._memory = b"1" * MUCH
    if (self._folder / "broken").exists():
      raise ValueError("no model here")

  def letters(self, asked):
    with open(self._folder / "asked", "a") as file:
      file.write(asked["prompt"] + "\n")
    tokens = self._settings.get("tokens", 0)
    return tokens, [-1.0 - place for place, _ in enumerate(asked["options"])]

  def generate(self, asked, count, seen):
    for place in range(count):
      time.sleep(0.01 if place else 0.02)
      seen()
    return [7] * count

  def served(self, text, pictures):
    return f"{len(pictures)} {text}"
