"""A runtime for tests: this library itself, on an exported folder, from a picture and a prompt with marks."""

import base64
import io

import jax
import numpy as np
from PIL import Image

import spatialvlm
from spatialvlm.deployed.child import MARK


class Runtime:
  def __init__(self, folder, settings):
    self._vlm = spatialvlm.load_vlm(folder, layout="mtmd")

  def letters(self, asked):
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(p)))) for p in asked["pictures"]]
    arrays = self._vlm.processor(text=asked["prompt"].replace(MARK, "<image>"), images=pictures)
    logprobs = jax.nn.log_softmax(self._vlm.logits(**arrays)[0, -1])
    return arrays["input_ids"].shape[1], np.asarray(logprobs)[asked["options"]]
