"""transformers' own processor of a folder."""

from pathlib import Path

import transformers
from PIL import Image
from transformers.models.gemma.tokenization_gemma import GemmaTokenizer
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.paligemma.processing_paligemma import PaliGemmaProcessor
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm import processing_smolvlm
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from spatialvlm.config import read_json
from spatialvlm.processing import processor_files
from tests.processing.processor_cases import images

# Both serve videos only: the package that writes numbers in words, and a class that needs torchvision.
processing_smolvlm.num2words = processing_smolvlm.num2words or str


class _NoVideoCheck:
  def check_argument_for_proper_class(self, argument_name, argument):
    if argument_name != "video_processor":
      return super().check_argument_for_proper_class(argument_name, argument)


class _SmolVLMProcessor(_NoVideoCheck, processing_smolvlm.SmolVLMProcessor):
  pass


class _InternVLProcessor(_NoVideoCheck, InternVLProcessor):
  pass


class _NoVideo:
  num_frames = fps = None
  model_input_names = ()


def load(folder, family: str = "smolvlm"):
  folder = Path(folder)
  outer = read_json(folder / "processor_config.json")
  if family == "paligemma":
    image = SiglipImageProcessorPil.from_pretrained(folder)
    return PaliGemmaProcessor(image_processor=image, tokenizer=GemmaTokenizer.from_pretrained(folder))
  template = processor_files.template(folder, outer, {})
  if family == "internvl":
    return _InternVLProcessor(
      image_processor=GotOcr2ImageProcessorPil.from_pretrained(folder),
      tokenizer=Qwen2Tokenizer.from_pretrained(folder),
      video_processor=_NoVideo(),
      image_seq_length=outer["image_seq_length"],
      chat_template=template,
    )
  tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
  kwargs = {"tokenizer": tokenizer, "image_seq_len": outer["image_seq_len"], "chat_template": template}
  if family == "idefics3":
    image = Idefics3ImageProcessorPil.from_pretrained(folder)
    return transformers.Idefics3Processor(image_processor=image, **kwargs)
  image = SmolVLMImageProcessorPil.from_pretrained(folder)
  return _SmolVLMProcessor(image_processor=image, video_processor=_NoVideo(), **kwargs)


def run(processor, texts, pictures, side="right", **kwargs):
  """Arrays as PIL images, whose channels cannot be mistaken for rows."""
  pictures = [[Image.fromarray(image) for image in sample] for sample in pictures]
  if isinstance(processor, InternVLProcessor):
    texts = [text.replace("<image>", "<IMG_CONTEXT>") for text in texts]
    pictures = [image for sample in pictures for image in sample]
  if any(pictures):
    kwargs["images"] = pictures
  if side is not None:
    kwargs["padding_side"] = side
  return processor(text=list(texts), padding=True, return_tensors="np", **kwargs)


def of_case(case, folder):
  """What transformers makes of one of `tests.processing.processor_cases`."""
  family = dict(case.folder).get("family", case.kind)
  kwargs = {} if case.suffix is None else {"suffix": list(case.suffix)}
  return run(load(folder, family), case.texts, images(case), case.side, **kwargs)
