"""Training: from a `RunConfig` to a workdir with a trained model.

What belongs here: what changes parameters and all that a run keeps. Not here: how a model computes
(`models`), what is read (`data`), how questions are scored (`evaluation`); a run calls these.

- `one_run.train(RunConfig, workdir) -> summary` wires one run, `stages.train` several, each from the model
  of the one before. Everything that can be wrong with a config, model or data source is found before the
  workdir is claimed.
- `state.Split` cuts a trainee (`vlm`, `heads`, `others`) into flat dicts of arrays by dotted name, `params`
  and `frozen`, and back. Names are what checkpoints hold: the model's own as they stand, `heads.TERM.`,
  `others.NAME.`. `TrainState(step, params, opt_state, ema)` is what one step replaces.
  `state.weights(state)` alone says which weights are validated, scored and exported.
- `step.make_train_step(...) -> (state, frozen, batch) -> (state, metrics)` is pure; each term is divided by
  its weight over all microbatches and shards. Keys: `fold_in(fold_in(key, step), microbatch)`. Gradients of
  the model, and those of all heads, are clipped apart.
- `objectives`: what is minimised, one file a kind; `phases`: what is done to a batch before its step.
- `fit.fit(config, parts, state, folder, settings) -> Outcome` turns the loop: it knows neither model nor
  config of the data, and interrupted it ends with the same bits.
- `checkpoint.Checkpoints` is the only file that knows Orbax: `save`, `restore` (a state onto any mesh),
  `weights` (the trainables that count, without optimizer or data).
- `runs.find(ModelConfig, adapter) -> Found` knows what `loading.find` knows, and workdirs and checkpoints
  of runs.
- `export` writes what others read: adapter, heads, merged model.
"""
