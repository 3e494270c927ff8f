"""A small radiance field of one scene: fitted to posed pictures in minutes, then asked for views and depth.

- `run.run(FieldConfig, folder) -> report`: from a config to a fitted field, rendered views with depth, and
  what is measured of held-out ones, for `launch/field.py`.
- `field.load(path) -> Field`; `Field.render(camera) -> Rendered`: picture, depth in metres, opacity;
  `Field.described(camera, depth, side)`: what it says of the surface that is seen.
- `posed`: cameras, posed pictures, and folders of them, which data sources read as well.
- Views come from `scenes` (one of our own rendered worlds) or `posed.folder`; a table of both is
  `run.SOURCES`. What is written is read again (`written`).
- `grid` (planes and two tiny networks), `render` (rays through them), `fit` (the step and its states) are
  plain JAX on dicts of arrays. `metrics` and `report` see pictures alone.
"""
