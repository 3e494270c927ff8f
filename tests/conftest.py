"""Tests run on the CPU, seen by JAX as eight devices, so that sharding can be tested anywhere."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import pytest

# Rooms whose tests compile far more than they compute.
COMPILING = {"core", "models", "peft", "test_api.py", "test_encoder.py", "test_generation.py", "test_vlm.py"}
COMPILING |= {"test_assemble.py", "test_evaluate.py", "test_passes.py", "test_prefix_models.py"}
COMPILING |= {"test_onnx.py", "test_stages.py", "test_step.py"}
_CHOSEN = {"few": False}


@pytest.fixture(scope="module", autouse=True)
def few_optimizations(request):
  """Compiles the programs of these modules without most optimizations, which halves the time they take."""
  import jax

  few = not COMPILING.isdisjoint(request.path.parts)
  if few != _CHOSEN["few"]:
    # Else programs of the other kind stay in memory, and a process of its own would not give the same bits.
    jax.clear_caches()
  jax.config.update("jax_disable_most_optimizations", few)
  _CHOSEN["few"] = few


@pytest.fixture(scope="module")
def one_device_unless_asked():
  """A run that names no mesh takes the first of the eight devices: programs over all are slow to compile."""
  import jax

  from spatialvlm.config import MeshConfig
  from spatialvlm.core import axes

  original = axes.make_mesh

  def make_mesh(sizes, devices=None):
    alone = devices is None and sizes == MeshConfig()
    return original(sizes, jax.devices()[:1] if alone else devices)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(axes, "make_mesh", make_mesh)
    yield


@pytest.fixture(scope="session")
def compiled_once(tmp_path_factory):
  """The same few programs run many times; JAX's own cache compiles each once."""
  import jax

  settings = {
    "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
  }
  old = {name: getattr(jax.config, name) for name in settings}
  for name, value in settings.items():
    jax.config.update(name, value)
  yield
  for name, value in old.items():
    jax.config.update(name, value)
