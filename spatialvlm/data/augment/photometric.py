"""Pictures in other light, other colours, less sharp: changes after which any answer is still true."""

from __future__ import annotations

import io
import re

import numpy as np
from PIL import Image, ImageFilter

from spatialvlm.config import AugmentConfig
from spatialvlm.types import Example

# The best quality of a JPEG: above it a file grows and looks no better.
BEST_JPEG = 95
_GREY = np.array([0.299, 0.587, 0.114], np.float32)
# To luma and two axes of colour (YIQ, ITU-R BT.470), in which a turn of the hue is a rotation.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_COLOURS = (
  "red orange yellow green blue purple violet pink brown black white gr[ae]y cyan magenta turquoise teal"
  " maroon beige gold golden silver tan navy olive lime crimson scarlet indigo colou?r(?:s|ed|ful)?"
)
_NAMES_COLOUR = re.compile(rf"\b(?:{'|'.join(_COLOURS.split())})(?:ish)?\b", re.IGNORECASE)


def names_colour(example: Example) -> bool:
  """Whether a question or an answer speaks of colours (in English)."""
  return any(_NAMES_COLOUR.search(text) for turn in example.turns for text in (turn.prompt, turn.answer))


def changed(
  image: np.ndarray, config: AugmentConfig, rng: np.random.Generator, colours: bool = True
) -> np.ndarray:
  """A picture, uint8 (H, W, 3), changed as drawn.

  Args:
    colours: whether saturation and hue may change.
  """
  # All are drawn whatever is set, so that one setting does not change what another draws.
  most = [config.brightness, config.contrast, config.saturation * colours, config.hue * colours]
  light, contrast, saturation, turn = rng.uniform(-1, 1, 4) * most
  blur, noise, quality = rng.uniform(0, 1, 3) * [config.blur, config.noise, BEST_JPEG - config.jpeg]
  pixels = image.astype(np.float32)
  if light:
    pixels = pixels * np.float32(1 + light)
  if contrast:
    mean = np.float32((pixels @ _GREY).mean())
    pixels = mean + (pixels - mean) * np.float32(1 + contrast)
  if saturation:
    grey = (pixels @ _GREY)[..., None]
    pixels = grey + (pixels - grey) * np.float32(1 + saturation)
  if turn:
    pixels = pixels @ _turned(turn).T
  if blur:
    soft = Image.fromarray(_bytes(pixels)).filter(ImageFilter.GaussianBlur(float(blur)))
    pixels = np.asarray(soft).astype(np.float32)
  if noise:
    pixels = pixels + rng.normal(0, noise, pixels.shape).astype(np.float32)
  out = _bytes(pixels)
  return _jpeg(out, round(config.jpeg + quality)) if config.jpeg else out


def _turned(turn: float) -> np.ndarray:
  """The matrix (3, 3) that turns the hue of a colour by a share of the full circle, its luma kept."""
  angle = 2 * np.pi * turn
  c, s = np.cos(angle), np.sin(angle)
  rotation = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
  return (np.linalg.inv(_YIQ) @ rotation @ _YIQ).astype(np.float32)


def _bytes(pixels: np.ndarray) -> np.ndarray:
  return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _jpeg(image: np.ndarray, quality: int) -> np.ndarray:
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, "JPEG", quality=quality)
  return np.asarray(Image.open(buffer).convert("RGB"))
