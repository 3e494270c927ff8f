"""Scores a model on other spatial benchmarks: `--config=configs/benchmarks.py:NAME`.

`--config.data.path=FOLDER` names a local copy; docs/evaluation.md says what it holds. Where the hub has the
data, its id is the default. Every recipe is a mapping of columns, and nothing else.
"""

from spatialvlm.config import EvaluateConfig, HFConfig, ModelConfig, ScoreConfig
from spatialvlm.types import UserError


def get_config(arg: str = "") -> EvaluateConfig:
  if arg not in BENCHMARKS:
    raise UserError(f"configs/benchmarks.py: no benchmark {arg!r}; there are {', '.join(BENCHMARKS)}")
  model = ModelConfig(path="HuggingFaceTB/SmolVLM-500M-Instruct")
  return EvaluateConfig(name=arg, model=model, data=BENCHMARKS[arg], score=ScoreConfig(batch_size=8))


def _blink(subset: str) -> HFConfig:
  """The test split's answers are withheld, so that everyone reports on `val`."""
  return HFConfig(
    path="BLINK-Benchmark/BLINK",
    files=f"{subset}/val-*.parquet",
    split="val",
    columns=dict(
      id="idx", images="image_1,image_2,image_3,image_4", prompt="prompt", answer="answer", task="sub_task"
    ),
    templates=dict(source="BLINK"),
    answers="letter",
  )


def _3dsrbench() -> HFConfig:
  return HFConfig(
    path="ccvl/3DSRBench",
    files="3dsrbench_v1_vlmevalkit.tsv",
    split="test",
    columns=dict(id="index", choices="A,B,C,D", task="category", source_dataset="image_source"),
    templates=dict(source="3DSRBench"),
    answers="letter",
  )


def _vsr(split: str) -> HFConfig:
  """True or false of a caption; the images are COCO's and come apart from the questions."""
  return HFConfig(
    path=f"cambridgeltl/vsr_{split}",
    files="test.jsonl",
    split="test",
    columns=dict(answer="label"),
    templates=dict(
      question='Is this statement about the image true or false? "{caption}"',
      image="images/{image}",
      source=f"VSR ({split})",
    ),
    choices=("false", "true"),
    answers="index",
  )


def _sat() -> HFConfig:
  """Two images of one question (before and after a movement) are shown side by side."""
  return HFConfig(
    path="array/SAT",
    files="SAT_test.parquet",
    split="test",
    columns=dict(images="image_bytes", choices="answers", answer="correct_answer", task="question_type"),
    templates=dict(source="SAT"),
    answers="text",
    shuffle_choices=True,
    several_images="join",
  )


def _whatsup(files: str, columns: dict | None = None, **templates: str) -> HFConfig:
  """The first caption is always right, so their order is drawn. A task named Relation can be flipped."""
  question = "Which caption describes the image?"
  return HFConfig(
    files=files,
    split="test",
    columns=columns or dict(image="image_path", choices="caption_options"),
    templates=dict(question=question, answer="0", task="Relation", source="What's Up") | templates,
    answers="index",
    shuffle_choices=True,
  )


def _whatsup_pair(files: str, image: str, name: str) -> HFConfig:
  """A list of an image's number, the right caption and a wrong one."""
  return _whatsup(files, dict(choices="column1,column2"), image=image, source_dataset=name)


COCO, VISUAL_GENOME = "val2017/{column0:0>12}.jpg", "vg_images/{column0}.jpg"
BENCHMARKS = {
  "blink-relative-depth": _blink("Relative_Depth"),
  "blink-spatial-relation": _blink("Spatial_Relation"),
  "blink-counting": _blink("Counting"),
  "3dsrbench": _3dsrbench(),
  "vsr": _vsr("random"),
  "vsr-zeroshot": _vsr("zeroshot"),
  "sat": _sat(),
  "whatsup-a": _whatsup("controlled_images_dataset.json", source_dataset="Controlled A"),
  "whatsup-b": _whatsup("controlled_clevr_dataset.json", source_dataset="Controlled B"),
  "whatsup-coco-one": _whatsup_pair("coco_qa_one_obj.json", COCO, "COCO one object"),
  "whatsup-coco-two": _whatsup_pair("coco_qa_two_obj.json", COCO, "COCO two objects"),
  "whatsup-vg-one": _whatsup_pair("vg_qa_one_obj.json", VISUAL_GENOME, "VG one object"),
  "whatsup-vg-two": _whatsup_pair("vg_qa_two_obj.json", VISUAL_GENOME, "VG two objects"),
  # What `python launch/real_parts.py --photos=runs/real/photos` writes.
  "photos": HFConfig(
    path="runs/real/photos",
    files="questions.jsonl",
    templates=dict(source="Photographs"),
    answers="letter",
  ),
}
