"""A folder with a model of a real one's shape and random weights, for what is timed and needs no answers.

  python benchmarks/shaped.py OUT [--shape=benchmarks/smolvlm-500m]

SmolVLM's processor, with the small model's tokenizer. Weights are drawn: scores of it mean nothing.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
SHAPE = ROOT / "benchmarks" / "smolvlm-500m"
TOKENIZER = ROOT / "checkpoints" / "smolvlm-tiny"


def checkpoint(folder: Path, shape: Path = SHAPE) -> None:
  """Writes the model of `shape/config.json` into a folder that is there."""
  from spatialvlm import hub

  config = json.loads((shape / "config.json").read_text())
  small = json.loads((TOKENIZER / "config.json").read_text())
  config["image_token_id"] = small["image_token_id"]
  config["text_config"] |= {key: small["text_config"][key] for key in ("bos_token_id", "pad_token_id")}
  config["text_config"]["eos_token_id"] = small["text_config"]["eos_token_id"]
  for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.json", "generation_config.json"):
    shutil.copy(TOKENIZER / name, folder)
  pixels = json.loads((TOKENIZER / "preprocessor_config.json").read_text())
  tile = config["vision_config"]["image_size"]
  pixels |= {"do_image_splitting": True, "max_image_size": {"longest_edge": tile}}
  pixels["size"] = {"longest_edge": 4 * tile}
  (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
  (folder / "processor_config.json").write_text(
    '{"image_seq_len": 64, "processor_class": "SmolVLMProcessor"}'
  )
  (folder / "config.json").write_text(json.dumps(config))
  hub.save_model(hub.load_model(folder, from_scratch=True), folder)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("out", type=Path, help="folder that is written; it must be new")
  parser.add_argument("--shape", type=Path, default=SHAPE, help="folder with another config.json")
  args = parser.parse_args()
  try:
    args.out.mkdir(parents=True)
  except FileExistsError:
    sys.exit(f"error: {args.out}: is there already; name a new folder")
  checkpoint(args.out, args.shape)
  print(args.out)


if __name__ == "__main__":
  main()
