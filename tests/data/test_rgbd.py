"""Photographs with depth: questions made of a folder's maps, held against the truth of rendered scenes."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spatialvlm.config import AugmentConfig, RgbdConfig
from spatialvlm.data.augment.change import Augment
from spatialvlm.data.sources import rgbd, rgbd_files, rgbd_layouts
from spatialvlm.data.sources.registry import open_questions, open_source, read
from spatialvlm.processing.processor import load_processor
from spatialvlm.types import UserError
from spatialvlm.worlds import world
from tests.tiny_processor import write_processor

SIDE, SCENES = 96, 48


@pytest.fixture(scope="module")
def frames():
  return world.frames(77, range(SCENES), SIDE)


def png(file, pixels):
  file.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(file)


def write_json(file, value):
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text(json.dumps(value))


def intrinsics(frame):
  (fx, _, cx), (_, fy, cy), _ = frame.intrinsics.tolist()
  return dict(fx=fx, fy=fy, cx=cx, cy=cy)


def millimetres(frame):
  return np.round(frame.depth * 1000).astype(np.uint16)


def write_pairs(folder, frames, *, npy=False):
  for i, frame in enumerate(frames):
    png(folder / "image" / f"{i:03d}.png", frame.image)
    png(folder / "instance" / f"{i:03d}.png", (frame.instance + 1).astype(np.uint8))
    write_json(folder / "names" / f"{i:03d}.json", {o.index + 1: o.name for o in frame.objects})
    write_json(folder / "intrinsics" / f"{i:03d}.json", intrinsics(frame))
    (folder / "depth").mkdir(exist_ok=True)
    if npy:
      np.save(folder / "depth" / f"{i:03d}.npy", frame.depth)
    else:
      png(folder / "depth" / f"{i:03d}.png", millimetres(frame))
  return folder


def config(folder, **settings):
  return RgbdConfig(path=str(folder), per_image=100, depth_size=SIDE, **settings)


def truth(question, frame):
  """The answer as the scene itself has it: objects' own centres, boxes of what is seen."""
  of = {o.name: o for o in frame.objects}
  named = [next(o for o in frame.objects if tuple(map(float, o.box)) == box) for box in question.bbox]
  assert all(of[o.name] is o for o in named)
  if question.task == "Depth":
    return named[int(named[0].center_camera[2] > named[1].center_camera[2])].name
  if question.task == "Distance":
    away = [np.linalg.norm(named[0].center - o.center) for o in named[1:]]
    return named[1 + int(away[0] > away[1])].name
  middle = [np.add(o.box[:2], o.box[2:]) / 2 for o in named]
  axis = int("above" in question.choices)
  return (("left", "right"), ("above", "below"))[axis][int(middle[0][axis] > middle[1][axis])]


def check_answers(questions, frames, number=lambda q: int(Path(q.filename).stem)):
  """Every answer is the scene's own; of the answers each is right about as often."""
  for question in questions:
    assert question.choices[question.answer] == truth(question, frames[number(question)]), question
  return {kind: [q.answer for q in questions if q.task == kind] for kind in ("Relation", "Depth", "Distance")}


@pytest.mark.parametrize("npy", [False, True])
def test_answers_are_those_of_the_scenes(tmp_path, frames, npy):
  frames = frames if not npy else frames[:6]
  questions = list(open_questions(config(write_pairs(tmp_path, frames, npy=npy))))
  answers = check_answers(questions, frames)
  if npy:
    return
  assert min(map(len, answers.values())) > 40
  for kind, given in answers.items():
    assert abs(np.mean(given) - 0.5) < 4 * 0.5 / np.sqrt(len(given)), kind


