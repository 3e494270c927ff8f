"""How far everything in a picture is, by a head that a training left (a loss of kind `dense_depth`).

- `predict.depth_map(model, processor, image, head)`: a picture's map, at its own size; `LoadedVlm.depth`.
- `run.measure(depth, ...)`: held-out scenes, whose depth is known, beside constants that see no picture;
  `scores` and `picture` are the table and the drawing of `launch/depth.py`.

Not here: the head and its losses (`training.objectives.dense_depth`).
"""
