"""A model with its processor, found by path, and questions about rendered scenes to fit a tuned lens on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from spatialvlm import loading, priors
from spatialvlm.config import ModelConfig, ScenesConfig
from spatialvlm.data.sources import registry
from spatialvlm.models.vlm import Vlm
from spatialvlm.processing.encoded import Encoded
from spatialvlm.processing.processor import Processor, load_processor

# Of the rendered world that tuned lenses are fitted on; no recipe trains or scores there.
LENS_SEED = 5_000_000


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded:
  """A model in memory.

  Attributes:
    name: as its page calls it.
    vlm, processor: the model, and how it is asked.
    identity: hashes of all that was read.
  """

  name: str
  vlm: Vlm
  processor: Processor
  identity: Callable[[], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True, eq=False)
class Opened:
  """A model that was found, and how it is shown pictures.

  Attributes:
    config: its numbers and tiles.
    found: its files.
    missing_priors: as of `ScoreConfig`: what its priors say of pictures that lack something.
  """

  config: ModelConfig
  found: loading.Found
  missing_priors: str = ""

  def load(self) -> Loaded:
    """Puts it on the default device.

    Raises:
      UserError: files that are missing or broken.
    """
    loading.note_pictures(self.found, self.config)
    known = priors.with_missing(self.found.priors, self.missing_priors)
    vlm = self.found.load(None)
    taken = vlm.config.text.max_length - vlm.max_length  # by a soft prompt
    reads = priors.reader_of(known)
    processor = load_processor(self.found.folder, reserved=taken, priors=reads, **self.config.tiling)
    return Loaded(self.found.name, vlm, processor, self.found.identity)


def scene_prompts(processor: Processor, count: int) -> list[Encoded]:
  """Prompts of questions about as many rendered scenes, in the data set's own form."""
  questions = registry.open_questions(ScenesConfig(seed=LENS_SEED, size=count))
  found = registry.read(questions, range(count))
  return [processor.encode_prompt(q.images, q.prompt, shots=q.shots) for q in found]