def test_templates_boxes_and_dense_depth(tmp_path, frames):
  folder, seen = write_pairs(tmp_path, frames[:8]), set()
  source, questions = open_source(config(folder)), open_questions(config(folder))
  for question, example in zip(questions, read(source, range(len(source))), strict=True):
    number = int(Path(question.filename).stem)
    names = [
      o.name for box in question.bbox for o in frames[number].objects if tuple(map(float, o.box)) == box
    ]
    plain = frames[number].image.copy()
    drawn = [c for c in ("red", "blue", "green") if f"{c} box" in question.question]
    for box, color in zip(question.bbox, drawn, strict=False):
      world.draw_box(plain, box, color)
    np.testing.assert_array_equal(question.images[0], plain)
    np.testing.assert_array_equal(example.images[0], plain)
    np.testing.assert_allclose(example.dense["depth"], frames[number].depth, atol=6e-4)
    assert example.turns[0].prompt == question.prompt and example.turns[0].answer == "AB"[question.answer]
    assert example.files == (question.filename,)
    assert all(f"The {name}" in example.facts() for name in names)
    seen.add((question.task, len(drawn)))
    if question.task == "Depth":
      a, b = names
      assert question.question == (
        f"Which object is closer to the camera taking this photo, the {a} (highlighted by a red box) or "
        f"the {b} (highlighted by a blue box)?"
      )
  assert seen == {("Depth", 2), ("Distance", 3), ("Relation", 0), ("Relation", 1)}
  halved = open_source(dataclasses.replace(config(folder), depth_size=48))[0].dense["depth"]
  np.testing.assert_array_equal(halved, source[0].dense["depth"][1::2, 1::2])
  assert open_source(dataclasses.replace(config(folder), depth_size=0))[0].dense == {}


def test_depth_lies_where_the_global_view_shows_it(tmp_path):
  """A picture twice as wide as high is squeezed into a square tile, and its depth alike."""
  left = np.arange(96) < 48
  grey = np.broadcast_to(np.where(left, 230, 20).astype(np.uint8), (48, 96))
  png(tmp_path / "image" / "a.png", np.stack([grey] * 3, -1))
  png(tmp_path / "depth" / "a.png", np.broadcast_to(np.where(left, 2000, 4000), (48, 96)).astype(np.uint16))
  png(tmp_path / "instance" / "a.png", np.broadcast_to(np.where(left, 1, 2), (48, 96)).astype(np.uint8))
  write_json(tmp_path / "names.json", {1: "door", 2: "table"})
  write_json(tmp_path / "intrinsics.json", dict(fx=90, fy=90, cx=48, cy=24))
  processor = load_processor(write_processor(tmp_path / "processor", split=False, longest_edge=16))
  source = open_source(dataclasses.replace(config(tmp_path), depth_size=processor.layout.tile_size))
  (plain,) = [e for e in source if e.task == "Depth"]
  assert (
    plain.turns[0].answer == "AB"[plain.turns[0].prompt.index("door") > plain.turns[0].prompt.index("table")]
  )
  encoded = processor.encode(plain)
  tile = np.asarray(encoded.tiles[-1], np.float32).mean(-1)
  depth = encoded.extra["depth"].array[-1]
  assert depth.shape == tile.shape and {2.0, 4.0} == {*np.unique(depth).tolist()}
  inside = np.s_[3:-3, [3, 4, 5, -6, -5, -4]]  # off the boxes
  np.testing.assert_array_equal(depth[inside] == 2, tile[inside] > tile[inside].mean())


def test_settings(tmp_path, frames):
  folder = write_pairs(tmp_path, frames[:8])
  whole = open_questions(config(folder))
  few = open_questions(dataclasses.replace(config(folder), per_image=2, size=7))
  assert (
    len(few) == 7 and max(sum(q.filename == name for q in few) for name in {q.filename for q in few}) == 2
  )
  again = open_questions(config(folder))
  assert [q.prompt for q in again] == [q.prompt for q in whole]
  assert {q.task for q in open_questions(config(folder, tasks={"Depth": 1.0}))} == {"Depth"}
  large = open_questions(config(folder, min_share=0.02))
  assert len(large) < len(whole) and min(q.target_size for q in large) >= 0.02 * SIDE**2
  for settings, message in (
    (dict(tasks={"Count": 1.0}), "kind of question 'Count' is unknown to photographs; known: Depth, Dist"),
    (dict(tasks={"Depth": 0.0}), "kind 'Depth' has weight 0"),
    (dict(min_share=1.5), "min_share: 1.5: a share of the picture lies between 0 and 1"),
    (dict(layout="scannet"), "holds no pictures in the layout 'scannet'"),
  ):
    with pytest.raises(UserError, match=message):
      open_questions(config(folder, **settings))
  with pytest.raises(UserError, match="needs a `path`"):
    open_source(RgbdConfig())


