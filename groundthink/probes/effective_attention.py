"""What the gated delta rule attends to, exactly: the memory's read as a weighted sum of all values written so far.

From an empty memory S_t = A_t S_{t-1} + beta_t k_t v_t^T, so that a read is sum_j M[t,j] v_j with

    M[t,j] = scale beta_j q_t^T A_t A_{t-1} ... A_{j+1} k_j,

A_i = a_i (I - beta_i k_i k_i^T) for the decayed form and a_i I - beta_i k_i k_i^T for the raw one. Without the delta
term (A_i = a_i I) the weights of overwritten values would not vanish, and the sum would not be the read.
"""

from __future__ import annotations

import contextlib
import functools

import torch
from torch import Tensor

from groundthink.errors import ConfigError
from groundthink.ops.memory import ErrorForm
from groundthink.probes.cuts import hooked, layers_with
from groundthink.probes.face import Model, device_of, mode

KEYS, QUERIES, READ_QUERIES = "mixer.hook_k", "mixer.hook_q", "mixer.reader.hook_query"
BETA, LOG_DECAY = "mixer.hook_beta", "mixer.hook_log_decay"


def effective_attention(
    keys: Tensor,
    queries: Tensor,
    *,
    log_decay: Tensor,
    beta: Tensor,
    error: ErrorForm = "decayed",
    scale: float | None = None,
) -> Tensor:
    """M [B,H,T,T], zero above the diagonal, in the dtype of `keys`: `M @ values` is the read from an empty memory.

    One backward sweep over j carries q_t^T A_t ... A_{j+1} for all t at once: products only, so a decay to 0 is as
    exact as any other.

    Args:
        keys, queries: [B,T,H,K], for as many heads as there are values'.
        log_decay, beta: [B,T,H].
        error: where the delta rule's error is taken, see `ops.write`.
        scale: factor of the read; None means K^-0.5.

    Raises:
        ValueError: shapes that do not belong together, or an unknown form.
    """
    if keys.dim() != 4 or queries.shape != keys.shape or not log_decay.shape == beta.shape == keys.shape[:3]:
        shapes = [tuple(x.shape) for x in (keys, queries, log_decay, beta)]
        raise ValueError(f"keys, queries, log_decay and beta do not belong together: {shapes}")
    if error not in ("decayed", "raw"):
        raise ValueError(f"error should be 'decayed' or 'raw', is {error!r}")
    batch, length, heads, size = keys.shape
    k = keys.transpose(1, 2)
    decay, b = (x.to(keys.dtype).transpose(1, 2) for x in (log_decay.exp(), beta))
    erased = decay * b if error == "decayed" else b
    sweep = queries.to(keys.dtype).transpose(1, 2) * (size**-0.5 if scale is None else scale)
    columns = keys.new_zeros(length, batch, heads, length)
    for j in range(length - 1, -1, -1):
        later = sweep[:, :, j:]
        along = torch.einsum("bhtk,bhk->bht", later, k[:, :, j])
        columns[j, :, :, j:] = b[:, :, j, None] * along
        later = decay[:, :, j, None, None] * later - (erased[:, :, j, None] * along)[..., None] * k[:, :, j, None]
        sweep = torch.cat([sweep[:, :, :j], later], 2)
    return columns.permute(1, 2, 3, 0)


def attention_of(model: Model, ids: Tensor, *, layer: int, head: int, reader: int | None = None) -> Tensor:
    """The effective attention [B,T,T], float64, of one head of one G layer over a text from its beginning.

    Args:
        model: with blocks.
        ids: [B,T] int64.
        layer: the layer that writes.
        head: of its values.
        reader: the S layer that reads; None for the writer's own read.

    Raises:
        ConfigError: a layer that does not write, or does not read this memory, or has no such head.
    """
    caught: dict[str, Tensor] = {}
    writers = layers_with(model, KEYS)
    query_path, query_layer = (QUERIES, layer) if reader is None else (READ_QUERIES, reader)

    def caught_at(path: str, _layer: int, x: Tensor) -> None:
        caught[path] = x

    with contextlib.ExitStack() as stack:
        for path, place in ((KEYS, layer), (BETA, layer), (LOG_DECAY, layer), (query_path, query_layer)):
            stack.enter_context(hooked(model, path, [place], functools.partial(caught_at, path)))
        stack.enter_context(mode(model, training=False))
        with torch.no_grad():
            model.prefill(ids.to(device_of(model)))
    queries = caught[query_path]
    if reader is not None:
        read = [writer for writer in writers if writer < reader][-queries.shape[2] :]
        if layer not in read:
            raise ConfigError(f"layer {reader} does not read layer {layer}", fix=f"it reads {read}")
        queries = queries[:, :, read.index(layer)]
    heads = caught[BETA].shape[2]
    if not 0 <= head < heads:
        raise ConfigError(f"layer {layer} has no head {head}", fix=f"it has 0 to {heads - 1}")
    config = getattr(model.blocks[layer].mixer, "config", None)  # type: ignore[attr-defined]

    def of_head(x: Tensor) -> Tensor:  # keys may serve several heads of values, queries are for either
        return x[:, :, head * x.shape[2] // heads].double().unsqueeze(2)

    found = effective_attention(
        of_head(caught[KEYS]),
        of_head(queries),
        log_decay=of_head(caught[LOG_DECAY]),
        beta=of_head(caught[BETA]),
        error=getattr(config, "error", "decayed"),
        scale=getattr(config, "own_read_scale" if reader is None else "read_scale", None),
    )
    return found[:, 0]
