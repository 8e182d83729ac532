"""nn.Linear, made faster on a CPU. Kept for speed alone; measured in docs/results.md."""
import torch
import torch.nn.functional as F
from torch import nn

ONEDNN_LINEAR = getattr(torch.ops.mkldnn, "_linear_pointwise", None)  # private: may be absent


class Linear(nn.Linear):
    """nn.Linear, for speed alone by oneDNN where a float32 product on a CPU is large and frozen:
    torch's own choice, MKL, takes twice as long on AMD processors."""

    def forward(self, x):
        large = self.weight.numel() >= 2 ** 18 or x.numel() * self.out_features >= 2 ** 20
        frozen = not (x.requires_grad or self.weight.requires_grad)
        if ONEDNN_LINEAR and x.is_cpu and large and frozen and x.dtype == torch.float32:
            return ONEDNN_LINEAR(x, self.weight, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)
