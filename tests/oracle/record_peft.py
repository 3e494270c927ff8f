"""Writes tests/fixtures/peft: adapters made by peft on the recorded checkpoints, and the logits they give.

  python -m tests.oracle.record_peft    (in the root of the project)

To be run again after `record_fixtures`, since the adapters belong to its checkpoints.
`tests/peft/test_io.py` holds our reading and writing to these records without PyTorch.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import peft

from tests.oracle import adapters, reference
from tests.oracle.record_fixtures import from_bytes, quantised

FIXTURES = Path(__file__).parents[1] / "fixtures"
RECORDED = (
  *("regex", "patterns", "dora", "saved", "layers", "tied", "parted", "parted_head"),
  *("bias_all", "lora_bias", "embedding", "embedding_tied", "pissa", "olora", "eva"),
  *("token_rows", "token_rows_tied"),
)


def main() -> None:
  folder = FIXTURES / "peft"
  shutil.rmtree(folder, ignore_errors=True)
  stored = quantised(reference.cases()["plain"])
  case = {**stored, "pixel_values": from_bytes(stored["pixel_values"])}
  out: dict[str, np.ndarray] = {"peft": np.array(peft.__version__), **stored}
  cases = {name: adapters.CASES[name] for name in RECORDED}
  cases |= {name: (adapters.config_of(name), "smolvlm") for name in adapters.OTHERS}
  for name, (options, family) in cases.items():
    base = (
      reference.CLASSES[family][1].from_pretrained(f"tests/fixtures/{family}").eval()
    )  # peft notes the path
    adapted = adapters.adapt(base, options)
    out[f"{name}.logits"] = reference.logits(adapted, case)
    saved = adapters.save(adapted, folder / name)
    (saved / "README.md").unlink()
    (saved / "adapter_model.safetensors").chmod(0o644)
  np.savez_compressed(folder / "record.npz", **out)
  size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
  print(f"{folder}: {size / 1e3:.0f} kB")


if __name__ == "__main__":
  main()
