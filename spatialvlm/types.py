"""What crosses the borders between the rooms of the project.

Legend of dimension suffixes, used everywhere: B batch, T text positions, S keys, N tiles (distinct image
tiles of a batch, flat), I tiles of one sample, P image tokens (or patches) of one tile, K supervised
positions or options, H height or head size, W width, C channels, D model width, F feed-forward width,
V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import numpy as np

IMAGE_MARK = "<image>"
# From this number on, groups of `Branches` set pictures against each other.
PICTURES = 2**16
# Names of options, in their order.
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CHOOSE = "Select from the following choices."


class UserError(Exception):
  """A mistake that the user can mend: one line that says what is wrong, where, and what to do.

  `launch/` prints it without a traceback and ends with exit code 2.
  """


class Note(UserWarning):
  """Something that was decided for the user, or left out, and that the user should know of.

  `launch/` prints it as one line, `note: ...`, on stderr.
  """


@dataclasses.dataclass(frozen=True)
class Turn:
  """One exchange. `prompt` may hold `<image>` marks; the loss is taken on `answer` only.

  Attributes:
    false: answers that are wrong, for losses that set them against the right one; each is read as if it stood
      in its place (`Branches`).
  """

  prompt: str
  answer: str
  false: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Deferred:
  """A picture that is made when its pixels are needed, and not where what a model makes of it is known.

  Attributes:
    shape: of its pixels, (H, W, 3).
    key: names its pixels: two of one key are equal to the last bit.
    make: gives them, uint8 RGB, from any thread.
  """

  shape: tuple[int, int, int]
  key: str
  make: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Asked:
  """What in a picture one question hangs on, so that the picture can be moved and the answer stays true.

  Attributes:
    task: a key of `data.augment.legality.TASKS`, which says when that is so.
    named: (x0, y0, x1, y1) in pixels of `images[0]`, half-open, tight around what shows of each thing that
      the question names, or of each that it counts; empty where it names nothing that is there.
    axis: "across" or "down" where the question asks how these stand to each other along it, "" elsewhere.
    margin: pixels around each box that belong to it, such as a frame drawn around it.
    slack: pixels by which the boxes may be off.
    smallest, largest: factors on the areas of the picture between which the answer holds: smaller, and what
      is named could no longer be told; larger, and something could be that the answer leaves out.
  """

  task: str
  named: tuple[tuple[float, ...], ...] = ()
  axis: Literal["", "across", "down"] = ""
  margin: float = 0.0
  slack: float = 1.0
  smallest: float = 0.0
  largest: float = float("inf")


@dataclasses.dataclass(frozen=True, eq=False)
class Geometry:
  """What is known of the places in a picture, `images[0]` of an example.

  Attributes:
    asked: of each turn, in their order.
    focal: focal length in pixels, with the optical axis in the middle; None where it is not known.
    instances: gives int32 (H, W), the number of the object that each pixel shows, -1 for none; None where it
      is not known.
  """

  asked: tuple[Asked, ...]
  focal: float | None = None
  instances: Callable[[], np.ndarray] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Shot:
  """How one picture was taken, and what was measured in it, beside its pixels (`priors`).

  Axes are OpenCV's: x right, y down, z along the optical axis. Maps cover the whole picture, in any number of
  rows and columns, and are made when they are called for, from any thread.

  Attributes:
    focal: focal lengths (x, y), as shares of the picture's width and height; None where nobody knows them.
    middle: where the optical axis meets the picture, (x, y) as shares of its width and height.
    pose: (4, 4) float, camera to world in metres; the world's z is up. None where nobody knows it.
    depth: gives float32 (h, w), metres along the optical axis, 0 or NaN where there is none.
    normals: gives float32 (h, w, 3), unit normals of what is seen in the camera's axes, towards the camera;
      NaN where there is none. None: they follow from `depth` (`shots.normals_of`).
  """

  focal: tuple[float, float] | None = None
  middle: tuple[float, float] = (0.5, 0.5)
  pose: np.ndarray | None = None
  depth: Callable[[], np.ndarray] | None = None
  normals: Callable[[], np.ndarray] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
  """One training conversation on the host.

  Attributes:
    images: uint8 arrays (H, W, 3), RGB; `Deferred` only from a source that was asked for such.
    turns: the conversation. Where no prompt holds an `<image>` mark, all images stand before the first
      prompt, as SmolVLM was trained.
    files: names of the images' files, as far as the source knows them: empty, or as many as images.
    dense: targets over the whole of `images[0]`, (H, W) or (H, W, C) each, of its pixels or of another even
      grid, for auxiliary losses. The processor makes them `Extra` arrays of axis "tile"
      (`processing.tiling.dense_tiles`).
    facts: gives what is true of its pictures, in words, for teachers that are told; None for nothing.
    geometry: where in `images[0]` stands what it asks about; None where nobody knows.
    rearranged: pictures of which the first turn's answer is false, uint8 (H, W, 3), for losses that set them
      against the one picture that it is true of; each is read in its place (`Branches`).
    shots: how each of its images was taken, as many as images; empty where nobody knows.
  """

  images: tuple[np.ndarray, ...]
  turns: tuple[Turn, ...]
  id: str = ""
  task: str = ""
  source: str = ""
  files: tuple[str, ...] = ()
  dense: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  facts: Callable[[], str] | None = None
  geometry: Geometry | None = None
  rearranged: tuple[np.ndarray, ...] = ()
  shots: tuple[Shot, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
  """One multiple-choice question in CV-Bench's schema, its images decoded.

  Attributes:
    images: uint8 arrays (H, W, 3), RGB; one or several. `Deferred` only from a source's `unopened`.
    answer: index into `choices`.
    prompt: the question with its lettered options as the data set writes it. It may hold `<image>` marks, as
      many as images; without any, all images stand before it.
    filename, source_filename: as in the data set; of several images their names, separated by commas.
    asked: what in its image it hangs on, where that is known for certain (`bbox` is a benchmark's own word).
    shots: how each of its images was taken, as many as images; empty where nobody knows.
    rules: the option that simple rules would take, by their names, where the source knows it.
  """

  idx: int
  type: str
  task: str
  images: tuple[np.ndarray, ...]
  question: str
  choices: tuple[str, ...]
  answer: int
  prompt: str
  source: str
  source_dataset: str = ""
  filename: str = ""
  source_filename: str = ""
  target_class: str | None = None
  target_size: int | None = None
  bbox: tuple[tuple[float, ...], ...] | None = None
  asked: Asked | None = None
  shots: tuple[Shot, ...] = ()
  rules: Mapping[str, int] = dataclasses.field(default_factory=dict)

  @property
  def source_filenames(self) -> tuple[str, ...]:
    """The name of each image's file, "" for all where they are not known."""
    names = tuple(self.source_filename.split(",")) if len(self.images) > 1 else (self.source_filename,)
    return names if len(names) == len(self.images) else ("",) * len(self.images)


def lettered(choices: Sequence[str]) -> str:
  """Options as prompts list them: `(A) chair`, a line each.

  Raises:
    UserError: more options than letters.
  """
  if len(choices) > len(LETTERS):
    raise UserError(f"{len(choices)} options, but letters run from A to Z")
  return "\n".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=False))


