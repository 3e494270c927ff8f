"""Attention by jax's own Pallas kernel for TPUs, which never writes the scores out ("splash attention").

Scores of 1,280 tokens and 15 heads are 98 MB a row in float32, kept for the backward pass of each layer; the
kernel keeps one number a query instead and makes them again, block by block, in the chip's own memory. A
dynamic mask costs it a byte a query, key and head while a layer runs.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import PartitionSpec as P

from spatialvlm.core.axes import context_mesh, spec

# The kernel takes whole blocks of so many queries and keys; larger ones are fewer turns of its loop.
_LANES, _BLOCK = 128, 512


def run(q_BTNH, k_BSKH, v_BSKH, mask_BTS, scale, softcap, interpret: bool = False) -> jax.Array:
  """As `core.attention.attend`; on a mesh each device computes its own rows and heads.

  Args:
    interpret: compute the kernel's steps one by one on any device, to test it.
  """
  H = q_BTNH.shape[-1]
  q_BTNH = q_BTNH * jnp.asarray(H**-0.5 if scale is None else scale, q_BTNH.dtype)
  call = functools.partial(_local, softcap=softcap, interpret=interpret)
  mesh = context_mesh()
  if mesh is None or mesh.size == 1:
    return call(q_BTNH, k_BSKH, v_BSKH, mask_BTS)
  # Queries' heads are parted as keys' are, so that each device has those that belong together.
  keys = spec(("batch", None, "heads", None), k_BSKH.shape, mesh)
  seen = None if mask_BTS is None else P(keys[0])
  parted = jax.shard_map(call, mesh=mesh, in_specs=(keys, keys, keys, seen), out_specs=keys, check_vma=False)
  return parted(q_BTNH, k_BSKH, v_BSKH, mask_BTS)


def _local(q_BTNH, k_BSKH, v_BSKH, mask_BTS, *, softcap, interpret):
  """Of one device; queries are scaled already."""
  B, T, N, _ = q_BTNH.shape
  S = k_BSKH.shape[1]
  if mask_BTS is not None:
    mask_BTS = jnp.broadcast_to(mask_BTS, (B, T, S))
    # A query that sees nothing sees all alike: the mean of all values.
    sees_BT1 = mask_BTS.any(-1, keepdims=True)
    q_BTNH = jnp.where(sees_BT1[..., None], q_BTNH, 0)
    mask_BTS = mask_BTS | ~sees_BT1
  heads_first = lambda x, block: _padded(x.swapaxes(1, 2), 2, block)
  rows, columns = _block(T), _block(S)
  q_BNTH = heads_first(q_BTNH, rows)
  k_BKSH, v_BKSH = heads_first(k_BSKH, columns), heads_first(v_BSKH, columns)
  kernel = functools.partial(_kernel, _sizes(rows, columns), softcap, interpret)
  shape = (N, q_BNTH.shape[2], k_BKSH.shape[2])
  if mask_BTS is None:
    if shape[2] == S:
      known = masks.MultiHeadMask([masks.FullMask(shape[1:])] * N)
    else:
      known = jnp.broadcast_to(jnp.arange(shape[2]) < S, shape)
    out_BNTH = jax.vmap(kernel(known))(q_BNTH, k_BKSH, v_BKSH)
  else:
    mask_BTS = _padded(_padded(mask_BTS, 1, rows), 2, columns)
    one = lambda q, k, v, mask_TS: kernel(jnp.broadcast_to(mask_TS, shape))(q, k, v)
    out_BNTH = jax.vmap(one)(q_BNTH, k_BKSH, v_BKSH, mask_BTS)
  return out_BNTH[:, :, :T].swapaxes(1, 2).astype(q_BTNH.dtype)


def _block(length: int) -> int:
  """Queries or keys of a block: the most, up to `_BLOCK`, by which the length is filled up least."""
  filled = lambda block: -(-length // block) * block
  return min(range(_LANES, _BLOCK + 1, _LANES), key=lambda block: (filled(block), -block))


def _padded(x: jax.Array, axis: int, block: int) -> jax.Array:
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, -x.shape[axis] % block)
  return jnp.pad(x, widths)


def _sizes(rows: int, columns: int) -> splash.BlockSizes:
  return splash.BlockSizes(
    block_q=rows,
    block_kv=columns,
    block_kv_compute=columns,
    block_q_dkv=rows,
    block_kv_dkv=columns,
    block_kv_dkv_compute=columns,
    block_q_dq=rows,
    block_kv_dq=columns,
  )


def _kernel(sizes, softcap, interpret, mask):
  """Of a mask (N, T, S) that is known while the program is made, or of one that is data (a JAX array)."""
  kernel = splash.make_splash_mha(
    mask,
    block_sizes=sizes,
    head_shards=1,
    q_seq_shards=1,
    attn_logits_soft_cap=softcap,
    interpret=interpret,
  )
  # Within a program jax makes an array of this word, which it then cannot read; it names a scope alone.
  kernel.fwd_mask_info = kernel.fwd_mask_info._replace(is_dynamic_mask=isinstance(mask, jax.Array))
  return kernel
