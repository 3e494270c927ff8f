"""Procedural scenes, rendered in plain JAX, and what is asked about them; docs/scenes.md shows them.

Everything follows from a seed and an index alone: the same on any machine, in any order, from any thread.
Lengths are metres, depth is measured along the optical axis, images are uint8 (H, W, 3).

- `layout.sample(key) -> Layout`: where things stand; `render.render(scene, camera, size)`: what a camera
  sees.
- `world.frames(seed, indices, size) -> list[Frame]`: pictures with all that is known of them; `pools` are
  the same as arrays, for many questions about few pictures.
- `questions.SceneQuestions(seed, kinds, image_size, size, shuffle_options)[i] -> types.Question` in
  CV-Bench's schema. Neither the text alone nor a simple 2D rule answers them: `shortcuts` holds the rules
  and priors that they are held against.
- `shifts.SHIFTS`: looks that training never shows, each other in one thing; questions are asked there too.
- `skills.SceneSkills(...)[i] -> types.Example`: conversations by which the small base model learns to see.
- `targets`: a scene with boxes drawn, and what each of its pixels shows, for dense losses.
- `vocabulary`, `tiny`: the small model's tokenizer and checkpoint.
"""
