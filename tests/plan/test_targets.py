"""Devices by name, and what their compilers are told."""

import re

import pytest

from spatialvlm.plan import bounds, compiled, targets
from spatialvlm.types import UserError


@pytest.mark.parametrize(
  ("name", "count", "platform"),
  [
    ("v5e-8", 8, "tpu"),
    ("v5e:2x4", 8, "tpu"),
    ("v5e-256", 256, "tpu"),
    ("v6e-8", 8, "tpu"),
    ("v5p-128", 64, "tpu"),
    ("v5p:2x2x1", 4, "tpu"),
    ("h100", 1, "cuda"),
    ("h200", 1, "cuda"),
    ("rtx4060", 1, "cuda"),
    ("cpu:8", 8, "cpu"),
  ],
)
def test_names(name, count, platform):
  target = targets.find(name)
  assert (target.count, target.platform) == (count, platform)


def test_a_slice_is_named_by_cores_where_its_maker_does():
  assert targets.find("v5p-128").environment()["TPU_ACCELERATOR_TYPE"] == "v5p-128"
  assert targets.find("v5e:2x4").environment()["TPU_ACCELERATOR_TYPE"] == "v5litepod-8"


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("v5e-9", "not known; did you mean 'v5e-"),
    ("v5e:8", "TPU v5e have 2 axes; write v5e:AxB"),
    ("v5p:4x4", "TPU v5p have 3 axes; write v5p:AxBxC"),
    ("h100:2x4", "not known"),
    ("v5e:0x4", "2 axes"),
    ("cpu:0", "not known"),
    ("", "not known"),
  ],
)
def test_names_that_are_none(name, message):
  with pytest.raises(UserError, match=re.escape(f"--topology={name}")) as found:
    targets.find(name)
  assert message in str(found.value)


def test_a_compiler_that_is_not_installed(monkeypatch):
  monkeypatch.setattr(targets, "_there", lambda module: module != "libtpu")
  assert "(libtpu): pip install" in targets.find("v5e-8").missing()
  assert targets.find("h100").missing() == "" and targets.find("cpu:2").missing() == ""


def test_bounds_are_of_the_chip():
  chip = targets.CHIPS["v5e"]
  found = bounds.bounds(chip, 197e12, 2 * 819e9, 20e9)
  assert (found.arithmetic, found.memory, found.links) == (1.0, 2.0, 0.1)
  assert found.longest == ("memory", 2.0)
  assert bounds.bounds(targets.CHIPS["h100"], 0, 0, 1e9).links == 0


def test_every_gpu_says_all_that_its_compiler_wants():
  wanted = set(re.findall(r"(\w+):", targets.CHIPS["h100"].description))
  for kind, chip in targets.CHIPS.items():
    if not chip.axes:
      assert set(re.findall(r"(\w+):", chip.description)) == wanted, kind
      assert f"device_memory_size: {chip.memory}" in chip.description
      assert chip.usable < chip.memory


def test_what_a_program_needs_that_a_compiler_refuses():
  used = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.5G of 15.75G hbm."
  apart = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (20.69G)"
    " exceeds available HBM (15.75G)."
  )
  assert compiled.refused(used) == int(20.5 * 2**30) and compiled.refused(apart) == int(20.69 * 2**30)
  assert compiled.refused("RESOURCE_EXHAUSTED: something else") is None
  assert compiled.refused("INTERNAL: a mistake") is None
