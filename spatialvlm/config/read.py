"""From an `ml_collections.ConfigDict`, or a command line's text, to the typed configuration, and back.

A config class is a frozen dataclass of plain values, tuples, mappings and further config classes. A setting
may also be one of several classes (`ScenesConfig | LlavaConfig`): each has a field of a `Literal` type with
one value, the tag (`kind: Literal["scenes"]`), which says which class the other settings belong to. A setting
that only another class of them has is refused by name, never passed over.

A group that gives some settings only takes the others from the default of its field (`EvalConfig.source`), as
long as it is of the same class; else from its own class.

A group may leave some settings to whatever one of them chooses (`PeftConfig.method`): a field marked `REST`
takes all keys that name no other field, and the chosen reads and refuses them (`peft.completed`).
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import hashlib
import json
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from spatialvlm.config.schema import REST, SELECTS, RunConfig
from spatialvlm.types import UserError

T = typing.TypeVar("T")
DTYPES = ("float32", "bfloat16")


def from_config_dict(config: Mapping[str, Any], cls: type[T] = RunConfig, where: str = "config") -> T:
  """Reads a ConfigDict (or any nested mapping) into a RunConfig, or into another config class.

  Args:
    where: what errors call the whole of it.

  Raises:
    UserError: an unknown key (with the nearest known one) or a value of the wrong type, by its full name.
  """
  if hasattr(config, "to_dict"):
    config = config.to_dict()
  return _build(cls, config, where)


def from_stored(config: Any, cls: type[T] = RunConfig) -> T:
  """Reads a config.json, also one that an earlier version wrote.

  Settings that were kept for a class of several which does not read them (once all sources had one config)
  are left out: they meant nothing there.

  Raises:
    UserError: as `from_config_dict`.
  """
  return from_config_dict(_without_unread(cls, config), cls)


def overrides(values: dict[str, Any], pairs: Iterable[tuple[str, str]], cls: type = RunConfig) -> None:
  """Sets dotted keys from the texts of a command line, later ones over earlier, in place.

  A key that selects (`peft.method`) goes before others: another choice than the recipe's drops what the
  recipe says of its own, so that `--config.peft.method=ia3` does not meet LoRA's rank, and keeps what the
  command line says.

  Raises:
    UserError: as `override`.
  """
  pairs = [(key, text, _selecting(key, cls)) for key, text in pairs]
  for key, text, group in pairs:
    if group is not None:
      _leave_choice(values, key, text, group)
      override(values, key, text, cls)
  for key, text, group in pairs:
    if group is None:
      override(values, key, text, cls)


def changed(config: T, settings: Mapping[str, Any]) -> T:
  """A config with other values at dotted keys, such as `{"train.steps": 300, "eval.source.size": 200}`.

  What `--config.KEY=VALUE` does on a command line, with Python's values; the given config stays as it is.

  Raises:
    UserError: as `override`.
  """
  values, cls = to_dict(config), type(config)
  overrides(values, [(key, v if isinstance(v, str) else repr(v)) for key, v in settings.items()], cls)
  return from_config_dict(values, cls)


def override(values: dict[str, Any], key: str, text: str, cls: type = RunConfig) -> None:
  """Sets one dotted key of a nested dict of settings from the text of a command line, in place.

  A string stands as it is; other values are written as in Python (`true` and `false` are taken too). A group
  that a recipe leaves out begins with its defaults. Where a tag is changed (`source.kind=llava`), settings of
  the recipe stay unless they hold their defaults, so that none that says something is passed over.

  Raises:
    UserError: an unknown key (with the nearest known one), or text of the wrong type.
  """
  hint, where, parts = cls, "config", key.split(".")
  for i, part in enumerate(parts):
    of, origin = hint, typing.get_origin(hint)
    if classes := _classes(hint):
      hints = _settings(classes, values)
      if part not in hints and not any(map(_rest, classes)):
        raise UserError(f"{where}.{part}: unknown key; {nearest(part, hints)}")
      full = hints.get(part, Any)
    elif hint is Any:
      full = Any
    elif origin is not None and issubclass(origin, Mapping):
      full = typing.get_args(hint)[1]
    else:
      raise UserError(f"{where}.{part}: unknown key; {where} is a single value")
    if i + 1 == len(parts) and len(classes) > 1:
      _leave_class(classes, part, text, values)
    hint, where = _without_none(full), f"{where}.{part}"
    if i + 1 < len(parts):
      if values.get(part) is None:  # of several classes the right one's defaults come when the whole is read
        values[part] = {} if len(_classes(hint)) > 1 else _default(of, part)
      values = values[part]
  values[parts[-1]] = _literal(hint, text, optional=hint is not full)


def _default(cls: Any, name: str) -> dict[str, Any]:
  """What a group of settings is where it is not said, as a nested dict; empty where it has no default."""
  field = {f.name: f for f in dataclasses.fields(cls)}.get(name) if dataclasses.is_dataclass(cls) else None
  if field is None or (field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING):
    return {}
  default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
  return {} if default is None else to_dict(default)


def _selecting(key: str, cls: type) -> type | None:
  """The class of a dotted key's group, where the key is one that selects; else None."""
  hint, *parts = cls, *key.split(".")
  for part in parts[:-1]:
    classes = _classes(hint)
    hint = _settings(classes, {}).get(part) if classes else (typing.get_args(hint) or (None,))[-1]
  fields = {f.name: f for group in _classes(hint) for f in dataclasses.fields(group)}
  return _classes(hint)[0] if parts[-1] in fields and SELECTS in fields[parts[-1]].metadata else None


