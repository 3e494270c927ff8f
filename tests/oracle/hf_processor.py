"""transformers' own processor of a folder."""

from pathlib import Path

import transformers
from PIL import Image
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm import processing_smolvlm
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from spatialvlm.data import processor_files

# Both serve videos only: the package that writes numbers in words, and a class that needs torchvision.
processing_smolvlm.num2words = processing_smolvlm.num2words or str


class _SmolVLMProcessor(processing_smolvlm.SmolVLMProcessor):
  def check_argument_for_proper_class(self, argument_name, argument):
    if argument_name != "video_processor":
      return super().check_argument_for_proper_class(argument_name, argument)


class _NoVideo:
  num_frames = fps = None
  model_input_names = ()


def load(folder, family: str = "smolvlm"):
  folder = Path(folder)
  tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
  outer = processor_files.read_json(folder, "processor_config.json")
  kwargs = {
    "tokenizer": tokenizer,
    "image_seq_len": outer["image_seq_len"],
    "chat_template": processor_files.template(folder, outer, {}),
  }
  if family == "idefics3":
    image = Idefics3ImageProcessorPil.from_pretrained(folder)
    return transformers.Idefics3Processor(image_processor=image, **kwargs)
  image = SmolVLMImageProcessorPil.from_pretrained(folder)
  return _SmolVLMProcessor(image_processor=image, video_processor=_NoVideo(), **kwargs)


def run(processor, texts, images, side="right"):
  """Arrays as PIL images, whose channels cannot be mistaken for rows."""
  images = [[Image.fromarray(image) for image in sample] for sample in images]
  kwargs = {"images": images} if any(images) else {}
  return processor(text=list(texts), padding=True, padding_side=side, return_tensors="np", **kwargs)
