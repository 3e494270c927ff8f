"""Writes tests/fixtures/soft_prompts: soft prompts made by peft on the recorded SmolVLM, and their logits.

  python -m tests.oracle.record_soft_prompts    (in the root of the project)

To be run again after `record_fixtures`. `tests/peft/test_soft.py` holds our reading to these records without
PyTorch.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import peft

from tests.oracle import adapters, reference
from tests.oracle.record_fixtures import from_bytes, quantised

FIXTURES = Path(__file__).parents[1] / "fixtures"
RECORDED = ("prompt", "p_tuning_mlp", "prefix")


def main() -> None:
  folder = FIXTURES / "soft_prompts"
  shutil.rmtree(folder, ignore_errors=True)
  stored = quantised(reference.cases()["plain"])
  case = {**stored, "pixel_values": from_bytes(stored["pixel_values"])}
  out: dict[str, np.ndarray] = {"peft": np.array(peft.__version__), **stored}
  for name in RECORDED:
    base = reference.CLASSES["smolvlm"][1].from_pretrained("tests/fixtures/smolvlm").eval()
    adapted = adapters.adapt(base, adapters.config_of(name))
    out[f"{name}.logits"] = reference.logits(adapted, case)[:, -case["input_ids"].shape[1] :]
    saved = adapters.save(adapted, folder / name)
    (saved / "README.md").unlink()
    (saved / "adapter_model.safetensors").chmod(0o644)
  np.savez_compressed(folder / "record.npz", **out)
  size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
  print(f"{folder}: {size / 1e3:.0f} kB")


if __name__ == "__main__":
  main()