def choice_prompt(question: str, choices: Sequence[str]) -> str:
  """A question with its lettered options, as CV-Bench writes its `prompt` column."""
  return f"{question} {CHOOSE}\n{lettered(choices)}"


@dataclasses.dataclass(frozen=True)
class ImageLayout:
  """All that `data` must know of a model: how an image becomes tiles and tokens.

  Attributes:
    tile_size: side of the square tiles in pixels.
    tokens_per_tile: image tokens that the connector makes of one tile.
    max_tiles: most tiles an image may become (the global view counted), the tile budget.
    image_token_id: the placeholder's id in the vocabulary.
    max_length: longest sequence that the decoder takes.
  """

  tile_size: int
  tokens_per_tile: int
  max_tiles: int
  image_token_id: int
  max_length: int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Features:
  """Output of a vision encoder: `patches_NPD` and its grid (rows, columns), row-major."""

  patches_NPD: jax.Array
  grid: tuple[int, int] = dataclasses.field(metadata={"static": True})


Axis = Literal["tile", "sample", "target"]


def prior_array(name: str) -> str:
  """What `Encoded.extra` and `Batch.extra` call the array of a prior: float32 (N, P, C), of axis "tile"."""
  return f"prior.{name}"


def of_priors(extra: Mapping[str, Extra]) -> dict[str, Extra]:
  """The arrays of priors among others, by the same names: they go with the pictures, whoever reads these."""
  return {name: value for name, value in extra.items() if name.startswith(prior_array(""))}


