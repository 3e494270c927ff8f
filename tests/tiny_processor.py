"""A processor folder in SmolVLM's shape, small enough to be written anew in each test."""

import functools
import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

CHAT_TEMPLATE = (
  "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
  "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
  "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
  "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
  "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)

TEXT = """User: Assistant: Which object is closer to the camera taking this photo, the red box or the
blue box?
Select from the following choices.
(A) the sphere
(B) the cube
(C) 3
(D) 4
Answer: A Answer: B Answer: C Answer: D E F\n\n
How many cones are in the image? Describe the picture. The sphere is left of the cube."""


@functools.lru_cache
def tokenizer(markers: bool = True, size: int = 420) -> Tokenizer:
  """Byte-level BPE with individual digits and SmolVLM's special tokens.

  `markers`: whether tile markers are tokens, as in 256M and 500M, or plain text, as in the first 2.2B.
  """
  result = Tokenizer(models.BPE())
  result.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
  )
  result.decoder = decoders.ByteLevel()
  start = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
  result.train_from_iterator(
    TEXT.splitlines(keepends=True) + ["\n\n"] * 9,
    trainers.BpeTrainer(
      vocab_size=size,
      special_tokens=start,
      show_progress=False,
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    ),
  )
  grid = [f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)]
  added = (["<global-img>", *grid] if markers else []) + ["<fake_token_around_image>", "<image>"]
  added += ["<|reserved|>", "<end_of_utterance>"]
  result.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in added])
  return result


def write_processor(
  folder: str | Path,
  *,
  family: str = "smolvlm",
  tile: int = 16,
  longest_edge: int = 64,
  tokens_per_tile: int = 4,
  split: bool = True,
  markers: bool = True,
  nested: bool = False,
  padding_side: str = "left",
) -> Path:
  """Writes tokenizer, template and image settings as checkpoints on the hub have them.

  `nested`: one processor_config.json, as transformers 5 saves, instead of preprocessor_config.json beside it.
  """
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  words = tokenizer(markers)
  words.save(str(folder / "tokenizer.json"))
  kind = {"smolvlm": "SmolVLM", "idefics3": "Idefics3"}[family]
  image = {
    "do_convert_rgb": True,
    "do_image_splitting": split,
    "do_normalize": True,
    "do_pad": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": f"{kind}ImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "max_image_size": {"longest_edge": tile},
    "resample": 1,
    "rescale_factor": 1 / 255,
    "size": {"longest_edge": longest_edge},
  }
  outer = {"image_seq_len": tokens_per_tile, "processor_class": f"{kind}Processor"}
  write(folder, "processor_config.json", outer | ({"image_processor": image} if nested else {}))
  if nested:
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
  else:
    write(folder, "preprocessor_config.json", image)
    write(folder, "chat_template.json", {"chat_template": CHAT_TEMPLATE})
  end = words.token_to_id("<end_of_utterance>")
  write(
    folder,
    "tokenizer_config.json",
    {
      "tokenizer_class": "PreTrainedTokenizerFast",
      "bos_token": "<|im_start|>",
      "eos_token": "<end_of_utterance>",
      "pad_token": "<|im_end|>",
      "unk_token": "<|endoftext|>",
      "padding_side": padding_side,
      "model_max_length": 16384,
    },
  )
  write(folder, "generation_config.json", {"eos_token_id": end, "pad_token_id": 2, "bos_token_id": 1})
  return folder


def write(folder: Path, name: str, value: dict) -> None:
  (folder / name).write_text(json.dumps(value, indent=2))
