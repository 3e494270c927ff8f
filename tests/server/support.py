"""A service of a small model and an adapter of it, and conversations to ask it."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib

import numpy as np
from PIL import Image

from spatialvlm.server import chat
from spatialvlm.server.service import Collected, Service, ServiceConfig
from spatialvlm.serving.lane import SchedulerConfig

SMALL = SchedulerConfig(rows=4, together=2, steps=3, context=400, queue=32, seconds=600, prefix_tokens=512)
QUESTIONS = ("Which is closer?", "How many cones are in the image?", "Describe the picture.")


def picture(seed: int, size: tuple[int, int] = (24, 24)) -> np.ndarray:
  """uint8 (H, W, 3), random."""
  return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def url(pixels: np.ndarray) -> str:
  """A picture as a `data:` URL, PNG."""
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, "PNG")
  return written(buffer.getvalue())


def written(data: bytes, kind: str = "image/png") -> str:
  return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def bomb(width: int, height: int) -> bytes:
  """The beginning of a PNG that would have so many pixels."""
  part = lambda name, data: (
    struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
  )
  head = part(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
  return b"\x89PNG\r\n\x1a\n" + head + part(b"IDAT", zlib.compress(b"\0" * 64)) + part(b"IEND", b"")


def messages(question: str, *shown: np.ndarray) -> list[dict]:
  """Pictures, and a question about them."""
  parts = [{"type": "image_url", "image_url": {"url": url(pixels)}} for pixels in shown]
  return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def body(question: str, *shown: np.ndarray, model: str = "base", **fields) -> dict:
  return {"model": model, "messages": messages(question, *shown), "max_tokens": 9, "temperature": 0} | fields


def service(models, scheduling: SchedulerConfig = SMALL, **allowed) -> Service:
  """It is not started: tests take turns themselves, or start it."""
  return Service(models, ServiceConfig(**allowed), scheduling)


def ask(made: Service, fields: dict) -> Collected:
  """Hands a request in; what comes of it is collected."""
  asked = chat.read(json.dumps(fields).encode())
  found = Collected()
  found.asked = made.ask(asked, made.prepare(asked), found)
  return found


def turns(made: Service, most: int = 200) -> None:
  """Works until nothing is left to do."""
  while made.scheduler.turn():
    most -= 1
    assert most, "it never comes to an end"


def text(found: Collected) -> str:
  return "".join(event.piece.text for event in found.wait(0))


def tokens(found: Collected) -> list:
  return [token for event in found.wait(0) for token in event.piece.tokens]
