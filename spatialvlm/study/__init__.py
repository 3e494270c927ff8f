"""Ways of training side by side: a grid of cells and seeds, each an ordinary run, and one table of all.

    beside, claims < grid < running < extra < measured < report, curves < study

- `grid.expand(StudyConfig, folder, read) -> [Run]`: every cell with every seed, checked before any begins.
  `read` makes a training's config of a recipe and settings; `launch/study.py` hands it in, since this room
  runs no recipes. `config.crossed` writes the cells of a grid of several axes.
- `claims.Claims`: which of several workers, processes or machines with one folder, does which run.
- `running`: what a run is done by, a process of its own, so that its memory is its own and its end is no
  other's; which one is next, and what went wrong with whom.
- `beside`: what a model is asked beside the study's questions: other worlds, skills not to be forgotten.
- `measured.collect(...)`, `extra.collect(...)`: from finished workdirs alone to numbers, each cell paired
  with the untrained model that it began from.
- `report`, `curves`: these numbers as tables and drawings.
- `study.run(StudyConfig, folder, read, prepare)`: all of it; what `launch/study.py` calls.

Not here: how a run trains (`training`) or is scored (`evaluation`). A run's workdir knows nothing of its
study: `launch/train.py` with the same settings would have made the same.
"""
