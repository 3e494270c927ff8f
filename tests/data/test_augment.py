"""Changed pictures: drawn by seed and position, named colours kept, shown to the model alone."""

import dataclasses

import numpy as np
import pytest

from spatialvlm.config import AugmentConfig, DataConfig, LlavaConfig
from spatialvlm.data import pipeline
from spatialvlm.data.augment.change import Augment
from spatialvlm.data.augment.photometric import changed, names_colour
from spatialvlm.data.tile_keys import ONCE, TILE_KEY
from spatialvlm.data.views import View
from spatialvlm.processing.processor import load_processor
from spatialvlm.types import Example, Turn, UserError
from spatialvlm.worlds import world
from tests.launch import tiny

ALL = AugmentConfig(brightness=0.3, contrast=0.3, saturation=0.5, hue=0.2, blur=1.5, noise=8.0, jpeg=40)


def picture(seed=0):
  rng = np.random.default_rng(seed)
  smooth = np.linspace(60, 190, 24)[:, None, None] + rng.uniform(-40, 40, (1, 1, 3))
  return (np.broadcast_to(smooth, (24, 20, 3)) + rng.uniform(-9, 9, (24, 20, 3))).astype(np.uint8)


def example(prompt="How far is the box?"):
  return Example((picture(), picture(1)), (Turn(prompt, "2 m"),), dense={"depth": np.ones((24, 20))})


def alone(draw=0, **one):
  return changed(picture(), AugmentConfig(**one), np.random.default_rng(draw)).astype(float)


def test_what_is_drawn_follows_from_seed_and_position():
  given = example()
  one, again, later = (Augment(ALL, 5)(given, position) for position in (7, 7, 8))
  other = Augment(ALL, 6)(given, 7)
  for ours, same, *rest in zip(*(e.images for e in (one, again, later, other, given)), strict=True):
    assert ours.dtype == np.uint8 and np.array_equal(ours, same)
    assert not any(np.array_equal(ours, theirs) for theirs in rest)
  assert one.turns == given.turns and one.dense is given.dense
  none = Augment(AugmentConfig(), 5)(given, 7)
  assert all(np.array_equal(a, b) for a, b in zip(none.images, given.images, strict=True))
  some = [Augment(dataclasses.replace(ALL, share=0.3), 5)(given, n) is not given for n in range(300)]
  assert 60 < sum(some) < 120


def test_each_change_does_its_own():
  before = picture().astype(float)
  grey = before @ [0.299, 0.587, 0.114]
  factor = np.median(alone(brightness=0.3) / before)
  assert np.abs(alone(brightness=0.3) - factor * before).max() < 1 and abs(factor - 1) > 0.01
  after = alone(contrast=0.4)
  assert abs(after.mean() - before.mean()) < 1 and abs(after.std() / before.std() - 1) > 0.02
  for colour in (alone(saturation=0.9), alone(hue=0.3)):
    assert np.abs(colour @ [0.299, 0.587, 0.114] - grey).max() < 2.5  # luma is kept
    assert np.abs(colour - before).max() > 3
  rough = lambda x: np.abs(np.diff(x, axis=0)).mean()
  assert rough(alone(blur=2.0)) < 0.8 * rough(before) < rough(before) < 0.9 * rough(alone(noise=20.0))
  jpeg = np.abs(alone(jpeg=5) - before)
  assert 0.5 < jpeg.mean() < 20


def test_a_named_colour_is_kept():
  colours = AugmentConfig(saturation=1.0, hue=0.5)
  for prompt in ("Is the red box nearer?", "Which colour has it?", "The greyish one", "A. GREEN"):
    assert names_colour(example(prompt)), prompt
    assert np.array_equal(Augment(colours)(example(prompt), 0).images[0], picture()), prompt
  assert not names_colour(example("How many redwoods are tangled, olivers?"))
  assert not np.array_equal(Augment(colours)(example(), 0).images[0], picture())
  for word in (*world.COLORS, *world.BOX_COLORS):
    assert names_colour(example(f"the {word} cone")), word


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    (dict(hue=0.6), r"config\.data\.augment\.hue: 0\.6 is out of range; use a number from 0 to 0\.5"),
    (dict(brightness=1.0), r"brightness: 1\.0 is out of range; use a number from 0 to 0\.9"),
    (dict(blur=-1.0), r"blur: -1\.0 is out of range; use a number from 0$"),
    (dict(noise=float("nan")), r"noise: nan is out of range"),
    (dict(jpeg=96), r"jpeg: 96 is out of range; .* to 95"),
  ],
  ids=str,
)
def test_settings_out_of_range(wrong, message):
  with pytest.raises(UserError, match=message):
    Augment(AugmentConfig(**wrong))


def test_the_model_is_shown_them_and_a_plain_teacher_is_not(tmp_path):
  """Held-out pictures stay; keys say that a changed picture does not come again."""
  processor = load_processor(tiny.write_model(tmp_path / "model"))
  source = LlavaConfig(path=str(tiny.write_data(tmp_path)))
  data = DataConfig(
    sources={"own": source}, validation={"own": source}, lengths=(96,), tiles=(1,), workers=0, shuffle=False
  )
  light = dataclasses.replace(data, augment=AugmentConfig(brightness=0.5, noise=5.0))
  views = {"plain": View(processor, pictures=True, plain=True), "same": View(processor, pictures=True)}
  quiet = dict(on_note=lambda text: None, keys=True)
  first = lambda config, **more: next(pipeline.training_stream(config, processor, 12, **quiet, **more))[0]
  plain, batch = first(data), first(light, views=views, known=lambda key: True)
  shown = batch.pixels_NHWC
  assert not np.array_equal(shown, plain.pixels_NHWC) and np.array_equal(batch.tokens_BT, plain.tokens_BT)
  assert np.array_equal(batch.view("plain").pixels_NHWC, plain.pixels_NHWC)
  assert np.array_equal(batch.view("same").pixels_NHWC, shown)
  assert (batch.extra[TILE_KEY].array == ONCE).all() and (plain.extra[TILE_KEY].array != ONCE).any()
  # The same pictures come again in the next batch, in other light.
  stream = pipeline.training_stream(light, processor, 12, **quiet)
  one, other = next(stream)[0], next(stream)[0]
  assert np.array_equal(one.pixels_NHWC, shown) and np.array_equal(one.tokens_BT, other.tokens_BT)
  assert not np.array_equal(one.pixels_NHWC, other.pixels_NHWC)
  held = [next(iter(pipeline.validation_batches(c, processor, 12, **quiet)))[0] for c in (data, light)]
  assert np.array_equal(held[0].pixels_NHWC, held[1].pixels_NHWC)
