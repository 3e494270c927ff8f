"""Models as GGUF files, beside what llama.cpp's own converter makes of the same folders (recorded)."""

import json
from pathlib import Path

import pytest

from spatialvlm import export, hub
from tests import tiny_edge
from tests.oracle.record_gguf import CASES, summary

RECORDED = json.loads((Path(__file__).parents[1] / "recorded" / "gguf.json").read_text(encoding="utf-8"))


def written(folder: Path, out: Path, numbers: str) -> Path:
  model = export.Exportable(hub.load_model(folder), str(folder), folder)
  return export.export(model, "gguf", out, numbers)


@pytest.mark.parametrize("case", CASES)
def test_files_are_those_of_llama_cpps_converter(case, tmp_path):
  """Every tensor to the bit and every key, but for what is written otherwise on purpose."""
  kind, quant, text = CASES[case]
  folder = tiny_edge.write(kind, tmp_path / f"tiny-{kind}", **text)
  out = written(folder, tmp_path / "out", quant)
  assert {file.stem for file in out.iterdir()} == set(RECORDED[case])
  for part, wanted in RECORDED[case].items():
    ours = summary(out / f"{part}.gguf")
    for names in (ours, wanted):
      names["keys"].pop("tokenizer.chat_template", None)  # a server's, see test_templates
    ours["keys"].pop("clip.vision.preproc_min_tiles", None)  # not in the converter's, which mtmd completes
    assert ours["keys"].pop("clip.vision.preproc_max_tiles", 4) == 4
    assert ours["keys"] == wanted["keys"], part
    rolled = "v.position_embd.weight" if (kind, part) == ("internvl", "mmproj") else None
    assert set(ours["tensors"]) == set(wanted["tensors"])
    for name, tensor in wanted["tensors"].items():
      if name == rolled:
        assert ours["tensors"][name] != tensor and ours["tensors"][name][:2] == tensor[:2]
      else:
        assert ours["tensors"][name] == tensor, name
