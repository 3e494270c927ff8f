"""Looks inside a model at one question: `python launch/explain.py --model=MODEL --image=FILE "question"`.

Writes one page (`explain.html`), PNGs and `record.npz` into `--out`: where it looks, what each patch says, at
which layer the answer is known (docs/inside.md). `--options=left,right` lists options by letters, `--right=A`
says which is right. `--run=RUN --ids=3,14` explains questions of an evaluation that was run, as it asked
them, in `RUN/explain/`, and links its report to them. `--lens=FOLDER` reads with a tuned lens too, which
`--fit_lens=512` fits there first, on questions about rendered scenes.

`--causes` adds what the answer hangs on to the page of a question with options.
`--config=configs/explain.py:tiny` asks that of models over a benchmark of rendered scenes, and takes
settings as `--config.key=value` alone.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

if not __package__:  # run by its path: the library of this checkout
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from absl import flags

from spatialvlm import cli
from spatialvlm.config import ExplainConfig
from spatialvlm.types import UserError, choice_prompt

FLAGS = flags.FLAGS
flags.DEFINE_string("model", None, "a model's or adapter's folder or hub id, or a training run's workdir")
flags.DEFINE_string("adapter", None, "PEFT folder that is put on the model")
flags.DEFINE_multi_string("image", [], "image file; may be repeated")
flags.DEFINE_list("options", [], "the options, separated by commas; none: a free question")
flags.DEFINE_string("right", "", "letter of the right option")
flags.DEFINE_string("out", "explain", "folder of page, record and drawings")
flags.DEFINE_string("run", None, "workdir of an evaluation whose questions are explained")
flags.DEFINE_list("ids", [], "numbers of its questions, separated by commas")
flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of weights and activations")
flags.DEFINE_integer("max_tiles", None, "tile budget of an image; fewer tiles are faster")
flags.DEFINE_list("layers", [], "decoder layers whose attention is kept, from 1 on, -1 the last; none: all")
flags.DEFINE_bool("heads", True, "attention of each head; --noheads: their mean")
flags.DEFINE_bool("words", True, "attention from each word; --nowords: from the answer's place alone")
flags.DEFINE_bool("rollout", True, "attention rollout, which reads all layers and positions")
flags.DEFINE_bool("gradient", True, "gradient-weighted relevance, a backward pass through the decoder")
flags.DEFINE_bool("vision", True, "attention of the vision tower")
flags.DEFINE_bool("vision_gradient", False, "gradient-weighted relevance through the vision tower too; slow")
flags.DEFINE_float("memory", 4.0, "GiB that all of it may take beside the model")
flags.DEFINE_string("lens", None, "folder of the model's tuned lens")
flags.DEFINE_integer("fit_lens", 0, "fit the tuned lens on so many questions first, and keep it in --lens")
flags.DEFINE_bool(
  "causes",
  False,
  "what the answer hangs on: places greyed, attention cut, states patched; hundreds of readings",
)
# Flags of one question beside those.
_ALONE = (
  "run",
  "ids",
  "dtype",
  "layers",
  "heads",
  "words",
  "rollout",
  "gradient",
  "vision",
  "vision_gradient",
)
_ALONE += ("memory", "lens", "fit_lens", "causes")
_OF_ONE = ("model", "adapter", "image", "options", "right", "max_tiles", "out")


def main(arguments: Sequence[str]) -> None:
  from spatialvlm.inside.explain import Settings

  layers = tuple(_numbers("layers", FLAGS.layers))
  names = ("heads", "words", "rollout", "gradient", "vision", "vision_gradient", "memory")
  settings = Settings(layers, **{name: getattr(FLAGS, name) for name in names})
  if FLAGS.fit_lens and not FLAGS.lens:
    raise UserError("--fit_lens: where is it kept? add --lens=FOLDER")
  if FLAGS.run:
    _of_run(arguments, settings)
  else:
    _one(arguments, settings)


def _one(arguments: Sequence[str], settings) -> None:
  """A question of the user's own."""
  if not FLAGS.model:
    raise UserError("--model is missing; name a folder or hub id, or smolvlm-tiny, which comes with us")
  if len(arguments) != 1:
    raise UserError(f"one question is wanted, got {len(arguments)}; put it in quotation marks")
  if FLAGS.ids:
    raise UserError("--ids: belongs to --run, whose questions they number")
  if not FLAGS.image:
    raise UserError("the question has no image; give one with --image=FILE")
  if FLAGS.causes and (len(FLAGS.options) < 2 or len(FLAGS.image) > 1):
    raise UserError(
      "--causes: is of one image and of two options at least; name them with --options=near,far"
    )
  from spatialvlm.config import ModelConfig
  from spatialvlm.inside import asked, explain, opened, written
  from spatialvlm.processing.images import open_image
  from spatialvlm.training import runs

  out = pathlib.Path(FLAGS.out).expanduser()
  written.check(out)
  images = [open_image(file) for file in FLAGS.image]
  config = ModelConfig(FLAGS.model, dtype=FLAGS.dtype, max_tiles=FLAGS.max_tiles)
  model = opened.Opened(config, runs.find(config, FLAGS.adapter)).load()
  question = asked.ask(model.processor, images, arguments[0], FLAGS.options, FLAGS.right)
  explain.check(model.vlm, question, settings)
  found = explain.explain(model.vlm, model.processor, question, settings, _lens(model), model.name)
  _tell(found)
  asks = None
  if FLAGS.causes:
    from spatialvlm.causes import one

    asks = one.case_of(images, choice_prompt(arguments[0], FLAGS.options), FLAGS.options, question.right)
  print(f"page, record and drawings: {_written(model, found, out, asks)}")


