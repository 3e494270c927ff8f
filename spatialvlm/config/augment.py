"""How pictures of the training stream are changed."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
  """Changes that keep the answer true, drawn anew for every example (`docs/geometry.md`).

  Light, colour and sharpness change in any picture. What moves a picture is done where the answer is known
  to stay true, or is put right with it; else the example stays as it is (`data.augment.legality`). Each
  change is of a strength drawn evenly up to what is said here; 0 for none.

  Attributes:
    share: of the examples that are changed.
    sources: names of the data sources whose examples are; empty for all.
    flip: share of the examples that are mirrored left to right; the words left and right change places.
    crop: share of the sides that is cut off at most; what remains is enlarged to the picture's size.
    zoom_out: the picture is shown smaller by up to this share of its sides, on a plain ground.
    roll: degrees by which the camera is turned about its axis, either way.
    perspective: degrees by which it is turned aside, and up or down.
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
  sources: tuple[str, ...] = ()
  flip: float = 0.0
  crop: float = 0.0
  zoom_out: float = 0.0
  roll: float = 0.0
  perspective: float = 0.0
  brightness: float = 0.0
  contrast: float = 0.0
  saturation: float = 0.0
  hue: float = 0.0
  blur: float = 0.0
  noise: float = 0.0
  jpeg: int = 0
