"""What `import spatialvlm` offers: a model with its processor, in the words of transformers.

`LoadedVlm` is a `models.vlm.Vlm` with its `processing.processor.Processor` and folder. It takes arrays in
transformers' layout (`processing.arrays` makes a `Batch` of them): nested images that are all 0 are padding,
and the k-th image token of the whole batch reads the k-th image feature. `generate` pads prompts to a bucket;
`logits` keeps the given shape.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from spatialvlm import generation, hub, loading, peft, priors
from spatialvlm.config import ModelConfig, read_json
from spatialvlm.core.axes import make_mesh
from spatialvlm.depth.predict import depth_map
from spatialvlm.export import EXPORTERS, Exportable
from spatialvlm.models.outputs import Outputs, Wants
from spatialvlm.models.vlm import Vlm
from spatialvlm.processing import processor as processor_lib
from spatialvlm.processing import processor_files as files
from spatialvlm.processing.arrays import batch_from_arrays
from spatialvlm.processing.images import ImageSource, open_image
from spatialvlm.processing.processor import Encoded, Processor
from spatialvlm.serving import engine
from spatialvlm.serving.requests import Letters, Picture, Request, Texts, Wanted, prefix_length
from spatialvlm.serving.scorer import VlmScorer
from spatialvlm.training import runs
from spatialvlm.types import Batch, Shot, UserError, prior_values


def load_vlm(
  path_or_hub_id: str | os.PathLike,
  dtype: str = "float32",
  mesh: Mesh | Mapping[str, int] | None = None,
  *,
  revision: str | None = None,
  attention: str = "xla",
  max_tiles: int | None = None,
  longest_edge: int | None = None,
  split_images: bool | None = None,
  enlarge: bool = True,
  pixels: str = "exact",
  layout: str = "own",
  quantize: str | None = None,
  quantize_block: int | None = None,
  quantize_double: bool | None = None,
  quantize_target: str | Sequence[str] | None = None,
) -> LoadedVlm:
  """Loads a SmolVLM, InternVL or PaliGemma, or a language model by itself (Llama and SmolLM2, Qwen2, Gemma,
  Gemma 2), from a local folder or the hub, in Hugging Face's format; a language model also from a GGUF file.

  The folder may also hold a model whose encoder was replaced or joined (`hub.assemble`), a PEFT adapter,
  which names its base, or be the workdir of a training run.

  Args:
    dtype: "float32" or "bfloat16".
    mesh: devices to shard the model over: a mesh, or its sizes such as `{"fsdp": 4}`.
    revision: of a hub repository.
    attention: "xla", "blocked", "whole", "cudnn" on a GPU in bfloat16, or "splash" on a TPU, as of
      `models.execution.Execution`.
    max_tiles, longest_edge, split_images, enlarge, pixels, layout: how images are cut, as `load_processor`
      has it.
    quantize, quantize_block, quantize_double, quantize_target: keep kernels in few bits, as `ModelConfig` has
      it: "nf4" or "int8". A training run's workdir brings its own.

  Raises:
    UserError: the model cannot be found or read, or does not fit its config.
  """
  mesh = mesh if mesh is None or isinstance(mesh, Mesh) else make_mesh(mesh)
  if not (quantize_target is None or isinstance(quantize_target, str)):
    quantize_target = tuple(quantize_target)
  asked = ModelConfig(
    str(path_or_hub_id),
    revision,
    dtype,
    attention=attention,
    max_tiles=max_tiles,
    longest_edge=longest_edge,
    split_images=split_images,
    enlarge=enlarge,
    pixels=pixels,
    layout=layout,
    quantize=quantize,
    quantize_block=quantize_block,
    quantize_double=quantize_double,
    quantize_target=quantize_target,
  )
  found = runs.find(asked)
  loading.note_pictures(found, asked)
  options = {**asked.tiling, "priors": priors.reader_of(found.priors)}
  loaded = LoadedVlm(found.load(mesh), found.folder, found.base, mesh, options)
  loaded.trained = found.trained
  return loaded


def load_processor(
  path_or_hub_id: str | os.PathLike, *, revision: str | None = None, **options: Any
) -> Processor:
  """The processor of a local folder or a hub id; `options` as of `processing.processor.load_processor`.

  Raises:
    UserError: the folder or one of its files is missing or broken.
  """
  return processor_lib.load_processor(hub.resolve(path_or_hub_id, revision), **options)


class LoadedVlm(peft.WithAdapters):
  """A model from a checkpoint, with or without an adapter.

  The arrays that its methods take are those of transformers' processors: input_ids and attention_mask
  (B, T), padded on either side; pixel_values (B, I, 3, H, W), where images that are all 0 are padding, or
  flat, (N, 3, H, W); pixel_attention_mask (B, I, H, W); PaliGemma's token_type_ids (B, T), 1 behind its
  prefix. NumPy, JAX or PyTorch arrays on the CPU.

  Attributes:
    model: the `models.vlm.Vlm`.
    folder: local folder that it came from.
    name: path or hub id of the model, without an adapter.
    mesh: the devices that it is sharded over, or None.
    trained: the settings that it was trained with, where they are known.
  """

  trained: ModelConfig | None = None

  def __init__(self, model: Vlm, folder: Path, name: str, mesh: Mesh | None, options: Mapping[str, Any]):
    self.model, self.folder, self.name, self.mesh = model, folder, name, mesh
    self._options = options

  @functools.cached_property
  def processor(self) -> Processor:
    """The checkpoint's processor, read when it is first needed."""
    context = self.model.config.text.max_length
    return processor_lib.load_processor(
      self.folder, max_length=context, reserved=context - self.model.max_length, **self._options
    )

  @functools.cached_property
  def _ends(self) -> tuple[tuple[int, ...], int]:
    """Stop tokens and padding of `generate`: as generation_config.json says, else as the tokenizer does."""
    said = read_json(self.folder / "generation_config.json")
    stops, pad = tuple(files.as_list(said.get("eos_token_id"))), said.get("pad_token_id")
    if (self.folder / "tokenizer.json").is_file():
      stops = stops or self.processor.stop_ids
      pad = self.processor.pad_id if pad is None else pad
    return stops, pad if pad is not None else next(iter(stops), 0)

  def logits(
    self,
    input_ids: Any,
    attention_mask: Any = None,
    pixel_values: Any = None,
    pixel_attention_mask: Any = None,
    token_type_ids: Any = None,
  ) -> np.ndarray:
    """Float32 (B, T, V): at each position the scores of the next token.

    Every new shape of the arrays is compiled once.

    Raises:
      UserError: arrays that do not belong together, or longer than the context.
    """
    batch = self._batch(
      input_ids, attention_mask, pixel_values, pixel_attention_mask, token_type_ids, padded=False
    )
    self._check_length(int(batch.valid_BT.sum(axis=1).max()))
    graphdef, state = nnx.split(self.model)
    with self._context():
      return np.asarray(_logits(graphdef, state, batch))

  def read(
    self,
    wants: Wants,
    input_ids: Any,
    attention_mask: Any = None,
    pixel_values: Any = None,
    pixel_attention_mask: Any = None,
    token_type_ids: Any = None,
  ) -> Outputs:
    """The model's inside: image tokens, layers of either tower, attention probabilities, hidden states.

    One pass for all that is wanted; arrays keep the given shape. `logits` has its own method.

    Args:
      wants: e.g. `Wants(image=True, decoder_layers=(6, -1), attention=(3,))`; `models.outputs` says what
        there is, and in which shapes.

    Raises:
      UserError: as `logits`; a layer that the model has not.
    """
    batch = self._batch(
      input_ids, attention_mask, pixel_values, pixel_attention_mask, token_type_ids, padded=False
    )
    self._check_length(int(batch.valid_BT.sum(axis=1).max()))
    graphdef, state = nnx.split(self.model)
    with self._context():
      return _read(graphdef, state, batch, wants)

  def generate(
    self,
    input_ids: Any,
    attention_mask: Any = None,
    pixel_values: Any = None,
    pixel_attention_mask: Any = None,
    token_type_ids: Any = None,
    *,
    max_new_tokens: int,
    stop: bool = True,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
  ) -> np.ndarray:
    """int32 (B, max_new_tokens): what follows each prompt, its stop token included, then padding.

    Args:
      stop: false decodes the full number of tokens.
      temperature: 0 for greedy decoding; else `generation.generate` draws, within `top_p`, from `seed`.

    Raises:
      UserError: as `logits`, or no room for `max_new_tokens` in the context.
    """
    stop_ids, pad_id = self._ends
    return generation.generate(
      self.model,
      self._batch(input_ids, attention_mask, pixel_values, pixel_attention_mask, token_type_ids),
      max_new_tokens=max_new_tokens,
      stop_ids=stop_ids,
      pad_id=pad_id,
      temperature=temperature,
      top_p=top_p,
      seed=seed,
      stop=stop,
      mesh=self.mesh,
    )

  def chat(self, images: Any, prompt: str, **kwargs: Any) -> str:
    """The answer to a prompt about images; arguments as of `chat_stream`."""
    return "".join(self.chat_stream(images, prompt, **kwargs)).strip()

  def chat_stream(
    self,
    images: ImageSource | Sequence[ImageSource] | None,
    prompt: str,
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    shots: Sequence[Shot] = (),
  ) -> Iterator[str]:
    """Yields the answer piece by piece, as it is decoded.

    Args:
      images: paths, file contents, PIL images or arrays; one, several, or None.
      prompt: may say by `<image>` marks where the images stand; else they stand first.
      max_new_tokens: at most; less where the context ends before.
      shots: how each image was taken, for a model with priors.

    Raises:
      UserError: an image cannot be read, the prompt is longer than the context, shots lack what a prior
        needs.
    """
    encoded = self._prompt(images, prompt, shots)
    room = self.model.max_length - len(encoded.tokens)
    self._check_length(len(encoded.tokens) + 1)
    tokens = generation.stream(
      self.model,
      _prompt_batch(encoded),
      max_new_tokens=min(max_new_tokens, room),
      stop_ids=self.processor.stop_ids,
      pad_id=self.processor.pad_id,
      temperature=temperature,
      top_p=top_p,
      seed=seed,
      mesh=self.mesh,
    )
    yield from _pieces(self.processor, (int(token_B[0]) for token_B in tokens))

  def score_choices(
    self,
    images: ImageSource | Sequence[ImageSource] | None,
    prompt: str,
    choices: Sequence[str],
    letters: bool = False,
    shots: Sequence[Shot] = (),
  ) -> np.ndarray:
    """Float32 (K,): the log-probability of each choice as the answer to a prompt.

    The prompt, with its images, is read once for all choices.

    Args:
      choices: option texts. The log-probabilities of a text's tokens are summed, without its end of
        utterance and without regard to its length.
      letters: score the letters A, B, ... of the choices instead, which the prompt must then name.
      shots: as of `chat_stream`.

    Raises:
      UserError: no choices, numbers that are not finite, or as `chat_stream`.
    """
    if not choices:
      raise UserError("score_choices: there are no choices")
    encoded = self._prompt(images, prompt, shots)
    if letters:
      wanted = Letters(tuple(self.processor.letter_ids(len(choices))))
    else:
      wanted = Texts(tuple(tuple(self.processor.answer_ids(choice)) for choice in choices))
    longest = 1 if letters else max(map(len, wanted.texts))
    self._check_length(len(encoded.tokens) + longest)
    request = _request(encoded, wanted, self.model.config.prefix_lm)
    scorer = VlmScorer(self.model, self.mesh)
    (answer,) = engine.answers(scorer, [request], pad_id=self.processor.pad_id)
    return answer.logprobs

  def depth(self, image: ImageSource, head: str | os.PathLike, shots: Sequence[Shot] = ()) -> np.ndarray:
    """How far everything in a picture is, float32 (H, W) of its own size.

    Metres along the optical axis; of a head that was trained with `metric=False`, metres up to a factor.

    Args:
      image: what `images.open_image` reads.
      head: `heads/NAME.json` of a run with a loss of kind `dense_depth`, on this model or its base.
      shots: of the one picture, as of `chat_stream`.

    Raises:
      UserError: no such head, or one of another kind or for another model; no picture.
    """
    return depth_map(self.model, self.processor, image, head, self._context(), shots)

  def save_adapter(self, folder: str | os.PathLike) -> Path:
    """Writes the model's adapter as a folder that `peft` loads.

    Raises:
      UserError: there is no adapter, or the disk is full.
    """
    return EXPORTERS["adapter"].write(self._exportable, Path(folder))

  def save(self, folder: str | os.PathLike) -> Path:
    """Writes a whole checkpoint that transformers loads; an adapter is merged into it.

    Raises:
      UserError: the disk is full or not writable; nothing half-written stays.
    """
    return EXPORTERS["merged"].write(self._exportable, Path(folder))

  @property
  def _exportable(self) -> Exportable:
    return Exportable(self.model, self.name, self.folder, self.trained)

  def _prompt(self, images: Any, prompt: str, shots: Sequence[Shot] = ()) -> Encoded:
    if images is None:
      images = ()
    elif not isinstance(images, (list, tuple)):
      images = (images,)
    names = [
      "" if isinstance(image, (str, os.PathLike)) else f"image {i + 1}" for i, image in enumerate(images)
    ]
    return self.processor.encode_prompt(list(map(open_image, images, names)), prompt, shots=shots)

  def _batch(self, input_ids, *rest: Any, padded: bool = True) -> Batch:
    config = self.model.config
    shape = np.shape(input_ids)
    length = generation.bucket(shape[1], 16) if padded and len(shape) == 2 and shape[1] else None
    return batch_from_arrays(
      input_ids,
      *rest,
      image_token_id=config.image_token_id,
      vocab_size=config.text.vocab_size,
      tokens_of_tile=config.image_tokens,
      length=length,
      bidirectional=config.prefix_lm,
    )

  def _check_length(self, length: int) -> None:
    most = self.model.max_length
    if length > most:
      raise UserError(
        f"{length} tokens exceed the model's context of {most}; shorten the prompt or lower max_tiles"
      )

  def _context(self) -> contextlib.AbstractContextManager[Any]:
    return jax.set_mesh(self.mesh) if self.mesh is not None else contextlib.nullcontext()


