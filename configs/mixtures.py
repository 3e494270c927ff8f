"""Open data sets for training, each a mapping of its columns: what `lora.py:500m,data=NAME+NAME` mixes.

`weight` is the share that each has beside the others and the scenes: more for what asks Depth and Distance,
less for small sets, which would be seen too often. They are a start, not a measurement. In `folder` each set
lies in a folder of its name, with the files that docs/open_data.md lists.
"""

import dataclasses

from spatialvlm.config import HFConfig, LlavaConfig, RgbdConfig, RunConfig
from spatialvlm.types import UserError

# Of the scenes beside them.
SCENES = 0.2
Source = HFConfig | LlavaConfig | RgbdConfig


def get_config(arg: str = "") -> RunConfig:
  """`--config=configs/mixtures.py:sat+vsr,folder=/data` is `lora.py:500m,data=sat+vsr,folder=/data`."""
  from spatialvlm.configs import lora  # which mixes what is here

  if not arg:
    raise UserError(
      f"configs/mixtures.py: name data sets, e.g. mixtures.py:sat+vsr; there are {', '.join(SOURCES)}"
    )
  return lora.get_config(f"500m,data={arg}")


def sources(names: list[str], folder: str = "") -> dict[str, Source]:
  """The data sets of these names; `folder` holds each in a folder of its name, "" for their hub ids."""
  for name in names:
    if name not in SOURCES:
      raise UserError(f"configs/mixtures.py: no data set {name!r}; there are {', '.join(SOURCES)}")
  return {name: _in_folder(SOURCES[name], f"{folder}/{name}") if folder else SOURCES[name] for name in names}


def _in_folder(source: Source, path: str) -> Source:
  if isinstance(source, LlavaConfig):
    return dataclasses.replace(source, path=f"{path}/{source.path}")
  if isinstance(source, RgbdConfig):
    return dataclasses.replace(source, path=path)
  root = f"{path}/{source.image_root}" if source.image_root else ""
  return dataclasses.replace(source, path=path, image_root=root)


def _sat() -> HFConfig:
  """The right answer comes first in the data, so the order is drawn; some questions show two pictures."""
  return HFConfig(
    path="array/SAT",
    files="SAT_train*.parquet",
    weight=0.2,
    columns=dict(images="image_bytes", choices="answers", answer="correct_answer", task="question_type"),
    templates=dict(source="SAT"),
    answers="text",
    shuffle_choices=True,
  )


def _vsr() -> HFConfig:
  """Captions that are true or false, of COCO's pictures, which come apart from the captions."""
  return HFConfig(
    path="cambridgeltl/vsr_random",
    files="train.jsonl",
    weight=0.05,
    columns=dict(answer="label"),
    templates=dict(
      question='Is this statement about the image true or false? "{caption}"',
      image="images/{image}",
      task="Relation",
      source="VSR",
    ),
    choices=("false", "true"),
    answers="index",
    shuffle_choices=True,
  )


def _cauldron(subset: str, task: str, weight: float) -> HFConfig:
  """Conversations in `texts`; SmolVLM was trained on them, so that they are replay too."""
  return HFConfig(
    path=f"HuggingFaceM4/the_cauldron:{subset}",
    weight=weight,
    columns=dict(messages="texts"),
    templates=dict(task=task, source="The Cauldron"),
  )


def _spar() -> HFConfig:
  """The folder of one of its parts, as scannet/; points and boxes are drawn as its questions name them."""
  marks = {f"{color}_{what}": color for what in ("point", "bbox") for color in ("red", "blue", "green")}
  return HFConfig(
    path="jasonzhango/SPAR-7M",  # archives there; unpacked, a folder
    image_root="images",
    files="qa_jsonl/train/**/*.jsonl",
    weight=0.2,
    columns=dict(task="type"),
    templates=dict(source="SPAR"),
    marks=marks,
  )


def _stvqa() -> HFConfig:
  """Its `answer` is a scene graph with the letter behind it: the letter alone is taught."""
  return HFConfig(
    path="hunarbatra/STVQA-7K",
    weight=0.05,
    columns=dict(question="question_only", choices="options", answer="answer_only", task="category"),
    templates=dict(source="STVQA"),
    answers="letter",
    shuffle_choices=True,
  )


SOURCES = {
  "sat": _sat(),
  "vsr": _vsr(),
  "tallyqa": _cauldron("tallyqa", "Count", 0.15),
  "clevr": _cauldron("clevr", "Count", 0.1),
  "cauldron_vsr": _cauldron("vsr", "Relation", 0.03),
  "openspaces": HFConfig(path="remyxai/OpenSpaces", weight=0.05, templates=dict(source="OpenSpaces")),
  "spar": _spar(),
  "stvqa": _stvqa(),
  "llava": LlavaConfig(path="llava_v1_5_mix665k.json", weight=0.1),
  # Questions made of their depth; folders alone, of which no hub has one that is laid out so.
  **{
    layout: RgbdConfig(path=layout, layout=layout, weight=0.1)
    for layout in ("nyuv2", "sunrgbd", "hypersim", "scannet")
  },
}
