"""Joining the processes of one run, and dividing the processor of each, before anything touches a device.

A run of several processes is all of them or none. Where one ends before its time, the others, which would
wait for it, end as well, with one line (`cli.watch`).
"""

from __future__ import annotations

import glob
import os
import sys
import urllib.request
from typing import NoReturn

from spatialvlm.cli import watch
from spatialvlm.types import UserError

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
DEVICES_FLAG = "xla_force_host_platform_device_count"
# Seconds that those who are done wait for the last, which may still write; the watch sees whether it lives.
PATIENCE = 24 * 3600
# What the runtime, its collectives (gloo, NCCL) and its barriers say where somebody is gone.
_GONE = (
  *("connection closed", "connection reset", "connection refused", "broken pipe", "socket closed"),
  *("heartbeat", "unhealthy", "barrier", "coordination service", "distributed service", "remote process"),
  *("preempted", "failed to connect", "connection timed out", "no route to host", "all-reduce failed"),
)

# One entry a host, in the metadata of a TPU VM.
_METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/worker-network-endpoints"


class _Joined:
  watch: watch.Watch | None = None


def join() -> None:
  """Joins this process to the others where the environment says that there are any.

  `JAX_COORDINATOR_ADDRESS=host:port`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` describe a run by hand. A
  Slurm job of several tasks, and a TPU slice of several hosts, are found by JAX itself. Otherwise nothing
  happens.

  Raises:
    UserError: only some of the three are set, or the others cannot be reached.
  """
  found = {name: os.environ[name] for name in (ADDRESS, COUNT, INDEX) if os.environ.get(name)}
  if not found and not (_slurm_tasks() > 1 or _tpu_hosts() > 1):
    return
  if found and len(found) < 3:
    missing = ", ".join(name for name in (ADDRESS, COUNT, INDEX) if name not in found)
    raise UserError(f"several processes: {missing} is not set; set all three or none")
  import jax

  try:
    if found:
      known = (found[ADDRESS], int(found[COUNT]), int(found[INDEX]))
      jax.distributed.initialize(*known, shutdown_timeout_seconds=PATIENCE)
    else:
      jax.distributed.initialize(shutdown_timeout_seconds=PATIENCE)
  except (RuntimeError, ValueError) as e:
    raise UserError(f"several processes: cannot join the others: {str(e).splitlines()[0]}") from e
  _Joined.watch = watch.begin()


def _slurm_tasks() -> int:
  """Tasks of the Slurm job step that this process is of."""
  return int(os.environ.get("SLURM_NTASKS", "1")) if "SLURM_STEP_ID" in os.environ else 1


def _tpu_hosts() -> int:
  """Hosts of the TPU slice that this one is of: as GKE says it, else as the metadata of a TPU VM do."""
  for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"):
    if os.environ.get(name):
      return len(os.environ[name].split(",")) * int(os.environ.get("MEGASCALE_NUM_SLICES", "1"))
  if not (glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")):  # no TPU, so nobody to be asked
    return 1
  try:
    asked = urllib.request.Request(_METADATA, headers={"Metadata-Flavor": "Google"})
    with urllib.request.urlopen(asked, timeout=2) as answer:
      return len(answer.read().decode().split(","))
  except OSError:
    return 1


def joined() -> bool:
  """Whether this process is one of several."""
  return _Joined.watch is not None


def left_alone(error: BaseException) -> bool:
  """Whether an error of this process comes of another one that is gone."""
  text = f"{type(error).__name__} {error}".lower()
  return joined() and not isinstance(error, UserError) and any(words in text for words in _GONE)


def end_left() -> NoReturn:
  """Says in one line that another process is gone, and ends this one."""
  _Joined.watch.leave_alone()


def end(code: int) -> NoReturn:
  """Ends a process whose error was told; of several also the others, after they had time for their own."""
  if _Joined.watch is None:
    sys.exit(code)
  _Joined.watch.end(code)


def divide(cpu_devices: int) -> None:
  """Makes so many devices out of this computer's processor; 0 leaves it to `XLA_FLAGS`, otherwise one.

  Where the environment says how many there are, it is right: the same run then goes over others.

  Raises:
    UserError: a negative number.
  """
  if cpu_devices < 0:
    raise UserError(f"mesh.cpu_devices={cpu_devices}: name how many devices the processor counts as, or 0")
  if cpu_devices and DEVICES_FLAG not in os.environ.get("XLA_FLAGS", ""):
    import jax

    jax.config.update("jax_num_cpu_devices", cpu_devices)
