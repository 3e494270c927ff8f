"""The page of docs/browser in a headless Chromium (WASM), asked a picture; needs packages of node.

TRANSFORMERS_JS names a folder in which `npm install --ignore-scripts @huggingface/transformers puppeteer-core
@sparticuz/chromium` was run; CHROMIUM another Chromium than the last of these.
"""

import functools
import http.server
import json
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from PIL import Image

from spatialvlm import export
from tests.oracle import record_onnx_js

PACKAGES = Path(os.environ.get("TRANSFORMERS_JS") or "nowhere") / "node_modules"
PAGE = Path(__file__).parents[2] / "docs" / "browser"
NEEDED = ("@huggingface/transformers", "puppeteer-core") + (
  () if os.environ.get("CHROMIUM") else ("@sparticuz/chromium",)
)

if shutil.which("node") is None:
  pytest.skip("node is not installed", allow_module_level=True)
if missing := [name for name in NEEDED if not (PACKAGES / name).is_dir()]:
  pytest.skip(f"TRANSFORMERS_JS names no folder with {', '.join(missing)}", allow_module_level=True)


def site(folder: Path) -> Path:
  """The page with a copy of transformers.js and of onnxruntime, so that nothing is fetched."""
  shutil.copytree(PAGE, folder, ignore=shutil.ignore_patterns("models"))
  (folder / "lib").mkdir()
  shutil.copy(PACKAGES / "@huggingface/transformers/dist/transformers.min.js", folder / "lib")
  for file in (PACKAGES / "onnxruntime-web" / "dist").glob("ort-wasm-simd-threaded*"):
    shutil.copy(file, folder / "lib")
  return folder


@pytest.fixture
def served(tmp_path):
  folder = site(tmp_path / "site")
  quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(quiet, directory=str(folder)))
  threading.Thread(target=server.serve_forever, daemon=True).start()
  yield folder, f"http://127.0.0.1:{server.server_port}/"
  server.shutdown()


def ask(url: str, text: str, folder: Path, dtype: str) -> dict:
  address = f"{url}?dtype={dtype}&library={url}lib/transformers.min.js&wasm={url}lib/&picture=picture.png"
  (folder / "asked.json").write_text(json.dumps({"url": address, "text": text}))
  script = Path(__file__).with_name("browser.mjs").read_text()
  command = ["node", "--input-type=module", "-", str(folder / "asked.json")]
  done = subprocess.run(
    command, input=script, cwd=PACKAGES.parent, capture_output=True, text=True, timeout=300
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return json.loads(done.stdout.splitlines()[-1])


def test_the_page_answers_as_the_model_does(served, tmp_path):
  folder, url = served
  vlm = record_onnx_js.model("shipped", tmp_path)
  found = export.Exportable(vlm.model, vlm.name, vlm.folder)
  export.export(found, "onnx", folder / "models" / "smolvlm", "fp32,q8")
  Image.fromarray(record_onnx_js.picture("shipped")).save(folder / "picture.png")
  wanted = vlm.chat(record_onnx_js.picture("shipped"), record_onnx_js.TEXT, max_new_tokens=16)
  for dtype in ("fp32", "q8"):
    got = ask(url, record_onnx_js.TEXT, tmp_path, dtype)
    assert got["answer"] == wanted and not got["failed"], got
    assert got["state"].startswith(f"smolvlm, {dtype}, wasm: 101 tokens in, 2 out")
