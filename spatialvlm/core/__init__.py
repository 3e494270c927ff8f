"""The parts that all networks here are made of, in jax and flax alone.

`attention` (grouped queries, its cache, the implementations of the product), `mlp`, `norm`, `rope`,
`masks`, `init`, `pixels` (bytes into numbers), `quantised` (kernels in few bits); `block`, the one
transformer block with a stack of it; `scan`, the loop over its layers; `axes`, which says where arrays lie;
`backend`, which says what kind of device a program is traced for.

What belongs here: a computation that no family's name is needed to describe. What differs between families
is a field of `BlockConfig` or `AttentionConfig`, named after what it does, with a default that changes
nothing. Configs, checkpoints and families are of `models`.

Contracts:

- Activations carry their axes in their names (`x_BTD`; the letters stand in `types`). Layers compute in the
  dtype of their weights; norms, softmax, rotations and logits in float32.
- Every parameter names its axes by `axes.logical`. `axes.RULES` alone says on which mesh axes a name lies:
  batch on data and fsdp, embed on fsdp, heads, mlp and vocab on tensor. `make_mesh(sizes)` gives a mesh
  with the axes data, fsdp and tensor, all of `AxisType.Auto`, or a `UserError` where it does not fit the
  devices; `create_sharded(init_fn, mesh)` builds a model on it; `batch_sharding(mesh)` is where a `Batch`
  lies. Without a mesh all of it means one device.
- `block.Stack` counts layers as everything here does: 0 is what the first block reads, i what stands after
  i blocks. `Stack.read` gives any of them, and attention probabilities, on the way.
- How a product is computed (`Attention.implementation`), whether activations are kept (`Stack.remat`) and
  whether neighbouring blocks are a loop (`Stack.scan`) are static attributes, set later by
  `models.execution.apply`; they change no number beyond rounding.
"""
