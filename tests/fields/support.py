"""A scene of few pixels, a field that is fitted to it within seconds, and folders of posed pictures."""

import functools
import json

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from spatialvlm.config import FieldConfig, SceneViewsConfig
from spatialvlm.fields import scenes, written
from spatialvlm.fields.posed import cameras, transforms

SCENE = SceneViewsConfig(number=3, views=24, size=16)
# Of a ball of radius 1 at the origin before white.
TINY = FieldConfig(
  center=(0.0, 0.0, 0.0),
  radius=1.5,
  near=1.5,
  far=8.0,
  background="white",
  steps=150,
  rays=256,
  coarse=32,
  fine=16,
  planes=(16, 32),
  features=4,
  proposal=16,
  width=16,
  learning_rate=0.05,
  new_views=2,
  checkpoint_every=50,
)


@functools.cache
def views():
  return scenes.read(SCENE)


def ball(count=24, size=16, heldout=6):
  """Views of a ball of radius 1, coloured by place, from 3 to 6 metres; their depth is the analytic one."""
  found = []
  for n, pose in enumerate(cameras.around(np.zeros(3), 1.0, count, 0)):
    pose = pose.copy()
    pose[:3, 3] *= 3.0 + n % 4
    focal = 0.3 * size * np.linalg.norm(pose[:3, 3])
    camera = cameras.Camera(pose, (focal, focal), (size / 2, size / 2), (size, size))
    ahead, origin = cameras.directions(camera).astype(np.float64), pose[:3, 3]
    a, b, c = (ahead**2).sum(1), ahead @ origin, origin @ origin - 1
    root = b * b - a * c
    depth = np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / a, 0)
    point = origin + depth[:, None] * ahead
    colour = np.where(root[:, None] > 0, 0.5 + 0.4 * np.sin(2 * point + [0, 1, 2]), 1.0)
    image = np.rint(255 * colour).astype(np.uint8).reshape(size, size, 3)
    depth = depth.astype(np.float32).reshape(size, size)
    found.append(cameras.View(f"{n}", camera, image, depth, heldout=n % heldout == 0))
  return found


def ring(count=5, size=(6, 4), seed=0):
  """Cameras with a principal point and two focal lengths of their own, far from round numbers."""
  poses = cameras.around(np.array([0.3, -0.2, 0.5]), 3.7, count, seed)
  return [cameras.Camera(pose, (7.25, 6.5), (3.125, 1.75), size) for pose in poses]


def pictures(folder, count=5, size=(6, 4)):
  """Writes a.png, b.png, ... and returns their pixels."""
  folder.mkdir(parents=True, exist_ok=True)
  rng, found = np.random.default_rng(5), []
  for name in "abcdefgh"[:count]:
    found.append(rng.integers(0, 255, (size[1], size[0], 3)).astype(np.uint8))
    Image.fromarray(found[-1]).save(folder / f"{name}.png")
  return found


def as_transforms(folder, cams, change=lambda about: about):
  """A transforms.json by hand: OpenGL's axes, y and z turned round."""
  frames = []
  for name, camera in zip("abcdefgh", cams, strict=False):
    pose = camera.pose.copy()
    pose[:3, 1] *= -1
    pose[:3, 2] *= -1
    frames.append({"file_path": f"images/{name}.png", "transform_matrix": pose.tolist()})
  c = cams[0]
  about = dict(fl_x=c.focal[0], fl_y=c.focal[1], cx=c.middle[0], cy=c.middle[1], w=c.size[0], h=c.size[1])
  (folder / "transforms.json").write_text(json.dumps(change(about | {"frames": frames})))
  return folder


def as_colmap(folder, cams, model="PINHOLE 6 4 7.25 6.5 3.125 1.75"):
  """COLMAP's text by hand: world to camera, and a second line of points, empty for some."""
  place = folder / "sparse" / "0"
  place.mkdir(parents=True, exist_ok=True)
  (place / "cameras.txt").write_text(f"# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]\n7 {model}\n")
  lines = ["# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME"]
  for n, (name, camera) in enumerate(zip("abcdefgh", cams, strict=False)):
    turn = camera.pose[:3, :3].T
    x, y, z, w = Rotation.from_matrix(turn).as_quat()
    shift = -turn @ camera.pose[:3, 3]
    numbers = " ".join(repr(float(v)) for v in (w, x, y, z, *shift))
    lines += [f"{n + 1} {numbers} 7 {name}.png", "" if n % 2 else "1.5 2.5 -1"]
  (place / "images.txt").write_text("\n".join(lines) + "\n")
  return folder


def posed_ball(folder):
  """A posed RGB-D folder of the ball's views with their analytic depth."""
  for kind in ("renders", "depth"):
    (folder / kind).mkdir(parents=True)
  views, frames = ball(12), []
  for n, view in enumerate(views):
    (folder / f"renders/{n}.png").write_bytes(written.png(view.image))
    (folder / f"depth/{n}.png").write_bytes(written.png(written.millimetres(view.depth)))
    frames.append({"file_path": f"renders/{n}.png", "depth_path": f"depth/{n}.png"})
  transforms.write(folder / "transforms.json", [v.camera for v in views], frames, written.MILLIMETRES)
  return folder
