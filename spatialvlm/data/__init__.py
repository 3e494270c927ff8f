"""From the config of the data to batches of fixed shapes; it knows no model, and imports none.

- `sources`: what examples and questions are read from.
- `pipeline.training_stream(DataConfig, processor, batch_size, ...)`: an endless, checkpointable grain
  iterator of (`types.Batch`, `BatchInfo`). Its state is the number of the next batch, and a batch depends
  on its number alone, whatever the number of threads or processes. `pipeline.validation_batches` is the
  same with an end.
- `mixture.Mixture[position] -> (source, index)`, a room of its own: exact weights, a permutation for each
  epoch, endless sources in order.
- `batch.collate(list[Encoded], ...) -> Batch` of numpy arrays, in the bucket (tokens, tiles, supervised
  positions) of its largest example; `batch.grow` pads it to the bucket that several processes agree on.
- `packing`: which conversations of a batch share a row, and the row; `batch.packed_of` makes them.
- `samples`: a mixture read by position, encoded and checked; `read_good` puts the next good row in the place
  of a broken one, as a function of the position alone.
- `checks`: what every encoded example must pass. `inspect` and `inspect_page`: what
  `launch/inspect_data.py` shows.
- `scene_benchmark`: rendered questions in the numbers and files of CV-Bench.
"""
