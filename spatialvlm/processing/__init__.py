"""Conversations and images into token ids and tiles, for every family of models; no torch, no data sources.

`processor.load_processor(folder, max_tiles=, longest_edge=, split_images=, enlarge=) -> Processor` of the
family that a checkpoint's files name. Users write `<image>` whatever the family's own mark is. Two ways
lead through it:

- `Processor(text=, images=, suffix=, padding_side=) -> dict of arrays` in transformers' layout, `input_ids`
  and `attention_mask` (B, T) int64; of SmolVLM `pixel_values` (B, I, C, H, W) float32 with
  `pixel_attention_mask`, else `pixel_values` (N, C, H, W); of PaliGemma `token_type_ids` and `labels`.
  `arrays` makes a `types.Batch` of them.
- `Processor.encode(Example) -> Encoded`, for training: ids, loss mask, tiles, extra arrays, and `prefix`,
  the leading tokens that see each other. `encode_prompt` is the same for a prompt that is to be answered.

Ids are those of transformers' processors, and pixels those of its PIL image processors, bit by bit.

A family is a `processor_family.Family`: its `prompts.PromptFormat` (marks, tokens around an image), its
template, its `tiling.Tiler` (RGB into square tiles; `tilers` holds one for each family) and its number of
tokens for a tile. `expansion` puts an image's tokens in the place of its mark; `images` opens any file as
uint8 RGB, `resizes` resizes it (`pillow` has the weights); `resize` makes one image of one, for encoders
alone.
"""
