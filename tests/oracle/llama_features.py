"""What llama.cpp's mtmd makes of pictures, by its C functions, which xllamacpp's library exports.

  python -m tests.oracle.llama_features LANGUAGE MMPROJ PICTURES.npz OUT.npz

In a process of its own, since a mistake in C ends it. Of every picture OUT holds the image tokens (N, D) of
all its tiles in the order of the prompt. Parameters keep their defaults, so that their structs need not be
known: they are passed through as bytes, more of them than any has.
"""

from __future__ import annotations

import ctypes
import os
import sys

import numpy as np

IMAGE = 1
_POINTERS = ("mtmd_init_from_file", "mtmd_bitmap_init", "mtmd_input_chunks_init", "mtmd_input_chunks_get")
_SIZES = ("mtmd_input_chunks_size", "mtmd_input_chunk_get_n_tokens")


class Params(ctypes.Structure):
  """Any struct of parameters."""

  _fields_ = (("bytes", ctypes.c_byte * 1024),)


class Text(ctypes.Structure):
  """mtmd_input_text."""

  _fields_ = (("text", ctypes.c_char_p), ("add_special", ctypes.c_bool), ("parse_special", ctypes.c_bool))


def library() -> ctypes.CDLL:
  """xllamacpp's own, with the types of what is called here."""
  import xllamacpp.xllamacpp as extension

  api = ctypes.CDLL(extension.__file__)
  for name in (*_POINTERS, "llama_model_load_from_file"):
    getattr(api, name).restype = ctypes.c_void_p
  for name in _SIZES:
    getattr(api, name).restype = ctypes.c_size_t
  for name in ("llama_model_default_params", "mtmd_context_params_default"):
    getattr(api, name).restype = Params
  api.mtmd_get_output_embd.restype = ctypes.POINTER(ctypes.c_float)
  return api


def features(api: ctypes.CDLL, context: ctypes.c_void_p, width: int, picture: np.ndarray) -> np.ndarray:
  """Image tokens (N, width) of a picture, uint8 (H, W, 3)."""
  height, across = picture.shape[:2]
  bitmap = ctypes.c_void_p(api.mtmd_bitmap_init(across, height, picture.tobytes()))
  chunks = ctypes.c_void_p(api.mtmd_input_chunks_init())
  api.mtmd_default_marker.restype = ctypes.c_char_p
  text = Text(api.mtmd_default_marker(), False, True)
  given = (ctypes.c_void_p * 1)(bitmap)
  assert api.mtmd_tokenize(context, chunks, ctypes.byref(text), given, ctypes.c_size_t(1)) == 0
  found = []
  for index in range(api.mtmd_input_chunks_size(chunks)):
    chunk = ctypes.c_void_p(api.mtmd_input_chunks_get(chunks, ctypes.c_size_t(index)))
    if api.mtmd_input_chunk_get_type(chunk) == IMAGE:
      assert api.mtmd_encode_chunk(context, chunk) == 0
      count = api.mtmd_input_chunk_get_n_tokens(chunk)
      found.append(np.ctypeslib.as_array(api.mtmd_get_output_embd(context), (count, width)).copy())
  return np.concatenate(found)


def main() -> None:
  language, eyes, pictures, out = sys.argv[1:]
  api = library()
  api.llama_backend_init()
  model = ctypes.c_void_p(api.llama_model_load_from_file(language.encode(), api.llama_model_default_params()))
  assert model
  context = ctypes.c_void_p(api.mtmd_init_from_file(eyes.encode(), model, api.mtmd_context_params_default()))
  assert context
  width = api.llama_model_n_embd(model)
  with np.load(pictures) as given:
    np.savez(out, **{name: features(api, context, width, given[name]) for name in given.files})
  os._exit(0)


if __name__ == "__main__":
  main()
