"""Where a run is planned for: slices of TPUs and single GPUs, and how their compilers are reached from here.

`TARGETS` lists what has a name; a TPU slice may also be written by its shape, `v5e:4x4`, and `cpu:8` is this
computer's processor as so many devices, whose compiler is always there. Figures of chips are
those that their makers publish: dense bfloat16 products, memory, its bandwidth, and what all links of a chip
together bring in a second.

- Google Cloud: "TPU v5e", "TPU v6e", "TPU v5p", system architecture, each on its own page.
- NVIDIA: data sheets of the H100 SXM and H200; the Ada architecture's white paper for the RTX 4060 and 4090.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spatialvlm.config import nearest
from spatialvlm.types import UserError

GIB = 2**30
EXTRA = 'pip install "spatialvlm[plan]"'


@dataclasses.dataclass(frozen=True)
class Chip:
  """One device, as its maker describes it.

  Attributes:
    flops: of dense bfloat16 products, a second; 0 where nobody publishes it, and so the other rates.
    memory: bytes; `usable` of them for a program.
    bandwidth: bytes of memory read or written a second.
    links: bytes a second that come in over all links to other devices; 0 of a device alone.
    description: of a GPU, what its compiler must know (XLA's `GpuTargetConfigProto` without the memory).
    type: of a TPU, what `TPU_ACCELERATOR_TYPE` calls it, and how many of its numbers one device has.
    axes: of a TPU, how many axes its torus has.
  """

  what: str
  flops: float
  memory: int
  usable: int
  bandwidth: float
  links: float = 0.0
  description: str = ""
  type: tuple[str, int] = ("", 1)
  axes: int = 0


def _gpu(
  what: str, flops: float, memory: int, bandwidth: float, capability: tuple[int, int], **more: Any
) -> Chip:
  major, minor = capability
  fields = dict(
    threads_per_block_limit=1024,
    threads_per_warp=32,
    shared_memory_per_block=49152,
    block_dim_limit_x=2147483647,
    block_dim_limit_y=65535,
    block_dim_limit_z=65535,
    memory_bandwidth=int(bandwidth),
    device_memory_size=memory,
    registers_per_core_limit=65536,
    registers_per_block_limit=65536,
    fpus_per_core=128,
    **more,
  )
  said = " ".join(f"{name}: {value}" for name, value in fields.items())
  description = (
    f"gpu_device_info {{ {said} cuda_compute_capability {{ major: {major} minor: {minor} }} }} "
    'platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 patch: 0 } '
    f'device_description_str: "{what}"'
  )
  # CUDA's context, and what the allocator cannot use, take about a tenth.
  return Chip(what, flops, memory, int(0.9 * memory), bandwidth, description=description)


_HOPPER = dict(
  shared_memory_per_core=233472,
  shared_memory_per_block_optin=232448,
  threads_per_core_limit=2048,
  core_count=132,
  clock_rate_ghz=1.98,
  l2_cache_size=52428800,
)
_ADA = dict(
  shared_memory_per_core=102400,
  shared_memory_per_block_optin=101376,
  threads_per_core_limit=1536,
)
_CPU = Chip("CPU", 0.0, 0, 0, 0.0)
CHIPS: Mapping[str, Chip] = {
  "v5e": Chip("TPU v5e", 197e12, 16 * GIB, int(15.75 * GIB), 819e9, 200e9, type=("v5litepod", 1), axes=2),
  "v6e": Chip("TPU v6e", 918e12, 32 * GIB, int(31.25 * GIB), 1640e9, 448e9, type=("v6e", 1), axes=2),
  "v5p": Chip("TPU v5p", 459e12, 95 * GIB, int(94.75 * GIB), 2765e9, 600e9, type=("v5p", 2), axes=3),
  "h100": _gpu("NVIDIA H100 80GB HBM3", 989.4e12, 84978434048, 3352.32e9, (9, 0), **_HOPPER),
  "h200": _gpu("NVIDIA H200", 989.4e12, 150109880320, 4800e9, (9, 0), **_HOPPER),
  "rtx4090": _gpu(
    "NVIDIA GeForce RTX 4090",
    165.2e12,
    25757220864,
    1008e9,
    (8, 9),
    core_count=128,
    clock_rate_ghz=2.52,
    l2_cache_size=75497472,
    **_ADA,
  ),
  "rtx4060": _gpu(
    "NVIDIA GeForce RTX 4060",
    30.2e12,
    8585216000,
    272e9,
    (8, 9),
    core_count=24,
    clock_rate_ghz=2.46,
    l2_cache_size=25165824,
    **_ADA,
  ),
}


@dataclasses.dataclass(frozen=True)
class Target:
  """Devices to compile for.

  Attributes:
    name: as it was asked for.
    chip: what each of them is, `kind` its key in `CHIPS`, or "cpu".
    shape: of a TPU slice, how many along each axis of its torus; of a processor, how many devices it counts
      as.
  """

  name: str
  chip: Chip
  kind: str
  shape: tuple[int, ...] = ()

  @property
  def count(self) -> int:
    """How many devices."""
    return math.prod(self.shape)

  @property
  def platform(self) -> str:
    """Whose compiler it is: "tpu", "cuda" or "cpu"."""
    return "cpu" if self.chip is _CPU else "tpu" if self.chip.axes else "cuda"

  @property
  def backend(self) -> str:
    """As jax calls its devices."""
    return "gpu" if self.platform == "cuda" else self.platform

  def missing(self) -> str:
    """What must be installed before its compiler can be called; empty where all is there."""
    absent = [name for name in _PACKAGES[self.platform] if not _there(name)]
    return (
      f"the compiler for {self.chip.what} is not installed ({', '.join(absent)}): {EXTRA}" if absent else ""
    )

  def environment(self) -> dict[str, str]:
    """What a process that compiles for it must have in its environment before it imports jax."""
    common = {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false", "TF_CPP_MIN_LOG_LEVEL": "2"}
    if self.platform == "cpu":
      return common | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={self.count}"}
    if self.platform == "tpu":
      name, each = self.chip.type
      return common | {
        "TPU_SKIP_MDS_QUERY": "1",
        # There is no chip that two processes could take from each other: plans may run beside each other.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_ACCELERATOR_TYPE": f"{name}-{each * self.count}",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "XLA_FLAGS": "",
      }
    nvcc = _place("nvidia.cuda_nvcc")
    # Autotuning would time kernels on the card.
    flags = f"--xla_gpu_cuda_data_dir={nvcc} --xla_gpu_autotune_level=0"
    return common | {"XLA_FLAGS": flags, "PATH": f"{nvcc / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"}

  def devices(self) -> list[Any]:
    """jax's devices that only compile; called in a process with `environment`.

    Raises:
      UserError: the compiler knows no such slice.
    """
    import jax
    from jax.experimental import topologies

    if self.platform == "cpu":
      return jax.devices("cpu")
    try:
      if self.platform == "tpu":
        name = f"{self.kind}:{'x'.join(map(str, self.shape))}"
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
      found = topologies.get_topology_desc(
        platform="cuda", topology_name=self.kind, topology="1x1x1", target_config=self.chip.description
      )
      return list(found.devices)
    except Exception as error:  # whatever a plugin raises
      why = " ".join(str(error).split())[:200]
      raise UserError(
        f"--topology={self.name}: the compiler for {self.chip.what} refuses it: {why}"
      ) from None


def _slices() -> dict[str, Target]:
  """Slices by the names that Google Cloud gives them: chips of v5e and v6e, cores of v5p."""
  shapes = {1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16)}
  found = {f"{kind}-{count}": (kind, shape) for kind in ("v5e", "v6e") for count, shape in shapes.items()}
  cubes = {8: (2, 2, 1), 16: (2, 2, 2), 32: (2, 2, 4), 64: (2, 4, 4), 128: (4, 4, 4), 256: (4, 4, 8)}
  found |= {f"v5p-{count}": ("v5p", shape) for count, shape in cubes.items()}
  return {name: Target(name, CHIPS[kind], kind, shape) for name, (kind, shape) in found.items()}


TARGETS: Mapping[str, Target] = _slices() | {
  kind: Target(kind, chip, kind) for kind, chip in CHIPS.items() if not chip.axes
}


_PACKAGES = {"cpu": (), "tpu": ("libtpu",), "cuda": ("jax_cuda12_plugin", "nvidia.cuda_nvcc")}


def find(name: str) -> Target:
  """The target of a name, or of a TPU's kind and shape (`v5e:2x4`), or `cpu:8`.

  Raises:
    UserError: there is none.
  """
  if name in TARGETS:
    return TARGETS[name]
  if written := re.fullmatch(r"cpu:([1-9]\d*)", name):
    return Target(name, _CPU, "cpu", (int(written[1]),))
  if written := re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name):
    kind, shape = written[1], tuple(map(int, written[2].split("x")))
    chip = CHIPS.get(kind)
    if chip is not None and chip.axes and (len(shape) != chip.axes or not all(shape)):
      axes = "x".join("ABC"[: chip.axes])
      raise UserError(f"--topology={name}: slices of {chip.what} have {chip.axes} axes; write {kind}:{axes}")
    if chip is not None and chip.axes:
      return Target(name, chip, kind, shape)
  raise UserError(f"--topology={name}: not known; {nearest(name, TARGETS)} (or a shape, v5e:2x4)")


def _there(module: str) -> bool:
  try:
    return importlib.util.find_spec(module) is not None
  except ModuleNotFoundError:
    return False


def _place(module: str) -> Path:
  found = importlib.util.find_spec(module)
  return Path(next(iter(found.submodule_search_locations)))