def _of_run(arguments: Sequence[str], settings) -> None:
  """Questions of an evaluation."""
  if arguments:
    raise UserError(f"unexpected argument {arguments[0]!r}: the questions are those of --run, named by --ids")
  for name in _OF_ONE:
    if FLAGS[name].present:
      raise UserError(f"--{name}: the run says it; leave it out beside --run")
  ids = _numbers("ids", FLAGS.ids)
  if not ids:
    raise UserError(
      "--ids is missing; write --ids=3,14, numbers of the run's questions as its report has them"
    )
  from spatialvlm.evaluation.asking.protocols import PROTOCOLS
  from spatialvlm.inside import explain, of_runs
  from spatialvlm.training import runs

  run = of_runs.open_run(pathlib.Path(FLAGS.run).expanduser(), runs.find)
  questions = of_runs.questions(run, ids)
  model = run.opened.load()
  translators = _lens(model)
  for question in questions:
    asked = of_runs.asked(run, model.processor, question)
    found = explain.explain(model.vlm, model.processor, asked, settings, translators, model.name)
    print(f"question {question.idx}: ", end="")
    _tell(found)
    asks = None
    if FLAGS.causes:
      from spatialvlm.causes import one

      asks = one.of_question(
        question, PROTOCOLS[run.protocol].text(question), PROTOCOLS[run.protocol].answer_prefix
      )
    print(_written(model, found, of_runs.folder_of(run, question.idx), asks))
  of_runs.link(run.folder)
  print(f"linked in {run.folder / 'report.html'}")


def _written(model, found, out: pathlib.Path, case) -> pathlib.Path:
  """Writes a question's page, with what its answer hangs on where there is a case; gives the page's path."""
  from spatialvlm.inside import written

  if case is None:
    return written.write(found, out)
  from spatialvlm.causes import one, panel, reader, record

  causes = one.causes(reader.Reader(model.vlm, model.processor, name=model.name), case)
  page = written.write(found, out, [panel.panel(causes)])
  record.write(causes, out / record.FILE)
  return page


def _lens(model):
  """The tuned lens that was asked for, fitted first where it is to be; None without one."""
  if not FLAGS.lens:
    return None
  from spatialvlm.inside import opened, translators
  from spatialvlm.reporting import terminal

  folder = pathlib.Path(FLAGS.lens).expanduser()
  if FLAGS.fit_lens:
    settings = translators.FitSettings(prompts=FLAGS.fit_lens)
    prompts = opened.scene_prompts(model.processor, settings.prompts + settings.heldout)
    with terminal.progress("fitting the tuned lens", unit="steps") as show:
      fitted = translators.fit(model.vlm, prompts, settings, show)
    translators.write(fitted, folder, model.identity(), settings)
    terminal.show(translators.table(fitted))
  return translators.read(folder, model.identity())


def _tell(found) -> None:
  """What it says, and from which layer on."""
  says = found.said if found.free else found.curves[found.chosen]
  right = "" if found.right < 0 else ", right" if found.right == found.chosen else ", wrong"
  layer = found.lens.overtakes(found.right if found.right >= 0 else found.chosen)
  whose = "the right one" if found.right >= 0 else "it"
  depth = len(found.lens.options) - 1
  known = "does not lead at the end" if layer is None else f"leads from layer {layer} of {depth} on"
  print(f"says {says!r}{right}; {whose} {known}")


def _numbers(name: str, texts: Sequence[str]) -> list[int]:
  try:
    return [int(text) for text in texts]
  except ValueError as error:
    raise UserError(f"--{name}: expected numbers separated by commas, got {','.join(texts)!r}") from error


def over_benchmark(config: ExplainConfig, workdir: str | None) -> None:
  """What models' answers hang on, over rendered scenes."""
  for name in (*_OF_ONE, *_ALONE):
    if FLAGS[name].present:
      raise UserError(
        f"--{name}: belongs to a single question; a benchmark's settings are --config.key=value"
      )
  from spatialvlm import workdir as workdir_lib
  from spatialvlm.causes.run import run as measure
  from spatialvlm.training import runs

  measure(config, workdir_lib.choose(workdir, config), runs.find)


def run() -> None:
  if any(argument.lstrip("-").startswith("config") for argument in sys.argv[1:] if argument.startswith("-")):
    cli.run(over_benchmark, ExplainConfig, "explain")
  else:
    cli.run(main)


if __name__ == "__main__":
  run()
