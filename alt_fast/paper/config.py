"""Settings of the paper's experiments."""

from dataclasses import dataclass

from alt_fast.errors import ArgumentError, check_at_least, check_seed


@dataclass(frozen=True)
class ProbeConfig:
    """How the layer trains. The paper gives the rate (section 4.4) and says that the rest is as in fine-tuning."""

    lr: float = 4e-4
    epochs: int = 30
    warmup_epochs: int = 5
    batch_size: int = 256
    weight_decay: float = 0.001
    seed: int = 0

    def __post_init__(self) -> None:
        check_at_least(self, epochs=1, batch_size=1, lr=0)
        check_seed("seed", self.seed)
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise ArgumentError(f"warmup_epochs must be in [0, epochs], got {self.warmup_epochs}")
