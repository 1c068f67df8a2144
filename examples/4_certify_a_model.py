"""Ask a model where its answers come from. This one was never trained, and the certificate says so."""

import torch

from groundthink import HybridForCausalLM, ModelConfig, certify
from groundthink.tasks import Vocabulary

torch.manual_seed(0)
vocabulary = Vocabulary(text=0)
config = ModelConfig(
    pattern="GS", vocab_size=vocabulary.size, d_model=64, n_heads=2, head_dim=32, value_dim=32, window_size=8
)
certificate = certify(HybridForCausalLM(config), vocabulary=vocabulary, n_pairs=8, n=40, rows="core")
for row in certificate.results[:9]:
    print(f"{row.verdict:5} {row.name:28} {row.meaning}")
print(certificate.sentence)