def prior_values(extra: Mapping[str, Extra]) -> dict[str, Any]:
  """The arrays of `of_priors`, by the priors' own names."""
  return {name.removeprefix(prior_array("")): value.array for name, value in of_priors(extra).items()}


def missing_value(dtype: Any) -> Any:
  """What an `Extra` of this type holds where nothing is given: NaN, -1 or False.

  Raises:
    UserError: unsigned integers, which have no such value.
  """
  if np.issubdtype(dtype, np.floating):
    return np.nan
  if np.issubdtype(dtype, np.signedinteger):
    return -1
  if dtype == np.bool_:
    return False
  raise UserError(f"extra arrays of type {np.dtype(dtype).name} cannot say where nothing is given; use int32")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Extra:
  """An array that a batch carries for a loss, and what its leading axes count.

  Attributes:
    array: of a batch (N, ...) for axis "tile", (B, ...) for "sample", (B, K, ...) for "target", in the order
      of `Batch.target_index_BK`. Of one example (`processor.Encoded.extra`) the same without B: (I, ...),
      (...) and (k, ...) with k supervised tokens.
    axis: "tile", "sample" or "target".

  Padding, and examples that bring no such array, hold `missing_value`: mask it (`jnp.where`) before any
  arithmetic, since NaN times a weight of 0 is NaN.

  Raises:
    UserError: another axis.
  """

  array: Any
  axis: Axis = dataclasses.field(metadata={"static": True})

  def __post_init__(self):
    if self.axis not in get_args(Axis):
      raise UserError(f"extra array of axis {self.axis!r}; known: {', '.join(get_args(Axis))}")


