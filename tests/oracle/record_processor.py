"""Records what transformers makes of the cases: `python -m tests.oracle.record_processor`."""

import tempfile
from pathlib import Path

import numpy as np

from tests.oracle import hf_processor
from tests.processing.processor_cases import CASES, digest, write

RECORD = Path(__file__).parents[1] / "processing" / "recorded" / "processor.npz"


def main() -> None:
  arrays = {}
  for case in CASES:
    with tempfile.TemporaryDirectory() as folder:
      output = hf_processor.of_case(case, write(case, folder))
    arrays[f"{case.name}/input_ids"] = output["input_ids"].astype(np.int16)
    arrays[f"{case.name}/attention_mask"] = output["attention_mask"].astype(np.int8)
    for name in ("token_type_ids", "labels") if case.kind == "paligemma" else ():
      arrays[f"{case.name}/{name}"] = output[name].astype(np.int16)
    if "pixel_values" in output:
      arrays[f"{case.name}/pixels"] = digest(output["pixel_values"])
    if "pixel_attention_mask" in output:
      arrays[f"{case.name}/tile_mask"] = output["pixel_attention_mask"].all((2, 3))
  RECORD.parent.mkdir(exist_ok=True)
  np.savez_compressed(RECORD, **arrays)
  print(f"{RECORD}: {len(CASES)} cases, {RECORD.stat().st_size} bytes")


if __name__ == "__main__":
  main()
