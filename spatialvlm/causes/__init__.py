"""What an answer hangs on: interventions on a picture and on a decoder, over questions whose truth is known.

- `reader.Reader`: a model that is asked one question many times, a little changed each time, in programs of
  fixed shape; `models.interventions` is what can be changed within.
- `cases.TASKS`: kinds of question about rendered scenes, with masks and boxes of what they name.
- `regions`: places that are taken away, each with a control of the same shape.
- `one.causes(reader, case) -> record.Causes`: everything about one question, as arrays; `panel.panel` shows
  it.
- `parts.PARTS`: what is measured over a benchmark; a new one is a file and a line there.
  `run.run(ExplainConfig, folder)`: all of them, for `launch/explain.py`.

Every number stands beside a control that could refute it: an object that is not named, the same mask at
another place, random maps, another seed, drawn weights.
"""
