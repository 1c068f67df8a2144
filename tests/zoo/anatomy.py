"""The parts that animals are put together from: layers whose weights are written down, not learned.

A residual stream of four fields, all of them one-hot codes or numbers that can be read by eye:

    token | previous token | table: a value's number for each key | votes for values

A pair is stored where a value follows a key, and asked for where a key follows QUERY. Every layer has the face that
the probes know (`mixer`, its `hook_*`, `reader`, `valid`), so each intervention can be done to an animal.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundthink import ops
from groundthink.layers import Context, Mixed, State, freeze
from groundthink.model import Snapshot
from groundthink.tasks import Vocabulary

VOCABULARY = Vocabulary(text=4, n_specials=8, n_keys=10, n_values=64, n_filler=8)
N_PAIRS = 8
PAIRS_END = 1 + 2 * N_PAIRS  # tokens before the filler
WINDOW = 8
KEY_DIM = 16  # more than keys, so that all of them are orthogonal, and one direction is left for no key at all
RETAINED = 0.9995  # of a memory, a token: after the longest episode here still 0.8

_V, _K, _N = VOCABULARY.size, VOCABULARY.n_keys, VOCABULARY.n_values
TOKEN, PREVIOUS = slice(0, _V), slice(_V, 2 * _V)
TABLE, VOTES = slice(2 * _V, 2 * _V + _K), slice(2 * _V + _K, 2 * _V + _K + _N)
WIDTH = VOTES.stop
NUMBERS = torch.arange(1.0, _N + 1)  # of the values; 0 is none


def keys_in(field: Tensor) -> Tensor:
    """The keys' part [B,T,n_keys] of a field of tokens."""
    return field[..., VOCABULARY.keys.start : VOCABULARY.keys.stop]


def values_in(field: Tensor) -> Tensor:
    """The values' part [B,T,n_values]."""
    return field[..., VOCABULARY.values.start : VOCABULARY.values.stop]


