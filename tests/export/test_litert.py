"""What goes into LiteRT files, by JAX; the files themselves are run by tests/oracle/test_litert.py."""

import copy
import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spatialvlm
from spatialvlm import export, hub
from spatialvlm.export import litert
from spatialvlm.export.programs import Programs
from spatialvlm.types import UserError
from tests import tiny_edge, tiny_model

CHUNK, NEW = 8, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tiny_model.write_checkpoint(tmp_path_factory.mktemp("litert") / "tiny", longest_edge=16)


def test_a_prompt_read_in_pieces_of_fixed_size(folder):
  """Tokens as of `generate`, up to the last that fits; behind it there are no numbers."""
  vlm = spatialvlm.load_vlm(folder)
  image = np.random.default_rng(1).integers(0, 256, (16, 12, 3), dtype=np.uint8)
  arrays = vlm.processor(
    text="<image>Which object is closer to the camera, the red or the blue box? A", images=[image]
  )
  tokens = arrays["input_ids"][0].astype(np.int32)
  length = len(tokens) + NEW - 1
  assert len(tokens) > 2 * CHUNK and len(tokens) % CHUNK
  made = litert.functions(Programs.of(vlm.model), length, CHUNK)
  run = {}
  for inside in made.values():
    for f in inside:
      weights = {name: jnp.asarray(tensor.make()) for name, tensor in f.part.tensors.items()}
      compiled = jax.jit(f.run, compiler_options={"xla_backend_optimization_level": 0})
      run[f.name] = lambda *inputs, f=f, weights=weights, compiled=compiled: compiled(weights, *inputs)
  (seen,) = run["vision"](arrays["pixel_values"][0])
  images = np.zeros((len(tokens), seen.shape[-1]), np.float32)
  images[tokens == vlm.model.config.image_token_id] = seen[0]
  prefill = made[litert.LANGUAGE][0].inputs
  cache = [
    jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in prefill.items() if name[:4] in ("keys", "valu")
  ]
  filled = 0
  for at in range(0, len(tokens), CHUNK):
    piece, placed = tokens[at : at + CHUNK], images[at : at + CHUNK]
    room = CHUNK - len(piece)
    given = np.pad(piece, (0, room), constant_values=3)[None], np.int32(len(piece)), np.int32(filled)
    logits, *cache = run["prefill"](*given, np.pad(placed, ((0, room), (0, 0)))[None], *cache)
    filled += len(piece)
  answer = [int(np.argmax(logits))]
  while len(answer) < NEW:
    logits, *cache = run["step"](np.array(answer[-1:], np.int32), np.int32(filled), *cache)
    filled, answer = filled + 1, [*answer, int(np.argmax(logits))]
  assert answer == vlm.generate(**arrays, max_new_tokens=NEW, stop=False)[0].tolist()
  assert np.isfinite(logits).all() and filled == length
  assert np.isnan(run["step"](np.array(answer[-1:], np.int32), np.int32(filled), *cache)[0]).all()


def test_what_is_refused(folder, tmp_path, monkeypatch):
  vlm = hub.load_model(folder)
  write = lambda vlm=vlm, **more: export.export(
    export.Exportable(vlm, "tiny", folder), "litert", tmp_path / "out", **more
  )
  changed = copy.copy(vlm)
  for name, value, message in (
    ("prefix_lm", True, "see themselves as a whole, and LiteRT's sizes are fixed"),
    ("dtype", "bfloat16", "loaded in bfloat16; leave out --dtype"),
  ):
    changed.config = dataclasses.replace(vlm.config, **{name: value})
    with pytest.raises(UserError, match=message):
      write(changed)
  with pytest.raises(UserError, match="method 'prompt' cannot be merged"):
    write(tiny_edge.adapted(vlm, method="prompt"))
  with pytest.raises(
    UserError, match="--numbers=int4: LiteRT files have no such numbers; did you mean 'int8'"
  ):
    write(numbers="int4")
  with pytest.raises(UserError, match="--length=9: belongs to --to=litert, not to --to=gguf; leave it out"):
    export.named("gguf", "", 9)
  monkeypatch.setitem(sys.modules, "litert_converter", None)
  with pytest.raises(UserError, match=r'needs the LiteRT converter .*pip install "spatialvlm\[litert\]"'):
    write()
  monkeypatch.setattr(litert.Converter, "of", lambda kind: None)
  with pytest.raises(UserError, match="--length=513: the model's context is 512; give 1 to 512"):
    write(length=513)
  monkeypatch.setattr(litert, "_MOST", 1000)
  with pytest.raises(UserError, match=r"language\.tflite would hold .* GiB of float32 weights"):
    write()
  assert not list(tmp_path.iterdir())