def _leave_choice(values: dict[str, Any], key: str, text: str, cls: type) -> None:
  """Takes out of a group, in place, what belongs to another choice than `text`."""
  *above, name = key.split(".")
  for part in above:
    values = values.get(part) or {}
  (field,) = (f for f in dataclasses.fields(cls) if f.name == name)
  if values.get(name, field.default) != text:
    stays = _named(cls) - set(field.metadata[SELECTS])
    for other in [other for other in values if other not in stays]:
      del values[other]


def _rest(cls: type) -> str | None:
  """The field of a config class that takes the keys which name no other."""
  return next((field.name for field in dataclasses.fields(cls) if field.metadata.get(REST)), None)


def _named(cls: type) -> set[str]:
  """The keys of a config class's group that are fields of its own."""
  return {field.name for field in dataclasses.fields(cls)} - {_rest(cls)}


def _without_none(hint: Any) -> Any:
  if typing.get_origin(hint) in (typing.Union, types.UnionType) and type(None) in typing.get_args(hint):
    return typing.Union[tuple(a for a in typing.get_args(hint) if a is not type(None))]  # noqa: UP007
  return hint


def _classes(hint: Any) -> tuple[type, ...]:
  """The config classes that a hint allows: none for a single value."""
  hint = _without_none(hint)
  if dataclasses.is_dataclass(hint):
    return (hint,)
  args = typing.get_args(hint)
  return args if args and all(map(dataclasses.is_dataclass, args)) else ()


def _tagged(classes: typing.Iterable[type]) -> tuple[str, dict[Any, type]]:
  """The tag's name, and the classes by its values."""
  found: dict[str, dict[Any, type]] = {}
  for cls in classes:
    for name, hint in typing.get_type_hints(cls).items():
      if typing.get_origin(hint) is Literal and len(values := typing.get_args(hint)) == 1:
        found.setdefault(name, {})[values[0]] = cls
  ((tag, kinds),) = ((name, kinds) for name, kinds in found.items() if len(kinds) == len(classes))
  return tag, kinds


def _settings(classes: tuple[type, ...], values: Mapping[str, Any]) -> dict[str, Any]:
  """Names and hints of all settings of a group: those of the class that its tag names count before others.

  Whether the class has them is told when the whole is read, so that the tag may come after its settings.
  """
  found: dict[str, Any] = {}
  if len(classes) > 1:
    tag, kinds = _tagged(classes)
    classes = tuple(sorted(classes, key=lambda cls: cls is kinds.get(values.get(tag))))
  for cls in classes:
    found |= typing.get_type_hints(cls)
    found.pop(_rest(cls), None)
  return found


def _leave_class(classes: tuple[type, ...], name: str, text: str, values: dict[str, Any]) -> None:
  """Takes the old class's defaults out of a group, in place, where `name` is the tag and names another."""
  tag, kinds = _tagged(classes)
  if name != tag or values.get(tag) in (None, text) or values[tag] not in kinds:
    return
  defaults = to_dict(kinds[values[tag]]())
  for key in [k for k, v in values.items() if k in defaults and to_dict(v) == defaults[k]]:
    del values[key]


def _without_unread(hint: Any, values: Any) -> Any:
  """Values without the settings that their tag's class lacks, but another class of the same group has."""
  classes = _classes(hint)
  if isinstance(values, Mapping) and classes:
    hints, known = _settings(classes, values), None
    if len(classes) > 1:
      tag, kinds = _tagged(classes)
      known = typing.get_type_hints(kinds[values[tag]]) if values.get(tag) in kinds else None
    return {
      k: _without_unread(hints.get(k), v)
      for k, v in values.items()
      if known is None or k in known or k not in hints
    }
  if isinstance(values, Mapping) and typing.get_args(hint):
    return {k: _without_unread(typing.get_args(hint)[-1], v) for k, v in values.items()}
  return values


def _literal(hint: Any, text: str, optional: bool) -> Any:
  """Text as a value; what is no literal stays text, and is refused later if it should be something else."""
  kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
  if text in ("None", "none") and (optional or str not in kinds):
    return None
  if str in kinds and not (len(kinds) > 1 and text[:1] in ("[", "(")):
    return text
  if text in ("true", "false"):
    return text == "true"
  try:
    found = ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text
  return text if str in kinds and not isinstance(found, (list, tuple)) else found


