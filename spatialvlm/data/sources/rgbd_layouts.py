"""Folders of photographs with depth, as data sets lay them out: which files belong together, and as what."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageDraw

from spatialvlm.config import read_json
from spatialvlm.data.sources.rgbd_files import Intrinsics, metres, read_intrinsics, read_map, read_names
from spatialvlm.processing.images import check_image, open_image
from spatialvlm.types import UserError

# Classes of NYUv2 as Gupta et al. grouped them (arXiv 1407.5736), which ScanNet and Hypersim use as well.
NYU40 = (
  "wall,floor,cabinet,bed,chair,sofa,table,door,window,bookshelf,picture,counter,blinds,desk,shelves,curtain,"
  "dresser,pillow,mirror,floor mat,clothes,ceiling,books,refrigerator,television,paper,towel,shower curtain,"
  "box,whiteboard,person,night stand,toilet,sink,lamp,bathtub,bag,otherstructure,otherfurniture,otherprop"
)
_NYU40 = dict(enumerate(NYU40.split(","), 1))
# Of the Kinect that took NYUv2's pictures (its toolbox, camera_params.m); of Hypersim's camera, which sees 60
# degrees, except in a few scenes.
_KINECT, _KINECT_SHAPE = Intrinsics(518.857901, 519.469611, 325.582449, 253.736166), (480, 640)
_HYPERSIM = 886.81 / 1024
_PICTURES = (".png", ".jpg", ".jpeg")
# SUN RGB-D's own reader takes nothing beyond.
_SUN_FARTHEST = 8.0


@dataclasses.dataclass(frozen=True)
class Files:
  """The files of one picture; those that a layout has not are None.

  `number`: which picture of a file that holds several, from 1; 0 where it holds one.
  """

  image: Path
  depth: Path
  instance: Path | None = None
  label: Path | None = None
  names: Path | None = None
  intrinsics: Path | None = None
  number: int = 0

  @property
  def where(self) -> str:
    """What errors call the picture."""
    return f"{self.image}, picture {self.number}" if self.number else str(self.image)


@dataclasses.dataclass(frozen=True, eq=False)
class Objects:
  """Which object each pixel shows: `ids`, int64 (H, W), and the names of those that have one."""

  ids: np.ndarray
  names: Mapping[int, str]


class Layout(Protocol):
  """One way of laying out. Each reader raises UserError, named by the file."""

  def find(self, root: Path) -> list[Files]:
    """All pictures below a folder, in a fixed order."""
    ...

  def image(self, files: Files) -> np.ndarray:
    """uint8 (H, W, 3)."""
    ...

  def shape(self, files: Files) -> tuple[int, ...]:
    """(H, W, 3) of the picture, which is found to be sound, in a fraction of the time."""
    ...

  def depth(self, files: Files, unit: str) -> np.ndarray:
    """Metres along the optical axis, float32 (H, W), 0 where there is none."""
    ...

  def objects(self, files: Files) -> Objects: ...

  def intrinsics(self, files: Files, shape: tuple[int, ...]) -> Intrinsics | None:
    """Of a picture of this shape; None where the folder does not say."""
    ...


class Pairs:
  """image/NAME.png, depth/NAME.png or .npy, instance/NAME.png; names and intrinsics of each or of all."""

  images: Sequence[str] = ("image", "rgb")

  def find(self, root: Path) -> list[Files]:
    folder = next((root / name for name in self.images if (root / name).is_dir()), root / self.images[0])
    found = [file for file in sorted(folder.glob("*")) if file.suffix.lower() in _PICTURES]
    return [self._files(root, file) for file in found]

  def _files(self, root: Path, image: Path) -> Files:
    near = lambda folder, *ends: _first([root / folder / f"{image.stem}{end}" for end in ends])
    one_or_all = lambda what: near(what, ".json") or _first([root / f"{what}.json"])
    depth = near("depth", ".npy", ".png") or root / "depth" / f"{image.stem}.png"
    maps = {name: near(name, ".png", ".npy") for name in ("instance", "label")}
    return Files(image, depth, **maps, names=one_or_all("names"), intrinsics=one_or_all("intrinsics"))

  def image(self, files: Files) -> np.ndarray:
    return open_image(files.image)

  def shape(self, files: Files) -> tuple[int, ...]:
    return check_image(files.image).shape

  def depth(self, files: Files, unit: str) -> np.ndarray:
    return metres(read_map(files.depth), unit, files.depth)

  def objects(self, files: Files) -> Objects:
    if files.instance is None:
      raise UserError(f"{files.image}: no map of objects; write instance/{files.image.stem}.png, ids from 1")
    if files.names is None:
      raise UserError(
        f'{files.image}: no names of objects; write names.json beside image/, as {{"1": "chair"}}'
      )
    return Objects(_ids(files.instance), read_names(files.names))

  def intrinsics(self, files: Files, shape: tuple[int, ...]) -> Intrinsics | None:
    return files.intrinsics and read_intrinsics(files.intrinsics)


class Nyuv2(Pairs):
  """rgb/, depth/, label/ with classes, and instance/, which counts within a class, as in NYUv2's toolbox."""

  images = ("rgb", "image")

  def objects(self, files: Files) -> Objects:
    if files.label is None or files.instance is None:
      missing = "label" if files.label is None else "instance"
      raise UserError(f"{files.image}: no {missing}/{files.image.stem}.png; both tell objects apart")
    labels, instances = _ids(files.label), _ids(files.instance)
    if labels.shape != instances.shape:
      raise UserError(f"{files.instance}: {_size(instances)} pixels, but {files.label} has {_size(labels)}")
    names = read_names(files.names) if files.names else _NYU40
    if not files.names and labels.max() > max(names):
      raise UserError(
        f"{files.label}: class {labels.max()} is none of the 40; write names.json beside rgb/ with all names"
      )
    return of_classes(labels, np.where(labels > 0, instances, 0), names)

  def intrinsics(self, files: Files, shape: tuple[int, ...]) -> Intrinsics | None:
    found = super().intrinsics(files, shape)
    return _KINECT if found is None and tuple(shape[:2]) == _KINECT_SHAPE else found


