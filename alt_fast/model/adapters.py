"""AIM's bottleneck adapters (Yang et al., arXiv 2302.03024), for Table 7 of the paper.

Without AIM's temporal embedding, a learned vector for each frame that it adds to the tokens.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from alt_fast.model.config import Tuning

MLP_SCALE = 0.5  # AIM's weight of the MLP adapter, which runs beside the MLP


class Adapter(nn.Module):
    """Linear to a quarter of the width, GELU, linear back, times `scale`. Zero at first: training starts as without."""

    def __init__(self, width: int, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.down = nn.Linear(width, width // 4)
        self.up = nn.Linear(width // 4, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return self.scale * self.up(F.gelu(self.down(x)))


def make_adapters(tuning: Tuning, width: int) -> nn.ModuleDict:
    """One block's adapters: "spatial" after attention, "mlp" beside the MLP, "temporal" after attention over time."""
    names = {"s": ("spatial",), "sm": ("spatial", "mlp"), "stm": ("spatial", "mlp", "temporal")}.get(tuning, ())
    return nn.ModuleDict({name: Adapter(width, MLP_SCALE if name == "mlp" else 1.0) for name in names})
