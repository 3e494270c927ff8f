"""The commands, one file each: `python launch/train.py --config=configs/lora.py`.

A file holds a command's own flags, a `main` that calls the library, and `run`; what commands share is
`spatialvlm.cli`. There are two ways to start one, and the same `run` behind both:

- By its path, in a checkout, installed or not. Each file first puts the checkout that it lies in at the head
  of `sys.path`, so that a command never runs with the library of another copy.
- By its name, e.g. `spatialvlm-train`, once the project is installed. A package called `launch` at the top of
  site-packages would be in others' way, so pyproject.toml installs this folder as `spatialvlm.launch`,
  `configs/` as `spatialvlm.configs`, and `checkpoints/` as data in `spatialvlm/checkpoints`. In a wheel these
  are plain folders inside the package; in an editable install a finder of setuptools leads here. Nothing in
  the library imports them.
"""
