"""Priors by the command line's config: trained beside adapters, interrupted, exported, read back, gone on
from."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file
from scipy.special import log_softmax

import spatialvlm
from spatialvlm import cli, loading, priors
from spatialvlm.config import ModelConfig, PeftConfig, RunConfig
from spatialvlm.data import pipeline
from spatialvlm.data.sources.registry import open_source
from spatialvlm.processing.processor import load_processor
from spatialvlm.training import one_run, runs
from spatialvlm.types import Batch, UserError
from tests.launch import tiny
from tests.training import interrupted

pytestmark = pytest.mark.slow  # `make oracle` runs them

RECIPE = """
def get_config():
  source = dict(kind="scenes", seed=1, image_size=48, tasks=dict(Depth=1.0))
  return dict(
    name="priors",
    model=dict(path="{folder}/model", from_scratch=True),
    data=dict(
      sources=dict(own=source), validation=dict(own=source | dict(seed=2)), validation_size=4,
      lengths=(1024,), tiles=(1,), workers=1,
    ),
    peft=dict(method="lora", rank=2),
    priors=dict(map=dict(kind="depth_map"), place=dict(kind="positions", kwargs=dict(frame="world"))),
    train=dict(steps=4, batch_size=4, accumulation=2, log_every=1, validate_every=4, checkpoint_every=2),
    optim=dict(learning_rate=1e-2, warmup_steps=0),
    log=dict(tensorboard=False),
  )
