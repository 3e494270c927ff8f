"""From a question to what a model reads, and from its answer to a row. Knows no scores and no tables.

- `protocols`: how a question is put, as data: one line of `PROTOCOLS` is one way of asking, named in every
  result.
- `controls`: the questions again with other letters, another picture, none, or a mirrored one (`CONTROLS`).
- `extraction`: `extract_choice(output, choices, protocol)`, the letter that a free answer names, as the
  protocol's own harness reads it; "" for none.
- `asks`: the prompts of a question's passes, those that share text and picture as one, and their rows.

A row's letters are those of the options as the question came, whatever order they were shown in.
"""
