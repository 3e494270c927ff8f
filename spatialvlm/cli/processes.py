"""Joining the processes of one run, and dividing the processor of each, before anything touches a device."""

from __future__ import annotations

import os

from spatialvlm.types import UserError

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
DEVICES_FLAG = "xla_force_host_platform_device_count"


def join() -> None:
  """Joins this process to the others where the environment says that there are any.

  `JAX_COORDINATOR_ADDRESS=host:port`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` describe a run by hand. A
  Slurm job of several tasks is found by JAX itself. Otherwise nothing happens.

  Raises:
    UserError: only some of the three are set, or the others cannot be reached.
  """
  found = {name: os.environ[name] for name in (ADDRESS, COUNT, INDEX) if os.environ.get(name)}
  by_slurm = int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_STEP_ID" in os.environ
  if not found and not by_slurm:
    return
  if found and len(found) < 3:
    missing = ", ".join(name for name in (ADDRESS, COUNT, INDEX) if name not in found)
    raise UserError(f"several processes: {missing} is not set; set all three or none")
  import jax

  try:
    if found:
      jax.distributed.initialize(found[ADDRESS], int(found[COUNT]), int(found[INDEX]))
    else:
      jax.distributed.initialize()
  except (RuntimeError, ValueError) as e:
    raise UserError(f"several processes: cannot join the others: {str(e).splitlines()[0]}") from e


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
