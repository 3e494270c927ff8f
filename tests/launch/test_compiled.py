import os
import subprocess
import sys

import pytest

from spatialvlm.cli import compiled

PROGRAM = """
import jax
from spatialvlm.cli import compiled
print(compiled.keep(), flush=True)
hits = []
jax.monitoring.register_event_listener(lambda name, **kw: hits.append(name))
print(int(jax.jit(lambda x: x * 3 + 1)(2)))
print(hits.count("/jax/compilation_cache/cache_hits"))
"""


def run(**variables):
  variables = {compiled.LEAST: "0"} | variables
  unset = (compiled.FOLDER, compiled.LIMIT, "JAX_ENABLE_COMPILATION_CACHE")
  env = {key: value for key, value in os.environ.items() if key not in unset}
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM], env=env | variables, capture_output=True, text=True, check=True
  )
  assert not done.stderr, done.stderr
  return done.stdout.split()


def test_a_second_process_reads_what_the_first_compiled(tmp_path):
  folder, result, hits = run(XDG_CACHE_HOME=str(tmp_path))
  assert folder.startswith(str(tmp_path)) and (result, hits) == ("7", "0")
  assert os.listdir(folder)
  again, result, hits = run(XDG_CACHE_HOME=str(tmp_path))
  assert again == folder and result == "7" and int(hits) >= 1


def test_programs_of_a_third_of_a_second_are_kept_unless_the_user_says_another_time():
  say = "import jax; from spatialvlm.cli import compiled; compiled.keep()"
  say += "; print(jax.config.jax_persistent_cache_min_compile_time_secs)"
  for said, expected in (({}, compiled.LEAST_SECONDS), ({compiled.LEAST: "7"}, 7.0)):
    env = {name: value for name, value in os.environ.items() if name not in (compiled.FOLDER, compiled.LEAST)}
    done = subprocess.run(
      [sys.executable, "-c", say], env=env | said, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) == expected


def test_a_folder_that_cannot_be_written_turns_it_off(tmp_path):
  (tmp_path / "file").touch()
  assert run(XDG_CACHE_HOME=str(tmp_path / "file")) == ["None", "7", "0"]


def test_the_users_own_folder_stands(tmp_path, monkeypatch):
  import jax

  before = jax.config.jax_compilation_cache_dir
  monkeypatch.setenv(compiled.FOLDER, str(tmp_path / "own"))
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
  assert compiled.keep() is None
  assert jax.config.jax_compilation_cache_dir == before and not list(tmp_path.iterdir())


@pytest.mark.parametrize("line", ["flags : avx512f", "Features : sve"])
def test_unlike_processors_do_not_share_programs(monkeypatch, line):
  here = compiled._processor()
  assert here == compiled._processor()
  monkeypatch.setattr(compiled.pathlib.Path, "read_text", lambda path: line)
  assert compiled._processor() != here
