"""Norms, rotary, gates, SwiGLU, drops and the readers, each against its definition."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from groundthink import ops
from groundthink.layers import Context, LayerConfig, RMSNorm, SwiGLU, freeze
from groundthink.layers.attention import WindowAttention
from groundthink.layers.gated_delta_net import GatedDeltaNet
from groundthink.layers.gates import DeltaGates
from groundthink.layers.memory_attention import MemoryAttention, MemoryReader
from groundthink.layers.mixer import row_dropout
from groundthink.layers.rotary import rotate

SIZES = {"d_model": 12, "n_heads": 2, "head_dim": 4, "value_dim": 6}


def _config(**fields: Any) -> LayerConfig:
    return LayerConfig(**{**SIZES, **fields})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rms_norm(dtype: torch.dtype) -> None:
    norm = RMSNorm(8, 1e-6).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, 8))
    x = torch.randn(3, 8).to(dtype)
    y = norm(x)
    judge = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight.double()
    assert y.dtype == dtype
    # One rounding of the result: 2^-8 in bfloat16.
    torch.testing.assert_close(y.double(), judge, rtol=0.008 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)


def test_rotary_scores_depend_on_distance_alone_even_far_out() -> None:
    """Also at position 10 million, where angles formed in float32 would be off by half a turn."""
    q, k = torch.randn(2, 1, 1, 1, 8).unbind(0)

    def score(first: int, second: int) -> torch.Tensor:
        at = [rotate(x, torch.tensor([[p]]), 10_000.0) for x, p in ((q, first), (k, second))]
        return (at[0] * at[1]).sum()

    for far in (1_000, 10_000_000):
        torch.testing.assert_close(score(far + 5, far), score(5, 0), rtol=1e-5, atol=1e-5)
    assert not torch.isclose(score(5, 0), score(6, 0))
    torch.testing.assert_close(rotate(q, torch.tensor([[7]]), 1e4).norm(), q.norm())
    assert torch.equal(rotate(q, torch.tensor([[0]]), 1e4), q)


def test_gates_are_the_formulas() -> None:
    x = torch.randn(2, 3, 12)
    gates = DeltaGates(_config(n_value_heads=4, allow_negative_eigenvalues=True, decay="mamba"))
    log_decay, beta = gates(x)
    decay_part, beta_part = F.linear(x, gates.weight).chunk(2, -1)
    expected = -gates.a_log.exp() * torch.log1p((decay_part + gates.decay_bias).exp())
    torch.testing.assert_close(log_decay, expected, rtol=1e-4, atol=1e-6)  # log1p(exp) loses digits softplus keeps
    torch.testing.assert_close(beta, 2 / (1 + (-beta_part - gates.beta_bias).exp()))
    assert log_decay.shape == (2, 3, 4)
    assert bool((log_decay <= 0).all())
    steps = F.softplus(gates.decay_bias)
    assert bool(((steps > 9e-4) & (steps < 0.11)).all()), "time steps start in [0.001, 0.1]"
    assert bool(((gates.a_log >= 0) & (gates.a_log <= math.log(16))).all()), "A starts in [1, 16]"

    gates = DeltaGates(_config(decay="sigmoid", decay_bias=4.0, beta_bias=-2.0))
    log_decay, beta = gates(torch.zeros(1, 1, 12))
    torch.testing.assert_close(log_decay.exp(), torch.full((1, 1, 2), 1 / (1 + math.exp(-4))))
    torch.testing.assert_close(beta, torch.full((1, 1, 2), 1 / (1 + math.exp(2))))


def test_lasting_heads_never_forget_and_the_others_do_at_least_so_much() -> None:
    x = torch.randn(2, 3, 12)
    plain = DeltaGates(_config(n_value_heads=4))
    split = DeltaGates(_config(n_value_heads=4, lasting_heads=1, least_forgetting=0.02))
    split.load_state_dict(plain.state_dict())
    (decays, betas), (log_decay, beta) = plain(x), split(x)
    assert torch.equal(log_decay[..., :1], torch.zeros(2, 3, 1))
    torch.testing.assert_close(log_decay[..., 1:], decays[..., 1:] - 0.02)
    assert torch.equal(beta, betas), "what is written is another matter"


def test_gates_follow_devices_but_not_half_precision() -> None:
    gates = DeltaGates(_config())
    before = gates.weight.detach().clone()
    gates.to(torch.bfloat16)
    assert torch.equal(gates.weight, before), "the values must not pass through bfloat16 either"
    assert gates(torch.randn(1, 2, 12).bfloat16())[0].dtype == torch.float32
    assert gates.half().weight.dtype == torch.float32
    assert gates.double().weight.dtype == torch.float64
    assert gates.to("meta").weight.device.type == "meta"


def test_autocast_does_not_touch_the_gates() -> None:
    """To the bit: a product in bfloat16 would pass a check of dtypes, its sum with a float32 bias being float32."""
    gates, x = DeltaGates(_config()), torch.randn(2, 5, 12)
    plain = gates(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = gates(x)
    assert all(map(torch.equal, plain, under))


def test_swiglu() -> None:
    ff = SwiGLU(4, 6)
    x = torch.randn(2, 3, 4)
    gate, up = ff.up.weight.chunk(2)
    torch.testing.assert_close(ff(x), (F.silu(x @ gate.T) * (x @ up.T)) @ ff.down.weight.T)
    assert _config(d_model=256).ff_dim == 704  # 8/3 * 256 = 682.7, up to a multiple of 64
    assert [_config(d_model=d).ff_dim for d in (24, 48, 192)] == [64, 128, 512]  # 8/3 of these is one already
    assert _config(d_model=256, ff_expansion=4.0).ff_dim == 1024


def test_row_dropout_takes_whole_rows_and_keeps_the_mean() -> None:
    x = torch.ones(4000, 2, 3)
    dropped = row_dropout(x, 0.3, training=True, rescale=True)
    rows = dropped.flatten(1)
    assert bool((rows == rows[:, :1]).all())
    # 4,000 rows: the mean's standard deviation is sqrt(0.3 / 0.7 / 4000) = 0.010; five of them.
    assert abs(float(dropped.mean()) - 1) < 0.05
    assert set(row_dropout(x, 0.3, training=True, rescale=False).unique().tolist()) == {0.0, 1.0}
    assert row_dropout(x, 0.3, training=False, rescale=True) is x
    assert not row_dropout(x, 1.0, training=True, rescale=False).any()


def _memory(config: LayerConfig, rows: int = 2) -> ops.DeltaMemory:
    heads = config.value_heads
    return ops.write(
        F.normalize(torch.randn(rows, 5, config.n_heads, config.head_dim), dim=-1),
        torch.randn(rows, 5, heads, config.value_dim),
        log_decay=-torch.rand(rows, 5, heads),
        beta=torch.rand(rows, 5, heads),
    )


def _context(config: LayerConfig, sources: int) -> tuple[torch.Tensor, Context]:
    memories = tuple(_memory(config) for _ in range(sources))
    return torch.randn(2, 5, config.d_model), Context(torch.arange(5).expand(2, -1), memories=memories)


def test_a_reader_of_one_memory_reads_the_nearest() -> None:
    config = _config()
    reader = MemoryReader(config, 1)
    x, context = _context(config, 3)
    nearest = Context(context.positions, memories=context.memories[-1:])
    assert torch.equal(reader(x, context), reader(x, nearest))
    assert not torch.equal(reader(x, context), reader(x, Context(context.positions, memories=context.memories[:1])))


def test_a_reader_of_all_memories_weights_them() -> None:
    config = _config(n_value_heads=4, read_sources="all")
    reader = MemoryReader(config, 3)
    assert reader.mix.tolist() == [0.5, 0.5, 1.0]
    x, context = _context(config, 3)
    reads: list[torch.Tensor] = []
    reader.hook_read.register_forward_hook(lambda _m, _i, out: reads.append(out))
    reader(x, context)
    with torch.no_grad():
        reader.mix.copy_(torch.tensor([0.0, 2.0, 0.0]))
    reader(x, context)
    with torch.no_grad():
        reader.mix.copy_(torch.tensor([0.5, 0.0, 1.0]))
    reader(x, context)
    torch.testing.assert_close(reads[0], reads[1] / 4 + reads[2])


@pytest.mark.parametrize(("sources", "weights"), [("sum", [1, 1, 1]), ("weighted", [1, 0.5, 0.5])])
def test_fixed_weights_of_memories(sources: str, weights: list[float]) -> None:
    """The first memory is the lowest; nothing is learned."""
    reader = MemoryReader(_config(read_sources=sources, read_norm=False, read_scale=3.0), 3)
    x, context = _context(reader.config, 3)
    reads: list[torch.Tensor] = []
    reader.hook_read.register_forward_hook(lambda _m, _i, out: reads.append(out))
    reader(x, context)
    queries, gate = reader.queries(x, context), torch.sigmoid(reader.gate(x))[..., None]
    parts = [memory.read(queries[:, :, i], scale=3.0) for i, memory in enumerate(context.memories)]
    want = sum(w * part for w, part in zip(weights, parts, strict=True)) * gate
    torch.testing.assert_close(reads[0], want.flatten(2))
    assert reader.mix is None


def test_a_shared_query_is_the_writers_key_projection() -> None:
    config = _config(read_query="shared", read_query_activation="none", read_query_norm=False)
    reader, weights = MemoryReader(config, 2), torch.randn(3, 8, 12)
    x, context = _context(config, 3)
    context = dataclasses.replace(context, key_weights=tuple(weights), slots=torch.tensor([[-1, -1, 2, -1, -1]] * 2))
    queries = reader.queries(x, context)
    for i, weight in enumerate(weights[1:]):
        want = (x @ weight.T).unflatten(-1, (2, 4))
        want[:, 2] = torch.eye(4)[2]
        torch.testing.assert_close(queries[:, :, i], want)
    assert reader.query is None


@pytest.mark.parametrize("activation", ["none", "relu", "silu"])
@pytest.mark.parametrize("norm", [True, False])
def test_a_read_query(activation: Any, norm: bool) -> None:
    reader = MemoryReader(_config(read_query_activation=activation, read_query_norm=norm, read_query_std=0.5), 1)
    x, context = _context(reader.config, 1)
    assert reader.query is not None
    assert 0.35 < float(reader.query.weight.detach().std()) < 0.65  # 96 numbers: 0.5 within four standard errors
    want = getattr(F, activation)(reader.query(x)) if activation != "none" else reader.query(x)
    want = want.unflatten(-1, (1, 2, 4))
    torch.testing.assert_close(reader.queries(x, context), F.normalize(want, dim=-1) if norm else want)


def test_a_gate_averaged_over_heads() -> None:
    reader = MemoryReader(_config(read_gate="mean", read_gate_bias=1.0, n_value_heads=4), 1)
    x, context = _context(reader.config, 1)
    assert reader.gate.bias.tolist() == [1.0] * 4
    reads: list[torch.Tensor] = []
    reader.hook_read.register_forward_hook(lambda _m, _i, out: reads.append(out))
    reader(x, context)
    with torch.no_grad():
        part = reader.norm(context.memories[0].read(reader.queries(x, context)[:, :, 0])).flatten(2)
        want = part * torch.sigmoid(reader.gate(x)).mean(-1, keepdim=True)
    torch.testing.assert_close(reads[0], want)


def test_local_scale_and_drop_are_source_002s() -> None:
    """Scale 0.3 at a drop of 0.7: in training whole or nothing, at inference 0.3 of it. A is scaled as S is."""
    layer = MemoryAttention(_config(local_scale=0.3, local_drop_prob=0.7))
    rows = torch.randn(40, 5, 12)
    context = Context(torch.arange(5).expand(40, -1), memories=(_memory(layer.config, 40),))
    heard: list[torch.Tensor] = []
    layer.hook_local.register_forward_hook(lambda _m, _i, out: heard.append(out.detach()))
    plain, alone = WindowAttention(_config()), WindowAttention(_config(local_scale=0.3))
    alone.hook_local.register_forward_hook(lambda _m, _i, out: heard.append(out.detach()))
    for other in (plain, alone):
        other.qkv.weight = layer.qkv.weight
    with torch.no_grad():
        local = plain.attend(rows, None, context)[0]
        layer(rows, None, context)
        layer.eval()(rows, None, context)
        alone(rows, None, context)
    kept = heard[0].flatten(1).any(1)
    assert 0 < int(kept.sum()) < 40
    torch.testing.assert_close(heard[0][kept], local[kept])
    torch.testing.assert_close(heard[1], 0.3 * local)
    torch.testing.assert_close(heard[2], 0.3 * local)


def test_without_rope_the_window_is_a_bag() -> None:
    """The last token of a window hears the others in any order alike; with rotary positions it does not."""
    x = torch.randn(2, 5, 12)
    turned = torch.cat([x[:, :4].flip(1), x[:, 4:]], 1)
    context = Context(torch.arange(5).expand(2, -1))
    for rope in (False, True):
        layer = WindowAttention(_config(rope=rope))
        same = torch.allclose(layer(x, None, context).y[:, 4], layer(turned, None, context).y[:, 4], atol=1e-6)
        assert same == (not rope)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("gate", [True, False])
def test_norm_and_gate_of_an_own_read(norm: bool, gate: bool) -> None:
    layer = GatedDeltaNet(_config(output_norm=norm, output_gate=gate))
    read, x = torch.randn(2, 3, 2, 6), torch.randn(2, 3, 12)
    want = (F.rms_norm(read, (6,), eps=1e-6) if norm else read).flatten(2)
    if layer.out_gate is not None:
        want = want * F.silu(layer.out_gate(x))
    torch.testing.assert_close(layer.norm_and_gate(read, x), want)
    assert (layer.out_norm is None, layer.out_gate is None) == (not norm, not gate)


def test_a_state_has_read_only_names() -> None:
    state = freeze(memory=torch.zeros(1))
    with pytest.raises(TypeError):
        state["memory"] = torch.ones(1)  # type: ignore[index]
