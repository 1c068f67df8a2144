"""A text read whole and the same text read in pieces give the same logits; what is carried has one size."""

import torch

from groundthink import HybridForCausalLM, ModelConfig

torch.manual_seed(0)
config = ModelConfig(pattern="GGS", vocab_size=256, d_model=64, n_heads=2, head_dim=32, value_dim=32, window_size=16)
model = HybridForCausalLM(config).eval()
text = torch.randint(0, 256, (1, 3000))

with torch.no_grad():
    whole, _ = model.prefill(text)
    logits, snapshot = model.prefill(text[:, :1000])
    pieces = [logits]
    for start in range(1000, 3000, 500):
        logits, snapshot = model.resume(snapshot, text[:, start : start + 500])
        pieces.append(logits)

gap = (torch.cat(pieces, 1) - whole).abs().max() / whole.abs().max()
carried = sum(x.numel() for layer in snapshot.layers for x in layer.values())
print(f"largest relative difference {float(gap):.1e}")
print(f"{int(snapshot.position)} tokens read, {carried:,} numbers carried, horizon {config.horizon} tokens")
