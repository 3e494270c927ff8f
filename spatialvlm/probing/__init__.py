"""What frozen vision encoders know of space: features of rendered scenes, linear probes, similarity.

- `run.run(ProbeConfig, folder) -> results`: from a config to a comparison in a workdir, for
  `launch/encoders.py`.
- `worlds.render(config) -> Worlds`: what every probe is asked, the same for all encoders.
- `features.see(encoder, worlds, ...) -> Seen`: cells (N, C, D) by layer, kept on disk. `cost`: what they
  cost.
- `probes.run(cells, worlds, penalties) -> {score: Measured}` never sees an encoder. `Measured` holds sums by
  image, so that intervals are by image.
- `similarity`: how alike two encoders see; `drawings` and `page`: what a reader sees of it all.
"""
