"""`gt.stream`: tokens as they are made, in constant memory, one CUDA graph a token.

A prompt is read in segments. Then every tensor a step reads and writes is a buffer that stays where it is: the last
token, the position, the state of every layer, the logits. A step is a function of these buffers alone, so on a GPU it
is captured once and replayed for each token; on the CPU the same function is called.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from groundthink.errors import ConfigError, StateError
from groundthink.model.block import Block
from groundthink.model.decoder import Decoder, Mailbox, Mode, decoder_key
from groundthink.model.hf import documents_from_mask
from groundthink.model.hybrid import HybridForCausalLM
from groundthink.model.snapshot import Snapshot

SMALLEST = 1e-6  # a smaller temperature sends float32 logits to infinity


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be written.

    Attributes:
        max_new_tokens: tokens to make, at least 1.
        temperature: of the softmax; 0 takes the most likely token.
        top_p: draw among the most likely tokens that together hold this share of the probability, in (0, 1].
        seed: of the draws.
        eos: ids that end a row.
        segment: tokens of the prompt read at a time.
        vocab_size: only ids below are chosen; None means all the model has.
        graph: whether steps are replayed from a CUDA graph; None means where that is possible.
    """

    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    eos: tuple[int, ...]
    segment: int
    vocab_size: int
    graph: bool | None

    @property
    def rule(self) -> str:
        """How tokens are chosen: "greedy", "sample" or "nucleus"."""
        if self.temperature == 0:
            return "greedy"
        return "sample" if self.top_p == 1 else "nucleus"

    def check(self, model: HybridForCausalLM, input_ids: Tensor) -> None:
        """Refuse what cannot be honoured, all of it at once.

        Raises:
            ConfigError: a value out of its range, ids that are not [B,T] or not in the vocabulary.
            StateError: more tokens than the model was told it may see.
        """
        known, limit = model.sizes.vocab_size, model.sizes.max_length
        problems = []
        if self.max_new_tokens < 1:
            problems.append(f"max_new_tokens is {self.max_new_tokens}, it must be at least 1")
        if self.segment < 1:
            problems.append(f"segment is {self.segment}, it must be at least 1")
        if self.temperature and not SMALLEST <= self.temperature < math.inf:
            problems.append(f"temperature is {self.temperature}, it must be 0 or at least {SMALLEST}")
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p is {self.top_p}, it must be above 0 and at most 1")
        if not 1 <= self.vocab_size <= known:
            problems.append(f"vocab_size is {self.vocab_size}, it must be from 1 to the model's {known}")
        if model.training:
            problems.append("the model is in training mode: call model.eval()")
        if input_ids.dim() != 2 or input_ids.numel() == 0 or input_ids.is_floating_point():
            problems.append(f"input_ids must be [B,T] integers with a token at least, is {tuple(input_ids.shape)}")
        elif int(input_ids.min()) < 0 or int(input_ids.max()) >= known:
            problems.append(f"input_ids must lie in [0, {known})")
        if problems:
            raise ConfigError("; ".join(problems), where="stream", fix="change what is named")
        seen = input_ids.shape[1] + self.max_new_tokens - 1  # the last token is made, not read
        if limit is not None and seen > limit:
            raise StateError(
                f"a text of {seen} tokens is longer than this model was told ({limit})",
                where="max_length",
                fix="shorten the text or load the model with a larger max_length",
            )


def stream(
    model: HybridForCausalLM,
    input_ids: Tensor,
    *,
    max_new_tokens: int,
    attention_mask: Tensor | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    eos: int | Sequence[int] | None = None,
    segment: int = 4096,
    vocab_size: int | None = None,
    graph: bool | None = None,
) -> Iterator[Tensor]:
    """Continue texts token by token: the tokens of `generate`, in memory that does not grow with the text.

    On a GPU the model's step is captured in a CUDA graph at the first call (and kept with the model for the next), what
    is chosen stays on the device for the next step, and the host reads one token behind, so that it never holds up the
    GPU. Weights are used as they are: for speed cast the model to bfloat16 (gates and memories stay float32), since
    under autocast every step casts them anew.

    Args:
        model: in evaluation mode.
        input_ids: [B,T] prompts, at least one token.
        max_new_tokens: tokens to make, at least 1.
        attention_mask: [B,T], zeros on the left mark padding.
        temperature: of the softmax; 0 takes the most likely token.
        top_p: with a temperature, draw among the most likely tokens that together hold this share, in (0, 1].
        seed: of the draws; on one device the same seed draws the same tokens.
        eos: token or tokens that end a row. An ended row repeats its last token; the stream ends with the last row.
        segment: tokens of the prompt that are read at a time, which bounds the memory it takes.
        vocab_size: only ids below are chosen; None means every id of the model.
        graph: None uses a CUDA graph on a GPU, unless someone listens to the model through hooks (they would not be
            called) or a layer's state grows (F); True insists; False calls the step each time.

    Yields:
        [B] int64 on the CPU, a token of each row.

    Raises:
        ConfigError: a value out of its range, ids that do not fit, a graph that cannot be had.
        StateError: a text longer than the model's `max_length`, padding that is not on the left.
    """
    ends = () if eos is None else (eos,) if isinstance(eos, int) else tuple(eos)
    limit = model.sizes.vocab_size if vocab_size is None else vocab_size
    request = Request(max_new_tokens, temperature, top_p, seed, ends, segment, limit, graph)
    request.check(model, input_ids)
    with_graph = _wants_graph(model, graph)
    ids = input_ids.to(model.embed.weight.device)
    documents = None
    if attention_mask is not None:
        documents = documents_from_mask(attention_mask.to(ids.device), resumes=False, continues=True)
    return _until_all_end(_tokens(model, ids, documents, request, with_graph), request.eos)


