"""The pretended device computes as the CPU does and refuses what a GPU refuses: each refusal is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import groundthink as gt
from groundthink import ops
from groundthink.probes.causality import packed_documents
from tests.pretend_device import PretendTensor, moved, pretend

MIXED = "Expected all tensors to be on the same device"


@pytest.fixture
def device() -> Iterator[torch.device]:
    with pretend() as found:
        yield found


def test_what_is_made_there_is_there(device: torch.device) -> None:
    made = [
        torch.zeros(2, device=device), torch.arange(3, device=device), torch.tensor([1.0], device=device),
        torch.full((2,), 3, device=str(device)), torch.randn(2, device=device), torch.eye(2, device=device),
        torch.as_tensor([1, 2], device=device), torch.zeros(2).to(device), torch.zeros(2).to(device, torch.float64),
        torch.zeros(2).to(torch.zeros(1, device=device)), torch.empty(2, device=device),
    ]  # fmt: skip
    for x in (*made, *(torch.zeros_like(x) for x in made), *(x.new_ones(2) for x in made), *(x * 2 for x in made)):
        assert isinstance(x, PretendTensor)
        assert x.device == device
        assert not x.is_cpu
        assert not x.is_cuda
    for x in (made[0].cpu(), made[0].to("cpu"), made[0].to(torch.zeros(1)), torch.zeros_like(made[0], device="cpu")):
        assert type(x) is Tensor
        assert x.device.type == "cpu"
    assert made[7].dtype == torch.float32
    assert made[8].dtype == torch.float64


def test_a_transfer_is_a_copy(device: torch.device) -> None:
    here = torch.zeros(2)
    there = here.to(device)
    there += 1
    assert here.tolist() == [0, 0]
    assert there.cpu().tolist() == there.tolist() == [1, 1]
    assert there.to(device) is there
    here.copy_(there)
    assert here.tolist() == [1, 1]


def test_writing_through_a_view(device: torch.device) -> None:
    x = torch.zeros(2, 3, device=device)
    x[0, 1:] = 5
    x.view(-1)[3] = 7
    x[torch.tensor([1])] += 1  # indices may lie on the CPU
    assert x.tolist() == [[0, 5, 5], [8, 1, 1]]
    assert float(x[1, 0]) == x[1, 0].item() == 8


@pytest.mark.parametrize(
    "fault",
    [
        lambda here, there: here + there,
        lambda here, there: there * here,
        lambda here, there: there.add_(here),
        lambda here, there: here.add_(there.sum()),  # where there is a scalar of the device, the rest is still here
        lambda here, there: torch.cat([here, there]),
        lambda here, there: torch.stack([there.sum(), here.sum()]),
        lambda here, there: torch.where(here > 0, there, 0.0),
        lambda here, there: torch.equal(here, there),
        lambda here, there: there.masked_fill(here > 0, 0.0),
        lambda here, there: there.index_select(0, here.long()),
        lambda here, there: here[there.long()],
        lambda here, there: there.gather(0, here.long()),
        lambda here, there: torch.nn.functional.embedding(here.long(), there[:, None]),
        lambda here, there: torch.addmm(there[:, None], there[:, None], there[None, :1], out=here[:, None]),
    ],
)
def test_two_devices_in_one_op(fault: Callable[[Tensor, Tensor], Tensor], device: torch.device) -> None:
    with pytest.raises(RuntimeError, match=MIXED):
        fault(torch.ones(3), torch.ones(3, device=device))


def test_scalars_of_the_cpu_may_come(device: torch.device) -> None:
    there = torch.ones(3, device=device)
    assert (there * torch.tensor(2.0)).tolist() == [2, 2, 2]
    assert torch.where(there > 0, torch.tensor(4.0), there).tolist() == [4, 4, 4]


def test_numpy_has_no_such_device(device: torch.device) -> None:
    there = torch.ones(3, device=device)
    for convert in (Tensor.numpy, np.asarray, lambda x: x.detach().numpy()):
        with pytest.raises(TypeError, match="can't convert"):
            convert(there)
    assert there.cpu().numpy().tolist() == [1, 1, 1]


def test_generators_have_a_device(device: torch.device) -> None:
    here, there = torch.Generator().manual_seed(1), torch.Generator(device).manual_seed(1)
    assert there.device == device
    assert here.device.type == "cpu"
    same = torch.randn(3, generator=there, device=device)
    assert same.tolist() == torch.randn(3, generator=here).tolist()
    for fault in (
        lambda: torch.randn(3, generator=here, device=device),
        lambda: torch.randn(3, generator=there),
        lambda: same.uniform_(generator=here),
        lambda: torch.rand(3).uniform_(generator=there),
        lambda: torch.multinomial(same.abs(), 1, generator=here),
    ):
        with pytest.raises(RuntimeError, match="device type for generator"):
            fault()


def test_gradients_are_those_of_the_cpu(device: torch.device) -> None:
    torch.manual_seed(0)
    here = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))
    here[2].weight = nn.Parameter(here[0].weight.detach().T.clone())
    torch.manual_seed(0)
    there = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))
    there[2].weight = nn.Parameter(there[0].weight.detach().T.clone())
    there = there.to(device)
    x = torch.randn(3, 4)
    here(x).square().sum().backward()
    there(x.to(device)).square().sum().cpu().backward()
    for p, q in zip(here.parameters(), there.parameters(), strict=True):
        assert q.grad is not None
        assert q.grad.device == device
        assert torch.equal(q.grad.cpu(), p.grad)  # type: ignore[arg-type]


def test_what_is_tied_stays_tied(device: torch.device) -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(4, 3), "head": nn.Linear(3, 4, bias=False)})
    model["head"].weight = model["embed"].weight
    for there in (moved(model), model.to(device), model.to(device, torch.float32)):
        assert there["head"].weight is there["embed"].weight
        assert there["head"].weight.device == device


def test_a_model_that_mixes_devices_is_caught(device: torch.device) -> None:
    class Forgetful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(8, 4)

        def forward(self, ids: Tensor) -> Tensor:
            return self.embed(ids) + torch.arange(ids.shape[1])[:, None]

    model = Forgetful().to(device)
    with pytest.raises(RuntimeError, match=MIXED):
        model(torch.zeros(1, 3, dtype=torch.int64, device=device))


def test_documents_on_the_cpu_are_caught(device: torch.device) -> None:
    """What broke a certificate on a GPU once: packed documents that stayed where they were made."""
    sizes = {"vocab_size": 32, "d_model": 16, "n_heads": 2, "head_dim": 8, "value_dim": 8, "d_ff": 16, "window_size": 4}
    ids = torch.randint(1, 32, (2, 30))
    for pattern in ("G", "A"):
        model = moved(gt.HybridForCausalLM(gt.ModelConfig(pattern=pattern, **sizes)).eval())  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match=MIXED):
            model.prefill(ids.to(device), documents=packed_documents(ids))
    q, k, v = (torch.randn(1, 9, 2, 4, device=device) for _ in range(3))
    with pytest.raises(RuntimeError, match=MIXED):
        ops.window_attention(q, k, v, window=3, documents=torch.zeros(1, 9, dtype=torch.int32))