def pair(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Key [B,T,n_keys] and value [B,T,n_values] of the pair that ends here, and whether one does [B,T]."""
    key, value = keys_in(x[..., PREVIOUS]), values_in(x[..., TOKEN])
    return key, value, key.sum(-1) * value.sum(-1)


def asked(x: Tensor) -> Tensor:
    """The key that is asked for here [B,T,n_keys]; zeros if none is."""
    return keys_in(x[..., TOKEN]) * x[..., PREVIOUS][..., VOCABULARY.query, None]


def table_of(x: Tensor) -> Tensor:
    """The table so far and the pair that ends here [B,T,n_keys]."""
    key, value, ends = pair(x)
    return torch.maximum(x[..., TABLE], key * (value @ NUMBERS * ends)[..., None])


def votes_from(table: Tensor, query: Tensor) -> Tensor:
    """A vote [B,T,n_values] for the value whose number the table has for the key asked for."""
    return F.relu(1 - ((table * query).sum(-1, keepdim=True) - NUMBERS).abs())


def into(field: slice, y: Tensor) -> Tensor:
    """[B,T,WIDTH], zero but for one field."""
    return F.pad(y, (field.start, WIDTH - field.stop))


def codes(seed: int) -> tuple[Tensor, Tensor]:
    """Orthonormal codes of keys [KEY_DIM,KEY_DIM] and values [n_values,n_values], other ones for every seed."""
    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.linalg.qr(torch.randn(n, n, generator=generator))[0] for n in (KEY_DIM, _N))
    return keys, values


def encode(key: Tensor, code: Tensor) -> Tensor:
    """[B,T,n_keys] of at most one 1 to a code [B,T,1,KEY_DIM] of length 1, as every G layer's keys have."""
    none = F.pad(1 - key.sum(-1, keepdim=True), (0, KEY_DIM - _K - 1))
    return (torch.cat([key, none], -1) @ code)[:, :, None]


class Part(nn.Module):
    """A layer's mixer. `reach`: tokens before the present one that it sees without a memory."""

    reach = 0

    def empty(self, rows: int) -> dict[str, Tensor]:
        """What is carried before the first token."""
        del rows
        return {}

    def forward(self, x: Tensor, state: State, context: Context) -> Mixed:
        """[B,T,WIDTH] to what is added to it."""
        raise NotImplementedError


class Shift(Part):
    """A convolution of width 2: fills in the previous token. State: `conv` [B,1,vocabulary]."""

    reach = 1

    def empty(self, rows: int) -> dict[str, Tensor]:
        """Nothing came before."""
        return {"conv": torch.zeros(rows, 1, _V)}

    def forward(self, x: Tensor, state: State, context: Context) -> Mixed:
        """See `Part`."""
        padded = torch.cat([state["conv"], x[..., TOKEN]], 1)
        return Mixed(into(PREVIOUS, padded[:, :-1]), freeze(conv=padded[:, -1:]))


class Memory(Part):
    """G: writes pairs into a memory by the gated delta rule, and votes for what it reads itself.

    Args:
        seed: of its codes.
        answers: weight of its own read's vote for each key, [n_keys]; None means 1.
    """

    def __init__(self, seed: int, *, answers: Tensor | None = None) -> None:
        super().__init__()
        self.config = SimpleNamespace(error="decayed", backend="auto")
        self.answers = torch.ones(_K) if answers is None else answers
        self.key_code, self.value_code = codes(seed)
        self.hook_q, self.hook_k, self.hook_v = nn.Identity(), nn.Identity(), nn.Identity()
        self.hook_beta, self.hook_log_decay, self.hook_own_read = nn.Identity(), nn.Identity(), nn.Identity()

    def empty(self, rows: int) -> dict[str, Tensor]:
        """An empty memory."""
        return {"memory": torch.zeros(rows, 1, KEY_DIM, _N)}

    def binding(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Key, value and write strength of each token, as `pair`."""
        return pair(x)

    def forward(self, x: Tensor, state: State, context: Context) -> Mixed:
        """See `Part`."""
        key, value, strength = self.binding(x)
        memory = ops.write(
            self.hook_k(encode(key, self.key_code)),
            self.hook_v((value @ self.value_code)[:, :, None]),
            log_decay=self.hook_log_decay(torch.full_like(strength, RETAINED).log()[..., None]),
            beta=self.hook_beta(strength[..., None]),
            initial_state=state["memory"],
        )
        query = asked(x)
        read = memory.read(self.hook_q(encode(query, self.key_code)), scale=1.0).flatten(2)
        read = self.hook_own_read(read * (query * self.answers).sum(-1, keepdim=True))
        return Mixed(into(VOTES, read @ self.value_code.T), freeze(memory=memory.final_state), memory)


class Reader(nn.Module):
    """Asks the nearest memory below. `weight` 0: asks, and does nothing with the answer."""

    def __init__(self, seed: int, weight: float = 1.0) -> None:
        super().__init__()
        self.key_code, self.value_code = codes(seed)
        self.weight = weight
        self.hook_query, self.hook_read = nn.Identity(), nn.Identity()

    def query(self, x: Tensor) -> Tensor:
        """What to ask, [B,T,1,KEY_DIM]."""
        return encode(asked(x), self.key_code)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Votes [B,T,n_values]."""
        query = self.hook_query(self.query(x)[:, :, None])
        read = self.hook_read(context.memories[-1].read(query[:, :, 0], scale=1.0).flatten(2))
        return self.weight * (read @ self.value_code.T)


class Window(Part):
    """A: hands on the table of the tokens in its window, its own pair included; votes from it if `answers`.

    Keys do not repeat within an episode, so a maximum over the window finds the one entry that there is.
    With a reader it is an S layer. State: `values` [B,W-1,1,n_keys] and `valid` [B,W-1].
    """

    def __init__(self, window: int = WINDOW, *, answers: bool = True, reader: Reader | None = None) -> None:
        super().__init__()
        self.window, self.answers, self.reach = window, answers, window - 1
        if reader is not None:
            self.reader = reader

    def empty(self, rows: int) -> dict[str, Tensor]:
        """Nothing is valid."""
        past = self.window - 1
        return {"values": torch.zeros(rows, past, 1, _K), "valid": torch.zeros(rows, past, dtype=torch.bool)}

    def taken_in(self, x: Tensor, context: Context) -> Tensor:
        """What each token leaves in the window, [B,T,n_keys]."""
        del context
        return table_of(x)

    def votes(self, x: Tensor, table: Tensor, context: Context) -> Tensor:
        """[B,T,n_values]."""
        votes = votes_from(table, asked(x))
        return votes + self.reader(x, context) if hasattr(self, "reader") else votes

    def handed_on(self, seen: Tensor, table: Tensor) -> Tensor:
        """The next table, from the tokens seen [B,W-1+T,n_keys] and their maximum [B,T,n_keys]."""
        del seen
        return table

    def forward(self, x: Tensor, state: State, context: Context) -> Mixed:
        """See `Part`."""
        values = torch.cat([state["values"], self.taken_in(x, context)[:, :, None]], 1)
        valid = torch.cat([state["valid"], torch.ones(x.shape[:2], dtype=torch.bool)], 1)
        seen = values[:, :, 0] * valid[..., None]
        table = F.max_pool1d(seen.transpose(1, 2), self.window, 1).transpose(1, 2)
        y = into(TABLE, self.handed_on(seen, table) - x[..., TABLE])
        if self.answers:
            y = y + into(VOTES, self.votes(x, table, context))
        past = self.window - 1
        return Mixed(y, freeze(values=values[:, -past:], valid=valid[:, -past:]))


class Block(nn.Module):
    """x + mixer(x)."""

    def __init__(self, mixer: Part) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor, state: State, context: Context) -> Mixed:
        """As the project's blocks."""
        mixed = self.mixer(x, state, context)
        return Mixed(x + mixed.y, mixed.state, mixed.memory)


class Animal(nn.Module):
    """Layers of known mechanism with the face of a model.

    Its logits also say the present and the previous token, below any vote, as every language model knows them.
    """

    def __init__(self, *mixers: Part, window: int = WINDOW) -> None:
        super().__init__()
        self.sizes = SimpleNamespace(window_size=window, vocab_size=_V)
        self.horizon: float = sum(mixer.reach for mixer in mixers)
        self.embed = nn.Embedding.from_pretrained(F.pad(torch.eye(_V), (0, WIDTH - _V)))
        self.blocks = nn.ModuleList(map(Block, mixers))

    def prefill(self, input_ids: Tensor) -> tuple[Tensor, Snapshot]:
        """Logits [B,T,vocabulary] and what is carried on."""
        rows = len(input_ids)
        layers = tuple(freeze(**block.mixer.empty(rows)) for block in self.blocks)  # type: ignore[operator, union-attr]
        return self.resume(Snapshot(layers, torch.zeros(rows, dtype=torch.int64)), input_ids)

    def resume(self, snapshot: Snapshot, input_ids: Tensor) -> tuple[Tensor, Snapshot]:
        """The exact continuation."""
        x, length = self.embed(input_ids), input_ids.shape[1]
        positions = snapshot.position[:, None] + torch.arange(length)
        memories, states = (), []
        for block, state in zip(self.blocks, snapshot.layers, strict=True):
            x, after, memory = block(x, state, Context(positions, None, memories))
            memories = memories if memory is None else (*memories, memory)
            states.append(after)
        logits = 0.1 * x[..., TOKEN] + 0.2 * x[..., PREVIOUS]
        before, after_values = VOCABULARY.values.start, _V - VOCABULARY.values.stop
        return logits + F.pad(x[..., VOTES], (before, after_values)), Snapshot(
            tuple(states), snapshot.position + length
        )
