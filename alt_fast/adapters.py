"""AIM's bottleneck adapters (Yang et al., arXiv 2302.03024), for Table 7 of the paper."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Tuning = Literal["finetune", "frozen", "s", "sm", "stm"]
"""What of the backbone trains: all of it, nothing, or adapters (spatial; + MLP; + temporal) on a frozen one."""

MLP_SCALE = 0.5  # AIM's weight of the MLP adapter, which runs beside the MLP


class Adapter(nn.Module):
    """Linear to a quarter of the width, GELU, linear back. Zero at first: training starts at the backbone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, width // 4)
        self.up = nn.Linear(width // 4, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return self.up(F.gelu(self.down(x)))


def make_adapters(tuning: Tuning, width: int) -> nn.ModuleDict:
    """One block's adapters: "spatial" after attention, "mlp" beside the MLP, "temporal" after attention over time."""
    names = {"s": ("spatial",), "sm": ("spatial", "mlp"), "stm": ("spatial", "mlp", "temporal")}.get(tuning, ())
    return nn.ModuleDict({name: Adapter(width) for name in names})
