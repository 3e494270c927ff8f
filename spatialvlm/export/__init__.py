"""A model written for others, in one of several forms.

`EXPORTERS` lists the forms by name; a training run writes those of `AFTER_TRAINING` at its end, and
`launch/export.py` any of them. What an exporter is (`Exporter`):

- `why_not(vlm)`: one line that says why this model has no such form, None where it has; costs nothing, so
  that it can be asked before a training run begins.
- `write(model, folder)`: writes the form into `folder`, whole or not at all, beside what else lies there;
  what a model's priors are lies beside it, as two files of their own (`priors`).
- `numbers(text)`, where there is a choice: what a user says of the numbers that are written; its result is
  `model.numbers`.
- `sized`: whether its sizes are fixed, so that a user may choose `model.length`.

What a model computes, as functions of plain arrays for runtimes without this library, stands in `programs`.

`export` is for a user's command: it refuses a folder that holds anything. A further form is one file
here and one line in the table.
"""

from spatialvlm.export.exporter import Exportable, Exporter
from spatialvlm.export.exporters import AFTER_TRAINING, EXPORTERS, check_empty, export, named

__all__ = ["AFTER_TRAINING", "EXPORTERS", "Exportable", "Exporter", "check_empty", "export", "named"]
