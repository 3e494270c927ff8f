"""What a model should see or hear and nothing reads: told by the names of keys, and by what stands in them.

Case, signs and digits of a name do not matter: `Image`, `image_path`, `imagePath` and `image-path-2` are
known. A row without a picture is held to more than one that has some: other keys of that may say what its
pictures were made of.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from spatialvlm.data.sources.cells import is_empty
from spatialvlm.data.sources.pictures import begins_as_image, is_nothing, is_there, may_be_name
from spatialvlm.types import UserError


class UnreadError(UserError):
  """A key that nothing reads: the config's matter, no broken row that `DataConfig.bad_rows` may leave out."""


# Names by their letters alone.
_SEEN = re.compile(
  r"(input)?(images?|imgs?|pictures?|pics?|photos?|screenshots?|frames?)"
  r"(paths?|files?|urls?|names?|ids?|list|bytes|base|data)?|pixelvalues|jpe?g|png|webp|gif|video(id|name)s?"
)
_HEARD = re.compile(r"(video|audio)(s|paths?|files?|urls?)?|sounds?")
_NUMBERED = re.compile(r"(image|img|picture|pic|photo)[_\- ]?\d+")
_SEEN_ENDS = "png jpg jpeg jpe jfif webp gif bmp tif tiff avif heic heif jp2 jxl ppm pgm"
_HEARD_ENDS = "mp4 avi mov mkv webm m4v mpg mpeg wmv flv wav mp3 flac ogg opus m4a"


def _ending(ends: str) -> re.Pattern:
  return re.compile(rf".*[^\s./]\.({ends.replace(' ', '|')})(\?\S*)?", re.IGNORECASE)


_SEEN_NAME, _HEARD_NAME = _ending(_SEEN_ENDS), _ending(_HEARD_ENDS)


def unread(
  row: Mapping[str, Any],
  *,
  pictures: bool,
  read: Collection[str] = (),
  media: Collection[str] = (),
  root: Path | None = None,
) -> str:
  """The first key of a row that holds pictures, sound or video and is read by nobody; "" for none.

  Args:
    row: cells, or sketches of them (`hf_tables`), by their keys.
    pictures: whether the row has pictures that are read; others of them may then be what they were made of,
      but sound, video and pictures that are counted (`image_2`) are not.
    read: keys that are read, or left out on purpose.
    media: keys that hold pictures by their type.
    root: folder in which names of files are looked up that hold white space.
  """
  for key, cell in row.items():
    if key in read or is_nothing(cell):
      continue
    if always(key) or (
      not pictures and (key in media or _SEEN.fullmatch(_letters(key)) or _shows(cell, root))
    ):
      return key
  return ""


def always(key: str) -> bool:
  """Whether a key of this name is refused beside pictures that are read, too."""
  return bool(_HEARD.fullmatch(_letters(key))) or bool(_NUMBERED.fullmatch(key.lower()))


def is_heard(ending: str) -> bool:
  """Whether files of this ending are video or sound."""
  return bool(_HEARD_NAME.fullmatch(f"x.{ending}"))


def refusal(key: str, cell: Any) -> str:
  """What is said of such a key."""
  ignoring = f'set ignore="({key!r},)" to do without'
  names = [text for text in _texts(cell) if _HEARD_NAME.fullmatch(text)]
  if names or _letters(key).startswith(("video", "audio", "sound")):
    return f"{key!r} holds video or sound, which nothing reads; leave such rows out, or {ignoring}"
  if _NUMBERED.fullmatch(key.lower()):
    return (
      f"{key!r} holds a picture that nothing reads; put all of a row into `images` (kind 'hf' maps columns "
      f"too: columns.images='{key},...'), or {ignoring}"
    )
  return (
    f"{key!r} holds pictures that nothing reads; name it `image` or `images` (kind 'hf' maps columns too: "
    f"columns.image={key!r}), or {ignoring}"
  )


def _letters(key: str) -> str:
  return re.sub(r"[^a-z]", "", key.lower())


def _shows(cell: Any, root: Path | None) -> bool:
  """Whether a cell is, or names, what can be seen or heard."""
  for text in _texts(cell):
    if text.startswith(("data:image/", "data:video/", "data:audio/")) or begins_as_image(text):
      return True
    named = may_be_name(text) and (_SEEN_NAME.fullmatch(text) or _HEARD_NAME.fullmatch(text))
    if named and (not re.search(r"\s", text) or is_there(text, root)):
      return True
  return False


def _texts(cell: Any) -> Iterator[str]:
  if isinstance(cell, str):
    yield cell
  elif isinstance(cell, (list, Mapping)) and not is_empty(cell):
    for one in cell.values() if isinstance(cell, Mapping) else cell:
      yield from _texts(one)
