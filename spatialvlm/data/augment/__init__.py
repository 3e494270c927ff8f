"""Pictures of the training stream, changed so that the answer stays true; it knows no source and no model.

`change.Augment(config, seed)(example, position)` is the example as it is shown: what is drawn follows from
the seed and the position alone. `photometric` changes light, colour and sharpness, after which any answer is
true. What moves a picture goes through four files:

- `legality`: the table, by task and by dense target, of what a change asks for, and how an example is judged.
  A new task is a line there.
- `warp`: where pixels, maps and boxes go.
- `words`: left and right in questions and answers, and where they are none.
- `move`: an example with all of these moved together.

`beforehand` judges the first examples of each source before a run begins.
"""
