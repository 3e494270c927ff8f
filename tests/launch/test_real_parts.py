"""What the real parts are put together to; where they have been fetched."""

import pathlib

import numpy as np
import pytest
from safetensors.numpy import load_file

from spatialvlm.configs import real
from tests.launch.command import run

PARTS = pathlib.Path(real.TEXT).parent
Q = "text_model.layers.7.self_attn.q_proj"


def test_a_folder_that_holds_something_is_refused_before_anything_is_fetched(tmp_path, capfd):
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "mine").write_text("mine")
  done = run(capfd, "real_parts", f"--out={tmp_path / 'parts'}", f"--merged={tmp_path / 'full'}")
  assert done.code == 2 and "already holds something" in done.err and not (tmp_path / "parts").exists()
  done = run(capfd, "real_parts", "--photos=a", "--merged=b")
  assert done.code == 2 and "leave one out" in done.err


@pytest.mark.skipif(not PARTS.is_dir(), reason=f"no {PARTS}: run `python launch/real_parts.py`")
def test_one_model_of_parts_connector_and_adapter(tmp_path, capfd, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  done = run(capfd, "real_parts", f"--out={PARTS}", f"--merged={tmp_path / 'one'}")
  assert done.code == 0, done.err
  (before,) = [line.partition(": ")[2] for line in done.out.splitlines() if line.startswith("without")]
  one, base = (load_file(pathlib.Path(f) / "model.safetensors") for f in (tmp_path / "one", before))
  adapter = load_file(pathlib.Path(real.ADAPTER) / "adapter_model.safetensors")
  wide = {name: value.astype(np.float32) for name, value in one.items()}
  (name,) = [name for name in one if name.endswith(f"{Q}.weight")]
  a, b = (adapter[f"base_model.model.model.{Q}.lora_{x}.weight"].astype(np.float32) for x in "AB")
  change = wide[name] - base[name].astype(np.float32)
  np.testing.assert_allclose(change, 2.0 * b @ a, rtol=1e-3, atol=1e-5)  # alpha 16 of rank 8
  assert np.abs(change).max() > 1e-3
