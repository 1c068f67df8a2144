"""Write a memory once, read it with two sets of queries, and let gradients of both reach the keys."""

import torch
import torch.nn.functional as F

from groundthink import write

torch.manual_seed(0)
batch, length, heads, key_dim, value_dim = 2, 100, 4, 32, 48
keys = F.normalize(torch.randn(batch, length, heads, key_dim), dim=-1).requires_grad_()
values = torch.randn(batch, length, heads, value_dim)
log_decay = -0.01 * torch.rand(batch, length, heads)
beta = torch.rand(batch, length, heads)

memory = write(keys, values, log_decay=log_decay, beta=beta)
own = memory.read(keys)  # what the writer's keys find again
other = memory.read(torch.randn(batch, length, heads, key_dim))  # a later layer asks something else
(own.square().mean() + other.square().mean()).backward()
print("reads", tuple(own.shape), tuple(other.shape), "final state", tuple(memory.final_state.shape))
print("gradient of the keys, from both reads:", keys.grad is not None and float(keys.grad.norm()) > 0)