def test_a_folder_is_looked_through_once_as_long_as_it_stays(tmp_path, frames, monkeypatch):
  folder, looked = write_pairs(tmp_path, frames[:3]), []
  real = rgbd.measured
  monkeypatch.setattr(rgbd, "measured", lambda *args: looked.append(1) or real(*args))
  first = open_questions(config(folder))
  assert len(open_source(config(folder, weight=0.5))) == len(first) and len(looked) == 3
  assert len(open_questions(config(folder, seed=1))) > 0 and len(looked) == 6
  write_json(folder / "names" / "001.json", {1: "cup"})
  assert "image/001.png" not in {q.filename for q in open_questions(config(folder))} and len(looked) == 9


def test_what_a_careful_person_could_dispute_is_left_out(tmp_path, frames):
  """Two objects of one name, and specks, are never asked about; pictures without two objects are none."""
  folder = write_pairs(tmp_path, frames[:1])
  objects = frames[0].objects
  write_json(folder / "names" / "000.json", {o.index + 1: objects[0].name for o in objects})
  with pytest.raises(UserError, match="of 1 pictures none has two objects that can be asked about"):
    open_questions(config(folder))
  write_json(folder / "names" / "000.json", {o.index + 1: "wall" for o in objects})
  with pytest.raises(UserError, match="none has two objects"):
    open_questions(config(folder))


def _depth(change, npy=False):
  def write(folder, frame):
    if npy:
      (folder / "depth" / "000.png").unlink()
      np.save(folder / "depth" / "000.npy", change(frame.depth.copy()))
    else:
      png(folder / "depth" / "000.png", change(millimetres(frame)))

  return write


def _nan(depth):
  depth[:2, :3] = np.nan
  return depth


def _json(name, value):
  return lambda folder, frame: write_json(folder / name, value)


def _gone(name):
  return lambda folder, frame: (folder / name).unlink()


