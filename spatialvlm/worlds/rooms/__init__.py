"""A richer world: rooms and streets with things of some fifty classes, and what is asked about them.

Everything follows from a seed, an index and a difficulty, as in `worlds`, without state. Lengths are
metres, z is up, depth is measured along the optical axis, images are uint8 (H, W, 3).

- `classes.CLASSES`: the table of classes, each composed of solids (`parts`), with sizes in metres.
- `dial.dial(difficulty)`: what the one number from 0 to 1 means. `camera.RIGS`: how pictures are taken.
- `layout.sample(seed, number, difficulty)`: what stands, lies and hangs where; `scene` makes arrays of it,
`render`
  casts rays at them, `counting` counts pixels.
- `frames.frames(seed, indices, size, difficulty) -> list[RoomFrame]`: pictures with all that is known of
them. - `questions`: questions in CV-Bench's schema, and more kinds than it has.
"""
