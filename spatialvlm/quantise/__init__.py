"""Frozen weights in few bits, for adapters to be trained over (QLoRA).

- `FORMATS` (`formats`) lists the formats: `nf4`, `int8`, and `q4_0`, `q8_0` as llama.cpp runs them;
  `format.Format` says what one is. A new one is a file with its options and its array
  (`core.quantised.QuantisedArray`), and a line there.
- `chosen(ModelConfig) -> Format | None`: what the settings say, refused where it makes no sense.
- `replacements(format, target) -> (vlm -> {path: make})`: for `hub.load_model`, which then quantises each
  kernel as it is read, on the host: no device ever holds it in full.
- What a layer does with such a kernel, and how much memory it takes, is `core.quantised`'s.
"""

from spatialvlm.quantise.formats import FORMATS, chosen, replacements

__all__ = ["FORMATS", "chosen", "replacements"]
