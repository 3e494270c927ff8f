"""From numbers to what a reader sees, as neutral `reporting.tables.Table`s and one HTML page; no screen.

- `run_tables`: tables of one run, from its `summary.json` (and, for calibration, its rows).
- `run_page.write(folder, rows, summary, title, questions=None)`: `report.html`, `tables.md` and
  `tables.tex` of a run, from a finished folder alone too: without questions the pictures of the page that
  is there are taken over.
- `shift_tables`: one model on plain and on shifted worlds.
- `change_tables`: tables and drawings of what changed between two runs.
- `between_runs`: finished folders held against the first of them, for `launch/compare.py` and after
  training.

Callers show a table by `reporting.terminal.show`.
"""
