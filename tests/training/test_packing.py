"""Packed rows train as the conversations alone do: losses, gradients, meshes, microbatches, and resumed."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from spatialvlm import hub
from spatialvlm.config import (
  DataConfig,
  LlavaConfig,
  LogConfig,
  LossConfig,
  MeshConfig,
  ModelConfig,
  OptimConfig,
  PeftConfig,
  PhaseConfig,
  RunConfig,
  TrainConfig,
)
from spatialvlm.core import axes
from spatialvlm.data import batch as batches
from spatialvlm.processing.processor import Encoded
from spatialvlm.training import metrics, objectives, one_run
from spatialvlm.types import Extra, UserError
from tests.launch import tiny
from tests.models.support import jit, tokens_per_tile
from tests.training import interrupted

FIXTURES = Path(__file__).parents[1] / "fixtures"
LENGTHS = (32, 48, 64)
# Tokens of text and tiles of each conversation: of several pictures, of one, of none.
CONVERSATIONS = ((9, 2), (14, 1), (4, 0), (21, 0), (6, 1), (5, 1), (30, 0), (7, 3), (3, 0))
LOSSES = {
  "answer": LossConfig(),
  "words": LossConfig("words", "label", 0.5, {"first": 3, "classes": 4, "none": 9}),
  "image": LossConfig("depth_probe", weight=0.3, kwargs={"detach": False}),
  "decoder": LossConfig("depth_probe", weight=0.2, kwargs={"read": "decoder", "layer": 1, "detach": False}),
}


def conversations(config) -> list[Encoded]:
  """Conversations whose answers are their last third; their tiles have labels and depths, but for one."""
  rng, side, per_tile = np.random.default_rng(0), config.vision.image_size, tokens_per_tile(config)
  found = []
  for number, (text, tiles) in enumerate(CONVERSATIONS):
    tiles = min(tiles, 1) if config.prefix_lm else tiles
    images = [config.image_token_id] * per_tile
    tokens = np.array([1, *images * tiles, *rng.integers(3, 50, text)], np.int32)
    image = tokens == config.image_token_id
    dense = {
      "label": Extra(rng.integers(-1, 4, (tiles, side, side)).astype(np.int32), "tile"),
      "depth": Extra(rng.uniform(1, 5, (tiles, side, side)).astype(np.float32), "tile"),
    }
    answer = np.arange(len(tokens)) >= len(tokens) - max(1, text // 3)
    found.append(
      Encoded(
        tokens=tokens,
        loss_mask=answer,
        image_slot=np.where(image, np.cumsum(image) - 1, -1).astype(np.int32),
        tiles=rng.normal(size=(tiles, side, side, 3)).astype(np.float32),
        extra=dense if number != 4 else {},
        prefix=int(np.argmax(answer)) if config.prefix_lm else 0,
      )
    )
  return found


def both(config):
  """The same conversations, each in its own row, and packed; of one shape, since compiling takes long."""
  encoded = conversations(config)
  sizes = {"lengths": LENGTHS, "tiles": (1, 3), "targets": 4}
  bucket = batches.bucket_of(encoded, **sizes)
  rows, packed_bucket, _ = batches.packed_of(encoded, **sizes, tokens_per_tile=tokens_per_tile(config))
  shape = {"pad_id": 2, "batch_size": len(encoded)}
  alone = batches.collate(encoded, **bucket._asdict(), **shape)
  packed = batches.collate(rows, **packed_bucket._asdict(), **shape)
  assert len(packed.tokens_BT) < len(alone.tokens_BT) / 1.5
  largest = batches.largest([bucket, packed_bucket, batches.Bucket(0, 0, 0, len(encoded))])
  alone = dataclasses.replace(alone, segment_BT=np.zeros(alone.tokens_BT.shape, np.int32))
  return [batches.grow(b, largest, pad_id=2, tile_size=config.vision.image_size) for b in (alone, packed)]


def check(family: str, losses):
  vlm = hub.load_model(FIXTURES / family)
  alone, packed = both(vlm.config)
  terms = objectives.make_objectives(losses)
  heads = objectives.make_heads(terms, vlm.config, 0)
  graphdef, params = nnx.split((vlm, heads))

  @jit
  def found(params, batch):
    def loss(params):
      vlm, heads = nnx.merge(graphdef, params)
      outputs = vlm.read(batch, objectives.wants_of(terms))
      sums = {
        name: objective(outputs, objectives.Models(vlm, heads.get(name)), batch, jax.random.key(0))
        for name, (_, objective) in terms.items()
      }
      return sum(terms[n][0] * total / weight for n, (total, weight, _) in sums.items()), sums

    return jax.value_and_grad(loss, has_aux=True)(params)

  (value, sums), grads = jax.device_get(found(params, alone))
  (other, packed_sums), packed_grads = jax.device_get(found(params, packed))
  assert float(other) == pytest.approx(float(value), rel=1e-6)
  for name, (_, weight, _) in sums.items():
    assert weight == packed_sums[name][1] > 0, name
  for a, b in zip(jax.tree.leaves(sums), jax.tree.leaves(packed_sums), strict=True):
    np.testing.assert_allclose(b, a, rtol=2e-6, atol=1e-6)
  norm = np.sqrt(sum(np.square(g).sum() for g in jax.tree.leaves(grads)))
  for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(packed_grads), strict=True):
    np.testing.assert_allclose(b, a, atol=2e-6 * norm)


def test_losses_and_gradients_of_all_objectives_are_those_of_rows_of_their_own():
  check("smolvlm", LOSSES)


@pytest.mark.parametrize(
  "family",
  ["paligemma2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("paligemma", "internvl"))],
)
def test_so_are_those_of_bidirectional_prefixes_and_sliding_windows(family):
  check(family, {"answer": LossConfig()})


def settings(folder, **changes) -> RunConfig:
  data = DataConfig(
    sources={"own": LlavaConfig(path=str(folder / "data.jsonl"))},
    validation={"own": LlavaConfig(path=str(folder / "data.jsonl"))},
    validation_size=6,
    lengths=(96,),
    tiles=(2,),
    targets=32,
    workers=0,
    packing=changes.pop("packing", True),
  )
  train = {"steps": 3, "batch_size": 8, "log_every": 1, "validate_every": 3, "export": False}
  return RunConfig(
    model=ModelConfig(str(folder / "model"), from_scratch=True),
    peft=PeftConfig(target=r".*text_model.*\.q_proj", full=r"model\.connector\..*", options={"rank": 2}),
    data=data,
    optim=OptimConfig("sgd", learning_rate=0.1, schedule="constant", warmup_steps=0),
    train=TrainConfig(**train, **changes.pop("train", {})),
    log=LogConfig(tensorboard=False),
    **changes,
  )


@pytest.fixture(scope="module")
def folder(tmp_path_factory, compiled_once):
  """A model without weights, and conversations of one picture, two, or none, short and long."""
  folder = tmp_path_factory.mktemp("packing")
  tiny.write_model(folder / "model", depth=1)
  tiny.write_data(folder, count=3)
  rows = []
  for i in range(18):
    images = [f"{(i + k) % 3}.png" for k in range((1, 2, 0)[i % 3])]
    text = "<image>\n" * len(images) + "Which box is it? " * (i % 4)
    turns = [{"from": "human", "value": text + "?"}, {"from": "gpt", "value": "ABC"[i % 3] * (1 + i % 5)}]
    rows.append(json.dumps({"id": str(i), "image": images, "conversations": turns}))
  (folder / "data.jsonl").write_text("\n".join(rows) + "\n")
  return folder


def figures(workdir):
  """Rows of metrics without what depends on the clock."""
  rows = metrics.read(workdir / metrics.FILE)
  return [{k: v for k, v in row.items() if k not in metrics.TIMED} for row in rows]


def test_a_packed_run_is_the_plain_one_on_any_mesh_also_where_it_was_interrupted(
  folder, tmp_path, monkeypatch
):
  """Two shards of two microbatches with features of pictures kept, against one device with neither."""
  one = MeshConfig(data=1)
  make_mesh = axes.make_mesh
  on_few = lambda sizes, devices=None: make_mesh(sizes, jax.devices()[: sizes.data])
  monkeypatch.setattr(axes, "make_mesh", on_few)
  plain = settings(folder, packing=False, mesh=one, train={"cache_vision": "off"})
  one_run.train(plain, tmp_path / "plain")
  packed = settings(folder, mesh=MeshConfig(data=2), train={"accumulation": 2})
  one_run.train(packed, tmp_path / "packed")
  wanted, found = figures(tmp_path / "plain"), figures(tmp_path / "packed")
  shares = {"fill", "supervised"}
  for a, b in zip(wanted, found, strict=True):
    assert b == pytest.approx(a | {k: b[k] for k in shares & set(b)}, rel=2e-5)
    assert b.get("fill", 1) > 1.5 * a.get("fill", 0)

  with interrupted.at_each_batch(monkeypatch):
    assert not one_run.train(packed, tmp_path / "stopped")["finished"]
  assert one_run.train(packed, tmp_path / "stopped")["finished"]
  assert figures(tmp_path / "stopped") == found


def test_phases_that_choose_among_examples_are_refused(folder, tmp_path):
  hard = settings(folder, phases={"mine": PhaseConfig("hard_examples")})
  with pytest.raises(
    UserError, match=r"config\.phases\.mine: a phase of kind 'hard_examples' .*data\.packing"
  ):
    one_run.train(hard, tmp_path / "w")
  assert not (tmp_path / "w").exists()
