"""Recipes, one file each: `--config=configs/lora.py:tiny`, or from any folder `--config=lora:tiny`.

A recipe defines `get_config(arg)`, which returns a typed config (`RunConfig`, `EvaluateConfig`,
`ProbeConfig`); an `ml_collections.ConfigDict` with the same names does as well. It is read as a file,
wherever it lies: copy one to begin your own. It imports from the library alone, never another recipe. An
installed package has this folder as `spatialvlm.configs` (launch/__init__.py says why), and
`spatialvlm.shipped` finds it.
"""
