"""Exported folders within transformers.js, in node; TRANSFORMERS_JS names a folder that has the package."""

import os
import shutil
from pathlib import Path

import pytest

from tests.oracle.record_onnx_js import CASES, ask, model

PACKAGES = os.environ.get("TRANSFORMERS_JS", "")

if shutil.which("node") is None:
  pytest.skip("node is not installed", allow_module_level=True)
if not (Path(PACKAGES or "nowhere") / "node_modules" / "@huggingface" / "transformers").is_dir():
  pytest.skip(
    "TRANSFORMERS_JS names no folder in which `npm install @huggingface/transformers` was run",
    allow_module_level=True,
  )


@pytest.mark.parametrize("case", CASES)
def test_answers_are_those_that_were_recorded(case, tmp_path):
  """Which `tests/export/test_onnx.py` holds to the model itself."""
  from tests.export.test_onnx import js_answers

  vlm = model(case, tmp_path / "source")
  js_answers(vlm, case, ask(Path(PACKAGES), vlm, case, tmp_path))
