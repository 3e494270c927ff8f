"""A real browser for tests: headless Chromium over its debugging pipe, with no library in between.

`python -m tests.reporting.chromium PAGE.html OUT.png [WIDTH [HEIGHT]]` takes a picture.
"""

from __future__ import annotations

import base64
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome-headless-shell")


def binary() -> str | None:
  """The path of a Chromium, or None."""
  return next((found for name in NAMES if (found := shutil.which(name))), None)


class Chromium:
  """One page at a time. Use as a context manager.

  Attributes:
    events: what the browser told of itself: console messages, dialogs, requests.
  """

  def __init__(self, profile: pathlib.Path):
    self.events: list[dict[str, Any]] = []
    self._number = 0
    self._session: str | None = None
    to_browser, self._out = os.pipe()
    self._in, from_browser = os.pipe()
    # The browser reads from 3 and writes to 4; a shell puts them there whatever numbers they have here.
    shell = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
    command = [binary(), *flags, "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
    self._process = subprocess.Popen(
      ["bash", "-c", shell, "bash", *command],
      pass_fds=(to_browser, from_browser),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    os.close(to_browser)
    os.close(from_browser)
    self._left = b""

  def __enter__(self) -> Chromium:
    return self

  def __exit__(self, *_) -> None:
    self._process.terminate()
    self._process.wait(30)
    os.close(self._in)
    os.close(self._out)

  def open(self, path: pathlib.Path, width: int, height: int = 900, dark: bool = False) -> None:
    """Loads a file at a screen's size, in the light or the dark scheme."""
    self.events.clear()
    self._session = None
    target = self.call("Target.createTarget", url="about:blank")["targetId"]
    self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    for domain in ("Page", "Runtime", "Network", "Log"):
      self.call(f"{domain}.enable")
    size = dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 700)
    self.call("Emulation.setDeviceMetricsOverride", **size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    self.call("Emulation.setEmulatedMedia", features=[scheme])
    self.call("Page.navigate", url=path.resolve().as_uri())
    while not any(e["method"] == "Page.loadEventFired" for e in self.events):
      self._read()

  def run(self, script: str) -> Any:
    """The value of a JavaScript expression on the page."""
    found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
    if "exceptionDetails" in found:
      raise RuntimeError(found["exceptionDetails"])
    return found["result"].get("value")

  def screenshot(self, path: pathlib.Path, whole: bool = False) -> None:
    found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
    path.write_bytes(base64.b64decode(found["data"]))

  def call(self, method: str, **params: Any) -> dict[str, Any]:
    self._number += 1
    message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
    if self._session:
      message["sessionId"] = self._session
    os.write(self._out, json.dumps(message).encode() + b"\0")
    while True:
      answer = self._read()
      if answer.get("id") == self._number:
        if "error" in answer:
          raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

  def _read(self) -> dict[str, Any]:
    while b"\0" not in self._left:
      data = os.read(self._in, 2**20)
      if not data:
        raise RuntimeError("the browser has gone")
      self._left += data
    whole, _, self._left = self._left.partition(b"\0")
    message = json.loads(whole)
    if "method" in message:
      self.events.append(message)
      if message["method"] == "Page.javascriptDialogOpening":
        raise RuntimeError(f"the page opened a dialog: {message['params']}")
    return message


if __name__ == "__main__":
  page, out, *size = sys.argv[1:]
  width, height = (*map(int, size), *(1280, 1800)[len(size) :])
  with tempfile.TemporaryDirectory() as profile, Chromium(pathlib.Path(profile)) as browser:
    browser.open(pathlib.Path(page), width, height)
    browser.screenshot(pathlib.Path(out))
