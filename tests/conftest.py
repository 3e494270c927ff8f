"""Tests run on the CPU, seen by JAX as eight devices, so that sharding can be tested anywhere."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import pytest

# Rooms whose tests compile far more than they compute.
COMPILING = {"core", "models", "peft", "test_api.py", "test_encoder.py", "test_generation.py", "test_vlm.py"}
COMPILING |= {"test_assemble.py", "test_evaluate.py", "test_passes.py", "test_prefix_models.py"}
COMPILING |= {"test_stages.py", "test_step.py"}


@pytest.fixture(scope="module", autouse=True)
def few_optimizations(request):
  """Compiles the programs of these modules without most optimizations, which halves the time they take."""
  import jax

  few = not COMPILING.isdisjoint(request.path.parts)
  jax.config.update("jax_disable_most_optimizations", few)
  yield
  jax.config.update("jax_disable_most_optimizations", False)
