"""What the processor is compared on with transformers: live, and recorded for tests without torch."""

import dataclasses
import hashlib

import numpy as np

from tests.tiny_processor import write_processor


@dataclasses.dataclass(frozen=True)
class Case:
  """One call of a processor. `sizes`: (height, width) of each image, a tuple per prompt."""

  name: str
  texts: tuple[str, ...]
  sizes: tuple[tuple[tuple[int, int], ...], ...]
  folder: tuple[tuple[str, object], ...] = ()
  side: str = "right"


_ASK = "<|im_start|>User:<image>Which object is closer?\n(A) the cube<end_of_utterance>\nAssistant:"
_TWO = "<|im_start|>User: first <image> then<image>  1234 naïve 木<end_of_utterance>\nAssistant: A"
_NONE = "<|im_start|>User: How many cones are in the image?\n\n<end_of_utterance>\nAssistant:"
_SIZES = ((64, 64), (16, 16), (48, 64), (64, 30), (5, 90), (1, 1), (100, 3), (33, 47), (128, 200), (17, 16))

CASES = (
  *(Case(f"split {h}x{w}", (_ASK,), (((h, w),),)) for h, w in _SIZES),
  *(Case(f"whole {h}x{w}", (_ASK,), (((h, w),),), (("split", False),)) for h, w in _SIZES[:6]),
  Case("batch right", (_ASK, _NONE, _TWO), (((20, 40),), (), ((40, 20), (64, 64)))),
  Case("batch left", (_NONE, _TWO, _ASK), ((), ((10, 12), (60, 64)), ((9, 9),)), (), "left"),
  Case("idefics3", (_ASK, _TWO), (((50, 60),), ((1, 50), (50, 50))), (("family", "idefics3"),)),
  Case("plain markers", (_TWO,), (((50, 60), (40, 64)),), (("markers", False),)),
  Case("one file", (_ASK,), (((50, 60),),), (("nested", True),)),
  Case("odd edge", (_ASK,), (((50, 61),),), (("longest_edge", 55),)),
  Case("small edge", (_ASK,), (((50, 61),),), (("longest_edge", 16),)),
  Case("text only", (_NONE, _ASK.replace("<image>", "")), ()),
)


def images(case: Case) -> list[list[np.ndarray]]:
  """Noise, so that resampling has something to ring on: the same on every machine."""
  rng = np.random.default_rng(len(case.name))
  return [[rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in sample] for sample in case.sizes]


def digest(pixels: np.ndarray) -> str:
  """Names float32 pixels bit for bit: noise would fill a quarter of a megabyte."""
  return hashlib.sha256(np.ascontiguousarray(pixels, np.float32).tobytes()).hexdigest()


def write(case: Case, folder):
  return write_processor(folder, **dict(case.folder))
