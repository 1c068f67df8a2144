"""A frozen dataclass as a parser (tyro), with every complaint on one line."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import re
from collections.abc import Sequence
from typing import Any, TypeVar

from groundthink.errors import ConfigError

T = TypeVar("T")


def parse(kind: type[T], words: Sequence[str], program: str) -> T | None:
    """Flags from words: fields without a default are positional, all others `--name value`.

    Returns:
        The flags; None if help was asked for and printed.

    Raises:
        ConfigError: an unknown flag, a missing or bad value, a word too many.
    """
    import tyro

    names = [word.split("=")[0] for word in words if word.startswith("--")]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:  # argparse would silently take the last
        raise ConfigError(f"{twice} is given twice.", where=program, fix=f"give all its values after one {twice}")
    settings = (
        tyro.conf.PositionalRequiredArgs,
        tyro.conf.PositionalMetavarFromFieldName,
        tyro.conf.FlagCreatePairsOff,
        tyro.conf.DisallowNone,
    )
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            flags, unknown = tyro.cli(kind, prog=program, args=list(words), config=settings, return_unknown_args=True)
    except SystemExit as end:
        if not end.code:
            return None
        raise ConfigError(_message(complaint.getvalue()), where=program, fix=f"see {program} --help") from None
    if unknown:
        raise _unknown(unknown[0], kind, program)
    return flags


def _unknown(word: str, kind: Any, program: str) -> ConfigError:
    fix = f"see {program} --help"
    if not word.startswith("-"):
        return ConfigError(f"{word!r} is one word too many.", where=program, fix=fix)
    names = ["--" + field.name.replace("_", "-") for field in dataclasses.fields(kind)]
    near = difflib.get_close_matches(word.split("=")[0], names, n=1)
    guess = f"did you mean {near[0]}? " if near else ""
    return ConfigError(f"there is no flag {word}.", where=program, fix=guess + fix)


def _message(box: str) -> str:
    """What a box drawn by tyro says: the part between its title and the next rule, without the frame.

    Where the terminal speaks UTF-8 the title stands in the frame; elsewhere it is a part of its own.
    """
    parts: list[list[str]] = [[]]
    for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines():
        text = line.strip("│ ")
        if text.startswith(("╭", "╰")):
            continue
        if re.fullmatch(r"[─-]{3,}", text):
            parts.append([])
        else:
            parts[-1].append(text)
    said = [" ".join(" ".join(part).split()) for part in parts]
    first = 0 if "╭" in box else 1
    found = next((text for text in said[first:] if text), "the flags cannot be read.")
    # Of a union (`int | None`) tyro lists what each member said; one of them is enough.
    return re.sub(r"no type matching (\S+) could be instantiated from (.*?)\. Got errors:.*", r"\2 is not \1", found)