@pytest.mark.parametrize(
  ("spoil", "settings", "message"),
  [
    (_depth(lambda d: d[::2, ::2]), {}, r"depth/000\.png: 48 x 48 pixels, but .*image/000\.png has 96 x 96"),
    (_depth(lambda d: d), dict(unit="m"), r"depth/000\.png: a median of \d+ is no depth in metres; .*=mm"),
    (_depth(lambda d: d, npy=True), dict(unit="mm"), r"000\.npy: a median of .* is no depth in millimetres"),
    (_depth(lambda d: d * 1000, npy=True), {}, r"000\.npy: a median of .* is no depth in metres; if it"),
    (_depth(lambda d: (d // 1000), npy=False), {}, r"000\.png: a median of \d is no depth in millimetres"),
    (_depth(_nan, npy=True), {}, r"000\.npy: 6 pixels are NaN; write 0 where there is no depth"),
    (_depth(lambda d: np.where(d > 3, np.inf, d), npy=True), {}, r"000\.npy: \d+ pixels are infinite"),
    (_depth(lambda d: -d, npy=True), {}, r"000\.npy: \d+ pixels are negative"),
    (_depth(lambda d: d * 0), {}, r"depth/000\.png: no pixel has a depth"),
    (_depth(lambda d: (d // 64).astype(np.uint8)), {}, "8 bits hold no depth in metres"),
    (_depth(lambda d: np.stack([d // 64] * 3, -1).astype(np.uint8)), {}, r"expected one number a pixel"),
    (_gone("depth/000.png"), {}, r"depth/000\.png: no such file"),
    (_gone("intrinsics/000.json"), {}, r"000\.png: no intrinsics, which Distance is measured by"),
    (_json("intrinsics/000.json", dict(fx=1)), {}, r"intrinsics/000\.json: no intrinsics \('fy'\)"),
    (_json("intrinsics/000.json", dict(fx=0, fy=1, cx=48, cy=48)), {}, "have no focal length above 0"),
    (_json("intrinsics/000.json", dict(fx=500, fy=500, cx=320, cy=240)), {}, "not of a picture of 96 x 96"),
    (_gone("names/000.json"), {}, r"000\.png: no names of objects; write names\.json"),
    (_json("names/000.json", {"a": "cup"}), {}, r"names/000\.json: expected names by id"),
    (_gone("instance/000.png"), {}, r"no map of objects; write instance/000\.png"),
    (lambda f, _: (f / "depth/000.png").write_bytes(b"PNG"), {}, r"depth/000\.png: cannot be read as a map"),
    (lambda f, _: (f / "image/000.png").write_bytes(b"PNG"), {}, r"image/000\.png: cannot be read as an im"),
  ],
)  # fmt: skip
def test_bad_input_is_one_line_by_file(tmp_path, frames, spoil, settings, message):
  write_pairs(tmp_path, frames[:2])
  spoil(tmp_path, frames[0])
  with pytest.raises(UserError, match=message) as error:
    open_questions(config(tmp_path, **settings))
  assert "\n" not in str(error.value)
  if settings:
    return
  source = open_source(config(tmp_path), defer=True)
  with pytest.raises(UserError, match=message):  # the picture that is broken is refused when it is read
    source[0]
  assert len(source) > 1 and source[1].files == ("image/001.png",)


def test_without_intrinsics_two_kinds_are_left(tmp_path, frames):
  folder = write_pairs(tmp_path, frames[:8])
  for file in (folder / "intrinsics").glob("*"):
    file.unlink()
  questions = list(open_questions(config(folder, tasks={"Depth": 1.0, "Relation": 1.0})))
  answers = check_answers(questions, frames)
  assert len(answers["Depth"]) > 20 and len(answers["Relation"]) > 20 and not answers["Distance"]
  assert open_source(config(folder, tasks={"Depth": 1.0}))[0].facts is None
  for i, frame in enumerate(frames[:8]):
    focal = frame.intrinsics[0, 0]
    write_json(folder / f"camera{i}.json", [[float(focal), 0, 48], [0, float(focal), 48], [0, 0, 1]])
  given = open_questions(config(folder, intrinsics=str(folder / "camera0.json")))
  assert any(q.task == "Distance" for q in given)


NYU = {name: number for number, name in rgbd_layouts._NYU40.items()}
# Names for the shapes and colours of the scenes, out of the 40.
STOOD_FOR = ("cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "lamp")


def renamed(frame):
  """The frame with names out of the 40 classes, one to each name of its own."""
  names = {name: STOOD_FOR[i] for i, name in enumerate(sorted({o.name for o in frame.objects}))}
  shape = lambda o: dataclasses.replace(o, color="", shape=names[o.name])

  class Named(type(frame.objects[0])):
    name = property(lambda self: self.shape)

  objects = tuple(Named(**vars(shape(o))) for o in frame.objects)
  return dataclasses.replace(frame, objects=objects)


def maps(frame):
  """Class of the 40 and number within the class, of each pixel."""
  label, instance, count = np.zeros((SIDE, SIDE), np.int32), np.zeros((SIDE, SIDE), np.int32), {}
  for o in frame.objects:
    count[o.name] = count.get(o.name, 0) + 1
    label[frame.instance == o.index], instance[frame.instance == o.index] = NYU[o.name], count[o.name]
  return label, instance


def write_nyuv2(folder, frames):
  for i, frame in enumerate(frames):
    label, instance = maps(frame)
    png(folder / "rgb" / f"{i:03d}.png", frame.image)
    png(folder / "depth" / f"{i:03d}.png", millimetres(frame))
    png(folder / "label" / f"{i:03d}.png", label.astype(np.uint8))
    png(folder / "instance" / f"{i:03d}.png", instance.astype(np.uint8))
    write_json(folder / "intrinsics" / f"{i:03d}.json", intrinsics(frame))


def write_sunrgbd(folder, frames):
  """Depth turned by three bits, polygons; a box stands for each object, so that truth needs boxes alone."""
  for i, frame in enumerate(frames):
    scene = folder / "kv2" / f"{i:03d}"
    png(scene / "image" / f"{i:03d}.png", frame.image)
    raw = millimetres(frame)
    png(scene / "depth_bfx" / f"{i:03d}.png", (raw << 3) | (raw >> 13))
    (scene / "intrinsics.txt").write_text(" ".join(map(str, frame.intrinsics.ravel().tolist())))
    corners = lambda x0, y0, x1, y1: dict(x=[x0, x1 - 1, x1 - 1, x0], y=[y0, y0, y1 - 1, y1 - 1])
    polygons = [dict(object=k, **corners(*o.box)) for k, o in enumerate(frame.objects)]
    objects = [dict(name=f"{o.name}:truncated") for o in frame.objects]
    write_json(scene / "annotation2Dfinal" / "index.json",
               dict(frames=[dict(polygon=polygons)], objects=[*objects, None]))  # fmt: skip


def write_hypersim(folder, frames):
  h5py = pytest.importorskip("h5py")
  for i, frame in enumerate(frames):
    images = folder / f"ai_{i:03d}" / "images"
    png(images / "scene_cam_00_final_preview" / f"frame.{i:04d}.tonemap.jpg", frame.image)
    write_json(folder / f"ai_{i:03d}" / "intrinsics.json", intrinsics(frame))
    geometry = images / "scene_cam_00_geometry_hdf5"
    geometry.mkdir()
    rays = rgbd_layouts.directions(rgbd_files.Intrinsics(**intrinsics(frame)), (SIDE, SIDE))
    away = np.where(frame.depth > 0, frame.depth * np.linalg.norm(rays, axis=-1), np.nan)
    label, _ = maps(frame)
    stored = dict(depth_meters=away.astype(np.float16), semantic=np.where(label, label, -1),
                  semantic_instance=np.where(label, frame.instance + 1, -1))  # fmt: skip
    for name, values in stored.items():
      with h5py.File(geometry / f"frame.{i:04d}.{name}.hdf5", "w") as file:
        file["dataset"] = values if name == "depth_meters" else values.astype(np.int16)


def write_scannet(folder, frames):
  """Colour and objects at twice the size of depth, as ScanNet has them at 1296 x 968 and 640 x 480."""
  for i, frame in enumerate(frames):
    scene = folder / f"scene{i:04d}_00"
    double = lambda a: np.repeat(np.repeat(a, 2, 0), 2, 1)
    png(scene / "color" / f"{i}.jpg", double(frame.image))
    png(scene / "depth" / f"{i}.png", millimetres(frame))
    png(scene / "instance-filt" / f"{i}.png", double(frame.instance + 1).astype(np.uint8))
    groups = [dict(id=o.index, objectId=o.index, label=o.name, segments=[]) for o in frame.objects]
    write_json(scene / f"scene{i:04d}_00.aggregation.json", dict(segGroups=groups))
    matrix = np.eye(4)
    matrix[:3, :3] = frame.intrinsics
    (scene / "intrinsic").mkdir()
    (scene / "intrinsic" / "intrinsic_depth.txt").write_text("\n".join(" ".join(map(str, r)) for r in matrix))


def write_nyuv2_mat(folder, frames):
  """All pictures in one file, as MATLAB writes it: columns before rows, names behind references."""
  h5py = pytest.importorskip("h5py")
  with h5py.File(folder / "nyu_depth_v2_labeled.mat", "w") as file:
    label, instance = (np.stack(part) for part in zip(*map(maps, frames), strict=True))
    file["images"] = np.stack([frame.image.transpose(2, 1, 0) for frame in frames])
    file["depths"] = np.stack([frame.depth.T for frame in frames])
    file["labels"] = label.transpose(0, 2, 1).astype(np.uint16)
    file["instances"] = instance.transpose(0, 2, 1).astype(np.uint8)
    for number, name in rgbd_layouts._NYU40.items():
      file[f"#refs#/{number}"] = np.array([[ord(letter)] for letter in name], np.uint16)
    file["names"] = np.array([[file[f"#refs#/{n}"].ref for n in rgbd_layouts._NYU40]], h5py.ref_dtype)


def number_of(layout):
  if layout == "hypersim":
    return lambda q: int(q.filename.split(".")[1])
  return lambda q: int(Path(q.filename).stem) - (layout == "nyuv2_mat")


LAYOUTS = dict(nyuv2=write_nyuv2, nyuv2_mat=write_nyuv2_mat, hypersim=write_hypersim, scannet=write_scannet)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_others_give_the_answers_of_the_scenes(tmp_path, frames, layout):
  frames = [renamed(frame) for frame in frames[:8]]
  LAYOUTS[layout](tmp_path, frames)
  found = config(tmp_path, layout=layout)
  if layout == "nyuv2_mat":  # all were taken by one camera, at 640 x 480 alone; these each have their own
    found = dataclasses.replace(found, tasks={"Relation": 1.0, "Depth": 1.0})
  questions = list(open_questions(found))
  assert len({q.filename for q in questions}) > 4
  answers = check_answers(questions, frames, number_of(layout))
  assert min(len(answers[kind]) for kind in found.tasks or rgbd.KINDS) > 4
  number = number_of(layout)(questions[0])
  depth = open_source(found)[0].dense["depth"]
  np.testing.assert_allclose(depth, frames[number].depth, atol=6e-4, rtol=2e-3)


def test_sun_rgbd_turns_its_depth_and_draws_its_polygons(tmp_path, frames):
  frames = [renamed(frame) for frame in frames[:6]]
  write_sunrgbd(tmp_path, frames)
  found = config(tmp_path, layout="sunrgbd", tasks={"Relation": 1.0, "Depth": 1.0})
  layout = rgbd.LAYOUTS["sunrgbd"]
  for files, frame in zip(layout.find(tmp_path), frames, strict=True):
    near = np.where(frame.depth > 8, 0, frame.depth)
    np.testing.assert_allclose(layout.depth(files, ""), near, atol=6e-4)
    objects = layout.objects(files)
    assert objects.names == {k: o.name for k, o in enumerate(frame.objects, 1)}
    last = frame.objects[-1]
    x0, y0, x1, y1 = last.box
    wanted = np.zeros((SIDE, SIDE), bool)
    wanted[y0:y1, x0:x1] = True
    np.testing.assert_array_equal(objects.ids == len(frame.objects), wanted)  # the last lies over the others
    assert layout.intrinsics(files, (SIDE, SIDE)) == pytest.approx(tuple(intrinsics(frame).values()))
  asked = [q for q in open_questions(found) if q.task == "Relation"]
  for question in asked:  # boxes are those of what stays to be seen of a polygon
    axis = int("above" in question.choices)
    (a, b) = ((box[axis] + box[axis + 2]) / 2 for box in question.bbox)
    assert question.choices[question.answer] == (("left", "right"), ("above", "below"))[axis][int(a > b)]
  assert asked
  index = next(tmp_path.rglob("index.json"))
  index.write_text(json.dumps(dict(frames=[])))
  with pytest.raises(UserError, match="not SUN RGB-D's polygons"):
    open_questions(found)


def test_hdf5_without_its_reader_is_one_line(tmp_path, monkeypatch):
  (tmp_path / "a.hdf5").write_bytes(b"")
  monkeypatch.setitem(sys.modules, "h5py", None)
  with pytest.raises(UserError, match=r"a\.hdf5: HDF5 is read by h5py, .*; pip install 'spatialvlm\[rgbd\]'"):
    rgbd_files.read_map(tmp_path / "a.hdf5")


def test_cameras_that_the_layouts_know():
  nyuv2, hypersim = (rgbd.LAYOUTS[name] for name in ("nyuv2", "hypersim"))
  files = rgbd_layouts.Files(None, None)
  assert nyuv2.intrinsics(files, (480, 640, 3)).fx == pytest.approx(518.86, abs=0.01)
  assert nyuv2.intrinsics(files, (288, 384, 3)) is None
  assert hypersim.intrinsics(files, (768, 1024, 3)) == pytest.approx((886.81, 886.81, 512, 384))


def test_nyuv2_tells_objects_apart_by_class_and_number(tmp_path):
  label = np.repeat(np.array([[5, 5, 7, 0]], np.uint8), 4, 0)
  instance = np.repeat(np.array([[1, 2, 1, 0]], np.uint8), 4, 0)
  png(tmp_path / "label.png", label)
  png(tmp_path / "instance.png", instance)
  files = rgbd_layouts.Files(
    tmp_path / "a.png", tmp_path / "d.png", tmp_path / "instance.png", tmp_path / "label.png"
  )
  found = rgbd.LAYOUTS["nyuv2"].objects(files)
  assert sorted(found.names.values()) == ["chair", "chair", "table"]
  png(tmp_path / "label.png", label + 100)
  with pytest.raises(UserError, match="class 107 is none of the 40; write names"):
    rgbd.LAYOUTS["nyuv2"].objects(files)


def test_examples_say_the_boxes_of_what_they_name_so_that_they_can_be_moved(frames, tmp_path):
  source = open_source(config(write_pairs(tmp_path, frames[:6])))
  augment, moved = Augment(AugmentConfig(flip=0.5, crop=0.4, roll=5.0)), 0
  for position, example in enumerate(read(source, range(min(len(source), 12)))):
    (asked,) = example.geometry.asked
    assert asked.named == source.questions[position].bbox and asked.task == example.task
    assert (asked.axis == "down") == ("above" in example.turns[0].prompt)
    new, outcome = augment.changed(example, position)
    moved += "crop" in outcome.wanted and not outcome.left
    assert new.dense["depth"].shape == (SIDE, SIDE)
  assert moved > 3
