import pytest


@pytest.fixture(scope="session", autouse=True)
def few_programs(compiled_once):
  """Of all tests of training."""
