"""Rows of the embeddings that are trained beside an adapter: `trainable_token_indices` of PEFT's configs.

Where the head is the table's transpose, they are the head's rows too, and stand in the folder once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx

from spatialvlm.models.decoder import Embed
from spatialvlm.peft import full, select
from spatialvlm.peft.trainable_tokens import (
  TokenEmbed,
  TokenSpec,
  check_range,
  distinct,
  first_rows,
  plain_table,
)
from spatialvlm.peft.variables import FullParam, host
from spatialvlm.types import UserError

FIELD = "trainable_token_indices"
END = ".trainable_tokens_delta"  # of the finished rows, as PEFT calls them
_PATH = ("decoder", "embed")


class RowsBeside(TokenEmbed):
  """A table with trained rows that belong to another method's adapter."""


def fits(value: Any) -> bool:
  """Whether the field of an adapter_config.json can be read: ids, or ids by name of a module."""
  lists = list(value.values()) if isinstance(value, Mapping) else [value]
  return bool(lists) and all(isinstance(ids, list) and bool(ids) and distinct(ids) for ids in lists)


def check(vlm: nnx.Module, tokens: Sequence[int]) -> None:
  """Raises a UserError where a run cannot train the rows of these tokens."""
  check_range(vlm, tokens, "peft.token_indices")
  if tokens and isinstance(vlm.decoder.embed.embedding, FullParam):
    raise UserError(
      "peft.token_indices: names rows of a table that peft.full trains whole; leave one of the two out"
    )


def said(vlm: nnx.Module, config: Mapping[str, Any]) -> tuple[int, ...]:
  """Ids that an adapter_config.json names, in the order of its rows; none where it names none.

  Raises:
    UserError: rows of another module than the embeddings, of a whole that is saved, or that it has not.
  """
  value = config.get(FIELD) or []
  table, head = full.embedding_name(vlm).removesuffix(".weight"), full.head(vlm)
  by_module = value if isinstance(value, Mapping) else {table: value}
  first = next((ids for module, ids in by_module.items() if table.endswith(module)), None)
  for module, ids in by_module.items():
    tied = vlm.config.tied and head.endswith(module) and ids == first
    if not table.endswith(module) and not tied:
      raise UserError(
        f"adapter_config.json: {FIELD}: {module!r}: only rows of {table} are supported (a tied head's follow)"
      )
  if first and any(table.endswith(module) for module in config.get("modules_to_save") or ()):
    raise UserError(f"adapter_config.json: {FIELD}: of a table that modules_to_save holds, not supported")
  check_range(vlm, first or (), f"adapter_config.json: {FIELD}")
  return tuple(first or ())


def train(vlm: nnx.Module, tokens: Sequence[int], rows: np.ndarray | None = None) -> None:
  """Trains rows from here on, in place, beginning with the table's own where none are given."""
  if tokens:
    base = vlm.decoder.embed
    value = first_rows(base, tokens) if rows is None else rows
    select.put(vlm, _PATH, RowsBeside(base, TokenSpec(tuple(tokens)), value))


def shapes(vlm: nnx.Module, tokens: Sequence[int]) -> dict[str, tuple[int, ...]]:
  """Name -> shape in the file."""
  return {name_of(vlm): (len(tokens), vlm.decoder.embed.features)} if tokens else {}


def name_of(vlm: nnx.Module) -> str:
  """Name of the rows in a PEFT folder."""
  return full.embedding_name(vlm).removesuffix(".weight") + ".token_adapter" + END


def claims(vlm: nnx.Module) -> set[select.Path]:
  """Paths of what `train` trains."""
  return {(*_PATH, "rows")} if isinstance(vlm.decoder.embed, RowsBeside) else set()


def export(vlm: nnx.Module) -> tuple[list[int] | None, dict[str, np.ndarray]]:
  """PEFT's field, and the rows by their name in its folder."""
  if not claims(vlm):
    return None, {}
  layer = vlm.decoder.embed
  return list(layer.spec.tokens), {name_of(vlm): host(layer.rows)}


def merged(vlm: nnx.Module) -> dict[select.Path, Embed]:
  """Path -> the table that reads the same."""
  return {_PATH: plain_table(vlm.decoder.embed)} if claims(vlm) else {}
