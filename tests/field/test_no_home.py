"""Users without a home folder, or with one that cannot be written, as in containers and on clusters."""

import os
import pathlib
import subprocess
import sys
import tempfile
import warnings

import pytest

from spatialvlm import caches
from spatialvlm.types import Note

NAMES = (
  "HOME",
  "XDG_CACHE_HOME",
  "XDG_CONFIG_HOME",
  "HF_HOME",
  "HF_DATASETS_CACHE",
  "HF_MODULES_CACHE",
  "MPLCONFIGDIR",
)


@pytest.fixture
def user(tmp_path, monkeypatch):
  """Sets variables of a user who has no others, in an empty folder; returns it."""
  (tmp_path / "tmp").mkdir()
  (tmp_path / "here").mkdir()
  caches.temporary.cache_clear()
  monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
  monkeypatch.chdir(tmp_path / "here")
  for name in NAMES:
    # Set first, so that what `prepare` sets is undone as well.
    monkeypatch.setenv(name, "x")
    monkeypatch.delenv(name)

  def be(**variables):
    for name, value in variables.items():
      monkeypatch.setenv(name, str(value))
    return tmp_path

  yield be
  caches.temporary.cache_clear()


def prepare():
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    caches.prepare()
    caches.say()
    caches.say()
  return [str(w.message) for w in caught if issubclass(w.category, Note)]


def test_a_user_whom_the_system_does_not_know_gets_no_folder_named_tilde(user, monkeypatch):
  import pwd

  def unknown(uid):
    raise KeyError(uid)

  root = user()
  monkeypatch.setattr(pwd, "getpwuid", unknown)
  assert os.path.expanduser("~") == "~" and caches.user() is None
  (said,) = prepare()
  own = root / "tmp" / f"spatialvlm-{os.getuid()}"
  assert caches.folder() == own and own.stat().st_mode & 0o777 == 0o700 and str(own) in said
  for name in ("HF_HOME", "HF_DATASETS_CACHE", "HF_MODULES_CACHE", "MPLCONFIGDIR"):
    assert pathlib.Path(os.environ[name]).is_relative_to(own)
  assert not list((root / "here").iterdir())


def test_a_home_that_cannot_be_made(user):
  root = user(HOME="/dev/null/home")
  assert caches.user() is None
  assert prepare() and os.environ["HF_HOME"].startswith(str(root / "tmp"))


def test_a_home_of_another_user_that_may_not_be_entered(user, monkeypatch):
  root = user()
  (root / "home").mkdir()
  user(HOME=root / "home")

  def locked(real):
    def stat(path, *rest, **options):
      if pathlib.Path(path).is_relative_to(root / "home") and pathlib.Path(path) != root / "home":
        raise PermissionError(13, "Permission denied", str(path))
      return real(path, *rest, **options)

    return stat

  with monkeypatch.context() as patch:
    patch.setattr(os, "stat", locked(os.stat))
    patch.setattr(os, "lstat", locked(os.lstat))
    patch.setattr(os, "access", lambda path, mode: not pathlib.Path(path).is_relative_to(root / "home"))
    assert caches.user() is None and prepare()
  assert os.environ["HF_HOME"].startswith(str(root / "tmp"))


def test_a_cache_of_models_that_can_only_be_read_is_read(user, monkeypatch):
  root = user(HOME="/")
  hub = root / "shared" / "huggingface"
  hub.mkdir(parents=True)
  user(XDG_CACHE_HOME=root / "shared")
  monkeypatch.setattr(caches, "_writable", lambda path: not path.is_relative_to(root / "shared"))
  assert prepare()
  assert "HF_HOME" not in os.environ and os.environ["HF_DATASETS_CACHE"].startswith(str(root / "tmp"))


def test_an_ordinary_home_is_left_as_it_is(user):
  root = user()
  (root / "home").mkdir()
  user(HOME=root / "home")
  assert prepare() == [] and not set(NAMES[1:]) & set(os.environ)
  assert caches.folder() == caches.user() == root / "home" / ".cache"
  assert not list((root / "home").iterdir()) and not list((root / "tmp").iterdir())


def test_what_the_user_has_set_stays(user):
  root = user(HOME="/dev/null/home")
  user(HF_HOME=root / "mine", HF_DATASETS_CACHE=root / "sets", MPLCONFIGDIR=root / "plots")
  assert prepare() == []
  assert os.environ["HF_HOME"] == str(root / "mine") and os.environ["HF_DATASETS_CACHE"] == str(root / "sets")


def test_a_folder_of_anothers_in_the_temporary_folder_is_not_used(user):
  root = user(HOME="/dev/null/home")
  (root / "elsewhere").mkdir()
  (root / "tmp" / f"spatialvlm-{os.getuid()}").symlink_to(root / "elsewhere")
  assert caches.folder() != root / "tmp" / f"spatialvlm-{os.getuid()}" and caches.folder().is_dir()


@pytest.mark.parametrize("home", [None, "/dev/null/home"])
def test_a_script_that_uses_the_library(tmp_path, home):
  (tmp_path / "q.csv").write_text("question,answer\nWhich?,a\n")
  code = """
import warnings
warnings.simplefilter("always")
import spatialvlm
spatialvlm.UserError
from spatialvlm.config import HFConfig
from spatialvlm.data.sources import registry
print(registry.read(registry.open_source(HFConfig(path="q.csv")), [0])[0].turns[0].answer)
"""
  environment = {k: v for k, v in os.environ.items() if k not in NAMES} | {"TMPDIR": str(tmp_path)}
  environment["PYTHONPATH"] = str(pathlib.Path(__file__).parents[2])
  # With no name of its own a process has no home at all, whoever runs the tests.
  if home is None:
    code = "import pwd\ndef unknown(uid): raise KeyError(uid)\npwd.getpwuid = unknown\n" + code
  else:
    environment["HOME"] = home
  done = subprocess.run(
    [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True
  )
  assert (done.returncode, done.stdout) == (0, "a\n"), done.stderr
  assert done.stderr.count("no home folder that can be written; caches are in") == 1
  assert sorted(p.name for p in tmp_path.iterdir()) == ["q.csv", f"spatialvlm-{os.getuid()}"]