@dataclasses.dataclass(frozen=True)
class PixelTable:
  """What a vision tower takes for each value of a pixel of 8 bits, channel by channel.

  There are only 256 values, so that looking one up gives the very number that computing it would; pixels move
  as bytes, a quarter of float32, and become numbers on the device (`core.pixels.normalised`). Hashable, as a
  static part of a `Batch` must be: its values are constants of the program.

  Attributes:
    data: float32 (256, C), as bytes.
  """

  data: bytes

  @classmethod
  def of(cls, values: np.ndarray) -> PixelTable:
    """The table of an array (256, C)."""
    return cls(np.ascontiguousarray(values, np.float32).tobytes())

  @functools.cached_property
  def values(self) -> np.ndarray:
    """Float32 (256, C)."""
    return np.frombuffer(self.data, np.float32).reshape(256, -1)

  def __call__(self, pixels: np.ndarray) -> np.ndarray:
    """uint8 (..., C) -> float32 of the same shape, on the host."""
    return self.values[pixels, np.arange(self.values.shape[1])]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Branches:
  """Other answers to the questions of a batch's rows, each read as if it stood where the right one stands.

  They stand behind a row's own tokens, which do not see them. A branch sees the row up to its question and
  itself; it begins with a copy of the question's last token, which its first token is predicted from. The
  right answer is a branch like the others, and the first of its question. Where pictures are set against
  each other, a branch begins with the first token of its own picture, and holds the question and the right
  answer behind it; its tiles are the row's, behind those of the row's own picture.

  Attributes:
    fork_BT: int32, of a branch's positions the last one of the row that they see before the branch; -1
      for positions of the row's own. Which branch a position belongs to says `Batch.segment_BT`, 0 the row.
    target_BJK: int32, positions of a branch's tokens that count, each predicted from the one before; -1 for
      none.
    group_BJ: int32, the number of the question that a branch answers, ascending; -1 for none. Branches that
      read it behind several pictures are groups of their own, of that number and PICTURES.
  """

  fork_BT: Any
  target_BJK: Any
  group_BJ: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
  """What a model reads: one fixed shape per bucket. Every field may be sharded along its first axis.

  Attributes:
    tokens_BT: int32 ids.
    valid_BT: bool, false at padding (left or right).
    pixels_NHWC: tiles, uint8 where there is a table `normal`, else normalised float32; tiles that pad a
      bucket are zero. None without images.
    pixel_mask_NHW: bool, true at real pixels; None means that all are.
    vision: what the vision tower makes of the tiles, before the connector, instead of `pixels_NHWC`, where it
      is known: patches (N, P', D of the tower) and their grid.
    features_NPD: image tokens after the connector, instead of `pixels_NHWC`, where they are cached. Those of
      a model with priors hold them already, where `extra` brings no array of theirs.
    tile_index_BI: int32, the tiles of each sample as indices into N, -1 for none. None means that the
      tiles are aligned with their samples: N = B * I in order (training, so that a sample's tiles lie on
      its own shard).
    image_slot_BT: int32, for an image token its place among its sample's I * P image tokens, else -1.
    mask_ar_BT: bool, false where a position belongs to a bidirectional prefix; None means causal.
    segment_BT: int32, of a packed row the number, from 0, of the conversation that a position belongs to;
      padding carries on the number before it. Conversations of a row do not see each other, and their
      positions begin anew; tiles and slots count over the row. None: a row is one conversation.
    target_index_BK: int32, positions t of the supervised tokens (predicted from t - 1), -1 for none.
    example_mask_B: bool, false for samples (of a packed batch: rows) that only fill a batch.
    branches: other answers to the rows' questions, which then are their segments from 1; None without any.
    extra: further arrays by name, each an `Extra` that says which axis it follows.
    views: what other models read of the same examples, by their names, where that is not the batch itself
      (`view`): sample b and target k are the same in all of them.
    normal: what pixels of 8 bits stand for; no array, but a constant of the programs that read the batch.
  """

  tokens_BT: Any
  valid_BT: Any
  pixels_NHWC: Any = None
  pixel_mask_NHW: Any = None
  vision: Features | None = None
  features_NPD: Any = None
  tile_index_BI: Any = None
  image_slot_BT: Any = None
  mask_ar_BT: Any = None
  segment_BT: Any = None
  target_index_BK: Any = None
  example_mask_B: Any = None
  branches: Branches | None = None
  extra: Mapping[str, Extra] = dataclasses.field(default_factory=dict)
  views: Mapping[str, Batch] = dataclasses.field(default_factory=dict)
  normal: PixelTable | None = dataclasses.field(default=None, metadata={"static": True})

  def view(self, name: str) -> Batch:
    """What the model `name` reads of these examples: its view, else the batch itself.

    A view without pictures of its own shows those of the batch, whose tiles are then in the same places.
    """
    view = self.views.get(name, self)
    if view.pixels_NHWC is not None or view.vision is not None or view.features_NPD is not None:
      return view
    pictures = ("pixels_NHWC", "pixel_mask_NHW", "vision", "features_NPD", "normal")
    shown = {field: getattr(self, field) for field in pictures}
    return dataclasses.replace(view, extra={**view.extra, **of_priors(self.extra)}, **shown)