def _wants_graph(model: HybridForCausalLM, asked: bool | None) -> bool:
    """Whether a CUDA graph will be used.

    Raises:
        ConfigError: it was asked for and is not possible.
    """
    if asked is False:
        return False
    reasons = []
    if model.embed.weight.device.type != "cuda":
        reasons.append(f"the model is on {model.embed.weight.device.type}")
    growing = _growing(model)
    if growing:
        reasons.append(f"the state of layers {', '.join(map(str, growing))} grows with the text")
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        reasons.append("the model has forward hooks, which a graph would not call")
    if asked and reasons:
        raise ConfigError(f"no CUDA graph: {'; '.join(reasons)}", where="stream", fix="leave graph at None")
    return not reasons


def _growing(model: HybridForCausalLM) -> list[int]:
    """Layers whose state grows with the text."""
    shapes = [cast(Block, block).mixer.state_shapes() for block in model.blocks]
    return [i for i, layer in enumerate(shapes) if any(None in shape for shape in layer.values())]


def _until_all_end(tokens: Iterator[Tensor], eos: tuple[int, ...]) -> Iterator[Tensor]:
    """Tokens until each row has made one of `eos`; a row that has repeats it."""
    if not eos:
        yield from tokens
        return
    ends, ended, last = torch.tensor(eos), None, None
    for new in tokens:
        last = new if ended is None or last is None else torch.where(ended, last, new)
        ended = torch.isin(last, ends) if ended is None else ended | torch.isin(last, ends)
        yield last.clone()
        if bool(ended.all()):
            return


def _tokens(
    model: HybridForCausalLM, ids: Tensor, documents: Tensor | None, request: Request, with_graph: bool
) -> Iterator[Tensor]:
    """`max_new_tokens` tokens of every row. No context manager is open while the caller has the floor."""
    mode = Mode(ids.device)
    with mode.on():
        hidden, snapshot = prefill_in_segments(model, ids, documents, request.segment)
        logits = model.lm_head(hidden)[:, 0]
    decoder = _decoder(model, snapshot, request, mode, with_graph)
    decoder.load(snapshot, logits, temperature=request.temperature, top_p=request.top_p, seed=request.seed)
    del hidden, snapshot, logits
    mail = Mailbox(decoder.token)
    try:
        for made in range(request.max_new_tokens):
            if made:
                decoder.step(model)
            mail.post(decoder.token)
            if made >= mail.behind:
                yield mail.take()
        for _ in range(min(mail.behind, request.max_new_tokens)):
            yield mail.take()
    finally:
        if decoder.replay is not None:
            _IDLE[model] = decoder


def prefill_in_segments(
    model: HybridForCausalLM, ids: Tensor, documents: Tensor | None, segment: int
) -> tuple[Tensor, Snapshot]:
    """Normed output at the last token, [B,1,D], and the snapshot after [B,T] ids, read `segment` tokens at a time.

    A segment is longer by as many tokens as it takes where it would end at the start of a document: the first document
    of a segment continues the one before.
    """
    length = ids.shape[1]
    starts: set[int] = set()
    if documents is not None:
        starts = set(((documents[:, 1:] != documents[:, :-1]).any(0).nonzero()[:, 0] + 1).tolist())
    snapshot: Snapshot | None = None
    begin = 0
    while True:
        end = min(begin + segment, length)
        while end in starts:
            end += 1
        part = None if documents is None else documents[:, begin:end]
        hidden, snapshot = model.hidden(ids[:, begin:end], snapshot=snapshot, documents=part)
        assert snapshot is not None
        if end == length:
            return hidden[:, -1:], snapshot
        begin = end


# A captured decoder of each model that no stream uses at the moment; it holds no reference to the model.
_IDLE: WeakKeyDictionary[HybridForCausalLM, Decoder] = WeakKeyDictionary()


def _decoder(model: HybridForCausalLM, snapshot: Snapshot, request: Request, mode: Mode, with_graph: bool) -> Decoder:
    """A decoder for this snapshot: the model's idle one where it fits, else a new one, captured if wanted."""
    if not with_graph:
        return Decoder(snapshot, request.rule, request.vocab_size, mode, fixed=not _growing(model))
    key = decoder_key(model, snapshot, request.rule, request.vocab_size, mode)
    decoder = _IDLE.pop(model, None)
    if decoder is None or decoder.key != key:
        del decoder  # its memory is free before the next capture takes its own
        decoder = Decoder(snapshot, request.rule, request.vocab_size, mode)
        decoder.capture(model)
        decoder.key = key
    return decoder
