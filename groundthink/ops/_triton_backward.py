"""Triton kernels for the gradients of the gated delta memory. Only the states' gradient is carried through time.

With the notation of `_triton_forward`, R = scale * tril((Q K^T) * G) and dS1, dS0 the gradients of a chunk's last and
first state:
    dE = beta * (out * (K dS1) + R^T dO) + (later reads),  dV = inverse^T dE,
    dS0 = through dS1 + (scale read_in Q)^T dO - (erase_in K)^T dV + (later reads).
Everything else is parallel over chunks. Gradients of a token's key fall apart into its part as a row (it is read and
erases) and as a column Z (it was written): beta_j dbeta_j = k_j . Z_j, and the gradients of gamma and eta are row
products of keys and queries with their own gradients, so no product is formed for gates alone.
"""

# mypy: disable-error-code="no-untyped-def"
# (a kernel's arguments are pointers, numbers and compile-time constants: Triton's compiler types them)
from __future__ import annotations

import triton
import triton.language as tl

from groundthink.ops._triton_forward import _decay


@triton.jit(do_not_specialize=["T", "N", "G", "span"])
def scan_backward_kernel(
    k, q, inverse, scores, gates, d_out, d_errors, d_states, d_final, d_values, d_ends, d_initial,
    T, N, G, span, skb, skt, skh, sqb, sqt, sqh, H, HQ, HV, scale,
    K: tl.constexpr, V: tl.constexpr, BV: tl.constexpr, READ: tl.constexpr, HAS_D_ERRORS: tl.constexpr,
    HAS_D_STATES: tl.constexpr, HAS_D_FINAL: tl.constexpr, HAS_INITIAL: tl.constexpr, CUT: tl.constexpr,
    KEEP: tl.constexpr, LONG: tl.constexpr, IP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Carry BV columns of the states' gradient back through a segment's chunks, as `scan_kernel` carries the state.

    Writes d_values and each chunk's dS1 if KEEP; d_final and d_initial [B,HV,G,K,V] are those of segments.
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
    d_state = tl.zeros([BV, K], tl.float32)
    corner = segment * K * V + ck[None, :] * V + cv[:, None]
    if HAS_D_FINAL:
        d_state += tl.load(d_final + corner)
    k_rows = k + b * skb + (h // (HV // H)) * skh + ck[None, :]
    q_rows = q + b * sqb + (h // (HV // HQ)) * sqh + ck[None, :]
    columns = b * T * HV * V + h * V + cv[:, None]
    for step in tl.range(0, last - first, num_stages=STAGES):
        n = last - 1 - step
        t = n * 64 + i
        if LONG:
            t = t.to(tl.int64)
        tile = bh * N + n
        place = ((b * N + n) * HV + h) * K * V + ck[None, :] * V + cv[:, None]
        key = tl.load(k_rows + t[:, None] * skt, mask=t[:, None] < T, other=0.0)
        inv = tl.load(inverse + tile * 4096 + i[:, None] * 64 + i[None, :])
        erase_in = tl.load(gates + tile * 384 + 64 + i)
        kept = tl.load(gates + tile * 384 + 256 + i)
        through = tl.load(gates + tile * 384 + 63)
        end = d_state.to(dt)
        if KEEP:
            tl.store(d_ends + place, end)
        d_error = tl.dot(end, tl.trans(key), input_precision=IP) * kept[None, :]
        d_state = d_state * through
        if READ:
            query = tl.load(q_rows + t[:, None] * sqt, mask=t[:, None] < T, other=0.0)
            answer = tl.load(d_out + columns + t[None, :] * HV * V, mask=t[None, :] < T, other=0.0)
            read_in = tl.load(gates + tile * 384 + i)
            score = tl.load(scores + tile * 4096 + i[:, None] * 64 + i[None, :])
            d_error = tl.dot(answer, score, d_error, input_precision=IP)
            d_state = tl.dot(
                (answer.to(tl.float32) * (read_in * scale)[None, :]).to(dt), query, d_state, input_precision=IP
            )
        if HAS_D_ERRORS:
            d_error += tl.load(d_errors + columns + t[None, :] * HV * V, mask=t[None, :] < T, other=0.0)
        d_value = tl.dot(d_error.to(dt), inv, input_precision=IP)
        if KEEP:
            tl.store(d_values + columns + t[None, :] * HV * V, d_value.to(dt), mask=t[None, :] < T)
        d_state = tl.dot((-d_value * erase_in[None, :]).to(dt), key, d_state, input_precision=IP)
        if HAS_D_STATES:
            d_state += tl.load(d_states + place)
    if HAS_INITIAL:
        tl.store(d_initial + corner, d_state)


@triton.jit
def _never_zero(beta):
    """beta, or where it is 0 a number so small that only a quotient by it shows: dbeta is a product divided by beta."""
    return tl.where(tl.abs(beta) < 1e-20, 1e-20, beta)


@triton.jit(do_not_specialize=["T", "N"])
def rows_kernel(
    k, q, errors, d_values, d_out, states, gamma, gates, docs, squares, dq, d_beta, d_log_decay,
    T, N, skb, skt, skh, sqb, sqt, sqh, H, HQ, HV, scale,
    K: tl.constexpr, V: tl.constexpr, BV: tl.constexpr, READ: tl.constexpr, RAW: tl.constexpr,
    HAS_DOCS: tl.constexpr, EXACT: tl.constexpr, IP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """What each token of a chunk erased and read: both 64x64 matrices for `columns_kernel`, and the queries' gradient.

    A token's read of its own write knows no decay and cancels in the gates' gradients, q . dq - k . dk: to the last
    bit of float32, because both kernels use the same rounded matrix. EXACT keeps it out altogether, for inputs that
    are promised more digits than such a difference holds. d_log_decay receives q . dq (and d_beta that diagonal) for
    the next kernel to turn into gradients. dq [B,T,HV,K] is not yet folded.
    """
    pid = tl.program_id(0).to(tl.int64)
    h = pid % HV
    bn = pid // HV
    b, n = bn // N, bn % N
    i = tl.arange(0, 64)
    ck = tl.arange(0, K)
    t0 = (n * 64).to(tl.int32)
    inside = t0 + i < T
    tile = (b * HV + h) * N + n
    # 64-bit bases, 32-bit offsets inside the tile
    v_base = (b * T + t0) * HV * V + h * V
    v_rows = i[:, None] * (HV * V)
    gate = gates + tile * 384
    square = i[:, None] * 64 + i[None, :]
    erased = squares + tile * 4096
    asked = erased + tl.num_programs(0).to(tl.int64) * 4096
    dt = k.dtype.element_ty
    dm = tl.zeros([64, 64], tl.float32)
    dr = tl.zeros([64, 64], tl.float32)
    for iv in tl.range(0, V // BV, num_stages=STAGES):
        cv = iv * BV + tl.arange(0, BV)
        error = tl.load(errors + v_base + (v_rows + cv[None, :]), mask=inside[:, None], other=0.0)
        d_value = tl.load(d_values + v_base + (v_rows + cv[None, :]), mask=inside[:, None], other=0.0)
        dm = tl.dot(d_value, tl.trans(error), dm, input_precision=IP)
        if READ:
            answer = tl.load(d_out + v_base + (v_rows + cv[None, :]), mask=inside[:, None], other=0.0)
            dr = tl.dot(answer, tl.trans(error), dr, input_precision=IP)
    doc = i
    if HAS_DOCS:
        doc = tl.load(docs + b * T + tl.minimum(t0 + i, T - 1))
    y = tl.load(gamma + tile * 64 + i)
    beta = _never_zero(tl.load(gate + 192 + i))
    below = i[:, None] > i[None, :]
    fade = _decay(y, y, doc, doc, below if EXACT else i[:, None] >= i[None, :], HAS_DOCS) * beta[None, :]
    at = (b * T + t0) * HV + h + i * HV
    if READ:
        if EXACT:
            own = tl.sum(tl.where(i[:, None] == i[None, :], dr, 0.0), 1) * scale * beta
            tl.store(d_beta + at, own, mask=inside)
        asking = (dr * (fade * scale)).to(dt)
        tl.store(asked + square, asking)
    if RAW:
        eta = tl.load(gamma + tile * 64 + i - 1, mask=i > 0, other=0.0)
        fade = _decay(eta, y, doc, doc, below, HAS_DOCS) * beta[None, :]
    elif not EXACT:
        fade = tl.where(below, fade, 0.0)
    tl.store(erased + square, (-dm * fade).to(dt))
    if READ:
        corner = (bn * HV + h) * K * V
        k_rows = k + b * skb + t0.to(tl.int64) * skt + (h // (HV // H)) * skh + (i[:, None] * skt + ck[None, :])
        q_rows = q + b * sqb + t0.to(tl.int64) * sqt + (h // (HV // HQ)) * sqh + (i[:, None] * sqt + ck[None, :])
        d_query = tl.zeros([64, K], tl.float32)
        for iv in tl.range(0, V // BV, num_stages=STAGES):
            cv = iv * BV + tl.arange(0, BV)
            answer = tl.load(d_out + v_base + (v_rows + cv[None, :]), mask=inside[:, None], other=0.0)
            start = tl.load(states + corner + (ck[:, None] * V + cv[None, :]))
            d_query = tl.dot(answer, tl.trans(start), d_query, input_precision=IP)
        key = tl.load(k_rows, mask=inside[:, None], other=0.0)
        d_query *= (tl.load(gate + i) * scale)[:, None]
        d_query = tl.dot(asking, key, d_query, input_precision=IP)
        query = tl.load(q_rows, mask=inside[:, None], other=0.0)
        tl.store(d_log_decay + at, tl.sum(query.to(tl.float32) * d_query, 1), mask=inside)
        if EXACT:
            d_query += own[:, None] * key.to(tl.float32)
        stored = dq + (b * T + t0) * HV * K + h * K + (i[:, None] * (HV * K) + ck[None, :])
        tl.store(stored, d_query.to(dq.dtype.element_ty), mask=inside[:, None])


@triton.jit(do_not_specialize=["T", "N"])
def columns_kernel(
    k, q, errors, d_values, states, d_ends, gates, squares, dk, d_beta, d_log_decay,
    T, N, skb, skt, skh, sqb, sqt, sqh, H, HQ, HV, scale,
    K: tl.constexpr, V: tl.constexpr, BV: tl.constexpr, READ: tl.constexpr, RAW: tl.constexpr, EXACT: tl.constexpr,
    IP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Gradients of keys, beta and log_decay from what each token wrote; dk [B,T,HV,K] is not yet folded."""
    pid = tl.program_id(0).to(tl.int64)
    h = pid % HV
    bn = pid // HV
    b, n = bn // N, bn % N
    i = tl.arange(0, 64)
    ck = tl.arange(0, K)
    t0 = (n * 64).to(tl.int32)
    inside = t0 + i < T
    tile = (b * HV + h) * N + n
    v_base = (b * T + t0) * HV * V + h * V
    v_rows = i[:, None] * (HV * V)
    corner = (bn * HV + h) * K * V
    k_rows = k + b * skb + t0.to(tl.int64) * skt + (h // (HV // H)) * skh + (i[:, None] * skt + ck[None, :])
    gate = gates + tile * 384
    at = (b * T + t0) * HV + h + i * HV
    square = i[:, None] * 64 + i[None, :]
    erased = squares + tile * 4096
    dt = k.dtype.element_ty
    z = tl.zeros([64, K], tl.float32)  # the gradient of the key as it was written
    for iv in tl.range(0, V // BV, num_stages=STAGES):
        cv = iv * BV + tl.arange(0, BV)
        error = tl.load(errors + v_base + (v_rows + cv[None, :]), mask=inside[:, None], other=0.0)
        end = tl.load(d_ends + corner + (ck[:, None] * V + cv[None, :]))
        z = tl.dot(error, tl.trans(end), z, input_precision=IP)
    key = tl.load(k_rows, mask=inside[:, None], other=0.0)
    beta = _never_zero(tl.load(gate + 192 + i))
    z *= (tl.load(gate + 128 + i) * beta)[:, None]
    everywhere = tl.sum(tl.sum(key.to(tl.float32) * z, 1), 0)
    z = tl.dot(tl.trans(tl.load(erased + square)), key, z, input_precision=IP)
    if READ:
        asked = erased + tl.num_programs(0).to(tl.int64) * 4096
        q_rows = q + b * sqb + t0.to(tl.int64) * sqt + (h // (HV // HQ)) * sqh + (i[:, None] * sqt + ck[None, :])
        query = tl.load(q_rows, mask=inside[:, None], other=0.0)
        z = tl.dot(tl.trans(tl.load(asked + square)), query, z, input_precision=IP)
    written = tl.sum(key.to(tl.float32) * z, 1)
    d_gamma = -written
    if READ:
        d_gamma += tl.load(d_log_decay + at, mask=inside, other=0.0)
    d_strength = written
    if READ and EXACT:
        own = tl.load(d_beta + at, mask=inside, other=0.0)
        d_strength += own * tl.load(gate + 320 + i)
        tl.debug_barrier()  # every warp has read its copy before one of them overwrites it
    tl.store(d_beta + at, d_strength / beta, mask=inside)

    erase_in = tl.load(gate + 64 + i)
    through = tl.load(gate + 63)
    for iv in tl.range(0, V // BV, num_stages=1):  # what is not only an operand is not fetched ahead
        cv = iv * BV + tl.arange(0, BV)
        d_value = tl.load(d_values + v_base + (v_rows + cv[None, :]), mask=inside[:, None], other=0.0)
        start = tl.load(states + corner + (ck[:, None] * V + cv[None, :]))
        end = tl.load(d_ends + corner + (ck[:, None] * V + cv[None, :]))
        faded = (d_value.to(tl.float32) * -erase_in[:, None]).to(dt)
        z = tl.dot(faded, tl.trans(start), z, input_precision=IP)
        everywhere += through * tl.sum(tl.sum(start.to(tl.float32) * end.to(tl.float32), 1), 0)
    z = tl.dot(tl.load(erased + square), key, z, input_precision=IP)
    d_eta = tl.sum(key.to(tl.float32) * z, 1) - written
    d_steps = tl.cumsum(d_gamma + d_eta, 0, reverse=True) + everywhere
    if RAW:
        d_steps -= d_eta  # the raw error's eta_i stops one step before gamma_i
    tl.store(d_log_decay + at, d_steps, mask=inside)
    if READ and EXACT:
        z += own[:, None] * tl.load(q_rows, mask=inside[:, None], other=0.0).to(tl.float32)
    stored = dk + (b * T + t0) * HV * K + h * K + (i[:, None] * (HV * K) + ck[None, :])
    tl.store(stored, z.to(dk.dtype.element_ty), mask=inside[:, None])


@triton.jit(do_not_specialize=["T", "N"])
def read_backward_kernel(
    d_out, q, k, errors, states, gamma, gates, docs, squares, dq, dk, d_errors, d_states, d_beta, d_log_decay,
    T, N, sqb, sqt, sqh, skb, skt, skh, H, HQ, HV, scale,
    K: tl.constexpr, V: tl.constexpr, BV: tl.constexpr, HAS_DOCS: tl.constexpr, IP: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Gradients of a read of a kept memory, one chunk of one value head; dq, dk [B,T,HV,K] are not yet folded."""
    pid = tl.program_id(0).to(tl.int64)
    h = pid % HV
    bn = pid // HV
    b, n = bn // N, bn % N
    i = tl.arange(0, 64)
    ck = tl.arange(0, K)
    t = n * 64 + i
    inside = t[:, None] < T
    tile = (b * HV + h) * N + n
    dt = k.dtype.element_ty
    rows = b * T * HV * V + t[:, None] * HV * V + h * V
    corner = (bn * HV + h) * K * V + ck[:, None] * V
    y = tl.load(gamma + tile * 64 + i)
    read_in = tl.load(gates + tile * 384 + i)
    beta = _never_zero(tl.load(gates + tile * 384 + 192 + i))
    doc = i
    if HAS_DOCS:
        doc = tl.load(docs + b * T + tl.minimum(t, T - 1))
    asked = squares + tile * 4096
    square = i[:, None] * 64 + i[None, :]
    q_rows = q + b * sqb + (h // (HV // HQ)) * sqh + t[:, None] * sqt + ck[None, :]
    k_rows = k + b * skb + (h // (HV // H)) * skh + t[:, None] * skt + ck[None, :]
    key = tl.load(k_rows, mask=inside, other=0.0)
    query = tl.load(q_rows, mask=inside, other=0.0)
    # rows are the writers j, columns the readers i
    scores_t = tl.dot(key, tl.trans(query), input_precision=IP)
    products = tl.sum(tl.where(i[:, None] == i[None, :], scores_t, 0.0), 1)
    scores_t *= (beta * scale)[:, None]
    keep = i[:, None] <= i[None, :]
    if HAS_DOCS:
        keep = keep & (doc[:, None] == doc[None, :])
    difference = (y[None, :] - y[:, None]).to(tl.float32)
    scores_t = (scores_t * tl.exp(tl.where(keep, difference, float("-inf")))).to(dt)
    for iv in tl.range(0, V // BV, num_stages=1):  # what is not only an operand is not fetched ahead
        cv = iv * BV + tl.arange(0, BV)
        answer = tl.load(d_out + rows + cv[None, :], mask=inside, other=0.0)
        d_error = tl.dot(scores_t, answer, input_precision=IP)
        tl.store(d_errors + rows + cv[None, :], d_error.to(dt), mask=inside)
        faded = (answer.to(tl.float32) * (read_in * scale)[:, None]).to(dt)
        d_state = tl.dot(tl.trans(query), faded, input_precision=IP)
        tl.store(d_states + corner + cv[None, :], d_state.to(dt))
    tl.debug_barrier()

    dr = tl.zeros([64, 64], tl.float32)
    for iv in tl.range(0, V // BV, num_stages=STAGES):
        cv = iv * BV + tl.arange(0, BV)
        answer = tl.load(d_out + rows + cv[None, :], mask=inside, other=0.0)
        error = tl.load(errors + rows + cv[None, :], mask=inside, other=0.0)
        dr = tl.dot(answer, tl.trans(error), dr, input_precision=IP)
    own = tl.sum(tl.where(i[:, None] == i[None, :], dr, 0.0), 1) * scale * beta
    dr *= _decay(y, y, doc, doc, i[:, None] > i[None, :], HAS_DOCS) * (beta * scale)[None, :]
    asking = dr.to(dt)
    tl.store(asked + square, asking)
    d_query = tl.zeros([64, K], tl.float32)
    for iv in tl.range(0, V // BV, num_stages=STAGES):
        cv = iv * BV + tl.arange(0, BV)
        answer = tl.load(d_out + rows + cv[None, :], mask=inside, other=0.0)
        start = tl.load(states + corner + cv[None, :])
        d_query = tl.dot(answer, tl.trans(start), d_query, input_precision=IP)
    key = tl.load(k_rows, mask=inside, other=0.0)
    query = tl.load(q_rows, mask=inside, other=0.0)
    d_query *= (read_in * scale)[:, None]
    d_query = tl.dot(asking, key, d_query, input_precision=IP)
    d_gamma = tl.sum(query.to(tl.float32) * d_query, 1)
    d_query += own[:, None] * key.to(tl.float32)
    place = b * T * HV * K + t[:, None] * HV * K + h * K + ck[None, :]
    tl.store(dq + place, d_query.to(dq.dtype.element_ty), mask=inside)
    tl.debug_barrier()

    z = tl.dot(tl.trans(tl.load(asked + square)), query, input_precision=IP)
    written = tl.sum(key.to(tl.float32) * z, 1)
    d_gamma -= written
    z += own[:, None] * query.to(tl.float32)
    written += own * products
    at = b * T * HV + t * HV + h
    tl.store(d_beta + at, written / beta, mask=t < T)
    tl.store(d_log_decay + at, tl.cumsum(d_gamma, 0, reverse=True), mask=t < T)
    tl.store(dk + place, z.to(dk.dtype.element_ty), mask=inside)
