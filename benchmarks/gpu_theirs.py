"""What `benchmarks/gpu.py` measures of transformers and PEFT."""

from __future__ import annotations

import argparse
import importlib.util

from benchmarks import compare_torch, gpu
from benchmarks.gpu_parts import ALPHA, NEW_TOKENS, RANK, SIZES, TARGETS, Counts, Work, measured, names_of


def theirs(args: argparse.Namespace) -> None:
  """transformers' and PEFT's rows, on the GPU where there is one."""
  import torch
  import transformers

  from spatialvlm import hub
  from spatialvlm.configs.lora import EVERY_LINEAR

  sizes, folder = SIZES[args.shape], args.out / "weights"
  device = "cuda" if torch.cuda.is_available() else "cpu"
  wait = torch.cuda.synchronize if device == "cuda" else lambda: None
  config = hub.read_config(folder)
  counts = Counts(folder)
  said = f"theirs: torch {torch.__version__}, transformers {transformers.__version__}, {device}"
  gpu.note(args.out, part=args.part, said=said)

  def load(attention: str = "sdpa"):
    kind = transformers.AutoModelForImageTextToText
    return kind.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation=attention).to(device).eval()

  def tensors(work: Work):
    found = compare_torch.inputs(
      work.tiles, work.batch, work.length, config.vision.image_size, config.image_token_id
    )
    put = lambda value: torch.tensor(value, device=device)
    return {k: put(v).to(torch.bfloat16) if v.dtype.kind == "f" else put(v) for k, v in found.items()}

  def done(call):
    call()
    wait()

  def note(name: str, work: Work, flops: float, call) -> None:
    measured(args, "theirs", f"{name} of {names_of(work.tiles)}", work.batch, flops, lambda: done(call))

  def plain(model):
    for work in sizes.works:
      inputs = tensors(work)
      flops = counts.of(work, vision=1, decoder=1, logits=work.length)
      note("forward", work, flops, lambda inputs=inputs: model(**inputs, use_cache=False))
    for work in sizes.works[:2]:
      inputs = tensors(work)
      flops = counts.of(work, vision=1, decoder=1, logits=1)
      note("letters", work, flops, lambda inputs=inputs: model(**inputs, use_cache=False, logits_to_keep=1))
    inputs, new = tensors(sizes.works[0]), dict(max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS)
    flops = counts.of(
      sizes.works[0], vision=1, decoder=1, logits=NEW_TOKENS, length=sizes.works[0].length + NEW_TOKENS
    )
    note(
      f"generate {NEW_TOKENS}",
      sizes.works[0],
      flops,
      lambda: model.generate(**inputs, **new, do_sample=False, eos_token_id=None),
    )

  def steps(model, optimizer, name: str, works, vision: int, decoder: int):
    model.train()
    for work in works:
      flops = counts.of(work, vision=vision, decoder=decoder, logits=TARGETS)
      note(name, work, flops, compare_torch.torch_step(model, optimizer, tensors(work), TARGETS))

  model = load()
  with torch.no_grad():
    plain(model)
  adapted, optimizer = compare_torch.torch_lora(model, RANK, ALPHA, EVERY_LINEAR)
  steps(adapted, optimizer, "LoRA step", sizes.works, 1, 2)
  del model, adapted, optimizer
  model = load()
  steps(model, torch.optim.AdamW(model.parameters(), lr=1e-5), "full step", sizes.full, 3, 3)
  del model
  if importlib.util.find_spec("flash_attn") is None:
    gpu.note(args.out, part=args.part, said="theirs: flash_attn is not installed; SDPA alone")
    return
  adapted, optimizer = compare_torch.torch_lora(load("flash_attention_2"), RANK, ALPHA, EVERY_LINEAR)
  steps(adapted, optimizer, "FlashAttention: LoRA step", sizes.works, 1, 2)
