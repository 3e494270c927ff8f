"""How results are shown, whatever they are results of: this room needs nothing of ours.

- `tables`: `Table`, a neutral table of `Cell`s, and its forms: HTML, Markdown, LaTeX. `Cell.kind` says what
  a cell means ("good", "alarm", ...); each form colours or marks it in its own way.
- `figures`: drawings as SVG text, for cells and pages.
- `page`: the shell of a report: one HTML file that loads nothing, with a browser of questions; `assets/`
  holds its stylesheet and script. HTML comes from these three alone, which escape what comes from data; the
  script makes text of data, never markup.
- `labels`: what scores are called, in which rows they stand, and the best shortcut beside one.
- `terminal`: tables and progress on the screen. Nothing else imports rich.

Rooms above make tables of their own results and hand them over: nothing that sums up or makes a table
imports `terminal`.
"""
