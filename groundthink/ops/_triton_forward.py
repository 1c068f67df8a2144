"""Triton kernels that write and read the gated delta memory in chunks of 64 tokens.

Notation (docs/math.md): gamma_i is the running sum of log_decay inside the chunk, eta_i is gamma_i for the decayed
error and gamma_{i-1} for the raw one, F_ij = exp(eta_i - gamma_j), G_ij = exp(gamma_i - gamma_j). The kernels keep
the *errors* E, with pseudo-values P = beta * E, because every gradient then needs no division by beta:
    (I + M diag(beta)) E = V - e^eta (K S0),   M = strict_tril((K K^T) * F),   inverse = (I + M diag(beta))^-1.
No exponent is ever positive and no gate is ever divided by. States live transposed, [V, K], in registers, so that
each product's result is the next one's left operand without a trip through shared memory. A product of `tl.dot` is
never transposed into another (miscompiled on Hopper before Triton 3.7.1): the transposed product is computed instead.
"""

# mypy: disable-error-code="no-untyped-def"
# (a kernel's arguments are pointers, numbers and compile-time constants: Triton's compiler types them)
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _decay(row, column, row_doc, column_doc, keep, HAS_DOCS: tl.constexpr):
    """exp(row_i - column_j) where `keep` and, packed, where both tokens share a document; else 0."""
    if HAS_DOCS:
        keep = keep & (row_doc[:, None] == column_doc[None, :])
    difference = (row[:, None] - column[None, :]).to(tl.float32)
    return tl.exp(tl.where(keep, difference, float("-inf")))


@triton.jit
def _mm(a, b, MP: tl.constexpr):
    """A product inside the inverse: "half" has 11 bits, enough under a result rounded to bf16's 8."""
    if MP == "half":
        return tl.dot(a.to(tl.float16), b.to(tl.float16))
    else:
        return tl.dot(a, b, input_precision=MP)


