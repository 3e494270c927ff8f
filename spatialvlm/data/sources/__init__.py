"""Where examples and questions come from: one file a kind of source.

A kind is a config of its own (`config.sources`), a module here, and a line in `registry.KINDS`. The module
has one function for each thing that the kind can be opened as:

- `examples(config, *, defer=False) -> registry.Source`: a random-access sequence of `types.Example`, for
  training; with `defer` a broken row is refused when it is read, not when the source is opened;
- `questions(config) -> Sequence[types.Question]`, for evaluation.

Both are sequences: `len` is `mixture.ENDLESS` where any index is good, item i is always the same, and
several threads read at once. `__getitems__(indices)` may be offered where reading or rendering in blocks is
cheaper (`registry.read` uses it). A source that shows few pictures many times says how many (`pictures`),
and may offer `deferred(indices)`: examples without dense targets whose pictures are `types.Deferred`, which
need not be made where their features are kept. One whose rows lie in shards says how they are shuffled
(`shards`, a `mixture.Shards`); any other with an end is permuted as a whole. Whatever can be checked is
checked when a source is opened, so that no error waits in the middle of a run; what users can mend is a
`UserError` that names file and row. Questions may carry `row_order`, `content` and `note` (strings), which
evaluation keeps with its results, and both `unopened(index)`, which gives a question at little cost, its
pictures found sound but not decoded (`types.Deferred`), and `place(index)`, which says where it stands.

`cells` (typed cells into text, options and answers), `pictures` (cells into images), `json_files` (records
as they are written), `conversation` (messages into turns), `lettered` (questions into conversations),
`named_boxes` (what they name), `marks` (points and boxes into pictures), `hf_files`, `hf_tables`, `hf_rows`,
`parquet_shards`, `tar_shards`, `tar_index` and `shard_files` (what a stream reads), `cvbench_files`,
`rgbd_files`, `rgbd_layouts`, `rgbd_nyu_mat` and `rgbd_objects` are what several kinds, or a larger one, are
made of. What a cell means is decided in `cells` and `pictures` alone, for training and evaluation alike.
"""
