"""One typed config for each kind of data source; each kind reads all of its fields.

A new kind is a dataclass here, with a `kind` of its own, and a place in `SourceConfig`; its openers are a
file of `data/sources/` with a line in the table there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal


@dataclasses.dataclass(frozen=True)
class ScenesConfig:
  """Multiple-choice questions about rendered scenes, in CV-Bench's four kinds and templates.

  Attributes:
    kind: the tag of this class.
    weight: relative share of the mixture, 0 to leave the source out.
    tasks: kinds of question (Count, Relation, Depth, Distance) that are drawn, with weights; empty for all
      alike.
    seed: of the rendered worlds. Held-out worlds have another seed than trained ones.
    size: number of questions (with `pictures` of conversations), 0 for no end.
    image_size: pixels of the square images.
    pictures: number of pictures that the questions are about, again and again, so that what a frozen vision
      tower makes of them is made once (`TrainConfig.cache_vision`); 0 for one to each question. Few pictures
      are learned by heart: take thousands. For training alone.
    turns: with `pictures`: most questions asked about one picture in one conversation.
    false_answers: most letters of other options that stand beside the right one, for losses that set them
      against each other; 0 for none. For training alone.
    shift: name of a world that differs in one thing from all that is trained on (`worlds.shifts.SHIFTS`): its
      shapes, colours, camera, light...; empty for the plain one. For scoring alone.
    wordings: in how many wordings each kind is asked, in turn (`worlds.wordings`); 1 is CV-Bench's own alone.
      Of questions with pictures of their own.
  """

  kind: Literal["scenes"] = "scenes"
  weight: float = 1.0
  tasks: Mapping[str, float] = dataclasses.field(default_factory=dict)
  seed: int = 0
  size: int = 0
  image_size: int = 96
  pictures: int = 0
  turns: int = 1
  false_answers: int = 0
  shift: str = ""
  wordings: int = 1


@dataclasses.dataclass(frozen=True)
class RoomsConfig:
  """Questions about rendered rooms and streets (docs/rooms.md): CV-Bench's four kinds, and more.

  Attributes:
    kind: the tag of this class.
    weight: relative share of the mixture, 0 to leave the source out.
    tasks: kinds of question (`worlds.rooms.questions.table.TABLE`) that are drawn, with weights; empty for
      all alike.
    seed: of the rendered worlds. Held-out worlds have another seed than trained ones.
    size: number of questions, 0 for no end.
    image_size: pixels of the square images.
    difficulty: from 0 (few things, clear answers) to 1 (clutter, things hidden in part, close answers).
    answers: how examples are answered: by the letter of an option; in words without options; by a short
      reason and then the words; or in all three ways in turn. A score is asked by letters.
    false_answers: most wrong answers that stand beside the right one, for losses that set them against each
      other; 0 for none. For training alone.
  """

  kind: Literal["rooms"] = "rooms"
  weight: float = 1.0
  tasks: Mapping[str, float] = dataclasses.field(default_factory=dict)
  seed: int = 0
  size: int = 0
  image_size: int = 384
  difficulty: float = 0.5
  answers: Literal["letters", "words", "reasons", "mixed"] = "letters"
  false_answers: int = 0


@dataclasses.dataclass(frozen=True)
class SkillsConfig:
  """Conversations about rendered scenes: what a model must see before it can answer questions about them.

  Attributes:
    kind: the tag of this class.
    weight: relative share of the mixture, 0 to leave the source out.
    tasks: skills (`worlds.skills.SKILLS`) that are drawn, with weights; empty for the usual ones.
    seed: of the rendered worlds. Held-out worlds have another seed than trained ones.
    size: number of conversations, 0 for no end.
    image_size: pixels of the square images.
    turns: questions asked about one image in one conversation.
    pictures: number of pictures that the conversations are about, as of `ScenesConfig`; 0 for one to each.
    false_answers: most wrong answers, made from the picture, that stand beside each right one, for losses
      that set them against each other; 0 for none.
    false_pictures: most pictures of the same scene rearranged, so that a statement about it is false of them,
      that stand beside each picture, for the same losses; 0 for none. Of the task "statement".
  """

  kind: Literal["skills"] = "skills"
  weight: float = 1.0
  tasks: Mapping[str, float] = dataclasses.field(default_factory=dict)
  seed: int = 0
  size: int = 0
  image_size: int = 96
  turns: int = 1
  pictures: int = 0
  false_answers: int = 0
  false_pictures: int = 0


@dataclasses.dataclass(frozen=True)
class CVBenchConfig:
  """Parquet files in CV-Bench's schema, or CV-Bench itself.

  Attributes:
    kind: the tag of this class.
    weight: relative share of the mixture, 0 to leave the source out.
    path: a parquet file, a folder of them, or a hub id; empty for `nyu-visionx/CV-Bench`.
    split: which files of a folder, where their names carry a split (`test_2d.parquet`).
    revision: of the hub repository. CV-Bench itself has a pinned one.
    size: only the first so many questions, 0 for all.
    partial: take a local copy of CV-Bench that lacks questions or has them in another order.
  """

  kind: Literal["cvbench"] = "cvbench"
  weight: float = 1.0
  path: str = ""
  split: str = "train"
  revision: str | None = None
  size: int = 0
  partial: bool = False


@dataclasses.dataclass(frozen=True)
class LlavaConfig:
  """A json or jsonl file of conversations in LLaVA's form, images beside it.

  Attributes:
    kind: the tag of this class.
    weight: relative share of the mixture, 0 to leave the source out.
    path: the file.
    image_root: folder of images that the records name; empty for the file's own.
    size: only the first so many records, 0 for all.
    ignore: keys of pictures, video, sound or marks, or one of two conversations, that nothing reads, on
      purpose; others are refused.
  """

  kind: Literal["llava"] = "llava"
  weight: float = 1.0
  path: str = ""
  image_root: str = ""
  size: int = 0
  ignore: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class HFConfig:
  """A data set that Hugging Face `datasets` reads, with a mapping of its columns.

  Attributes:
    kind: the tag of this class.
    weight: relative share of the mixture, 0 to leave the source out.
    path: a folder, file or hub id, a configuration after a colon (`user/set:name`).
    split: name of the split.
    revision: of the hub repository.
    files: which files of the folder or hub repository hold the rows, e.g. `val-*.parquet`.
    columns: names in the data set by our names (image, images, question, choices, answer, messages, id, task,
      type, source, source_dataset, prompt, facts, named_boxes). Images and choices may lie in several
      columns, their names separated by commas. An empty name: none, though a column carries our name.
    templates: our name -> text in which `{column}` stands for a row's cell, e.g. `Is it true? {caption}`.
    choices: options of every question, where no column has them.
    answers: how an answer is written: "index" (from 0), "ordinal" (from 1), "letter" or "text"; "" for the
      one that fits all rows.
    shuffle_choices: put each question's options in an order drawn from `seed` and its row.
    several_images: a question with several images is refused ("refuse"), left out ("skip"), asked about all
      of them ("keep"), or about one in which they stand side by side ("join"). Examples keep all of theirs.
    seed: of shuffled choices.
    size: only the first so many rows, 0 for all.
    image_root: folder of images that the rows name; empty for the data's own. A name (or URL) is looked up
      there whole, then without its first folder, its first two, ...
    marks: columns of points [x, y] and boxes [x0, y0, x1, y1], in pixels -> the colour (red, blue, green)
      that they are drawn in, into the pictures of examples. Of several pictures `point_img_idx` and
      `bbox_img_idx` say which. Columns that the data do not have draw nothing.
    ignore: columns of pictures, video, sound or marks, or one of two conversations, that nothing reads, on
      purpose; others are refused.
  """

  kind: Literal["hf"] = "hf"
  weight: float = 1.0
  path: str = ""
  split: str = "train"
  revision: str | None = None
  files: str = ""
  columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
  templates: Mapping[str, str] = dataclasses.field(default_factory=dict)
  choices: tuple[str, ...] = ()
  answers: Literal["", "index", "ordinal", "letter", "text"] = ""
  shuffle_choices: bool = False
  several_images: Literal["refuse", "skip", "keep", "join"] = "refuse"
  seed: int = 0
  size: int = 0
  image_root: str = ""
  marks: Mapping[str, str] = dataclasses.field(default_factory=dict)
  ignore: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class StreamConfig:
  """Rows in shards, parquet files or WebDataset's tars, of which a run holds a few at a time (docs/data.md).

  Attributes:
    kind: the tag of this class.
    weight: relative share of the mixture, 0 to leave the source out.
    path: the folder of the shards, or one of them.
    files: which files below `path` they are: a pattern (`train-*.parquet`), or numbers in braces
      (`{000000..000127}.tar`), of which each must be there. Empty for all, where their names differ in
      numbers alone.
    columns, templates: as of `HFConfig`. A sample of a tar has a column for each of its files' endings (jpg,
      json, txt), and one for each key of its json.
    choices: options of every question, where no column has them.
    answers: how an answer names an option: "index" (from 0), "ordinal" (from 1), "letter" or "text". Rows
      with options need it: nobody has read all of them beforehand.
    buffer: rows that are shuffled among themselves.
    at_once: shards that are read at the same time.
    size: only the first so many rows, in the order of the shards' names; 0 for all.
    image_root: folder of images that the rows name; empty for `path`.
    marks, ignore: as of `HFConfig`.
    missing: whether shards may be missing of those that names like `x-00003-of-00128` count.
  """

  kind: Literal["stream"] = "stream"
  weight: float = 1.0
  path: str = ""
  files: str = ""
  columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
  templates: Mapping[str, str] = dataclasses.field(default_factory=dict)
  choices: tuple[str, ...] = ()
  answers: Literal["", "index", "ordinal", "letter", "text"] = ""
  buffer: int = 1000
  at_once: int = 4
  size: int = 0
  image_root: str = ""
  marks: Mapping[str, str] = dataclasses.field(default_factory=dict)
  ignore: tuple[str, ...] = ()
  missing: bool = False


@dataclasses.dataclass(frozen=True)
class RgbdConfig:
  """Photographs with depth and maps of objects, asked about as CV-Bench asks (docs/open_data.md).

  Attributes:
    kind: the tag of this class.
    weight: relative share of the mixture, 0 to leave the source out.
    path: the folder.
    layout: how it is laid out: "pairs" (ours), or as NYUv2, SUN RGB-D, Hypersim or ScanNet lay out theirs.
    unit: of stored depth, "m" or "mm"; empty for millimetres where numbers are whole, else metres.
    intrinsics: a file for all pictures (JSON of fx, fy, cx, cy in pixels, or a matrix); empty for the
      layout's own.
    names: a JSON file, {"1": "chair"}, in place of the layout's names of objects; empty for those.
    tasks: kinds of question (Relation, Depth, Distance) with weights, as far as pictures can be asked them;
      empty for these alike. Metres, how far ahead one object is, is for training alone, where it is named.
    per_image: most questions about one picture.
    min_share: objects that cover less of the picture are not asked about.
    depth_size: pixels of the square of `depth` that examples bring for losses, over the whole picture; that
      of the scenes beside them (`ScenesConfig.image_size`). 0 for none.
    seed: of which questions are asked, and in which order objects are named.
    size: only the first so many questions, 0 for all.
  """

  kind: Literal["rgbd"] = "rgbd"
  weight: float = 1.0
  path: str = ""
  layout: Literal["pairs", "nyuv2", "nyuv2_mat", "sunrgbd", "hypersim", "scannet"] = "pairs"
  unit: Literal["", "m", "mm"] = ""
  intrinsics: str = ""
  names: str = ""
  tasks: Mapping[str, float] = dataclasses.field(default_factory=dict)
  per_image: int = 4
  min_share: float = 0.0065
  depth_size: int = 384
  seed: int = 0
  size: int = 0


@dataclasses.dataclass(frozen=True)
class PosedConfig:
  """Questions about depth in posed pictures with depth, such as `launch/field.py` renders.

  Attributes:
    kind: the tag of this class.
    weight: relative share of the mixture, 0 to leave the source out.
    path: a folder with a transforms.json that names pictures and their depth.
    images, scale, metres: as of `FolderViewsConfig`.
    ask: "Depth", which of two places is nearer; or "Metres", how far ahead a place is, answered in metres,
      for training alone.
    margin: least difference of two depths that are asked about, as a share of the smaller one.
    size: number of questions, 0 for no end.
    depth_size: pixels of the square of `depth` that examples bring for losses, over the whole picture; that
      of the scenes beside them (`ScenesConfig.image_size`). 0 for none.
    field: the `field.safetensors` of these pictures, whose descriptors examples then bring as `field`, for a
      loss of kind "field_features"; empty for none.
    field_size: cells along a side of that map, a multiple of a tile's image tokens along a side.
    seed: of the questions.
  """

  kind: Literal["posed"] = "posed"
  weight: float = 1.0
  path: str = ""
  images: str = ""
  scale: int = 1
  metres: float = 1.0
  ask: Literal["Depth", "Metres"] = "Depth"
  margin: float = 0.15
  depth_size: int = 384
  field: str = ""
  field_size: int = 48
  size: int = 0
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class ViewsConfig:
  """Multiple-choice questions across several pictures of one rendered scene, each from its own camera.

  Attributes:
    kind: the tag of this class.
    weight: relative share of the mixture, 0 to leave the source out.
    tasks: kinds of question (ViewRelation, ViewDepth, CameraMoved, SameObject, TotalCount) that are drawn,
      with weights; empty for all alike.
    seed: of the rendered worlds. Held-out worlds have another seed than trained ones.
    size: number of questions, 0 for no end. With an end what a frozen vision tower makes of them is kept.
    image_size: pixels of the square images.
    views: how many pictures a question has, each 2 to 4, in turn.
    only: number, from 1, of the one picture that is shown, where the others are grey: the control that says
      whether several were of use. 0 for all.
  """

  kind: Literal["views"] = "views"
  weight: float = 1.0
  tasks: Mapping[str, float] = dataclasses.field(default_factory=dict)
  seed: int = 0
  size: int = 0
  image_size: int = 96
  views: tuple[int, ...] = (2, 3, 4)
  only: int = 0


# The kinds that a config may name; `config.read` tells them apart by their `kind`.
SourceConfig = (
  ScenesConfig
  | RoomsConfig
  | SkillsConfig
  | ViewsConfig
  | CVBenchConfig
  | LlavaConfig
  | HFConfig
  | StreamConfig
  | RgbdConfig
  | PosedConfig
)


def called(source: SourceConfig) -> str:
  """What messages call a source: its path, else its kind."""
  return getattr(source, "path", "") or source.kind