@triton.jit
def _invert(lower, MP: tl.constexpr):
    """(I + lower)^-1 of a strictly lower 64x64 matrix.

    Elimination in float32 inside the four diagonal blocks of 16, then block doubling, X - X L X, to 32 and 64: it
    stays accurate for identical keys, where powers of L would not.
    """
    i = tl.arange(0, 64)
    r = tl.arange(0, 16)
    own = (i // 16)[:, None, None] == tl.arange(0, 4)[None, :, None]
    blocks = tl.reshape(tl.sum(tl.where(own, tl.reshape(lower, [64, 4, 16]), 0.0), 1), [4, 16, 16])
    x = tl.where(r[None, :, None] == r[None, None, :], 1.0, tl.zeros([4, 16, 16], tl.float32))
    for j in tl.static_range(0, 15):
        column = tl.sum(tl.where(r[None, None, :] == j, blocks, 0.0), 2)
        row = tl.sum(tl.where(r[None, :, None] == j, x, 0.0), 1)
        x -= column[:, :, None] * row[:, None, :]
    x = tl.reshape(tl.where(own, tl.reshape(x, [64, 1, 16]), 0.0), [64, 64])
    within = (i // 32)[:, None] == (i // 32)[None, :]
    beside = (i // 16)[:, None] != (i // 16)[None, :]
    x -= _mm(x, _mm(tl.where(within & beside, lower, 0.0), x, MP), MP)
    return x - _mm(x, _mm(tl.where(within, 0.0, lower), x, MP), MP)


@triton.jit(do_not_specialize=["T", "N"])
def prepare_kernel(
    k, q, log_decay, beta, docs, inverse, scores, gamma, gates,
    T, N, skb, skt, skh, sqb, sqt, sqh, H, HQ, HV, scale,
    K: tl.constexpr, READ: tl.constexpr, RAW: tl.constexpr, HAS_DOCS: tl.constexpr, WIDE: tl.constexpr,
    IP: tl.constexpr, MP: tl.constexpr,
):  # fmt: skip
    """Per chunk and value head: inverse, scores = scale * tril((Q K^T) * G) diag(beta), gamma, and gates: read_in,
    erase_in, out, beta, beta * out, and with WIDE and queries q . k of each token."""
    pid = tl.program_id(0).to(tl.int64)
    h = pid % HV
    n = (pid // HV) % N
    b = pid // HV // N
    i = tl.arange(0, 64)
    c = tl.arange(0, K)
    t = n * 64 + i
    inside = t[:, None] < T
    tile = (b * HV + h) * N + n
    key = tl.load(k + b * skb + (h // (HV // H)) * skh + t[:, None] * skt + c[None, :], mask=inside, other=0.0)
    at = b * T * HV + t * HV + h
    step = tl.load(log_decay + at, mask=t < T, other=0.0)
    if WIDE:
        step = step.to(tl.float64)
    strength = tl.load(beta + at, mask=t < T, other=0.0)
    y = tl.cumsum(step, 0)
    eta = y - step if RAW else y
    read_in = tl.exp(y.to(tl.float32))
    erase_in = tl.exp(tl.minimum(eta, 0.0).to(tl.float32))
    out = tl.exp(tl.minimum(tl.sum(step, 0) - y, 0.0).to(tl.float32))
    doc = i
    if HAS_DOCS:
        row = docs + b * T
        doc = tl.load(row + tl.minimum(t, T - 1))
        before = tl.load(row + tl.maximum(n * 64 - 1, 0))
        read_in = tl.where(doc == before, read_in, 0.0)
        erase_in = tl.where(doc == before, erase_in, 0.0)
        out = tl.where(doc == tl.load(row + tl.minimum(n * 64 + 63, T - 1)), out, 0.0)
    tl.store(gamma + tile * 64 + i, y)
    tl.store(gates + tile * 384 + i, read_in)
    tl.store(gates + tile * 384 + 64 + i, erase_in)
    tl.store(gates + tile * 384 + 128 + i, out)
    tl.store(gates + tile * 384 + 192 + i, strength)
    tl.store(gates + tile * 384 + 256 + i, strength * out)
    dt = inverse.dtype.element_ty
    square = tile * 4096 + i[:, None] * 64 + i[None, :]
    fade = _decay(y, y, doc, doc, i[:, None] >= i[None, :], HAS_DOCS) * strength[None, :]
    if READ:
        query = tl.load(q + b * sqb + (h // (HV // HQ)) * sqh + t[:, None] * sqt + c[None, :], mask=inside, other=0.0)
        score = tl.dot(query, tl.trans(key), input_precision=IP)
        if WIDE:
            tl.store(gates + tile * 384 + 320 + i, tl.sum(tl.where(i[:, None] == i[None, :], score, 0.0), 1))
        tl.store(scores + square, (score * fade * scale).to(dt))
    if RAW:
        fade = _decay(eta, y, doc, doc, i[:, None] > i[None, :], HAS_DOCS) * strength[None, :]
    else:
        fade = tl.where(i[:, None] > i[None, :], fade, 0.0)
    lower = tl.dot(key, tl.trans(key), input_precision=IP) * fade
    tl.store(inverse + square, _invert(lower, MP).to(dt))


@triton.jit(do_not_specialize=["T", "N", "G", "span"])
def scan_kernel(
    k, v, q, inverse, scores, gates, initial, out, errors, states, final,
    T, N, G, span, skb, skt, skh, svb, svt, svh, sqb, sqt, sqh, H, HQ, HV, scale,
    K: tl.constexpr, V: tl.constexpr, BV: tl.constexpr, READ: tl.constexpr, KEEP: tl.constexpr,
    HAS_INITIAL: tl.constexpr, CUT: tl.constexpr, MAP: tl.constexpr, LONG: tl.constexpr, IP: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Carry BV columns of one head's state through `span` chunks; optionally read, optionally keep errors and states.

    With CUT a row of N chunks is G such segments, all at once: `initial` and `final` [B,HV,G,K,V]. MAP
    starts from the identity and writes no values: what becomes of any state, as a matrix (V = K).
    """
    pid = tl.program_id(0).to(tl.int64)
    iv = pid % (V // BV)
    segment = pid // (V // BV)
    bh = segment
    first = 0
    last = N
    if CUT:
        bh = segment // G
        first = (segment % G).to(tl.int32) * span
        last = tl.minimum(first + span, N)
    b, h = bh // HV, bh % HV
    i = tl.arange(0, 64)
    ck = tl.arange(0, K)
    cv = iv * BV + tl.arange(0, BV)
    dt = k.dtype.element_ty
    state = tl.zeros([BV, K], tl.float32)
    corner = segment * K * V + ck[None, :] * V + cv[:, None]
    if MAP:
        state += tl.where(ck[None, :] == cv[:, None], 1.0, 0.0)
    elif HAS_INITIAL:
        state += tl.load(initial + corner)
    k_rows = k + b * skb + (h // (HV // H)) * skh + ck[None, :]
    v_columns = v + b * svb + h * svh + cv[:, None]
    q_rows = q + b * sqb + (h // (HV // HQ)) * sqh + ck[None, :]
    out_columns = b * T * HV * V + h * V + cv[:, None]
    # Triton pipelines the operands of products; the values are none, so they are fetched a chunk ahead by hand.
    start_at = first * 64 + i
    if LONG:
        start_at = start_at.to(tl.int64)
    value = tl.zeros([BV, 64], dt)
    if not MAP:
        value = tl.load(v_columns + start_at[None, :] * svt, mask=start_at[None, :] < T, other=0.0)
    for n in tl.range(first, last, num_stages=STAGES):
        t = n * 64 + i
        if LONG:
            t = t.to(tl.int64)
        tile = bh * N + n
        key = tl.load(k_rows + t[:, None] * skt, mask=t[:, None] < T, other=0.0)
        inv = tl.load(inverse + tile * 4096 + i[:, None] * 64 + i[None, :])
        ahead = t + 64
        next_value = value
        if not MAP:
            next_value = tl.load(v_columns + ahead[None, :] * svt, mask=ahead[None, :] < T, other=0.0)
        erase_in = tl.load(gates + tile * 384 + 64 + i)
        kept = tl.load(gates + tile * 384 + 256 + i)
        through = tl.load(gates + tile * 384 + 63)
        start = state.to(dt)
        if KEEP:
            tl.store(states + ((b * N + n) * HV + h) * K * V + ck[None, :] * V + cv[:, None], start)
        recalled = tl.dot(start, tl.trans(key), input_precision=IP)
        wanted = (value.to(tl.float32) - recalled * erase_in[None, :]).to(dt)
        error = tl.dot(wanted, tl.trans(inv), input_precision=IP)
        if KEEP:
            tl.store(errors + out_columns + t[None, :] * HV * V, error.to(dt), mask=t[None, :] < T)
        if READ:
            query = tl.load(q_rows + t[:, None] * sqt, mask=t[:, None] < T, other=0.0)
            read_in = tl.load(gates + tile * 384 + i)
            score = tl.load(scores + tile * 4096 + i[:, None] * 64 + i[None, :])
            answer = tl.dot(start, tl.trans(query), input_precision=IP) * (read_in * scale)[None, :]
            answer = tl.dot(error.to(dt), tl.trans(score), answer, input_precision=IP)
            tl.store(out + out_columns + t[None, :] * HV * V, answer.to(dt), mask=t[None, :] < T)
        written = (error * kept[None, :]).to(dt)
        state = tl.dot(written, key, state * through, input_precision=IP)
        value = next_value
    tl.store(final + corner, state)


@triton.jit(do_not_specialize=["T", "N"])
def read_kernel(
    q, k, errors, states, gamma, gates, docs, out,
    T, N, sqb, sqt, sqh, skb, skt, skh, H, HQ, HV, scale,
    K: tl.constexpr, V: tl.constexpr, BV: tl.constexpr, HAS_DOCS: tl.constexpr, IP: tl.constexpr,
):  # fmt: skip
    """Any layer's queries to a kept memory, parallel over chunks."""
    pid = tl.program_id(0).to(tl.int64)
    iv = pid % (V // BV)
    h = (pid // (V // BV)) % HV
    bn = pid // (V // BV) // HV
    b, n = bn // N, bn % N
    i = tl.arange(0, 64)
    ck = tl.arange(0, K)
    cv = iv * BV + tl.arange(0, BV)
    t = n * 64 + i
    inside = t[:, None] < T
    tile = (b * HV + h) * N + n
    dt = k.dtype.element_ty
    query = tl.load(q + b * sqb + (h // (HV // HQ)) * sqh + t[:, None] * sqt + ck[None, :], mask=inside, other=0.0)
    key = tl.load(k + b * skb + (h // (HV // H)) * skh + t[:, None] * skt + ck[None, :], mask=inside, other=0.0)
    start = tl.load(states + (bn * HV + h) * K * V + ck[:, None] * V + cv[None, :])
    place = b * T * HV * V + t[:, None] * HV * V + h * V + cv[None, :]
    error = tl.load(errors + place, mask=inside, other=0.0)
    y = tl.load(gamma + tile * 64 + i)
    read_in = tl.load(gates + tile * 384 + i)
    beta = tl.load(gates + tile * 384 + 192 + i)
    doc = i
    if HAS_DOCS:
        doc = tl.load(docs + b * T + tl.minimum(t, T - 1))
    scores = tl.dot(query, tl.trans(key), input_precision=IP)
    scores = scores * _decay(y, y, doc, doc, i[:, None] >= i[None, :], HAS_DOCS) * (beta * scale)[None, :]
    answer = tl.dot(query, start, input_precision=IP) * (read_in * scale)[:, None]
    answer = tl.dot(scores.to(dt), error, answer, input_precision=IP)
    tl.store(out + place, answer.to(dt), mask=inside)
