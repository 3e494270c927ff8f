"""Kind "views": several pictures an example, through processor, batches and the cache of features."""

import dataclasses
import pathlib

import numpy as np
import pytest

from spatialvlm.config import AugmentConfig, DataConfig, RunConfig, ViewsConfig
from spatialvlm.configs import views as recipe
from spatialvlm.data import inspect, pipeline, tile_keys
from spatialvlm.data.sources import registry
from spatialvlm.processing.processor import load_processor
from spatialvlm.types import Deferred, UserError

TINY = pathlib.Path(__file__).resolve().parents[2] / "checkpoints" / "smolvlm-tiny"
VIEWS = ViewsConfig(seed=9, image_size=48, views=(2, 4))


@pytest.fixture(scope="module")
def processor():
  return load_processor(TINY)


def test_examples_are_the_questions_with_the_first_pictures_depth():
  questions, examples = registry.open_questions(VIEWS), registry.open_source(VIEWS)
  for i in range(12):
    question, example = questions[i], examples[i]
    assert example.turns[0].prompt == question.prompt and example.turns[0].answer == "AB"[question.answer]
    assert len(example.images) == len(question.images) == (2, 4)[i // 10]
    for a, b in zip(example.images, question.images, strict=True):
      np.testing.assert_array_equal(a, b)
    assert example.dense["depth"].shape == (48, 48) and example.geometry is None
  (later,) = examples.deferred([3])
  assert all(isinstance(image, Deferred) for image in later.images) and not later.dense
  np.testing.assert_array_equal(later.images[1].make(), examples[3].images[1])


def test_the_control_greys_all_pictures_but_one():
  one = registry.open_source(dataclasses.replace(VIEWS, only=2))
  every = registry.open_source(VIEWS)
  for i in range(4):
    assert one[i].turns == every[i].turns and not one[i].dense
    np.testing.assert_array_equal(one[i].images[1], every[i].images[1])
    assert all((image == 128).all() for n, image in enumerate(one[i].images) if n != 1)
  with pytest.raises(UserError, match="only: 3, but questions have 2 pictures or more"):
    registry.open_source(dataclasses.replace(VIEWS, only=3))


def data(**settings) -> DataConfig:
  held = {"sources": {"views": VIEWS}, "lengths": (256, 384, 768), "tiles": (2, 4, 8), "targets": 2}
  return DataConfig(**(held | settings))


def test_tokens_tiles_and_packed_rows(processor):
  mixed = pipeline.training_mixture(data())
  samples, encoded, _ = pipeline.read_good(mixed, range(12), processor, data())
  for sample, one in zip(samples, encoded, strict=True):
    assert one.images == (1,) * len(sample.example.images)
    count = np.count_nonzero(one.tokens == processor.layout.image_token_id)
    assert count == len(sample.example.images) * processor.layout.tokens_per_tile
  rows, _, held = pipeline.batch_rows(encoded, data(packing=True), processor)
  assert len(rows) < len(encoded) and sorted(i for row in held for i in row) == list(range(12))
  for row, of in zip(rows, held, strict=False):
    np.testing.assert_array_equal(row.tiles, np.concatenate([encoded[i].tiles for i in of]))


@pytest.mark.parametrize(("arg", "most"), [("tiny", 512), ("500m", 8192)])
def test_recipes_hold_their_questions(arg, most, processor):
  run = recipe.get_config(f"{arg},only=1")
  assert isinstance(run, RunConfig) and run.name.endswith("only-1") and max(run.data.lengths) <= most
  seeds = [*run.data.sources.values(), *run.data.validation.values(), run.eval.source]
  assert len({source.seed for source in seeds}) == 3 and all(source.only == 1 for source in seeds)
  small = dataclasses.replace(run.data, sources={"views": dataclasses.replace(VIEWS, views=seeds[0].views)})
  if arg == "tiny":  # whose tokenizer says how long its prompts are
    (seen, *_) = inspect.inspect_data(
      dataclasses.replace(small, validation={}), processor, 8, scan=24, show=0
    )
    assert not seen.problems and seen.count == 24
  for bad, message in (("huge", "no recipe 'huge'"), ("tiny,one=1", "cannot read 'tiny,one=1'")):
    with pytest.raises(UserError, match=message):
      recipe.get_config(bad)


def test_pictures_whose_features_are_kept_are_not_made(processor):
  """With an end, pictures come again, by names that tell them apart."""
  source = dataclasses.replace(VIEWS, size=6)
  stream = lambda known: pipeline.training_stream(
    data(sources={"views": source}, workers=0, shuffle=False), processor, 6, keys=True, known=known
  )
  batch, _ = next(stream(lambda key: False))
  keys = batch.extra[tile_keys.TILE_KEY].array
  tiles = np.asarray(batch.pixels_NHWC)
  known = {tuple(key) for key in keys.tolist()}
  again, _ = next(stream(known.__contains__))
  np.testing.assert_array_equal(again.extra[tile_keys.TILE_KEY].array, keys)
  real = keys[:, 0] >= tile_keys.NAMED
  assert real.sum() == 12 and tiles[real].any() and not np.asarray(again.pixels_NHWC)[real].any()
  # One key, one picture.
  for key in known:
    same = tiles[(keys == key).all(1)]
    assert (same == same[0]).all()


def test_changes_of_place_are_refused(processor):
  config = data(augment=AugmentConfig(flip=0.5), workers=0)
  with pytest.raises(UserError, match=r"'views'.*flip.*since 2 pictures"):
    pipeline.training_stream(config, processor, 2)
