"""Checkpoints in Hugging Face's format: finding, reading and writing them.

`resolve` (a folder or a hub id to a local folder), `published` (shapes without weights), `contents` (what a
folder holds), `load`, `save`, `assemble` (a folder with other encoders), `rules` (names and layouts of
tensors), `tensors` (safetensors, one at a time), `gguf` (GGUF files, read and written).

Contracts:

- `load_model(path_or_id, dtype=, mesh=, ...) -> Vlm` reads every tensor once, casts it and puts it on its
  shards; no device holds more than its part. Tensors that are unmapped, doubled, mis-shaped or missing
  raise, all of them listed in one `UserError`. How the model computes is set later (`models.execution`).
- `save_model(vlm, folder, source=None)` writes what transformers loads: the config that the model came
  with, its tensors under their published names, and the files of tokenizer and processor from `source`.
- `identity(path) -> {id, revision, sha256}` tells base weights from others.
- `rules` turns names in both directions, from one table per family
  (`models.registry.checkpoint(family).rules`): `to_ours(name, family)`, `to_hf(path, family)`, and
  `to_module` for the names that PEFT has. The family is `vlm.config.family`.
- A language model's parts are asked for in one way, whether they lie in safetensors or in GGUF, and by
  whoever builds on them: `folder = resolve(path)`, then its config.json (`contents.model_json`), its tensors
  by their Hugging Face names, none of them read yet (`read_entries(weight_files(folder))`, each with `dtype`,
  `shape` and `read()`), and its tokenizer's files, which lie there.
- `assemble` writes a model with other encoders as a folder, which is then loaded like any other;
  `fewer_tokens` one whose connector joins more patches.
"""

from spatialvlm.hub.assemble import assemble, assembled
from spatialvlm.hub.fewer_tokens import fewer_tokens
from spatialvlm.hub.load import load_encoder, load_model, read_config
from spatialvlm.hub.published import read_shape
from spatialvlm.hub.resolve import identity, read_json, resolve
from spatialvlm.hub.save import save_encoder, save_model

__all__ = [
  "assemble",
  "assembled",
  "fewer_tokens",
  "identity",
  "load_encoder",
  "load_model",
  "read_config",
  "read_json",
  "read_shape",
  "resolve",
  "save_encoder",
  "save_model",
]