def _is_list(hint: Any) -> bool:
  return typing.get_origin(hint) is tuple


def to_dict(config: Any) -> Any:
  """The plain nested dict of a config, ready for JSON: the inverse of `from_config_dict`."""
  if dataclasses.is_dataclass(config):
    found = {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    return found | found.pop(_rest(type(config)), {})
  if isinstance(config, Mapping):
    return {k: to_dict(v) for k, v in config.items()}
  if isinstance(config, tuple):
    return [to_dict(v) for v in config]
  return config


def fingerprint(config: Any) -> str:
  """Eight hex digits that name a config: equal configs, equal fingerprint, on any machine."""
  text = json.dumps(to_dict(config), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:8]


def nearest(word: str, known: typing.Iterable[str]) -> str:
  """` (did you mean 'x'?)`, or the list of what is known where nothing is near."""
  known = sorted(known)
  near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
  return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


def check_dtype(dtype: str, where: str = "config.model.dtype") -> None:
  """Raises a UserError, by the setting's full name, for numbers in which models are not offered."""
  if dtype not in DTYPES:
    why = " (its largest number, 65504, is too small for activations and gradients)"
    reason = why if dtype == "float16" else ""
    raise UserError(f"{where}: {dtype!r} is not offered{reason}; use {' or '.join(DTYPES)}")


def _build(cls: type, values: Any, where: str, base: Any = None) -> Any:
  """A config of `cls`; what `values` leaves out is as in `base`, where that is of the same class."""
  if not isinstance(values, Mapping):
    raise UserError(f"{where}: expected a group of settings, got {values!r}")
  hints, named, rest = typing.get_type_hints(cls), _named(cls), _rest(cls)
  others = {str(key): value for key, value in values.items() if key not in named}
  if others and rest is None:
    key = next(iter(others))
    raise UserError(f"{where}.{key}: unknown key; {nearest(key, named)}")
  base = base if type(base) is cls else None
  defaults = {f.name: getattr(base, f.name, f.default) for f in dataclasses.fields(cls)}
  found = {k: _value(hints[k], v, f"{where}.{k}", defaults[k]) for k, v in values.items() if k in named}
  if others:
    found[rest] = others
  return cls(**found) if base is None else dataclasses.replace(base, **found)


def _chosen(classes: tuple[type, ...], values: Any, where: str, base: Any) -> type:
  """The class that the tag of a group names; that of `base` where it names none."""
  if not isinstance(values, Mapping):
    raise UserError(f"{where}: expected a group of settings, got {values!r}")
  tag, kinds = _tagged(classes)
  named = values.get(tag, getattr(base, tag, None))
  if named is None:
    raise UserError(f"{where}.{tag}: is missing; known: {', '.join(sorted(kinds))}")
  if named not in kinds:
    raise UserError(f"{where}.{tag}: unknown {tag} {named!r}; {nearest(str(named), kinds)}")
  for key in values:
    readers = sorted(name for name, cls in kinds.items() if key in typing.get_type_hints(cls))
    if readers and named not in readers:
      raise UserError(
        f"{where}.{key}: a group of {tag} {named!r} reads no {key}; {tag}s that do: {', '.join(readers)}"
        f" (a whole group is replaced by --{where}=\"{{'{tag}': '{named}', ...}}\")"
      )
  return kinds[named]


def _value(hint: Any, value: Any, where: str, base: Any = None) -> Any:
  """Converts `value` to what `hint` says, or raises a UserError that names the place."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if hint is Any:  # whoever reads it knows its type
    return value
  if dataclasses.is_dataclass(hint):
    return _build(hint, value, where, base)
  if origin in (typing.Union, types.UnionType):
    if value is None and type(None) in args:
      return None
    if len(classes := _classes(hint)) > 1:
      return _build(_chosen(classes, value, where, base), value, where, base)
    kinds = [kind for kind in args if kind is not type(None)]
    listed = isinstance(value, (tuple, list))  # where one text or a list of them may stand
    return _value(next((k for k in kinds if _is_list(k) == listed), kinds[0]), value, where, base)
  if origin is Literal:
    if value in args:
      return value
    raise UserError(f"{where}: {value!r} is not one of {', '.join(map(repr, args))}")
  if origin is tuple and isinstance(value, (tuple, list)):
    return tuple(_value(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
  if origin is not None and issubclass(origin, Mapping) and isinstance(value, Mapping):
    return {str(k): _value(args[1], v, f"{where}.{k}") for k, v in value.items()}
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if isinstance(hint, type) and type(value) is hint:
    return value
  wanted = getattr(origin or hint, "__name__", str(hint))
  quoted = ""
  if origin is tuple and args[0] is str and isinstance(value, str):  # a shell took its quotes
    items = [item.strip(" '\"") for item in value.strip("()[]").split(",")]
    quoted = f'; write {where}="{tuple(item for item in items if item)!r}", in double quotes'
  raise UserError(f"{where}: expected {wanted}, got {value!r}{quoted}")