class SunRgbd(Pairs):
  """Folders with image/, depth_bfx/ (or depth/), intrinsics.txt and annotation2Dfinal/index.json."""

  def find(self, root: Path) -> list[Files]:
    return [self._scene(file.parent.parent) for file in sorted(root.rglob("annotation2Dfinal/index.json"))]

  def _scene(self, folder: Path) -> Files:
    pick = lambda *names: _first(
      sorted(f for n in names for f in (folder / n).glob("*") if f.suffix in _PICTURES)
    )
    image, depth = pick("image"), pick("depth_bfx") or pick("depth")
    image, depth = (
      image or folder / "image",
      depth or folder / "depth_bfx",
    )  # what is missing is named when read
    index = folder / "annotation2Dfinal" / "index.json"
    return Files(image, depth, instance=index, intrinsics=_first([folder / "intrinsics.txt"]))

  def depth(self, files: Files, unit: str) -> np.ndarray:
    """Its 16 bits are millimetres, turned by three places."""
    raw = read_map(files.depth)
    if raw.dtype.itemsize > 1:
      raw = raw.astype(np.uint16)
      raw = (raw >> 3) | (raw << 13)
    depth = metres(raw, unit, files.depth)
    return np.where(depth > _SUN_FARTHEST, 0, depth)

  def objects(self, files: Files) -> Objects:
    """Polygons, the later over the earlier."""
    found = read_json(files.instance)
    try:
      polygons = found["frames"][0]["polygon"]
      names = {i: o["name"].split(":")[0] for i, o in enumerate(found["objects"], 1) if o and o.get("name")}
      height, width = self.shape(files)[:2]
      canvas = Image.new("I", (width, height), 0)
      for one in polygons:
        corners = list(zip(map(float, _list(one["x"])), map(float, _list(one["y"])), strict=True))
        if len(corners) > 2:
          ImageDraw.Draw(canvas).polygon(corners, fill=int(one["object"]) + 1)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
      raise UserError(
        f"{files.instance}: not SUN RGB-D's polygons ({type(error).__name__}: {error})"
      ) from None
    return Objects(np.asarray(canvas).astype(np.int64), names)


class Hypersim(Pairs):
  """scene_cam_00_final_preview/frame.0000.tonemap.jpg, scene_cam_00_geometry_hdf5/frame.0000.*.hdf5."""

  def find(self, root: Path) -> list[Files]:
    pictures = sorted(root.rglob("scene_cam_*_final_preview/frame.*.tonemap.jpg"))
    return [self._frame(file) for file in pictures]

  def _frame(self, image: Path) -> Files:
    camera = image.parent.name.removesuffix("_final_preview")
    number = image.name.split(".")[1]
    file = lambda what: image.parent.parent / f"{camera}_geometry_hdf5" / f"frame.{number}.{what}.hdf5"
    above = image.parents[2]
    return Files(
      image, file("depth_meters"), file("semantic_instance"), file("semantic"),
      intrinsics=_first([above / "intrinsics.json"]),
    )  # fmt: skip

  def depth(self, files: Files, unit: str) -> np.ndarray:
    """Its depth is the distance from the camera's centre; NaN stands where there is none."""
    away = metres(read_map(files.depth), unit, files.depth, nan_is_none=True)
    rays = directions(self.intrinsics(files, away.shape), away.shape)
    return (away / np.linalg.norm(rays, axis=-1)).astype(np.float32)

  def objects(self, files: Files) -> Objects:
    labels, instances = _ids(files.label), _ids(files.instance)
    if labels.shape != instances.shape:
      raise UserError(f"{files.instance}: {_size(instances)} pixels, but {files.label} has {_size(labels)}")
    return of_classes(np.maximum(labels, 0), np.maximum(instances, 0), _NYU40)

  def intrinsics(self, files: Files, shape: tuple[int, ...]) -> Intrinsics:
    height, width = shape[:2]
    found = super().intrinsics(files, shape)
    return found or Intrinsics(_HYPERSIM * width, _HYPERSIM * width, width / 2, height / 2)


