"""LoHa and LoKr: the change of a weight as a Hadamard or a Kronecker product of small matrices.

Sources: FedPara (Hyeon-Woo et al., arXiv 2108.06098), KronA (Edalati et al., 2212.10650), in the form of the
LyCORIS library (Yeh et al., 2309.14859), with the numerics of Hugging Face PEFT. In contrast to LoRA the
change is laid out whole, (d_out, d_in), whenever a layer is read.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from spatialvlm.config import PeftConfig
from spatialvlm.core import products
from spatialvlm.peft import foreign, linear
from spatialvlm.peft.method import LayerMethod, LayerOptions, Site
from spatialvlm.peft.variables import AdapterParam, host, mesh_sharding, placed
from spatialvlm.types import UserError

Shapes = dict[str, tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class LohaOptions(LayerOptions):
  """LoHa's own settings.

  Attributes:
    rank: r, of each of the two products.
    alpha: the change is scaled by alpha / r.
  """

  rank: int = 8
  alpha: float = 8.0


@dataclasses.dataclass(frozen=True)
class LokrOptions(LohaOptions):
  """LoKr's own settings.

  Attributes:
    rank: r, of a factor that is itself a product; a factor with fewer than 2 r rows and columns is whole.
    alpha: the change is scaled by alpha / r.
    decompose_factor: rows and columns of the first factor, where it divides the weight's; -1 for the divisor
      that is nearest to the square root.
    decompose_both: whether the first factor may be a product as well.
  """

  decompose_factor: int = -1
  decompose_both: bool = False


@dataclasses.dataclass(frozen=True)
class LycorisSpec:
  """How one layer is adapted; the fields are those of `LokrOptions`."""

  rank: int
  alpha: float
  decompose_factor: int = -1
  decompose_both: bool = False

  @property
  def scale(self) -> float:
    """Factor of the change."""
    return self.alpha / self.rank


class ChangedLinear(linear.AroundLinear):
  """y = x (W + change^T) + b, in the dtype of x W.

  Its parts are attributes by PEFT's names, float32 in the layout of PEFT's files.
  """

  # which of the parts begin at zero, so that the change does
  ZERO: ClassVar[tuple[str, ...]]

  def __init__(self, base: nnx.Linear, spec: LycorisSpec, parts: Mapping[str, np.ndarray]):
    super().__init__(base)
    self.spec = spec
    sharding = mesh_sharding(base.kernel.get_raw_value())
    for name, value in parts.items():  # they are small: each device has the whole of them
      setattr(self, name, AdapterParam(placed(value, sharding, PartitionSpec())))

  def __call__(self, inputs: jax.Array, out_sharding=None) -> jax.Array:
    y = super().__call__(inputs, out_sharding)
    change = self.change().T.astype(inputs.dtype)
    return y + products.matmul(inputs, change, self.precision, y.dtype)

  @classmethod
  def parts(cls, spec: LycorisSpec, d_in: int, d_out: int) -> Shapes:
    """Name -> shape."""
    raise NotImplementedError

  def change(self) -> jax.Array:
    """(d_out, d_in) float32, what is added to the weight as PyTorch holds it."""
    raise NotImplementedError

  def _product(self, name: str) -> jax.Array:
    """A factor, whole or itself a product."""
    if hasattr(self, name):
      return getattr(self, name)[...]
    one, other = (getattr(self, f"{name}_{part}")[...] for part in "ab")
    return jnp.dot(one, other, precision=jax.lax.Precision.HIGHEST)


class LohaLinear(ChangedLinear):
  """change = s (w1_a w1_b) * (w2_a w2_b), entry by entry."""

  ZERO = ("hada_w2_b",)

  @classmethod
  def parts(cls, spec: LycorisSpec, d_in: int, d_out: int) -> Shapes:
    r = spec.rank
    return {f"hada_w{i}_{part}": shape for i in "12" for part, shape in (("a", (d_out, r)), ("b", (r, d_in)))}

  def change(self) -> jax.Array:
    return self.spec.scale * self._product("hada_w1") * self._product("hada_w2")


class LokrLinear(ChangedLinear):
  """change = s w1 (x) w2, the Kronecker product."""

  ZERO = ("lokr_w1", "lokr_w1_a")

  @classmethod
  def parts(cls, spec: LycorisSpec, d_in: int, d_out: int) -> Shapes:
    (out_l, out_k), (in_m, in_n) = (_divided(size, spec.decompose_factor) for size in (d_out, d_in))
    first = _factor("lokr_w1", out_l, in_m, spec.rank, spec.decompose_both)
    return first | _factor("lokr_w2", out_k, in_n, spec.rank, True)

  def change(self) -> jax.Array:
    return self.spec.scale * jnp.kron(self._product("lokr_w1"), self._product("lokr_w2"))


class Lycoris(LayerMethod):
  """What LoHa and LoKr have in common.

  Attributes:
    layer: class of the adapted layers.
  """

  layer: ClassVar[type[ChangedLinear]]
  target = r".*(text_model|language_model).*\.(q|k|v|o)_proj"
  fields = foreign.Fields(
    reads=("r", "alpha", "init_weights", "decompose_factor", "decompose_both"),
    needs=("r", "alpha"),
    fits={"r": foreign.is_positive, "alpha": foreign.is_number},
  )

  def check(self, options: LohaOptions) -> None:
    if options.rank < 1:
      raise UserError(f"peft.rank: {options.rank}; it must be at least 1")

  def spec_of(self, site: Site) -> LycorisSpec | None:
    return site.module.spec if isinstance(site.module, self.layer) else None

  def specs(self, config: PeftConfig, options: LohaOptions, names: list[str]) -> dict[str, LycorisSpec]:
    own = {
      field.name: getattr(options, field.name, field.default) for field in dataclasses.fields(LycorisSpec)
    }
    return dict.fromkeys(names, LycorisSpec(**own))

  def said_specs(self, said: Mapping[str, Any], names: list[str], options: Any) -> dict[str, LycorisSpec]:
    factor = said.get("decompose_factor")
    spec = LycorisSpec(
      rank=said["r"],
      alpha=float(said["alpha"]),
      decompose_factor=-1 if factor is None else int(factor),
      decompose_both=bool(said.get("decompose_both")),
    )
    return dict.fromkeys(names, spec)

  def said_config(self, specs: Mapping[str, LycorisSpec]) -> dict[str, Any]:
    spec = next(iter(specs.values()))
    alpha = int(spec.alpha) if spec.alpha.is_integer() else spec.alpha
    return {"target_modules": sorted(specs), "r": spec.rank, "alpha": alpha, "init_weights": True}

  def fresh(self, site: Site, spec: LycorisSpec, seed: int) -> ChangedLinear:
    """Uniform in +-1/sqrt(columns), one part zero, as PEFT draws them; of `seed` and the name alone."""
    rng = np.random.default_rng((seed, site.number))
    draw = lambda shape: rng.uniform(-1, 1, shape) / math.sqrt(shape[1])
    shapes = self._parts(site, spec)
    zero = self.layer.ZERO
    values = {n: np.zeros(shape) if n in zero else draw(shape) for n, shape in shapes.items()}
    return self.layer(site.module, spec, values)

  def shapes(self, site: Site, spec: LycorisSpec) -> dict[str, tuple[int, ...]]:
    return {f".{name}": shape for name, shape in self._parts(site, spec).items()}

  def restored(self, site: Site, spec: LycorisSpec, arrays: Mapping[str, np.ndarray]) -> ChangedLinear:
    return self.layer(site.module, spec, {end[1:]: value for end, value in arrays.items()})

  def tensors(self, site: Site) -> dict[str, np.ndarray]:
    return {f".{name}": host(getattr(site.module, name)) for name in self._parts(site, site.module.spec)}

  def plain(self, site: Site) -> nnx.Linear:
    layer = site.module
    add = lambda kernel, change: (kernel.astype(jnp.float32) + change.T).astype(kernel.dtype)
    folded = jax.jit(add, out_shardings=mesh_sharding(layer.kernel.get_raw_value()))
    return linear.plain(layer, folded(layer.kernel[...], layer.change()), layer.bias)

  def _parts(self, site: Site, spec: LycorisSpec) -> Shapes:
    return self.layer.parts(spec, site.module.in_features, site.module.out_features)


class Loha(Lycoris):
  """LoHa on linear layers; PEFT folders of type LOHA."""

  name = "loha"
  peft_type = "LOHA"
  Options = LohaOptions
  layer = LohaLinear
  endings = tuple(f".hada_w{i}_{part}" for i in "12" for part in "ab")


class Lokr(Lycoris):
  """LoKr on linear layers; PEFT folders of type LOKR."""

  name = "lokr"
  peft_type = "LOKR"
  Options = LokrOptions
  layer = LokrLinear
  endings = tuple(f".lokr_w{i}{part}" for i in "12" for part in ("", "_a", "_b"))

  def said_config(self, specs: Mapping[str, LycorisSpec]) -> dict[str, Any]:
    spec = next(iter(specs.values()))
    own = {"decompose_factor": spec.decompose_factor, "decompose_both": spec.decompose_both}
    return super().said_config(specs) | own


def _factor(name: str, rows: int, columns: int, rank: int, divisible: bool) -> Shapes:
  """Parts of one factor: a product of two where that is smaller by PEFT's rule."""
  if divisible and rank < max(rows, columns) / 2:
    return {f"{name}_a": (rows, rank), f"{name}_b": (rank, columns)}
  return {name: (rows, columns)}


def _divided(size: int, factor: int) -> tuple[int, int]:
  """`size` as a product, the smaller number first: PEFT's choice (`factor` where it divides)."""
  if factor > 0 and size % factor == 0:
    return factor, size // factor
  most = size if factor == -1 else factor
  m, n = 1, size
  for divisor in range(2, size + 1):
    if m >= n or size % divisor:
      continue
    if divisor + size // divisor > 1 + size or divisor > most:
      break
    m, n = divisor, size // divisor
  return min(m, n), max(m, n)
