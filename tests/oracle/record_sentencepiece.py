"""Records what SentencePiece itself makes of texts: `python -m tests.oracle.record_sentencepiece`.

Needs the sentencepiece package, which nothing else here does. Two vocabularies of pairs with bytes to fall
back on, as Llama 2 and Gemma have them: texts begin with a space, or not, and then with pieces of users. They
are recorded as GGUF holds them, with ids of texts and the texts that ids make.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

FILE = Path(__file__).parents[1] / "recorded" / "sentencepiece.json"
USER = ["<start_of_turn>", "<end_of_turn>", "\n", "\n\n", "\n\n\n", "▁▁", "▁▁▁▁", "<h1>"]
TEXTS = [
  "",
  "a",
  " a",
  "  a  b",
  "The sphere is left of the cube; 12345 cones?",
  "I don't  know\n\n\nwhy\t(A) or (B)\n",
  "<start_of_turn>user\nWhich box? <end_of_turn>\n<start_of_turn>model\n",
  "漢字 and ümläut 🙂 ñ zażółć",
  "x = 1\n    y = 2\n         z",
  "trailing  ",
  "<h1>title</h1>",
  "▁ is no space",
]


def _kind(model, index: int) -> int:
  """llama.cpp's type of a piece."""
  kinds = {2: model.is_unknown(index), 3: model.is_control(index), 6: model.is_byte(index)}
  return next((kind for kind, holds in kinds.items() if holds), 1)


def main() -> None:
  import sentencepiece

  from tests.tiny_processor import TEXT

  found = {}
  for name, prefix, user in (("llama", True, []), ("gemma", False, USER)):
    stream = io.BytesIO()
    lines = [*TEXT.splitlines(), *(text for text in TEXTS if text.strip())] * 3
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(lines),
      model_writer=stream,
      vocab_size=520,
      model_type="bpe",
      byte_fallback=True,
      split_digits=True,
      normalization_rule_name="identity",
      remove_extra_whitespaces=False,
      add_dummy_prefix=prefix,
      user_defined_symbols=user,
      allow_whitespace_only_pieces=True,
      character_coverage=0.98,
      hard_vocab_limit=False,
      **dict(pad_id=0, eos_id=1, bos_id=2, unk_id=3, minloglevel=2, num_threads=1),
    )
    model = sentencepiece.SentencePieceProcessor(model_proto=stream.getvalue())
    pieces = [model.id_to_piece(i) for i in range(model.get_piece_size())]
    found[name] = {
      "keys": {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": [model.get_score(i) for i in range(len(pieces))],
        "tokenizer.ggml.token_type": [
          4 if piece in user else _kind(model, i) for i, piece in enumerate(pieces)
        ],
        "tokenizer.ggml.add_space_prefix": prefix,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
      },
      "cases": [[text, model.encode(text), model.decode(model.encode(text))] for text in TEXTS],
    }
  FILE.write_text(json.dumps(found, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
  main()
