"""Part "heads": which heads carry what a task needs, by taking each out.

A head says its mean over questions instead (or nothing), everything else stays; the change of the right
choice's log-odds is what the answer loses. The table is made on one seed's questions and checked on
another's: the heads that the first seed puts first are held against the second alone, where nobody has chosen
them.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from spatialvlm.causes import cases as cases_lib
from spatialvlm.causes import intervals, kept
from spatialvlm.causes.cases import Case
from spatialvlm.causes.kept import Line
from spatialvlm.causes.reader import Prompt, Reader, Row, log_odds
from spatialvlm.config import ExplainConfig
from spatialvlm.models.interventions import Heads, Interventions
from spatialvlm.models.vlm import VlmConfig
from spatialvlm.types import UserError

# Heads that are named as the first.
TOP = 3
# Kinds of positions, each with a mean of its own: image tokens, other tokens, the last one.
_IMAGE, _TEXT, _LAST, _KINDS = 0, 1, 2, 3


def check(name: str, model: VlmConfig, config: ExplainConfig) -> None:
  """Raises a UserError where a block is named that the model has not."""
  for block in config.head_blocks:
    if not 1 <= block <= model.text.depth:
      raise UserError(f"config.head_blocks: no block {block}; {name} has 1 to {model.text.depth}")


def measure(reader: Reader, folder: pathlib.Path, config: ExplainConfig, show: Any) -> None:
  """Takes heads out of all cases of all tasks, of both seeds: those of all blocks, or of `head_blocks`."""
  blocks = config.head_blocks or tuple(range(1, reader.depth + 1))
  for task in config.tasks:
    for place, seed in enumerate((config.seed, config.seed + 1)):
      cases = cases_lib.make(task, seed, config.head_questions, config.image_size)
      reader.fit([reader.prompt(case) for case in cases])
      block = lambda some: of_cases(reader, some, config.ablation, blocks)
      with show(f"{reader.name}: heads, {task}, seed {place + 1}") as progress:
        kept.measured(folder / f"heads-{task}-{place}.jsonl", cases, config.rows, block, progress)


def of_cases(reader: Reader, cases: Sequence[Case], ablation: str, blocks: Sequence[int]) -> list[Line]:
  """The log-probabilities of each case's choices with each head of C blocks out, (C, N, K).

  Means are of these cases; the first block is 1.
  """
  prompts = [reader.prompt(case) for case in cases]
  tiles = [None if case.image is None else reader.cut(case.image) for case in cases]
  rows = [Row(prompt, some) for prompt, some in zip(prompts, tiles, strict=True)]
  base = reader.ask(rows)
  kind_BT = np.stack([reader.pad(_kinds(prompt), -1) for prompt in prompts]) if ablation == "mean" else None
  found = np.zeros((len(blocks), reader.heads, *base.shape))
  for place, head in np.ndindex(len(blocks), reader.heads):
    out_BLN = np.zeros((len(rows), reader.depth, reader.heads), bool)
    out_BLN[:, blocks[place] - 1, head] = True
    found[place, head] = reader.ask(rows, Interventions(heads_out=Heads(out_BLN, kind_BT, _KINDS)))
  return [
    {"id": case.id, "scene": case.scene, "answer": case.answer, "base": base[b], "out": found[:, :, b]}
    for b, case in enumerate(cases)
  ]


def _kinds(prompt: Prompt) -> np.ndarray:
  kinds = np.where(prompt.slots >= 0, _IMAGE, _TEXT).astype(np.int32)
  kinds[-1] = _LAST
  return kinds


def collect(folders: Mapping[str, pathlib.Path], config: ExplainConfig) -> dict[str, Any]:
  """By task and model: `accuracy`, `log_odds`; `blocks`, whose heads were taken out; `change[place][head]` of
  the right choice's log-odds on the first seed, a row for each of these; `rank_correlation` of both seeds'
  tables; `top`: the heads whose removal costs most on the first seed, each with its change on the `first` and
  on the `second`, and `others`, that of the median head on the second.
  """
  found: dict[str, Any] = {}
  for task in config.tasks:
    found[task] = {}
    for name, folder in folders.items():
      lines = [kept.read(folder / f"heads-{task}-{place}.jsonl") for place in range(2)]
      found[task][name] = _one(*lines, config)
  return found


def _one(first: Sequence[Line], second: Sequence[Line], config: ExplainConfig) -> dict[str, Any]:
  base, changes, scenes = zip(*(_changes(lines) for lines in (first, second)), strict=True)
  score = lambda seed, layer, head: intervals.mean(changes[seed][:, layer, head], scenes[seed], config)
  L, N = changes[0].shape[1:]
  blocks = list(config.head_blocks or range(1, L + 1))
  tables = [change.mean(0) for change in changes]
  order = np.argsort(tables[0], axis=None)
  median = np.unravel_index(order[len(order) // 2], (L, N))
  top = [tuple(int(i) for i in np.unravel_index(place, (L, N))) for place in order[:TOP]]
  right = [float(np.nanargmax(line["base"]) == line["answer"]) for line in map(_floats, first)]
  return {
    "accuracy": intervals.mean(right, scenes[0], config),
    "log_odds": intervals.mean(base[0], scenes[0], config),
    "blocks": blocks,
    "change": [[score(0, layer, head) for head in range(N)] for layer in range(L)],
    "rank_correlation": float(scipy.stats.spearmanr(tables[0].ravel(), tables[1].ravel()).statistic),
    "top": [
      {
        "layer": blocks[layer],
        "head": head + 1,
        "first": score(0, layer, head),
        "second": score(1, layer, head),
      }
      for layer, head in top
    ],
    "others": score(1, *median),
  }


def _floats(line: Line) -> dict[str, Any]:
  return {**line, "base": kept.array(line["base"])}


def _changes(lines: Sequence[Line]) -> tuple[np.ndarray, np.ndarray, list[str]]:
  """Log-odds (N,) of the right choice, their changes (N, blocks, heads), scenes."""
  base = np.array([log_odds(kept.array(line["base"]), line["answer"]) for line in lines])
  out = np.stack([log_odds(kept.array(line["out"]), line["answer"]) for line in lines])
  return base, out - base[:, None, None], [line["scene"] for line in lines]
