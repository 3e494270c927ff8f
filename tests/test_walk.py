"""docs/walk.md, walked: its example from the jsonl line to the loss, with the numbers that it names."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from spatialvlm import hub
from spatialvlm.config import ScoreConfig
from spatialvlm.config.sources import LlavaConfig
from spatialvlm.data import batch as batches
from spatialvlm.data.checks import check_encoded
from spatialvlm.data.sources.registry import open_source
from spatialvlm.evaluation.scoring.summary import summarize
from spatialvlm.models.outputs import Wants
from spatialvlm.processing.processor import load_processor
from spatialvlm.training.objectives import Answer
from spatialvlm.training.objectives.objective import Models
from tests.doc_links import ROOT
from tests.evaluation.support import row

PAGE = (ROOT / "docs" / "walk.md").read_text(encoding="utf-8")
WORDS = re.sub(r"\s+", " ", PAGE)
TINY = ROOT / "checkpoints" / "smolvlm-tiny"


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
  folder = tmp_path_factory.mktemp("walk")
  line = re.search(r"```json\n(.*?)\n```", PAGE, re.S)[1]
  (folder / "mine.jsonl").write_text(line + "\n")
  pixels = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
  Image.fromarray(pixels).save(folder / json.loads(line)["image"])
  example = open_source(LlavaConfig(path=str(folder / "mine.jsonl")))[0]
  processor = load_processor(TINY)
  encoded = processor.encode(example)
  check_encoded(encoded, example, processor.layout, longest=512)
  bucket = batches.bucket_of([encoded], lengths=(64, 128, 256), tiles=(1, 5), targets=8)
  batch = batches.collate([encoded], **bucket._asdict(), pad_id=processor.pad_id, batch_size=1)
  return processor, example, encoded, bucket, batch


def test_tiles_and_tokens(walked):
  processor, example, encoded, _, _ = walked
  assert example.images[0].shape == (96, 96, 3) and example.turns[0].prompt.startswith("<image>Which")
  text = processor.decode(encoded.tokens, skip_special_tokens=False)
  shown = re.sub(r"<fake_token_around_image><global-img>(<image>)+<fake_token_around_image>", "<image>", text)
  first, last = re.search(r"`(<\|im_start\|>User:<image>Which is nearer, )\.\.\.(\?.*?\\n)`", PAGE).groups()
  assert shown.startswith(first) and shown.endswith(last.replace("\\n", "\n"))
  assert f"tokenizes: {len(encoded.tokens)} token ids" in WORDS
  assert f"ends it: {np.count_nonzero(encoded.loss_mask)} tokens" in WORDS
  assert encoded.image_slot.max() == 63 and text.count("<image>") == 64
  assert processor.decode(encoded.tokens[encoded.loss_mask], skip_special_tokens=False) == (
    " the black sphere<end_of_utterance>"
  )


def test_batch(walked):
  bucket, batch = walked[3:]
  assert f"{bucket.length} tokens, {bucket.tiles} tile, {bucket.targets} targets" in PAGE
  supervised = [int(i) for i in batch.target_index_BK[0] if i >= 0]
  assert supervised == list(range(supervised[0], supervised[-1] + 1))
  assert f"{supervised[0]} to {supervised[-1]} and -1 behind" in PAGE
  assert batch.tokens_BT.shape == (1, 128) and batch.pixels_NHWC.shape == (1, 96, 96, 3)


def test_tower_connector_decoder_and_loss(walked):
  batch = jax.tree.map(jnp.asarray, walked[-1])
  vlm = hub.load_model(str(TINY))
  wants = Wants(vision=True, image=True, decoder_layers=(0,), hidden=True, logits=True)
  outputs = vlm.read(batch, wants)
  assert vlm.config.vision.patch_size == 12 and vlm.config.vision.depth == vlm.config.text.depth == 4
  for shape, said in (
    (outputs.vision.patches_NPD.shape, "share: {}"),
    (outputs.image.shape, "width, {}"),
    (outputs.decoder_layers[0].shape, "words: {}"),
    (outputs.logits.shape, "logits {}"),
  ):
    assert said.format(shape) in WORDS, said
  total, weight, _ = Answer()(outputs, Models(None, {}), batch, jax.random.key(0))
  targets = batch.tokens_BT[0, 86:90]
  log_p = jax.nn.log_softmax(vlm(batch)[0, 85:89])
  np.testing.assert_allclose(total, -log_p[np.arange(4), targets].sum(), rtol=1e-5)
  assert weight == 4 and "4 as its weight" in WORDS


def test_where_a_depth_question_is_counted():
  rows = [row(i, i % 2 > 0) for i in range(3)]
  asked = [("Depth", "3D", "Omni3D"), ("Count", "2D", "COCO"), ("Count", "2D", "ADE20K")]
  rows = [
    dataclasses.replace(r, task=task, type=kind, source=source)
    for r, (task, kind, source) in zip(rows, asked, strict=True)
  ]
  scores = summarize(rows, ScoreConfig(bootstrap=50))["scores"]
  named = set(re.findall(r'\["([a-zA-Z0-9/]+)"\]', PAGE.split("is counted in")[1]))
  right = summarize(
    [dataclasses.replace(rows[0], correct=not rows[0].correct), *rows[1:]], ScoreConfig(bootstrap=50)
  )
  moved = {name for name, score in right["scores"].items() if score["score"] != scores[name]["score"]}
  assert named == moved
