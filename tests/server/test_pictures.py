"""Pictures that clients show, and those that they may not."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from spatialvlm.server.chat import Picture
from spatialvlm.server.errors import Refused
from spatialvlm.server.pictures import Album
from tests.server.support import bomb, picture, url, written

PIXELS = picture(0)


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "open" / "below").mkdir(parents=True)
  Image.fromarray(PIXELS).save(tmp_path / "open" / "below" / "a b.png")
  Image.fromarray(PIXELS).save(tmp_path / "secret.png")
  os.symlink(tmp_path / "secret.png", tmp_path / "open" / "link.png")
  (tmp_path / "open" / "notes.txt").write_text("no picture")
  return tmp_path / "open"


def shown(address, folder=None, most_bytes=10_000, most_pixels=10_000):
  """The pixels that a client shows by an address."""
  return Album(folder, most_bytes, most_pixels).cut(
    Picture(address, "url"), lambda pixels: pixels, "as it is"
  )


def test_data_and_files_below_the_folder(folder):
  for address in (
    url(PIXELS),
    "below/a b.png",
    f"{folder}/below/a b.png",
    f"file://{folder}/below/a%20b.png",
  ):
    assert np.array_equal(shown(address, folder).tiles, PIXELS)
  buffer = io.BytesIO()
  Image.fromarray(PIXELS).save(buffer, "WEBP", lossless=True)
  assert np.array_equal(shown(written(buffer.getvalue(), "image/webp")).tiles, PIXELS)


def test_a_picture_is_cut_once_for_all_who_show_it():
  album, cuts = Album(None, 10_000, 10_000), []
  for _ in range(3):
    found = album.cut(Picture(url(PIXELS), "url"), lambda pixels: cuts.append(1) or pixels, "one way")
  other = album.cut(Picture(url(picture(1)), "url"), lambda pixels: pixels, "one way")
  assert len(cuts) == 1 and found.key != other.key
  assert album.cut(Picture(url(PIXELS), "url"), lambda pixels: pixels, "another way").key != found.key


@pytest.mark.parametrize(
  ("address", "message"),
  [
    ("https://example.com/a.png", "https: addresses are not fetched"),
    ("ftp://example.com/a.png", "ftp: addresses are not fetched"),
    ("data:text/html;base64,AAAA", "must begin with data:image"),
    ("data:image/png;base64", "must begin with data:image"),
    ("data:image/png;base64,A*", "is no base64"),
    ("data:image/png;base64,", "holds no picture"),
    ("data:image/png;base64,AAAA", "cannot be read as a picture"),
    (url(PIXELS)[:-200], "url: "),
    (written(bomb(60_000, 60_000)), "too large to be opened"),
    (written(bomb(200, 60)), "more than 10000 pixels"),
    (written(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "cannot be read as a picture"),
    ("../secret.png", "no such picture"),
    ("{folder}/../secret.png", "no such picture"),
    ("link.png", "no such picture"),
    ("/etc/passwd", "no such picture"),
    ("file://elsewhere/a.png", "a file of another machine"),
    ("below", "no such picture"),
    ("a\0b", "no such picture"),
    ("x" * 5000, "no such picture"),
    ("notes.txt", "cannot be read as a picture"),
  ],
)
def test_what_may_not_be_shown_is_named_and_nothing_more(folder, address, message):
  with pytest.raises(Refused) as refused:
    shown(address.replace("{folder}", str(folder)), folder)
  error = refused.value.body["error"]
  assert refused.value.status == 400 and message in error["message"] and error["param"] == "url"
  assert str(folder) not in error["message"] and "Traceback" not in error["message"]


def test_without_a_folder_no_file_is_read(folder):
  with pytest.raises(Refused, match="no folder of pictures is open"):
    shown(f"{folder}/below/a b.png")


def test_a_file_that_is_too_large(folder):
  with pytest.raises(Refused, match="larger than 100 bytes"):
    shown("below/a b.png", folder, most_bytes=100)
