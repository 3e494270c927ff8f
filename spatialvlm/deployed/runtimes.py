"""The table of forms that are scored in their own runtimes."""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

from spatialvlm import export, hub
from spatialvlm.config import nearest
from spatialvlm.export import Exportable
from spatialvlm.processing import layouts
from spatialvlm.types import UserError


@dataclasses.dataclass(frozen=True)
class Form:
  """A form of a model that some runtime runs.

  Attributes:
    runtime: what runs it, in tables.
    module: full name of the file with its `Runtime`.
    needs: packages that the module imports.
    extra: how they are installed.
    numbers: those that are compared where a user names none; "" where the form has no choice.
    layout: how the runtime cuts pictures: a key of `processing.layouts.LAYOUTS`; "" for as it is told, by
      arrays that this library made.
    write: (model, words on numbers, new folder) -> the folder, whole or not there.
  """

  runtime: str
  module: str
  needs: tuple[str, ...]
  extra: str
  numbers: tuple[str, ...]
  layout: str
  write: Callable[[Exportable, str, Path], Path]

  @property
  def takes_arrays(self) -> bool:
    return not self.layout

  def missing(self) -> list[str]:
    """Packages that are not installed."""
    return [name for name in self.needs if importlib.util.find_spec(name) is None]


def _gguf_lora(model: Exportable, numbers: str, folder: Path) -> Path:
  """The base and its adapter beside each other; eyes that were trained take the place of the base's."""
  scratch = folder.with_name(f".{folder.name}-base")
  shutil.rmtree(scratch, ignore_errors=True)
  try:
    dtype = model.vlm.config.dtype
    base = dataclasses.replace(model, vlm=hub.load_model(model.folder, dtype=dtype))
    export.export(base, "gguf", scratch / "base", numbers)
    export.export(model, "gguf-lora", scratch / "adapter", numbers)
    for file in (scratch / "adapter").iterdir():
      file.replace(scratch / "base" / file.name)
    (scratch / "base").rename(folder)
  finally:
    shutil.rmtree(scratch, ignore_errors=True)
  return folder


def _exported(form: str) -> Callable[[Exportable, str, Path], Path]:
  return lambda model, numbers, folder: export.export(model, form, folder, numbers)


_LLAMA_CPP = Form(
  "llama.cpp",
  f"{__package__}.llama_cpp",
  needs=("gguf", "xllamacpp"),
  extra='pip install "spatialvlm[edge]"',
  numbers=("f16", "q8_0", "q5_0", "q4_0"),
  layout="mtmd",
  write=_exported("gguf"),
)
RUNTIMES: dict[str, Form] = {
  "gguf": _LLAMA_CPP,
  "gguf-lora": dataclasses.replace(_LLAMA_CPP, runtime="llama.cpp, adapter apart", write=_gguf_lora),
  "onnx": Form(
    "onnxruntime",
    f"{__package__}.onnx_runtime",
    needs=("onnx", "onnxruntime"),
    extra='pip install "spatialvlm[edge]"',
    numbers=("fp32", "q8", "q4"),
    layout="",
    write=_exported("onnx"),
  ),
  "merged": Form(
    "transformers",
    f"{__package__}.hugging_face",
    needs=("torch", "transformers"),
    extra="pip install torch",
    numbers=("",),
    layout="",
    write=_exported("merged"),
  ),
}
# What the others are timed beside, where it is installed.
BESIDE = "merged"


def form_of(name: str) -> Form:
  """The form of a name.

  Raises:
    UserError: there is none that is scored, or what runs it is not installed.
  """
  if name not in RUNTIMES:
    raise UserError(f"--to={name}: no form that is scored in a runtime; {nearest(name, RUNTIMES)}")
  form = RUNTIMES[name]
  if missing := form.missing():
    raise UserError(f"--to={name}: needs {', '.join(missing)}, which is not installed: {form.extra}")
  return form


def layout_of(form: Form, asked: str) -> str:
  """The layout in which a form's questions are asked, by what the settings ask for.

  Raises:
    UserError: they ask for another one than the runtime has.
  """
  if form.layout and asked not in (layouts.OWN, form.layout):
    raise UserError(
      f"model.layout={asked}: {form.runtime} cuts pictures as layout={form.layout}; leave it out"
    )
  return form.layout or asked
