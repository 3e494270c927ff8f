"""What a frozen vision tower makes of a picture is made once, and nothing of a run depends on that."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from spatialvlm import peft
from spatialvlm.config import (
  DataConfig,
  LossConfig,
  MeshConfig,
  PeftConfig,
  ScenesConfig,
  SkillsConfig,
  StageConfig,
  TrainConfig,
)
from spatialvlm.core import axes
from spatialvlm.data import pipeline, tile_keys
from spatialvlm.models.outputs import Wants
from spatialvlm.processing import processor
from spatialvlm.training import frozen_vision, objectives, one_run, stages
from spatialvlm.training import metrics as metrics_lib
from spatialvlm.training import state as state_lib
from spatialvlm.training import step as step_lib
from spatialvlm.types import Batch, Deferred, Extra, PixelTable, UserError
from tests import joined
from tests.launch import tiny
from tests.peft import support

DECODER = PeftConfig(target=r".*text_model.*\.q_proj", options={"rank": 2})
AND_CONNECTOR = dataclasses.replace(DECODER, full=r"model\.connector\..*")
NORMAL = PixelTable.of(np.linspace(-1, 1, 256, dtype=np.float32)[:, None].repeat(3, 1))


def tower(config=AND_CONNECTOR, mesh=None, memory=None, losses=None, seed=0):
  """A `FrozenVision` with what it is called with: a state of the trained, the frozen arrays."""
  mesh = mesh or MeshConfig(data=1)
  mesh = axes.make_mesh(mesh, jax.devices()[: mesh.data * mesh.fsdp * mesh.tensor])
  config = peft.completed(config)
  vlm = support.build()
  if seed:
    vlm.vision.patch_embed.bias[...] += seed
  vlm = peft.apply(vlm, config)
  split = state_lib.Split(vlm, peft.trainable_filter(vlm, config), mesh)
  terms = objectives.make_objectives(losses or {"answer": LossConfig()})
  state = state_lib.TrainState(0, split.params, None, {})
  return frozen_vision.FrozenVision(split, terms, memory), state, split


def batch(numbers, seed=0, **changes) -> Batch:
  """One tile a sample: picture number n of a few, or -1 for padding."""
  pictures = np.random.default_rng(seed).integers(0, 256, (8, 16, 16, 3)).astype(np.uint8)
  tiles = np.stack([pictures[n] if n >= 0 else np.zeros_like(pictures[0]) for n in numbers])
  keys = tile_keys.tile_keys(tiles)
  keys[np.array(numbers) < 0] = tile_keys.PADDING
  B = len(numbers)
  whole = Batch(
    tokens_BT=np.full((B, 8), 60, np.int32),
    valid_BT=np.ones((B, 8), bool),
    pixels_NHWC=tiles,
    normal=NORMAL,
    image_slot_BT=np.tile(np.r_[np.arange(4), [-1] * 4].astype(np.int32), (B, 1)),
    target_index_BK=np.full((B, 1), 6, np.int32),
    extra={tile_keys.TILE_KEY: Extra(keys, "tile")},
  )
  return dataclasses.replace(whole, **changes)


def features(found: Batch) -> np.ndarray:
  return found.vision.patches_NPD if found.vision is not None else found.features_NPD


@pytest.mark.parametrize("config", [AND_CONNECTOR, DECODER], ids=["connector trained", "connector frozen"])
def test_a_tile_is_encoded_once_and_its_bits_do_not_depend_on_what_stands_beside_it(config):
  vision, state, split = tower(config, memory=frozen_vision.Memory(2**20))
  first = features(vision(state, split.frozen, batch([3, 0, 3, -1, 1]))[0])
  assert (vision.encoded, vision.reused) == (3, 0)
  again = features(vision(state, split.frozen, batch([1, 2, 0, 3]))[0])
  assert (vision.encoded, vision.reused) == (4, 3)
  assert np.array_equal(first[0], first[2]) and not first[3].any()
  assert np.array_equal(again[[0, 2, 3]], first[[4, 1, 0]])
  other, *_ = tower(config)
  fresh = features(other(state, split.frozen, batch([2, 1, 0, 3]))[0])
  assert np.array_equal(fresh, again[[1, 0, 2, 3]]) and other.encoded == 4


@pytest.mark.parametrize("config", [AND_CONNECTOR, DECODER], ids=["connector trained", "connector frozen"])
def test_the_model_reads_of_features_what_it_reads_of_pixels(config):
  vision, state, split = tower(config)
  pixels = dataclasses.replace(batch([4, 2, 5]), extra={})
  seen, *_ = vision(state, split.frozen, pixels)
  assert seen.pixels_NHWC is None and (seen.vision is None) == (config is DECODER)
  wants = Wants(logits=True, image=True, vision=config is AND_CONNECTOR)
  read = jax.jit(lambda batch: split.model(split.params, split.frozen).read(batch, wants))
  ours, theirs = (read(b) for b in (seen, pixels))
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)
  if config is AND_CONNECTOR:
    vlm = split.model(split.params, split.frozen)
    with pytest.raises(UserError, match=r"encoder_layers.*give pixels_NHWC"):
      vlm.read(jax.device_put(seen), Wants(encoder_layers=(1,)))


def test_pictures_that_do_not_come_again_are_not_kept_and_a_full_memory_keeps_what_it_has():
  keys = np.full((2, 2), tile_keys.ONCE, np.int64)
  once = batch([0, 0], extra={tile_keys.TILE_KEY: Extra(keys, "tile")})
  row = 16 * 16 * 4  # patches x width x bytes
  vision, state, split = tower(memory=frozen_vision.Memory(2 * row))
  vision(state, split.frozen, once)
  assert vision.encoded == 2 and len(vision._memory) == 0
  vision(state, split.frozen, batch([0, 1, 2]))
  vision(state, split.frozen, batch([2, 1, 0]))
  assert len(vision._memory) == 2 and vision.reused == 2 and vision.encoded == 6


def test_keys_tell_pixels_types_shapes_and_masks_apart():
  tile = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3)).astype(np.uint8)
  other = tile.copy()
  other[0, 3, 3, 2] ^= 1
  mask = np.ones((1, 4, 4), bool)
  hidden = mask.copy()
  hidden[0, 3] = False
  cases = [
    (tile,),
    (other,),
    (tile.reshape(1, 2, 8, 3),),
    (tile.view(np.int8),),
    (tile, mask),
    (tile, hidden),
  ]
  keys = {tuple(tile_keys.tile_keys(*case)[0]) for case in cases}
  assert len(keys) == len(cases) and all(first >= 0 for first, _ in keys)


@pytest.mark.parametrize(
  ("config", "losses", "message"),
  [
    (
      PeftConfig(target=r".*(vision|text)_model.*\.q_proj", options={"rank": 2}),
      None,
      r"config\.train\.cache_vision: .*vision\.stack\.layers\.0\.\S+ is trained, and 3 more arrays",
    ),
    (
      PeftConfig("none", target="", full=r"model\.vision_model\.post_layernorm\..*"),
      None,
      r"vision\.norm\.\S+ is trained",
    ),
    (
      AND_CONNECTOR,
      {"probe": LossConfig("depth_probe", kwargs={"read": "encoder"})},
      r"losses\.probe reads layers of the vision tower",
    ),
  ],
)
def test_where_features_cannot_be_kept_auto_leaves_the_tower_in_the_step_and_on_is_refused(
  config, losses, message
):
  _, _, split = tower(config)
  terms = objectives.make_objectives(losses or {"answer": LossConfig()})
  assert frozen_vision.make(TrainConfig(), split, terms, None) is None
  with pytest.raises(UserError, match=message):
    frozen_vision.make(TrainConfig(cache_vision="on"), split, terms, None)


@pytest.mark.parametrize("mesh", [MeshConfig(data=8), MeshConfig(data=2, fsdp=2, tensor=2)], ids=str)
def test_eight_devices_and_microbatches_see_the_features_of_one(mesh):
  numbers = [0, 1, 1, -1, 2, 3, 0, 7, 5, 5, 6, 1, 2, 2, -1, 4]
  vision, state, split = tower()
  one = features(vision(state, split.frozen, batch(numbers))[0])
  vision, state, split = tower(mesh=mesh, memory=frozen_vision.Memory(2**20))
  seen, *_ = vision(state, split.frozen, batch(numbers))
  # Where devices share the tower's products they add in another order.
  np.testing.assert_allclose(features(seen), one, rtol=0, atol=1e-5 if mesh.tensor > 1 else 0)
  assert vision.encoded == 8
  again, *_ = vision(state, split.frozen, batch(numbers[::-1]))
  assert np.array_equal(features(again), features(seen)[::-1]) and vision.encoded == 8
  on_devices = step_lib.to_devices(seen, split.mesh, accumulation=2)
  assert on_devices.vision.patches_NPD.shape == (2, 8, *one.shape[1:])
  assert len(on_devices.vision.patches_NPD.sharding.device_set) == 8


SCRIPT = """
import sys
import numpy as np
from spatialvlm.cli import processes
processes.join()
import jax
from spatialvlm.config import MeshConfig
from spatialvlm.processing import processor
from spatialvlm.training import frozen_vision
from tests.training.test_frozen_vision import SHARES, batch, features, tower
vision, state, split = tower(mesh=MeshConfig(data=2), memory=frozen_vision.Memory(2**20))
mine = [features(vision(state, split.frozen, batch(n))[0]) for n in SHARES[jax.process_index()]]
np.save(f"{sys.argv[1]}/{jax.process_index()}.npy", np.stack(mine))
"""
# Of two processes, two batches each; of the second one process knows all.
SHARES = (([0, 1, 2, 3], [3, 2, 1, 0]), ([4, -1, -1, 4], [5, 0, 6, 4]))


def test_two_processes_with_different_work_see_the_features_of_one(tmp_path):
  joined.start(SCRIPT, str(tmp_path))
  vision, state, split = tower()
  two = [np.load(tmp_path / f"{process}.npy") for process in range(2)]
  for found, share in zip(two, SHARES, strict=True):
    wanted = np.stack([features(vision(state, split.frozen, batch(numbers))[0]) for numbers in share])
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)  # compiled with other flags
  assert np.array_equal(two[0][0, 0], two[1][1, 1])


def config(folder, **train):
  tiny.write_model(folder / "model")
  tiny.write_data(folder)
  source = {"own": {"kind": "llava", "path": str(folder / "data.jsonl")}}
  from spatialvlm.config import RunConfig, from_config_dict

  return from_config_dict(
    {
      "model": {"path": str(folder / "model"), "from_scratch": True},
      "data": {
        "sources": source,
        "validation": source,
        "validation_size": 5,
        "lengths": (96,),
        "tiles": (1,),
        "workers": 1,
      },
      "peft": {
        "method": "lora",
        "target": r".*text_model.*\.q_proj",
        "rank": 2,
        "full": r"model\.connector\..*",
      },
      "train": {"steps": 6, "batch_size": 4, "accumulation": 2, "log_every": 1, "validate_every": 3, **train},
      "optim": {"learning_rate": 1e-2, "warmup_steps": 0},
      "mesh": {"data": 2},
      "log": {"tensorboard": False},
    },
    RunConfig,
  )


def rows(folder):
  found = metrics_lib.read(folder / metrics_lib.FILE)
  return [{k: v for k, v in row.items() if k not in metrics_lib.TIMED} for row in found]


def test_a_run_is_the_same_with_features_kept_with_none_kept_and_interrupted(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(axes, "make_mesh", lambda sizes, make=axes.make_mesh: make(sizes, jax.devices()[:2]))
  train = dict(export=False, checkpoint_every=2)
  kept = one_run.train(config(tmp_path, **train), tmp_path / "kept")
  said = capsys.readouterr().out
  one_run.train(config(tmp_path, cache_vision="off", **train), tmp_path / "off")
  assert rows(tmp_path / "kept") == rows(tmp_path / "off") and len(rows(tmp_path / "kept")) == 8
  # Two pictures in all, in 24 rows of training and ten of validation.
  assert "vision features: 2 tiles encoded" in said
  assert "2 are kept" in said and "are kept" not in capsys.readouterr().out
  crash = RuntimeError("crash")

  def stop(self, step, *args, advance=one_run.fit.__globals__["_Loop"].advance):
    if step == 3:
      raise crash
    advance(self, step, *args)

  with monkeypatch.context() as patch:
    patch.setattr(one_run.fit.__globals__["_Loop"], "advance", stop)
    with pytest.raises(RuntimeError, match="crash"):
      one_run.train(config(tmp_path, **train), tmp_path / "again")
  one_run.train(config(tmp_path, **train), tmp_path / "again")
  assert rows(tmp_path / "again") == rows(tmp_path / "kept")
  assert kept["finished"] and json.loads((tmp_path / "again" / "config.json").read_text())


def test_a_stage_takes_over_what_the_one_before_has_kept_of_the_same_tower(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(axes, "make_mesh", lambda sizes, make=axes.make_mesh: make(sizes, jax.devices()[:2]))
  train = dict(steps=2, accumulation=1, validate_every=0, checkpoint_every=0)
  whole = config(tmp_path, **train)
  connector = PeftConfig("none", target="", full=r"model\.connector\..*")
  staged = dataclasses.replace(whole, stages={"1": StageConfig(peft=connector), "2": StageConfig()})
  stages.train(staged, tmp_path / "w")
  said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("vision features")]
  assert [line.split(":")[1].split(",")[0] for line in said] == [" 2 tiles encoded", " 0 tiles encoded"]


def test_a_late_stage_that_cannot_keep_what_it_must_is_refused_before_the_first(tmp_path):
  whole = config(tmp_path, steps=2, cache_vision="on")
  both = PeftConfig(target=r".*(vision|text)_model.*\.q_proj", options={"rank": 2})
  staged = dataclasses.replace(whole, stages={"1": StageConfig(), "2": StageConfig(peft=both)})
  with pytest.raises(UserError, match=r"stages\.2: config\.train\.cache_vision: .*vision\.\S+ is trained"):
    stages.train(staged, tmp_path / "w")
  assert not (tmp_path / "w").exists()


def test_features_are_handed_on_to_the_same_tower_alone():
  handover, terms = frozen_vision.Handover(), objectives.make_objectives({"answer": LossConfig()})
  encoded = []
  for config, seed in ((AND_CONNECTOR, 0), (AND_CONNECTOR, 0), (AND_CONNECTOR, 1), (DECODER, 1)):
    _, state, split = tower(config, seed=seed)
    vision = frozen_vision.make(TrainConfig(), split, terms, frozen_vision.Memory(2**20), dict, handover)
    vision(state, split.frozen, batch([0, 1]))
    encoded.append(vision.encoded)
  assert encoded == [2, 0, 2, 2]


def test_settings_without_sense_are_refused(tmp_path):
  with pytest.raises(UserError, match=r"config\.train\.cache_vision_mib: -1 is below 0"):
    one_run.check(config(tmp_path, cache_vision_mib=-1))
  with pytest.raises(UserError, match=r"config\.train\.cache_vision_folder: nothing is kept .* 'off'"):
    one_run.check(config(tmp_path, cache_vision="off", cache_vision_folder="f"))


def on_disk(folder, config=AND_CONNECTOR, seed=0, numbers=dict):
  """What a run keeps in a folder."""
  _, state, split = tower(config, seed=seed)
  terms = objectives.make_objectives({"answer": LossConfig()})
  settings = TrainConfig(cache_vision_folder=str(folder))
  return frozen_vision.make(settings, split, terms, frozen_vision.Memory(2**20), numbers), state, split


def test_features_on_disk_serve_a_later_run_of_the_same_tower_alone(tmp_path):
  vision, state, split = on_disk(tmp_path)
  first = features(vision(state, split.frozen, batch([0, 1, 2]))[0])
  assert "3 tiles encoded" in vision.close() and len(list(tmp_path.glob("*/*.safetensors"))) == 3
  vision, state, split = on_disk(tmp_path)
  again, *_ = vision(state, split.frozen, batch([2, 3, 0]))
  assert (vision.encoded, vision.reused) == (1, 2) and again.vision.grid == (4, 4)
  assert np.array_equal(features(again)[[0, 2]], first[[2, 0]])
  others = dict(config=DECODER), dict(seed=1), dict(numbers=lambda: {"dtype": "bfloat16"})
  for other in others:  # of what comes after the connector, of other weights, of other numbers
    vision, state, split = on_disk(tmp_path, **other)
    vision(state, split.frozen, batch([0, 1]))
    assert (vision.encoded, vision.reused) == (2, 0), other
  # A damaged file is made again; names of pictures hold within a process alone.
  vision, state, split = on_disk(tmp_path)
  for file in vision.store.folder.glob("*.safetensors"):
    file.write_bytes(file.read_bytes()[:-1] + b"?")
  named = batch([0, 1])
  named.extra[tile_keys.TILE_KEY].array[1, 0] |= tile_keys.NAMED
  fresh, *_ = vision(state, split.frozen, named)
  assert vision.encoded == 2 and np.array_equal(features(fresh), first[:2])
  vision.close()
  assert len(list(vision.store.folder.glob("*.safetensors"))) == 4


def test_a_folder_for_features_that_cannot_be_kept_is_refused(tmp_path):
  vision_too = PeftConfig(target=r".*(vision|text)_model.*\.q_proj", options={"rank": 2})
  with pytest.raises(UserError, match=r"config\.train\.cache_vision_folder: .* is trained"):
    on_disk(tmp_path / "f", vision_too)
  with pytest.raises(UserError, match=r"config\.train\.cache_vision_folder: name a folder"):
    on_disk("")
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="file"):
    on_disk(tmp_path / "file")
  with pytest.raises(UserError, match=r"/proc/\S+: cannot be written"):
    on_disk("/proc/nothing")


@pytest.mark.parametrize(
  "source",
  [
    SkillsConfig(seed=3, image_size=48, turns=2, pictures=12),
    ScenesConfig(seed=3, image_size=48, pictures=12),
  ],
)
def test_pictures_whose_features_are_kept_are_not_rendered_and_the_run_is_the_same(
  source, tmp_path, monkeypatch
):
  folder = tiny.write_model(tmp_path / "model", size=48, patch=12)
  data = DataConfig({"own": source}, {"own": source}, 8, lengths=(256,), tiles=(1,), targets=16, workers=0)
  plain = pipeline.training_stream(data, processor.load_processor(folder), 4)
  seen, made = set(), []
  known = lambda key: key in seen
  monkeypatch.setattr(Deferred, "__init__", _counting(made))
  stream = pipeline.training_stream(data, processor.load_processor(folder), 4, keys=True, known=known)
  keys = {}
  for _ in range(12):
    (whole, _), (some, _) = next(plain), next(stream)
    for place, key in enumerate(map(tuple, some.extra[tile_keys.TILE_KEY].array.tolist())):
      # The same picture always goes by the same key, and pixels are those of a run without keys, or zeros.
      image = whole.pixels_NHWC[place]
      assert keys.setdefault(key, image.tobytes()) == image.tobytes()
      assert np.array_equal(some.pixels_NHWC[place], image) == (key not in seen)
      assert some.pixels_NHWC[place].any() == (key not in seen)
    np.testing.assert_array_equal(some.tokens_BT, whole.tokens_BT)
    np.testing.assert_array_equal(some.target_index_BK, whole.target_index_BK)
    seen |= set(keys)
  assert len(set(keys.values())) == len(keys) <= 12
  assert len(made) <= 12 + 4  # the first row is read ahead, and a batch may show a picture twice


def _counting(made, init=Deferred.__init__):
  def counted(self, *args, **kwargs):
    init(self, *args, **kwargs)
    make = self.make
    object.__setattr__(self, "make", lambda: (made.append(self.key), make())[1])

  return counted
