"""From a question to requests of `serving`, and from their answers to rows. Knows no scores and no tables.

- `protocols`: how a question is put, as data: one line of `PROTOCOLS` is one way of asking, named in every
  result. A `Prompter` turns questions into prompts.
- `controls`: the questions again with other letters, another picture, none, or a mirrored one (`CONTROLS`).
- `extraction`: `extract_choice(output, choices, protocol)`, the letter that a free answer names, as the
  protocol's own harness reads it; "" for none.
- `asks`: the requests of a question's passes, those that share text and picture as one, and the rows of their
  answers; the tag of all that is wanted is a `Reading`.

A row's letters are those of the options as the question came, whatever order they were shown in.
"""
