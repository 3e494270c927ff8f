"""What the processor is compared on with transformers: live, and recorded for tests without torch."""

import dataclasses
import functools
import hashlib

import numpy as np

from tests.tiny_families import write_internvl, write_paligemma
from tests.tiny_processor import write_processor


@dataclasses.dataclass(frozen=True)
class Case:
  """One call of a processor. `sizes`: (height, width) of each image, a tuple per prompt.

  Texts hold `<image>` marks whatever the family.
  """

  name: str
  texts: tuple[str, ...]
  sizes: tuple[tuple[tuple[int, int], ...], ...]
  folder: tuple[tuple[str, object], ...] = ()
  side: str | None = "right"
  kind: str = "smolvlm"
  suffix: tuple[str, ...] | None = None


_ASK = "<|im_start|>User:<image>Which object is closer?\n(A) the cube<end_of_utterance>\nAssistant:"
_TWO = "<|im_start|>User: first <image> then<image>  1234 naïve 木<end_of_utterance>\nAssistant: A"
_NONE = "<|im_start|>User: How many cones are in the image?\n\n<end_of_utterance>\nAssistant:"
_SIZES = ((64, 64), (16, 16), (48, 64), (64, 30), (5, 90), (1, 1), (100, 3), (33, 47), (128, 200), (17, 16))

_CHAT = "<|im_start|>user\n<image>\nWhich object is closer?\n(A) the cube<|im_end|>\n<|im_start|>assistant\n"
_CHAT_TWO = (
  "<|im_start|>user\nfirst <image>\n then<image>  1234 nai\u0308ve 木<|im_end|>\n<|im_start|>assistant\nA"
)
_CHAT_NONE = "<|im_start|>user\nHow many cones?\n\n<|im_end|>\n<|im_start|>assistant\n"
InternVL = functools.partial(Case, side=None, kind="internvl")
PaliGemma = functools.partial(Case, side=None, kind="paligemma")

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
  *(InternVL(f"internvl {h}x{w}", (_CHAT,), (((h, w),),)) for h, w in _SIZES),
  InternVL("internvl batch left", (_CHAT_NONE, _CHAT_TWO, _CHAT), ((), ((10, 30), (60, 64)), ((9, 9),))),
  InternVL("internvl batch right", (_CHAT, _CHAT_NONE), (((40, 20),), ()), side="right"),
  InternVL("internvl few patches", (_CHAT,), (((50, 150),),), (("min_patches", 2), ("max_patches", 5))),
  InternVL("internvl one file", (_CHAT,), (((60, 50),),), (("nested", True),)),
  InternVL("internvl text only", (_CHAT_NONE, "木 é 1234  \n"), ()),
  *(PaliGemma(f"paligemma {h}x{w}", ("which is closer",), (((h, w),),)) for h, w in _SIZES[:6]),
  PaliGemma("paligemma marked", ("<image> which?\n",), (((20, 30),),), suffix=("the cube",)),
  PaliGemma("paligemma two", ("<image><image>A  or B",), (((20, 30), (30, 20)),), suffix=("",)),
  PaliGemma("paligemma apart", ("<image>one <image> two",), (((20, 30), (30, 20)),)),
  PaliGemma("paligemma nested", ("a", "b 木"), (((20, 30), (30, 20)), ((9, 9),)), suffix=("c", "\nd e  f")),
  PaliGemma("paligemma right", ("a", "how many"), (((9, 30),), ((9, 9),)), side="right", suffix=("12", "no")),
  PaliGemma("paligemma places", ("<image>detect cone <loc0007>",), (((9, 30),),), (("places", False),),
            suffix=("<loc1023> <seg127>cone",)),
)  # fmt: skip


def images(case: Case) -> list[list[np.ndarray]]:
  """Noise, so that resampling has something to ring on: the same on every machine."""
  rng = np.random.default_rng(len(case.name))
  return [[rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in sample] for sample in case.sizes]


def digest(pixels: np.ndarray) -> str:
  """Names float32 pixels bit for bit: noise would fill a quarter of a megabyte."""
  return hashlib.sha256(np.ascontiguousarray(pixels, np.float32).tobytes()).hexdigest()


def write(case: Case, folder):
  writer = {"smolvlm": write_processor, "internvl": write_internvl, "paligemma": write_paligemma}[case.kind]
  return writer(folder, **dict(case.folder))


def run(case: Case, processor) -> dict[str, np.ndarray]:
  """What our processor makes of the case."""
  kwargs = {} if case.suffix is None else {"suffix": list(case.suffix)}
  pictures = images(case) if case.sizes else None
  return processor(text=list(case.texts), images=pictures, padding_side=case.side, **kwargs)
