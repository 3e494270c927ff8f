"""Checkpoints in Hugging Face's format: finding, reading and writing them."""

from spatialvlm.hub.assemble import assemble, assembled
from spatialvlm.hub.load import load_encoder, load_model, read_config
from spatialvlm.hub.resolve import identity, read_json, resolve
from spatialvlm.hub.save import save_encoder, save_model

__all__ = [
  "assemble",
  "assembled",
  "identity",
  "load_encoder",
  "load_model",
  "read_config",
  "read_json",
  "resolve",
  "save_encoder",
  "save_model",
]
