"""P-tuning: soft tokens that a small network makes of learned ones (Liu et al., arXiv 2103.10385).

The encoder is Hugging Face PEFT's MLP. It is there in training alone: what leaves a run, and what PEFT keeps
in a folder of type P_TUNING, is what it gave, which is a prompt as prompt tuning has one (`peft.prompt`).
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spatialvlm.config import PeftConfig
from spatialvlm.models.soft_prompts import START, SoftTokens
from spatialvlm.models.vlm import Vlm
from spatialvlm.peft import prompt, select, soft
from spatialvlm.peft.method import Export, Given
from spatialvlm.peft.prompt import PATH, TEXT
from spatialvlm.peft.soft import SoftMethod
from spatialvlm.peft.variables import AdapterParam, host
from spatialvlm.types import UserError


@dataclasses.dataclass(frozen=True)
class PTuningOptions:
  """P-tuning's own settings.

  Attributes:
    tokens, place: as of prompt tuning.
    hidden: width of the encoder's two hidden layers.
    init, text: as of prompt tuning, of what the encoder reads.
  """

  tokens: int = 20
  place: Literal["start", "after_image"] = START
  hidden: int = 128
  init: Literal["text", "vocabulary", "random"] = "text"
  text: str = TEXT


class EncodedTokens(SoftTokens):
  """Soft tokens that an encoder makes of its rows: three linear layers with ReLU between them, in float32.

  Attributes:
    rows: (P, D).
    kernels, biases: (D, E), (E, E), (E, D) and (E,), (E,), (D,).
  """

  def __init__(self, rows: nnx.Variable, kernels: list[nnx.Variable], biases: list[nnx.Variable], place: str):
    super().__init__(rows, place)
    self.kernels, self.biases = nnx.List(kernels), nnx.List(biases)

  def __call__(self) -> jax.Array:
    x_PD = self.rows[...]
    for number, (kernel, bias) in enumerate(zip(self.kernels, self.biases, strict=True)):
      x_PD = jax.nn.relu(x_PD) if number else x_PD
      x_PD = jnp.dot(x_PD, kernel[...], precision=jax.lax.Precision.HIGHEST) + bias[...]
    return x_PD


class PTuning(SoftMethod):
  """P-tuning with an MLP; its folders are those of prompt tuning, which reads PEFT's P_TUNING too."""

  name = "p_tuning"
  peft_type = "PROMPT_TUNING"
  reads = ()
  Options = PTuningOptions
  packing = False

  def check(self, options: PTuningOptions) -> None:
    super().check(options)
    if options.hidden < 1:
      raise UserError(f"peft.hidden: {options.hidden}; the encoder's layers have a width of at least 1")

  def apply(self, vlm: Vlm, config: PeftConfig, options: PTuningOptions, given: Given) -> None:
    """The encoder's first numbers are drawn as torch draws a linear layer's: uniform in +-1/sqrt(fan in)."""
    self.check_layers(vlm, config, options)
    rows_PD = prompt.first_rows(vlm, config, options, given, self.name)
    rng, width = np.random.default_rng((config.seed, 1)), rows_PD.shape[1]
    place = lambda value, names: soft.learned(value, names, vlm.decoder.embed.embedding)
    sizes = (width, options.hidden, options.hidden, width)
    kernels, biases = [], []
    for fan_in, fan_out in itertools.pairwise(sizes):
      draw = lambda *shape, bound=fan_in**-0.5: rng.uniform(-bound, bound, shape)
      kernels.append(place(draw(fan_in, fan_out), (None, None)))
      biases.append(place(draw(fan_out), (None,)))
    vlm.soft_tokens = EncodedTokens(place(rows_PD, (None, "embed")), kernels, biases, options.place)

  def export(self, vlm: Vlm) -> Export:
    tokens = vlm.soft_tokens
    return prompt.export(self, vlm, tokens.place, host(AdapterParam(tokens())))

  def claims(self, vlm: nnx.Module) -> set[select.Path]:
    own: Any = getattr(vlm, "soft_tokens", None)
    return soft.claims_below(vlm, PATH) if isinstance(own, EncodedTokens) else set()