"""


def settings(folder, *more):
  recipe = folder / "recipe.py"
  recipe.write_text(RECIPE.replace("{folder}", str(folder)))
  return cli.load(str(recipe), more, RunConfig)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  folder = tmp_path_factory.mktemp("priors")
  tiny.write_model(folder / "model")
  config = settings(folder)
  return config, folder / "w", one_run.train(config, folder / "w")


def losses(workdir, name="loss"):
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [row[name] for row in rows if name in row]


def logits(vlm, batch):
  graph, state = nnx.split(vlm)
  return np.asarray(jax.jit(lambda state, batch: nnx.merge(graph, state)(batch))(state, batch))


@pytest.fixture(scope="module")
def batch(trained):
  config, _, _ = trained
  processor = load_processor(config.model.path, priors=priors.reader_of(config.priors))
  return next(iter(pipeline.validation_batches(config.data, processor, 4)))[0]


def test_their_layers_are_trained_and_lie_beside_both_models(trained):
  config, workdir, _ = trained
  for folder in ("adapter", "model"):
    said = json.loads((workdir / folder / "priors.json").read_text())
    assert said["format"] == "spatialvlm-priors-1" and [*said["priors"]] == ["map", "place"]
    found = load_file(workdir / folder / "priors.safetensors")
    assert {
      f"{name}.{part}" for name in config.priors for part in ("into.kernel", "into.bias", "out.kernel")
    } == {*found}
    assert found["map.out.kernel"].shape == (128, 16) and all(np.abs(v).max() > 0 for v in found.values())
  assert not any("prior" in name for name in load_file(workdir / "model" / "model.safetensors"))


def test_what_is_read_back_says_what_the_run_says(trained, batch):
  """Of the run's checkpoint, its adapter over the base, and the merged model: one answer."""
  config, workdir, _ = trained
  said = logits(runs.find(ModelConfig(str(workdir))).load(None), batch)
  adapter = loading.find(config.model, str(workdir / "adapter"))
  merged = loading.find(ModelConfig(str(workdir / "model")))
  assert adapter.priors == merged.priors == config.priors and "priors" in adapter.identity()
  np.testing.assert_allclose(logits(adapter.load(None), batch), said, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(logits(merged.load(None), batch), said, rtol=1e-3, atol=1e-3)
  plain = logits(priors.without(merged.load(None)), batch)
  assert np.abs(plain - said).max() > 1e-2


def test_a_prompts_pictures_bring_their_shots(trained):
  """The loaded run is asked about a picture with its map, with another, and without any."""
  config, workdir, _ = trained
  vlm = spatialvlm.load_vlm(workdir)
  example = open_source(config.data.sources["own"])[0]
  prompt = example.turns[0].prompt
  ask = lambda shots: vlm.score_choices(example.images[0], prompt, ("A", "B"), letters=True, shots=shots)
  own, (shot,) = ask(example.shots), example.shots
  near = dataclasses.replace(shot, depth=lambda: shot.depth() / 3)
  assert np.abs(own - ask([near])).max() > 1e-4
  encoded = vlm.processor.encode_prompt(example.images, prompt, shots=example.shots)
  batch = Batch(
    tokens_BT=encoded.tokens[None],
    valid_BT=np.ones((1, len(encoded.tokens)), bool),
    pixels_NHWC=encoded.tiles,
    normal=encoded.normal,
    image_slot_BT=encoded.image_slot[None],
    extra=encoded.extra,
  )
  ids = list(vlm.processor.letter_ids(2))
  np.testing.assert_allclose(own, log_softmax(logits(vlm.model, batch)[0, -1])[ids], rtol=1e-3, atol=1e-3)
  with pytest.raises(UserError, match="prior 'map' needs a map of depth"):
    ask(())
  with pytest.raises(UserError, match="these images bring no values of it"):
    vlm.logits(encoded.tokens[None], pixel_values=encoded.pixels.transpose(0, 3, 1, 2))


def test_interrupted_it_ends_with_the_same_bits(trained, tmp_path, monkeypatch):
  config, workdir, _ = trained
  with interrupted.at_each_batch(monkeypatch):
    assert not one_run.train(config, tmp_path / "w")["finished"]
  assert one_run.train(config, tmp_path / "w")["finished"]
  for name in ("adapter/priors.safetensors", "adapter/adapter_model.safetensors"):
    first, second = load_file(workdir / name), load_file(tmp_path / "w" / name)
    assert all(np.array_equal(first[k], second[k]) for k in first)


def test_without_them_the_first_step_is_the_same_and_the_next_is_not(trained, tmp_path):
  """A projection that starts at zero: the loss of the first step knows nothing of it yet."""
  config, workdir, _ = trained
  bare = dataclasses.replace(
    config, priors={}, train=dataclasses.replace(config.train, steps=2, export=False)
  )
  one_run.train(bare, tmp_path / "w")
  ours, theirs = losses(workdir), losses(tmp_path / "w")
  assert ours[0] == theirs[0] and ours[1] != theirs[1]


def test_a_run_goes_on_from_them_and_only_with_them(trained, tmp_path):
  """With nothing trained beside them, too."""
  config, workdir, _ = trained
  before = ModelConfig(str(workdir / "model"))
  none = dataclasses.replace(config, model=before, priors={})
  with pytest.raises(UserError, match=r"a model with a prior 'map' .* which config\.priors lacks"):
    one_run.train(none, tmp_path / "none")
  assert not (tmp_path / "none").exists()
  train = dataclasses.replace(config.train, steps=1, validate_every=1, checkpoint_every=0)
  slow = dataclasses.replace(config.optim, learning_rate=1e-12)
  alone = PeftConfig(method="none", target="")
  again = dataclasses.replace(config, model=before, peft=alone, train=train, optim=slow)
  summary = one_run.train(again, tmp_path / "w")
  assert [*summary["exported"]] == ["model"] and (tmp_path / "w" / "model" / "priors.json").is_file()
  np.testing.assert_allclose(
    losses(tmp_path / "w", "validation/loss")[-1], losses(workdir, "validation/loss")[-1], rtol=1e-4
  )


@pytest.mark.parametrize(
  ("more", "says"),
  [
    ([("priors.map.kind", "depth")], r"priors\.map\.kind: unknown 'depth'"),
    ([("priors.map.kwargs.cells", "0")], r"priors\.map\.kwargs: cells must be at least 1"),
    ([("priors.place.kwargs.frame", "room")], r"'room' is not one of"),
    (
      [("data.sources.own", "{'kind': 'llava', 'path': '{folder}/data.jsonl'}")],
      r"prior 'map' needs a map of depth",
    ),
    ([("eval.controls", "('no_prior',)"), ("priors", "{}")], r"'no_prior' takes away .* this model has none"),
    (
      [("losses.t.kind", "distil"), ("teachers.teacher.path", "{run}/model")],
      "has priors .* which no teacher is told",
    ),
  ],
)
def test_what_cannot_be_is_told_before_anything_is_written(trained, tmp_path, more, says):
  _, workdir, _ = trained
  folder = workdir.parent
  tiny.write_data(folder)
  filled = [(k, v.replace("{folder}", str(folder)).replace("{run}", str(workdir))) for k, v in more]
  with pytest.raises(UserError, match=says):
    one_run.train(settings(folder, *filled), tmp_path / "w")
  assert not (tmp_path / "w").exists()
