"""A radiance field of one scene: `python launch/field.py --config=configs/field.py:scene`.

  scene                fifty views of one of our own rendered scenes, forty of them fitted
  folder,path=FOLDER   your pictures with their cameras: transforms.json, or COLMAP's text

The first takes some minutes on one core. Large pictures of a folder are made smaller by
`--config.source.scale=8`; objects on a plain ground take `--config.background=white`.
"""

from spatialvlm.config import FieldConfig, FolderViewsConfig, SceneViewsConfig
from spatialvlm.types import UserError


def get_config(arg: str = "scene") -> FieldConfig:
  what, *rest = arg.split(",")
  said = dict(part.partition("=")[::2] for part in rest)
  if what == "scene" and not rest:
    return FieldConfig(name="field-scene", source=SceneViewsConfig(number=3))
  if what == "folder" and set(said) <= {"path"}:
    return FieldConfig(name="field-folder", source=FolderViewsConfig(path=said.get("path", "")))
  raise UserError(f"configs/field.py: cannot read {arg!r}; known: scene, folder,path=FOLDER")
