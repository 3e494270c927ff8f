"""From rows (`records.Prediction`) to numbers, as plain data for JSON; knows no model, table or screen.

- `summary.summarize(rows, ScoreConfig)`: all that is said of a run, as in `summary.json`.
- `aggregation`: every score is a weighted sum of accuracies over groups of questions; CV-Bench's own
  formula too.
- `statistics`: intervals, paired changes (`paired(before, after)`), tests; bootstrap over pictures.
- `baselines`: what can be had without seeing (guessing, priors, rules of two dimensions), with `forest`, a
  prior fitted on the texts, and `boxes`, which proves by pixels whose box is whose.
- `calibration`: whether probabilities of letters mean anything; never a headline.

Shares are from 0 to 1. What is drawn at random is drawn from a seed, and is the same on every machine.
"""
