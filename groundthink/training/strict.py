"""YAML and plain values into frozen dataclasses, strictly: every problem is reported, each with its path."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import types
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from groundthink.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """Safe loading that refuses a key given twice and reads 1e-3 as the number it is."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
        for key in keys:
            if not isinstance(key, Hashable) or keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} twice", node.start_mark)
        return super().construct_mapping(node, deep)


# YAML 1.1 wants a dot in 1.0e-3; without this rule 1e-3 would be the text "1e-3".
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))


def load_yaml(text: str, where: str) -> Any:
    """Parse YAML safely.

    Raises:
        ConfigError: not YAML, or a key given twice; with line and column.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}, line {mark.line + 1}, column {mark.column + 1}" if mark else where
        problem = getattr(error, "problem", None) or error
        raise ConfigError(f"not readable YAML: {problem}", where=place, fix="correct that line") from error


def read_text(path: Path) -> str:
    """A text file's content.

    Raises:
        ConfigError: missing, unreadable or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"cannot be read: {reason}", where=str(path), fix="name a readable YAML file") from error


def read_fields(cls: type, raw: Any, path: str, problems: list[str]) -> dict[str, Any]:
    """The fields of dataclass `cls` found in `raw`, converted; what is wrong goes into `problems`.

    Every field of `cls` needs a default, so that checking can go on after a problem.
    """
    if not isinstance(raw, dict):
        problems.append(f"{path or 'the file'} is {_shown(raw)}, it must be a mapping of fields")
        return {}
    hints = _hints(cls)
    for name in raw:
        if name not in hints:
            known = ", ".join(hints)
            problems.append(f"{_join(path, str(name))} is not a field (fields: {known})")
    values = {}
    for name, hint in hints.items():
        if name in raw:
            found: list[str] = []
            value = _convert(hint, raw[name], _join(path, name), found)
            problems += found
            if not found or dataclasses.is_dataclass(value) or isinstance(value, tuple):
                values[name] = value
    return values


def to_plain(value: Any) -> Any:
    """Dataclasses as dicts and tuples as lists, ready for YAML or JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def set_path(plain: dict[str, Any], override: str) -> None:
    """Apply `phases[1].steps=50` to plain values, in place; the value is read as YAML.

    Raises:
        ConfigError: no `=`, or the path leads nowhere.
    """
    path, equals, text = override.partition("=")
    if not equals or not path.strip(".[]"):
        raise ConfigError(f"{override!r} is not PATH=VALUE", fix="write it like phases[0].steps=50")
    set_value(plain, path, load_yaml(text, where=override), where=override)


def set_value(plain: dict[str, Any], path: str, value: Any, *, where: str) -> None:
    """Put a value at a path such as `mix[0].options.n_pairs` of plain values, in place.

    Raises:
        ConfigError: the path leads nowhere.
    """
    words = [word for word in re.split(r"[.\[\]]+", path) if word]
    target: Any = plain
    try:
        for word in words[:-1]:
            target = target[int(word)] if isinstance(target, list) else target[word]
        last: Any = int(words[-1]) if isinstance(target, list) else words[-1]
        if isinstance(target, list):
            target[last]  # an index past the end is no place to write to
        target[last] = value
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise ConfigError(f"there is no {path!r} to set", where=where, fix="name an existing field") from error


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    resolved = get_type_hints(cls)
    return {f.name: resolved[f.name] for f in dataclasses.fields(cls)}


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _convert(hint: Any, raw: Any, path: str, problems: list[str]) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if raw is None and type(None) in arguments:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), raw, path, problems)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return hint(**read_fields(hint, raw, path, problems))
    if origin is tuple:
        return _convert_tuple(arguments, raw, path, problems)
    if origin is Literal:
        return raw if _is_literal(raw, arguments) else _wrong(raw, path, " or ".join(map(str, arguments)), problems)
    if origin is dict:
        if isinstance(raw, dict) and all(isinstance(key, str) for key in raw):
            return dict(raw)
        return _wrong(raw, path, "a mapping with names as keys", problems)
    accepts, wording = _SCALARS[hint]
    return (float(raw) if hint is float else raw) if accepts(raw) else _wrong(raw, path, wording, problems)


def _convert_tuple(arguments: tuple[Any, ...], raw: Any, path: str, problems: list[str]) -> Any:
    if isinstance(raw, str) and arguments[0] is str:
        raw = [raw]  # one path may be written without brackets
    if not isinstance(raw, (list, tuple)):
        return _wrong(raw, path, "a list", problems)
    if arguments[-1] is not Ellipsis and len(raw) != len(arguments):
        return _wrong(raw, path, f"a list of {len(arguments)}", problems)
    kinds = [arguments[0]] * len(raw) if arguments[-1] is Ellipsis else list(arguments)
    return tuple(
        _convert(kind, item, f"{path}[{i}]", problems) for i, (kind, item) in enumerate(zip(kinds, raw, strict=True))
    )


def _is_literal(raw: Any, allowed: tuple[Any, ...]) -> bool:
    return any(raw == option and type(raw) is type(option) for option in allowed)


def _wrong(raw: Any, path: str, wanted: str, problems: list[str]) -> None:
    problems.append(f"{path} is {_shown(raw)}, it must be {wanted}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    try:
        return (_is_int(value) or isinstance(value, float)) and math.isfinite(float(value))
    except OverflowError:
        return False


_SCALARS: dict[Any, tuple[Callable[[Any], bool], str]] = {
    bool: (lambda value: isinstance(value, bool), "true or false"),
    int: (_is_int, "a whole number"),
    float: (_is_number, "a finite number"),
    str: (lambda value: isinstance(value, str), "text"),
}
