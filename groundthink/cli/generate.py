"""`groundthink generate`: continue a text, one memory update a token."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from groundthink.cli.common import find_recipe
from groundthink.errors import ConfigError

REPLACEMENT = "\ufffd"  # what the beginning of a letter decodes to
LONGEST_WAIT = 16  # tokens; a letter takes four bytes, so what is still broken then is not a letter


@dataclasses.dataclass(frozen=True)
class Flags:
    """Continue a text with a trained model."""

    folder: Path
    """Folder of the run."""
    prompt: str = "def "
    """Text to continue."""
    tokens: int = 200
    """Tokens to write."""
    temperature: float = 0.8
    """Of the softmax; 0 takes the most likely token."""
    seed: int = 0
    """Seed of the draws."""


def run(flags: Flags) -> int:
    """Generate; 0 when done."""
    if flags.tokens < 1 or not 0 <= flags.temperature < float("inf"):
        raise ConfigError(
            f"tokens {flags.tokens} must be at least 1 and temperature {flags.temperature} at least 0.",
            where="groundthink generate",
            fix="give other values.",
        )
    from groundthink.training import load

    model = load(flags.folder)
    tokenizer = find_recipe(flags.folder).tokenizer
    ids = tokenizer.encode(flags.prompt)
    if not ids:
        raise ConfigError("the prompt is empty.", where="--prompt", fix="give at least one letter.")
    tokens = draw(model, ids, tokenizer.vocab_size, flags)
    print(flags.prompt, end="", flush=True)
    for text in pieces(tokens, tokenizer):
        print(text, end="", flush=True)
    print()
    return 0


def draw(model: Any, ids: list[int], vocab_size: int, flags: Flags) -> Iterator[int]:
    """Token ids that follow `ids`, as they are made; ids that the tokenizer does not have are never drawn."""
    import torch

    import groundthink

    tokens = groundthink.stream(
        model,
        torch.tensor([ids]),
        max_new_tokens=flags.tokens,
        temperature=flags.temperature,
        seed=flags.seed,
        vocab_size=vocab_size,
    )
    return (int(token) for token in tokens)


def pieces(tokens: Iterable[int], tokenizer: Any) -> Iterator[str]:
    """Text of the tokens, each piece as soon as its last letter is whole."""
    held: list[int] = []
    for token in tokens:
        held.append(token)
        text = tokenizer.decode(held)
        if not text.endswith(REPLACEMENT) or len(held) == LONGEST_WAIT:
            yield text
            held = []
    if held:
        yield tokenizer.decode(held)
