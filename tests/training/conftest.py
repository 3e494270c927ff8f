import pytest

from tests.peft import support


@pytest.fixture(scope="session", autouse=True)
def few_programs(compiled_once):
  """Of all tests of training."""


@pytest.fixture(scope="module")
def vlm():
  """The small SmolVLM that losses on image tokens are tried on, always with the same numbers."""
  return support.build()
