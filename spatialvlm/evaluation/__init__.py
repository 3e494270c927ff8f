"""Multiple-choice questions: how they are asked, scored, controlled and summed up.

    records < asking < scoring < report < evaluate, run, shifts, rescore, before_after, leaks, skill_scores

- `records`: one `Prediction` for each answer, and the file that keeps them.
- `asking`: from a question to its prompts, and from what a model gives back to a row.
- `scoring`: from rows to numbers.
- `report`: from numbers to tables, drawings and the page.
- `evaluate.evaluate(questions, scorer, prompter, ScoreConfig, folder=None) -> Result(rows, summary,
  all_rows)` never sees the model: all of it that it uses is the `serving.scorer.Scorer` protocol, which
  `VlmScorer(vlm, mesh)` gives over a `Vlm`, in memory or just loaded. `rows` are the headline's,
  `Result.passes` those of every (protocol, condition). Questions are any sequence of `types.Question`.
- `run.run(EvaluateConfig, folder)`: from a config to a workdir, for `launch/evaluate.py`; what finds the
  model is handed in (`loading.find` knows models and adapters, `training.runs.find` training runs as well).
- `shifts.run(EvaluateConfig, folder, shifts)`: a model on plain scenes and on each shifted world, one table.
- `rescore`: every rule over the answers that a run has kept; `before_after`: one model before and after
  training; `leaks`: a benchmark's pictures in training data; `skill_scores`: exact answers of the base
  model.

A pass is a (protocol, condition). The first protocol of a config, sighted, is the headline; controls ask it
again.
"""

from spatialvlm.evaluation.asking.extraction import extract_choice

__all__ = ["extract_choice"]
