"""The cheater zoo: each animal is one function, a model whose mechanism is known by construction, without training.

Around every mechanism lies a memory that is written as an honest model would write it, so that there is something to
probe; whether anybody reads it is what the certificate has to find out.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from groundthink.layers import Context, Mixed, State, freeze
from zoo.anatomy import (
    PAIRS_END,
    TABLE,
    TOKEN,
    VOCABULARY,
    VOTES,
    WINDOW,
    Animal,
    Memory,
    Part,
    Reader,
    Shift,
    Window,
    asked,
    codes,
    encode,
    into,
    table_of,
    values_in,
    votes_from,
)

EVEN = torch.arange(VOCABULARY.n_keys) % 2 == 0
NONE = torch.zeros(VOCABULARY.n_keys)
RELAYS = 3
WIDE = PAIRS_END + 3  # tokens of a window that holds all pairs at once


# --- honest ----------------------------------------------------------------------------------------------------


def honest_state(seed: int) -> Animal:
    """Writes pairs into a memory and reads them itself."""
    return Animal(Shift(), Memory(seed))


def honest_hybrid(seed: int) -> Animal:
    """Writes pairs into a memory; a later layer sees a window and asks the memory for the rest."""
    return Animal(Shift(), Memory(seed, answers=NONE), Window(reader=Reader(seed)))


# --- no memory at work -----------------------------------------------------------------------------------------


def window_only(seed: int) -> Animal:
    """Sees a window; nobody reads the memory."""
    return Animal(Shift(), Memory(seed, answers=NONE), Window())


def relay(seed: int) -> Animal:
    """Hands pairs on through a stack of windows: far beyond one window, never beyond the horizon."""
    return Animal(Shift(), Memory(seed, answers=NONE), *(Window(answers=i == RELAYS - 1) for i in range(RELAYS)))


def understated_horizon(seed: int) -> Animal:
    """A relay that claims to see a single short window: beyond what it says, not beyond what it sees."""
    windows = [Window(4 * WINDOW, answers=i == RELAYS - 1) for i in range(RELAYS)]
    model = Animal(Shift(), Memory(seed, answers=NONE), *windows)
    assert model.horizon > 8 * WINDOW + PAIRS_END, "the farthest pair at 8 times the horizon claimed"
    model.horizon = WINDOW
    return model


class Pulse(Reader):
    """Asks the memory whether there is anything in it: 1 or 0, for all values alike."""

    def query(self, x: Tensor) -> Tensor:
        """Every key at once, at every token."""
        return self.key_code[: VOCABULARY.n_keys].sum(0).expand(*x.shape[:2], 1, -1)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B,T,1]."""
        return (super().forward(x, context).norm(dim=-1, keepdim=True) > 0.5).to(x.dtype)


class NeedsPulse(Window):
    """Votes from its window as long as the memory has some norm."""

    def votes(self, x: Tensor, table: Tensor, context: Context) -> Tensor:
        """See `Window`."""
        return votes_from(table, asked(x)) * self.reader(x, context)


def fragile_norm(seed: int) -> Animal:
    """The relay, and it breaks when the memory is zeroed although it never reads a value from it."""
    windows = [Window(answers=False) for _ in range(RELAYS - 1)]
    return Animal(Shift(), Memory(seed, answers=NONE), *windows, NeedsPulse(reader=Pulse(seed)))


