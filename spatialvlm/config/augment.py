"""How pictures of the training stream are changed."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
  """Changes of light, colour and sharpness, drawn anew for every example (`docs/distillation.md`).

  Nothing is moved, cut off or mirrored, so that answers, boxes and depth stay true. Each change is of a
  strength drawn evenly up to what is said here; 0 for none.

  Attributes:
    share: of the examples that are changed.
    brightness: pixels times a factor in 1 -+ brightness.
    contrast: their distance from the picture's mean grey times a factor in 1 -+ contrast.
    saturation: their distance from their own grey, likewise. Of an example whose text names a colour, in
      English, it and the hue stay; with text of another language leave both at 0.
    hue: turns of the colours by up to so many full circles, either way; at most 0.5.
    blur: pixels, the radius of a Gaussian blur.
    noise: deviation of Gaussian noise, of 255.
    jpeg: the lowest quality of a JPEG that the picture goes through, 1 to 95; the highest is 95.
  """

  share: float = 1.0
  brightness: float = 0.0
  contrast: float = 0.0
  saturation: float = 0.0
  hue: float = 0.0
  blur: float = 0.0
  noise: float = 0.0
  jpeg: int = 0