class ScanNet(Pairs):
  """scene*/color/, depth/ and instance-filt/ with *.aggregation.json, or instance/ of its 25,000 frames.

  Colour has another size than depth: pictures and objects are brought to that of depth.
  """

  def find(self, root: Path) -> list[Files]:
    scenes = sorted(
      {folder.parent for folder in [*root.rglob("color"), *root.glob("color")] if folder.is_dir()}
    )
    return [self._frame(scene, image) for scene in scenes for image in _by_number(scene / "color")]

  def _frame(self, scene: Path, image: Path) -> Files:
    near = lambda folder: _first([scene / folder / f"{image.stem}.png"])
    depth = near("depth") or scene / "depth" / f"{image.stem}.png"
    names = _first(sorted(scene.glob("*.aggregation.json")))
    intrinsics = _first([scene / "intrinsic" / "intrinsic_depth.txt", scene / "intrinsics_depth.txt"])
    return Files(image, depth, near("instance-filt"), near("instance"), names, intrinsics)

  def image(self, files: Files) -> np.ndarray:
    height, width = read_map(files.depth).shape
    return np.array(
      Image.fromarray(open_image(files.image)).resize((width, height), Image.Resampling.LANCZOS)
    )

  def shape(self, files: Files) -> tuple[int, ...]:
    (height, width, _), depth = super().shape(files), read_map(files.depth)
    if abs(width / height * depth.shape[0] / depth.shape[1] - 1) > 0.02:
      raise UserError(f"{files.depth}: {_size(depth)} pixels are of another form than {files.image}")
    return (*depth.shape, 3)

  def objects(self, files: Files) -> Objects:
    shape = read_map(files.depth).shape
    if files.instance is not None and files.names is not None:
      groups = read_json(files.names).get("segGroups", [])
      names = {g["objectId"] + 1: g["label"] for g in groups if {"objectId", "label"} <= g.keys()}
      return Objects(sampled(_ids(files.instance), shape), names)
    if files.label is None:
      raise UserError(
        f"{files.image}: neither instance-filt/ and *.aggregation.json nor instance/ beside color/"
      )
    ids = sampled(_ids(files.label), shape)
    return Objects(ids, {int(i): _NYU40[i // 1000] for i in np.unique(ids) if i // 1000 in _NYU40})

  def intrinsics(self, files: Files, shape: tuple[int, ...]) -> Intrinsics | None:
    return files.intrinsics and read_intrinsics(files.intrinsics)


def directions(intrinsics: Intrinsics, shape: tuple[int, ...]) -> np.ndarray:
  """(H, W, 3): what each pixel's depth is multiplied by for its place, in OpenCV's axes (z is 1)."""
  rows, cols = np.indices(shape[:2], np.float32) + np.float32(0.5)
  x, y = (cols - intrinsics.cx) / intrinsics.fx, (rows - intrinsics.cy) / intrinsics.fy
  return np.stack([x, y, np.ones_like(x)], -1).astype(np.float32)


def sampled(values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
  """A map at another size, each pixel the nearest of the old ones, so that no two are mixed."""
  rows, cols = (
    np.minimum(((np.arange(n) + 0.5) * m / n).astype(int), m - 1)
    for n, m in zip(shape, values.shape, strict=True)
  )
  return values[np.ix_(rows, cols)]


def of_classes(labels: np.ndarray, instances: np.ndarray, names: Mapping[int, str]) -> Objects:
  """Objects that are told apart by class and number within it; 0 in either is none."""
  step = int(instances.max()) + 1
  ids = np.where((labels > 0) & (instances > 0), labels * step + instances, 0)
  return Objects(ids, {int(i): names[i // step] for i in np.unique(ids) if i and i // step in names})


def _ids(file: Path) -> np.ndarray:
  found = read_map(file)
  if not np.issubdtype(found.dtype, np.integer):
    raise UserError(f"{file}: ids are whole numbers, got {found.dtype}")
  return found.astype(np.int64)


def _size(values: np.ndarray) -> str:
  return f"{values.shape[1]} x {values.shape[0]}"


def _first(files: Iterable[Path]) -> Path | None:
  return next((file for file in files if file.is_file()), None)


def _list(value: Any) -> list:
  return value if isinstance(value, list) else [value]


def _by_number(folder: Path) -> list[Path]:
  found = [file for file in folder.glob("*") if file.suffix.lower() in _PICTURES]
  return sorted(found, key=lambda file: (len(file.stem), file.stem))
