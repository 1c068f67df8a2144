"""Triton kernels that write and read the gated delta memory in chunks of 64 tokens.

Notation (docs/math.md): gamma_i is the running sum of log_decay inside the chunk, eta_i is gamma_i for the decayed
error and gamma_{i-1} for the raw one, F_ij = exp(eta_i - gamma_j), G_ij = exp(gamma_i - gamma_j). The kernels keep
the *errors* E, with pseudo-values P = beta * E, because every gradient then needs no division by beta:
    (I + M diag(beta)) E = V - e^eta (K S0),   M = strict_tril((K K^T) * F),   inverse = (I + M diag(beta))^-1.
No exponent is ever positive and no gate is ever divided by. States live transposed, [V, K], in registers, so that
each product's result is the next one's left operand without a trip through shared memory. A product of `tl.dot` is
never transposed into another (miscompiled on Hopper before Triton 3.7.1): the transposed product is computed instead.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _decay(row, column, row_doc, column_doc, keep, HAS_DOCS: tl.constexpr):
    """exp(row_i - column_j) where `keep` and, packed, where both tokens share a document; else 0."""
    if HAS_DOCS:
        keep = keep & (row_doc[:, None] == column_doc[None, :])
    difference = (row[:, None] - column[None, :]).to(tl.float32)
    return tl.where(keep, tl.exp(tl.minimum(difference, 0.0)), 0.0)


@triton.jit
def _lower_block(gram, eta, gamma, beta, di, dj, DIAGONAL: tl.constexpr, HAS_DOCS: tl.constexpr):
    """A 16x16 block of M diag(beta)."""
    rows = tl.arange(0, 16)
    keep = (rows[:, None] > rows[None, :]) if DIAGONAL else (rows[:, None] >= 0) & (rows[None, :] >= 0)
    return gram * _decay(eta, gamma, di, dj, keep, HAS_DOCS) * beta[None, :]


@triton.jit
def _mm(a, b, MP: tl.constexpr):
    """A float32 product of small blocks; "split" sums three bf16 products (16 bits) for results rounded to bf16."""
    if MP == "split":
        a1, b1 = a.to(tl.bfloat16), b.to(tl.bfloat16)
        a2, b2 = (a - a1.to(tl.float32)).to(tl.bfloat16), (b - b1.to(tl.float32)).to(tl.bfloat16)
        return tl.dot(a1, b1, tl.dot(a1, b2, tl.dot(a2, b1)))
    else:
        return tl.dot(a, b, input_precision=MP)


@triton.jit
def _invert_16(lower, BASE: tl.constexpr, MP: tl.constexpr):
    """(I + lower)^-1 of a strictly lower 16x16 block: elimination in diagonal blocks of BASE, then block doubling.

    Doubling, X - X L X, stays accurate for identical keys, where powers of L would not.
    """
    rows = tl.arange(0, 16)
    x = (rows[:, None] == rows[None, :]).to(tl.float32)
    same = rows[:, None] // BASE == rows[None, :] // BASE
    for j in tl.static_range(BASE - 1):
        column = tl.sum(tl.where(same & (rows[None, :] % BASE == j), lower, 0.0), 1)
        row = tl.sum(tl.where(same & (rows[:, None] % BASE == j), x, 0.0), 0)
        x -= tl.where(same, column[:, None] * row[None, :], 0.0)
    if BASE <= 4:
        below = (rows[:, None] // 8 == rows[None, :] // 8) & (rows[:, None] // 4 != rows[None, :] // 4)
        x -= _mm(x, _mm(tl.where(below, lower, 0.0), x, MP), MP)
    if BASE <= 8:
        below = rows[:, None] // 8 != rows[None, :] // 8
        x -= _mm(x, _mm(tl.where(below, lower, 0.0), x, MP), MP)
    return x


@triton.jit
def _gates_16(log_decay, beta, t, T, base, HV, before, RAW: tl.constexpr):
    """gamma, eta, beta of 16 tokens, and the running sum after them."""
    inside = t < T
    step = tl.load(log_decay + base + t * HV, mask=inside, other=0.0).to(before.dtype)
    b = tl.load(beta + base + t * HV, mask=inside, other=0.0)
    gamma = tl.cumsum(step, 0) + before
    eta = gamma - step if RAW else gamma
    return gamma, eta, b, before + tl.sum(step, 0)


@triton.jit
def _store_gates_16(gates, gamma_out, r, gamma, eta, beta, total, doc, doc_before, doc_last, HAS_DOCS: tl.constexpr):
    """What a token keeps of the chunk's first state when read and when erased, and what the end keeps of it."""
    read_in = tl.exp(gamma.to(tl.float32))
    erase_in = tl.exp(tl.minimum(eta, 0.0).to(tl.float32))
    out = tl.exp(tl.minimum(total - gamma, 0.0).to(tl.float32))
    if HAS_DOCS:
        read_in = tl.where(doc == doc_before, read_in, 0.0)
        erase_in = tl.where(doc == doc_before, erase_in, 0.0)
        out = tl.where(doc == doc_last, out, 0.0)
    tl.store(gamma_out + r, gamma)
    tl.store(gates + r, read_in)
    tl.store(gates + 64 + r, erase_in)
    tl.store(gates + 128 + r, out)
    tl.store(gates + 192 + r, beta)


