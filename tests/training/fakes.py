"""A model of a few numbers with the interface of a Vlm, and a stream of batches for it."""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spatialvlm.core.axes import constrain, logical
from spatialvlm.data.batch import Bucket
from spatialvlm.models.outputs import Outputs, Wants
from spatialvlm.training.objectives import Objective
from spatialvlm.types import Batch

VOCAB, WIDTH, LENGTH, TARGETS = 16, 8, 12, 4


class TinyVlm(nnx.Module):
  """Embeds, mixes neighbours, and unembeds. `base` is frozen, the rest is trained."""

  def __init__(self, seed: int = 0):
    rngs = nnx.Rngs(seed)
    self.embed = nnx.Embed(VOCAB, WIDTH, rngs=rngs, embedding_metadata=logical("vocab", "embed"))
    self.base = nnx.Linear(WIDTH, WIDTH, rngs=rngs, kernel_metadata=logical(None, "embed"))
    self.up = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs, kernel_metadata=logical("embed", "mlp"))
    self.down = nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs, kernel_metadata=logical("mlp", "embed"))

  def hidden(self, batch: Batch):
    x_BTD = constrain(self.embed(batch.tokens_BT), "batch", None, None)
    x_BTD = x_BTD + self.base(jnp.roll(x_BTD, 1, axis=1))
    return x_BTD + self.down(nnx.silu(self.up(x_BTD)))

  def unembed(self, x):
    return self.embed.attend(x).astype(jnp.float32)

  def read(self, batch: Batch, wants: Wants) -> Outputs:
    hidden_BTD = self.hidden(batch)
    before_BK = jnp.maximum(batch.target_index_BK - 1, 0)
    hidden_BKD = jnp.take_along_axis(hidden_BTD, before_BK[..., None], axis=1)
    return Outputs(
      hidden=hidden_BTD if wants.hidden else None, logits=self.unembed(hidden_BKD) if wants.logits else None
    )


class Reader(Objective):
  """An objective with a head: a linear map of hidden states that says how large a position's token is."""

  wants = Wants(hidden=True)

  def __init__(self, detach: bool = True):
    super().__init__()
    self.detach = detach

  def head(self, model, rngs: nnx.Rngs):
    return nnx.Linear(WIDTH, 1, rngs=rngs)

  def __call__(self, outputs, models, batch, key):
    x_BTD = jax.lax.stop_gradient(outputs.hidden) if self.detach else outputs.hidden
    found_BT = models.head(x_BTD)[..., 0]
    error_BT = jnp.square(found_BT - batch.tokens_BT / VOCAB)
    weight = jnp.float32(error_BT.size)
    return error_BT.sum(), weight, {"rmse": (error_BT.sum(), weight)}


def trainable(path, variable):
  return isinstance(variable, nnx.Param) and path[0] != "base"


class Stream:
  """Batch number n, always the same; `get_state` and `set_state` as grain has them.

  `at(n)` is called before batch n is made: the place for accidents.
  """

  def __init__(self, size, *, seed=0, count=None, process=0, processes=1, at=lambda number: None):
    self.size, self.seed, self.count, self.next = size, seed, count, 0
    self.process, self.processes, self.at = process, processes, at

  def batch(self, number: int):
    rng = np.random.default_rng((self.seed, number))
    tokens = rng.integers(0, VOCAB, (self.size, LENGTH)).astype(np.int32)
    tokens[:, 1::2] = (tokens[:, ::2] * 3 + 1) % VOCAB
    index = np.full((self.size, TARGETS), -1, np.int32)
    for row in range(self.size):
      answers = 1 + (row * 7 + number) % TARGETS
      index[row, :answers] = 1 + 2 * np.arange(answers)
    mine = self.size // self.processes
    rows = slice(self.process * mine, (self.process + 1) * mine)
    valid = np.ones((mine, LENGTH), bool)
    batch = Batch(tokens_BT=tokens[rows], valid_BT=valid, target_index_BK=index[rows])
    info = types.SimpleNamespace(
      sources={"fake": mine},
      blind={"fake": sum(i % 4 == 3 for i in range(self.size)[rows])},
      skipped={f"fake[{number * self.size + i}]": "broken" for i in range(self.size)[rows] if i == 9},
      changes={"fake": {"flip": mine, "flip left": 1}},
      bucket=Bucket(LENGTH, 0, TARGETS),
      views={},
      samples=len(batch.tokens_BT),
      tokens=batch.tokens_BT.size,
      targets=int((index[rows] >= 0).sum()),
      ids=tuple(f"fake[{number * self.size + i}]" for i in range(self.size)[rows]),
    )
    return batch, info

  def __iter__(self):
    if self.count is not None:
      return iter([self.batch(i) for i in range(self.count)])
    return self

  def __next__(self):
    self.at(self.next)
    self.next += 1
    return self.batch(self.next - 1)

  def get_state(self):
    return {"next": self.next}

  def set_state(self, state):
    self.next = state["next"]
