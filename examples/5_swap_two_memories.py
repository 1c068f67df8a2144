"""Snapshots are values: give one text the memory of another, and see which later logits follow."""

import torch

from groundthink import HybridForCausalLM, ModelConfig

torch.manual_seed(0)
config = ModelConfig(pattern="GS", vocab_size=256, d_model=64, n_heads=2, head_dim=32, value_dim=32, window_size=8)
model = HybridForCausalLM(config).eval()
mine, yours, rest = (torch.randint(0, 256, (1, n)) for n in (200, 200, 50))

with torch.no_grad():
    _, recipient = model.prefill(mine)
    _, donor = model.prefill(yours)
    swapped = recipient.replace(0, memory=donor.layers[0]["memory"])
    as_it_was, _ = model.resume(recipient, rest)
    with_your_memory, _ = model.resume(swapped, rest)
    again, _ = model.resume(recipient, rest)

print("the recipient is untouched:", torch.equal(as_it_was, again))
print("logits changed at every later position:", bool(((as_it_was - with_your_memory).abs().amax(-1) > 0).all()))
