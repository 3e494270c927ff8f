"""One question seen from inside: where the model looks, what each patch says, when the answer is known.

- `asked.ask(processor, images, question, options, right) -> Asked`: a question as the model reads it;
  `of_runs.questions(run, ids)`: those of an evaluation's run, as it asked them.
- `explain.explain(model, processor, asked, settings) -> Record`: everything of it, of one pass of each tower
  and the gradient of one logit: attention of every layer and head from the words and from the answer's place
  to the image tokens, its rollout (Abnar and Zuidema, arXiv 2005.00928), its gradient-weighted form (Chefer
  et al., arXiv 2103.15679), the vision tower's own, and the logit lens of patches and answer by layer.
  `Settings.check` says what memory it takes, before.
- `record.Record`: what was found, frozen, of NumPy arrays; `write` makes an npz of it, `read` reads it back.
  `places` lays values of image tokens over a picture: the tiles in their places, the global view over all.
- `opened.Opened`: a model by its path, with its processor.
- `translators`: the tuned lens (Belrose et al., arXiv 2303.08112): one affine map a layer, fitted and kept.
- `page.page(record, panels) -> str`: one self-contained HTML file. A `Panel` is what another room has found
  of the same question. `drawing` makes PNGs for papers.

Not here: what happens when the model is interfered with. This room looks and touches nothing.
"""