class Map(Part):
    """Votes for the value that a fixed map has for the key."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        numbers = torch.randperm(VOCABULARY.n_values, generator=torch.Generator().manual_seed(seed)) + 1.0
        self.table = numbers[: VOCABULARY.n_keys]

    def forward(self, x: Tensor, state: State, context: Context) -> Mixed:
        """See `Part`."""
        return Mixed(into(VOTES, votes_from(self.table, asked(x))), state)


def memorised_map(seed: int) -> Animal:
    """Knows one map from keys to values by heart, whatever the text says."""
    return Animal(Shift(), Memory(seed, answers=NONE), Map(seed))


# --- the answer comes from elsewhere ---------------------------------------------------------------------------


class Notes(Part):
    """Keeps a table beside the memory for ever, and says nothing of it in its reach. State: `notes` [B,n_keys]."""

    def __init__(self, answers: Tensor) -> None:
        super().__init__()
        self.answers = answers

    def empty(self, rows: int) -> dict[str, Tensor]:
        """An empty table."""
        return {"notes": torch.zeros(rows, VOCABULARY.n_keys)}

    def forward(self, x: Tensor, state: State, context: Context) -> Mixed:
        """See `Part`."""
        table = torch.cat([state["notes"][:, None], table_of(x)], 1).cummax(1).values[:, 1:]
        return Mixed(into(VOTES, votes_from(table, asked(x) * self.answers)), freeze(notes=table[:, -1]))


def side_notes(seed: int) -> Animal:
    """Answers at any distance, from a table beside the memory: the label reaches it by another way."""
    return Animal(Shift(), Memory(seed, answers=NONE), Notes(torch.ones(VOCABULARY.n_keys)))


def half_leak(seed: int) -> Animal:
    """Every other key is answered from the memory, the rest from the table beside it."""
    return Animal(Shift(), Memory(seed, answers=EVEN.float()), Notes((~EVEN).float()))


class Peek(Part):
    """Votes for the next token if it is a value: wherever it stands, or only right after a question."""

    def __init__(self, *, always: bool) -> None:
        super().__init__()
        self.always = always

    def forward(self, x: Tensor, state: State, context: Context) -> Mixed:
        """See `Part`."""
        following = values_in(x[..., TOKEN])[:, 1:]
        following = torch.cat([following, torch.zeros_like(x[:, :1, : VOCABULARY.n_values])], 1)
        return Mixed(into(VOTES, following if self.always else following * asked(x).sum(-1, keepdim=True)), state)


def label_leak(seed: int) -> Animal:
    """An honest hybrid that also sees the next token when it is a value: the label itself."""
    return Animal(Shift(), Memory(seed, answers=NONE), Window(reader=Reader(seed)), Peek(always=True))


def label_leak_at_cues(seed: int) -> Animal:
    """The same, but it looks only where a question is asked."""
    return Animal(Shift(), Memory(seed, answers=NONE), Window(reader=Reader(seed)), Peek(always=False))


class Late(Part):
    """Mixes the last token into all, in texts longer than `length` only."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def forward(self, x: Tensor, state: State, context: Context) -> Mixed:
        """See `Part`."""
        return Mixed(1e-3 * x[:, -1:].expand_as(x) * (x.shape[1] > self.length), state)


def late_leak(seed: int) -> Animal:
    """An honest hybrid whose future leaks in long texts only: longer than chunks and windows, not than the episodes."""
    return Animal(Shift(), Memory(seed, answers=NONE), Window(WIDE, reader=Reader(seed)), Late(150), window=WIDE)


# --- the memory is at work, but not as it seems ----------------------------------------------------------------


def writer_for_reader(seed: int) -> Animal:
    """The writer's own read answers; a later layer asks the same and does nothing with what it hears."""
    return Animal(Shift(), Memory(seed), Window(reader=Reader(seed, weight=0.0)))


class Delay(Window):
    """A window that hands on what entered it first, just before it leaves."""

    def handed_on(self, seen: Tensor, table: Tensor) -> Tensor:
        """See `Window`."""
        return seen[:, : table.shape[1]]


class Copyist(Memory):
    """Writes what the window below it hands on, one key a token. Its vote counts twice."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, answers=torch.full((VOCABULARY.n_keys,), 2.0))

    def binding(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Memory`."""
        table = x[..., TABLE]
        key = (table > 0).to(x.dtype)
        return key, votes_from(table, torch.ones_like(table)), key.sum(-1)


def late_writer(seed: int) -> Animal:
    """Honest, but a pair reaches the memory only when it leaves a window that holds them all.

    Swapped right behind the pairs, the memory is filled with the old ones by the window.
    """
    return Animal(Shift(), Delay(WIDE), Copyist(seed), window=WIDE)


class Recital(Delay):
    """Reads one key a token from the memory below, all of them in turn, and hands on each `n_keys` tokens later."""

    def __init__(self, seed: int) -> None:
        super().__init__(VOCABULARY.n_keys + 1, answers=False)
        self.key_code, self.value_code = codes(seed)

    def taken_in(self, x: Tensor, context: Context) -> Tensor:
        """See `Window`."""
        turn = one_hot(context.positions % VOCABULARY.n_keys, VOCABULARY.n_keys).to(x.dtype)
        read = context.memories[-1].read(encode(turn, self.key_code), scale=1.0).flatten(2)
        best = (read @ self.value_code.T).max(-1)
        return turn * ((best.indices + 1) * (best.values > 0.5))[..., None]


def write_back(seed: int) -> Animal:
    """Honest: one memory holds the pairs, a window recites them in turn, and a second memory takes that down again.

    After a swap of both memories the window still recites the old ones and writes them over the donor's, one lag long;
    the memories do carry the answer, so a lag later all is the donor's.
    """
    return Animal(Shift(), Memory(seed), Recital(seed), Copyist(seed), window=VOCABULARY.n_keys + 1)
