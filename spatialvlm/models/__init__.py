"""Vision-language models: one encoder, one connector and one decoder for all families.

- Layers: `encoders` (one vision transformer) with `positions`, `joined` (several side by side),
  `connector`, `decoder`, and `vlm`, which joins them.
- What may stand in every sequence beside its tokens: `soft_prompts`, put there by `peft`.
- What is read of them: `outputs` (`Wants`, `Outputs`). How they compute: `execution`.
- Families, without layers: `smolvlm`, `internvl`, `paligemma`, `language` (Llama, Qwen2, Gemma and Gemma 2 by
  themselves: `vision` and `connector` are None); each reads a config.json and names tensors),
  `texts` and `vits` (their language models and vision towers), `fields` (what those share), `families` (the
  list of all), `registry` (from a config.json or a name to its family; models with other encoders).

A new family is a file and an entry in `families` (docs/adding_a_model.md). A setting that the layers do not
compute is a `UserError` by its name.

Contract of `vlm.Vlm`, an `nnx.Module` with `config`, `vision`, `connector`, `decoder`:

- `read(batch, wants) -> Outputs`: image tokens before and after the connector, layers of either tower,
  attention probabilities, hidden states, logits at the targets, of one pass of each tower. What is not
  wanted is not computed. Whoever needs a model's inside asks here, and touches no layer.
- `encode_images(pixels_NHWC, pixel_mask_NHW=None, priors=None) -> (N, P, D)` after the connector;
`embed(batch) -> (B,
  T, D)` with the image tokens in their places; `hidden(batch) -> (B, T, D)` after the final norm;
  `unembed(...D) -> ...V` in float32; the call is `unembed(hidden(batch))`. They share `read`'s code.
- `max_length`: most tokens of a sequence, beside a soft prompt. Positions in batches and outputs never count
  one; `read`, and `extend` on a cache that nothing has been read into, put it in its place.
- `init_cache(B, length) -> KVCache`; `extend(batch, cache) -> (hidden (B, T, D), cache)` reads any number
  of further tokens; `prefill` and `decode_step` are cases of it. Buffers have one fixed length; callers
  size them.
- Nothing here reads files, draws on a device it was not told, or keeps state between calls, so a model may
  be split by `nnx.split` once and merged within `jax.jit`. Paths of parameters, e.g.
  `decoder.stack.layers.0.attn.q_proj.kernel`, are what tables of names, adapters and checkpoints go by.
"""
