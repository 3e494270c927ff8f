import collections

import pytest

from spatialvlm.data import scene_benchmark
from spatialvlm.data.sources import cvbench
from spatialvlm.types import UserError


def test_numbers_are_those_of_cv_bench():
  by_task = {task: sum(of.values()) for task, of in scene_benchmark.NUMBERS.items()}
  assert by_task == {"Count": 788, "Relation": 650, "Depth": 600, "Distance": 600}
  by_source = collections.Counter()
  for of in scene_benchmark.NUMBERS.values():
    for (source, _), count in of.items():
      by_source[source] += count
  assert by_source == {"ADE20K": 633, "COCO": 805, "Omni3D": 1200}


def test_files_read_as_cv_bench_does(tmp_path):
  counts = scene_benchmark.write(tmp_path, seed=5, image_size=48, share=0.004)
  assert counts == {"Count": 4, "Relation": 4, "Depth": 3, "Distance": 3}
  found = cvbench.open_cvbench(str(tmp_path))
  assert list(found.ids) == list(range(14))
  assert [q.task for q in found] == ["Count"] * 4 + ["Relation"] * 4 + ["Depth"] * 3 + ["Distance"] * 3
  assert {q.source_dataset for q in found if q.task == "Depth"} == {
    "Omni3D_Hypersim", "Omni3D_SUNRGBD", "Omni3D_nuScenes"
  }  # fmt: skip
  assert {q.source for q in found} == {"ADE20K", "COCO", "Omni3D"}
  assert len({q.images[0].tobytes() for q in found}) == 14
  again = tmp_path / "again"
  scene_benchmark.write(again, seed=5, image_size=48, share=0.004)
  assert (again / "test_3d.parquet").read_bytes() == (tmp_path / "test_3d.parquet").read_bytes()


def test_a_share_out_of_range_writes_nothing(tmp_path):
  with pytest.raises(UserError, match=r"share: 1\.5"):
    scene_benchmark.write(tmp_path, seed=5, share=1.5)
  assert not list(tmp_path.iterdir())