@functools.partial(jax.jit, static_argnames="graphdef")
def _logits(graphdef, state, batch: Batch) -> jax.Array:
  return nnx.merge(graphdef, state)(batch)


@functools.partial(jax.jit, static_argnames=("graphdef", "wants"))
def _read(graphdef, state, batch: Batch, wants: Wants) -> Outputs:
  return nnx.merge(graphdef, state).read(batch, wants)


def _request(encoded: Encoded, wanted: Wanted, bidirectional: bool) -> Request:
  """A prompt, all of it bidirectional or none, and its images, which nobody else asks about."""
  count = len(encoded.tiles)
  return Request(
    tokens=encoded.tokens,
    image_slot=encoded.image_slot,
    prefix=prefix_length(encoded.image_slot, len(encoded.tokens) * bidirectional),
    wanted=(wanted,),
    bidirectional=bidirectional,
    image="images" if count else None,
    picture=(lambda: Picture(tiles=encoded.pixels, priors=prior_values(encoded.extra))) if count else None,
    tile_count=count,
    name="the prompt",
  )


def _prompt_batch(encoded: Encoded) -> Batch:
  """One prompt, padded on the right to a length of few."""
  length = generation.bucket(len(encoded.tokens), 16)
  pad = lambda array, value: np.pad(array, (0, length - len(array)), constant_values=value)[None]
  pixels = {
    "pixels_NHWC": encoded.tiles,
    "normal": encoded.normal,
    "image_slot_BT": pad(encoded.image_slot, -1),
    "extra": encoded.extra,
  }
  return Batch(
    tokens_BT=pad(encoded.tokens, 0),
    valid_BT=pad(np.ones(len(encoded.tokens), bool), False),
    **(pixels if len(encoded.tiles) else {}),
  )


def _pieces(processor: Processor, tokens: Iterator[int]) -> Iterator[str]:
  """Text of a stream of tokens; a character of several tokens comes when it is whole."""
  ids: list[int] = []
  done = 0
  text = ""
  for token in tokens:
    ids.append(token)
    text = processor.decode(ids).lstrip()
    if not text.endswith("\ufffd") and len(text) > done:
      yield text[done:]
      done = len(text)
  if len(text) > done:
    yield text[done:]