@triton.jit(do_not_specialize=["T", "N"])
def prepare_kernel(
    k, log_decay, beta, docs, inverse, gamma, gates,
    T, N, skb, skt, skh, H, HV,
    K: tl.constexpr, RAW: tl.constexpr, HAS_DOCS: tl.constexpr, WIDE: tl.constexpr, IP: tl.constexpr, MP: tl.constexpr,
    BK: tl.constexpr, BASE: tl.constexpr,
):  # fmt: skip
    """Per chunk and value head: the inverse [64,64], gamma [64], and gates [4,64] (read_in, erase_in, out, beta)."""
    pid = tl.program_id(0).to(tl.int64)
    h = pid % HV
    n = (pid // HV) % N
    b = pid // HV // N
    r = tl.arange(0, 16)
    c = tl.arange(0, BK)
    t0 = n * 64 + r
    t1, t2, t3 = t0 + 16, t0 + 32, t0 + 48
    base = b * T * HV + h
    zero = tl.sum(tl.zeros([16], tl.float64 if WIDE else tl.float32), 0)
    y0, e0, b0, total = _gates_16(log_decay, beta, t0, T, base, HV, zero, RAW)
    y1, e1, b1, total = _gates_16(log_decay, beta, t1, T, base, HV, total, RAW)
    y2, e2, b2, total = _gates_16(log_decay, beta, t2, T, base, HV, total, RAW)
    y3, e3, b3, total = _gates_16(log_decay, beta, t3, T, base, HV, total, RAW)
    d0, d1, d2, d3, before, last = r, r, r, r, 0, 0
    if HAS_DOCS:
        row = docs + b * T
        d0 = tl.load(row + tl.minimum(t0, T - 1))
        d1 = tl.load(row + tl.minimum(t1, T - 1))
        d2 = tl.load(row + tl.minimum(t2, T - 1))
        d3 = tl.load(row + tl.minimum(t3, T - 1))
        before = tl.load(row + tl.maximum(n * 64 - 1, 0))
        last = tl.load(row + tl.minimum(n * 64 + 63, T - 1))
    tile = (b * HV + h) * N + n
    gates_tile, gamma_tile = gates + tile * 256, gamma + tile * 64
    _store_gates_16(gates_tile, gamma_tile, r, y0, e0, b0, total, d0, before, last, HAS_DOCS)
    _store_gates_16(gates_tile, gamma_tile, r + 16, y1, e1, b1, total, d1, before, last, HAS_DOCS)
    _store_gates_16(gates_tile, gamma_tile, r + 32, y2, e2, b2, total, d2, before, last, HAS_DOCS)
    _store_gates_16(gates_tile, gamma_tile, r + 48, y3, e3, b3, total, d3, before, last, HAS_DOCS)

    rows = k + b * skb + (h // (HV // H)) * skh + c[None, :]
    g00 = tl.zeros([16, 16], tl.float32)
    g10, g11, g20, g21, g22, g30, g31, g32, g33 = g00, g00, g00, g00, g00, g00, g00, g00, g00
    for _ in tl.range(0, K // BK, num_stages=1):
        k0 = tl.load(rows + t0[:, None] * skt, mask=t0[:, None] < T, other=0.0)
        k1 = tl.load(rows + t1[:, None] * skt, mask=t1[:, None] < T, other=0.0)
        k2 = tl.load(rows + t2[:, None] * skt, mask=t2[:, None] < T, other=0.0)
        k3 = tl.load(rows + t3[:, None] * skt, mask=t3[:, None] < T, other=0.0)
        g00 = tl.dot(k0, tl.trans(k0), g00, input_precision=IP)
        g10 = tl.dot(k1, tl.trans(k0), g10, input_precision=IP)
        g20 = tl.dot(k2, tl.trans(k0), g20, input_precision=IP)
        g30 = tl.dot(k3, tl.trans(k0), g30, input_precision=IP)
        g11 = tl.dot(k1, tl.trans(k1), g11, input_precision=IP)
        g21 = tl.dot(k2, tl.trans(k1), g21, input_precision=IP)
        g31 = tl.dot(k3, tl.trans(k1), g31, input_precision=IP)
        g22 = tl.dot(k2, tl.trans(k2), g22, input_precision=IP)
        g32 = tl.dot(k3, tl.trans(k2), g32, input_precision=IP)
        g33 = tl.dot(k3, tl.trans(k3), g33, input_precision=IP)
        rows += BK
    x00 = _invert_16(_lower_block(g00, e0, y0, b0, d0, d0, True, HAS_DOCS), BASE, MP)
    x11 = _invert_16(_lower_block(g11, e1, y1, b1, d1, d1, True, HAS_DOCS), BASE, MP)
    x22 = _invert_16(_lower_block(g22, e2, y2, b2, d2, d2, True, HAS_DOCS), BASE, MP)
    x33 = _invert_16(_lower_block(g33, e3, y3, b3, d3, d3, True, HAS_DOCS), BASE, MP)
    l10 = _lower_block(g10, e1, y0, b0, d1, d0, False, HAS_DOCS)
    l20 = _lower_block(g20, e2, y0, b0, d2, d0, False, HAS_DOCS)
    l21 = _lower_block(g21, e2, y1, b1, d2, d1, False, HAS_DOCS)
    l30 = _lower_block(g30, e3, y0, b0, d3, d0, False, HAS_DOCS)
    l31 = _lower_block(g31, e3, y1, b1, d3, d1, False, HAS_DOCS)
    l32 = _lower_block(g32, e3, y2, b2, d3, d2, False, HAS_DOCS)
    x10 = -_mm(x11, _mm(l10, x00, MP), MP)
    x21 = -_mm(x22, _mm(l21, x11, MP), MP)
    x32 = -_mm(x33, _mm(l32, x22, MP), MP)
    x20 = -_mm(x22, _mm(l20, x00, MP) + _mm(l21, x10, MP), MP)
    x31 = -_mm(x33, _mm(l31, x11, MP) + _mm(l32, x21, MP), MP)
    x30 = -_mm(x33, _mm(l30, x00, MP) + _mm(l31, x10, MP) + _mm(l32, x20, MP), MP)
    block = inverse + tile * 4096 + r[:, None] * 64 + r[None, :]
    dt = inverse.dtype.element_ty
    nothing = tl.zeros([16, 16], dt)
    tl.store(block, x00.to(dt))
    tl.store(block + 16, nothing)
    tl.store(block + 32, nothing)
    tl.store(block + 48, nothing)
    tl.store(block + 1024, x10.to(dt))
    tl.store(block + 1024 + 16, x11.to(dt))
    tl.store(block + 1024 + 32, nothing)
    tl.store(block + 1024 + 48, nothing)
    tl.store(block + 2048, x20.to(dt))
    tl.store(block + 2048 + 16, x21.to(dt))
    tl.store(block + 2048 + 32, x22.to(dt))
    tl.store(block + 2048 + 48, nothing)
    tl.store(block + 3072, x30.to(dt))
    tl.store(block + 3072 + 16, x31.to(dt))
    tl.store(block + 3072 + 32, x32.to(dt))
    tl.store(block + 3072 + 48, x33.to(dt))


@triton.jit(do_not_specialize=["T", "N"])
def scan_kernel(
    k, v, q, inverse, gamma, gates, docs, initial, out, errors, states, final,
    T, N, skb, skt, skh, svb, svt, svh, sqb, sqt, sqh, H, HQ, HV, scale,
    K: tl.constexpr, V: tl.constexpr, BV: tl.constexpr, READ: tl.constexpr, KEEP: tl.constexpr,
    HAS_INITIAL: tl.constexpr, HAS_DOCS: tl.constexpr, IP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Carry BV columns of one head's state through all chunks; optionally read, optionally keep errors and states."""
    pid = tl.program_id(0).to(tl.int64)
    iv = pid % (V // BV)
    bh = pid // (V // BV)
    b, h = bh // HV, bh % HV
    i = tl.arange(0, 64)
    ck = tl.arange(0, K)
    cv = iv * BV + tl.arange(0, BV)
    dt = k.dtype.element_ty
    state = tl.zeros([BV, K], tl.float32)
    corner = bh * K * V + ck[None, :] * V + cv[:, None]
    if HAS_INITIAL:
        state += tl.load(initial + corner)
    k_rows = k + b * skb + (h // (HV // H)) * skh + ck[None, :]
    v_columns = v + b * svb + h * svh + cv[:, None]
    q_rows = q + b * sqb + (h // (HV // HQ)) * sqh + ck[None, :]
    out_columns = b * T * HV * V + h * V + cv[:, None]
    # Triton pipelines the operands of products; the values are none, so they are fetched a chunk ahead by hand.
    value = tl.load(v_columns + i[None, :] * svt, mask=i[None, :] < T, other=0.0)
    for n in tl.range(0, N, num_stages=STAGES):
        t = n * 64 + i
        tile = bh * N + n
        key = tl.load(k_rows + t[:, None] * skt, mask=t[:, None] < T, other=0.0)
        inv = tl.load(inverse + tile * 4096 + i[:, None] * 64 + i[None, :])
        ahead = t + 64
        next_value = tl.load(v_columns + ahead[None, :] * svt, mask=ahead[None, :] < T, other=0.0)
        erase_in = tl.load(gates + tile * 256 + 64 + i)
        kept = tl.load(gates + tile * 256 + 128 + i)
        beta = tl.load(gates + tile * 256 + 192 + i)
        through = tl.load(gates + tile * 256 + 63)
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
            read_in = tl.load(gates + tile * 256 + i)
            y = tl.load(gamma + tile * 64 + i)
            doc = i
            if HAS_DOCS:
                doc = tl.load(docs + b * T + tl.minimum(t, T - 1))
            scores = tl.dot(key, tl.trans(query), input_precision=IP)
            # transposed: rows are the writers j, columns the readers i
            if HAS_DOCS:
                keep = (i[:, None] <= i[None, :]) & (doc[:, None] == doc[None, :])
            else:
                keep = i[:, None] <= i[None, :]
            fade = (y[None, :] - y[:, None]).to(tl.float32)
            fade = tl.where(keep, tl.exp(tl.minimum(fade, 0.0)), 0.0)
            scores = (scores * fade * (beta * scale)[:, None]).to(dt)
            answer = tl.dot(start, tl.trans(query), input_precision=IP) * (read_in * scale)[None, :]
            answer = tl.dot(error.to(dt), scores, answer, input_precision=IP)
            tl.store(out + out_columns + t[None, :] * HV * V, answer.to(dt), mask=t[None, :] < T)
        written = (error * (beta * kept)[None, :]).to(dt)
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
    read_in = tl.load(gates + tile * 256 + i)
    beta = tl.load(gates + tile * 256 + 192 + i)
    doc = i
    if HAS_DOCS:
        doc = tl.load(docs + b * T + tl.minimum(t, T - 1))
    scores = tl.dot(query, tl.trans(key), input_precision=IP)
    scores = scores * _decay(y, y, doc, doc, i[:, None] >= i[None, :], HAS_DOCS) * (beta * scale)[None, :]
    answer = tl.dot(query, start, input_precision=IP) * (read_in * scale)[:, None]
    answer = tl.dot(scores.to(dt), error, answer, input_precision=IP)
    tl.store(out + place, answer.to(dt), mask=inside)
