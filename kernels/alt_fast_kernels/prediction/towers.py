"""Ops, transformer blocks and whole towers on one machine, predicted from their kernels' times."""

from dataclasses import dataclass

from alt_fast_kernels.launch import Launch, cdiv
from alt_fast_kernels.match.plan import ONE_LAUNCH_IMAGES
from alt_fast_kernels.prediction.around import TorchCall
from alt_fast_kernels.prediction.cases import Case, Layout, attention_case, match_case, merge_case
from alt_fast_kernels.prediction.compiled import Code, Compiler
from alt_fast_kernels.prediction.model import Machine, Time, predict, predict_torch


@dataclass(frozen=True)
class Prediction:
    """Of one call of an op: the times of its kernels and of PyTorch's around them, and the floor, all in seconds."""

    case: Case
    kernels: tuple[tuple[Launch, Code, Time], ...]
    around: tuple[tuple[TorchCall, float], ...]
    floor: float

    @property
    def time(self) -> float:
        return sum(time.predicted for _, _, time in self.kernels) + self.time_around

    @property
    def time_around(self) -> float:
        return sum(seconds for _, seconds in self.around)


class Predictor:
    """Predicts calls, blocks and towers on one machine, from code compiled for sm_90."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._compile = Compiler("sm_90")

    def op(self, case: Case) -> Prediction:
        """One call of an op."""
        kernels = []
        launches, calls = case.recorded("sm_90")
        for launch in launches:
            code = self._compile(launch)
            kernels.append((launch, code, predict(launch, code, self.machine)))
        floor = max(case.cost.bytes / self.machine.bandwidth, 2 * case.cost.macs / self.machine.throughput)
        around = tuple((call, predict_torch(call, self.machine)) for call in calls)
        return Prediction(case, tuple(kernels), around, floor)

    def block(
        self, tower: "Tower", batch: int, num_tokens: int, r: int, layout: Layout | None = None, aside: bool = False
    ) -> "Block":
        """One transformer block in bf16, compiled around our kernels, which merges r tokens between its branches.

        layout: of its rotary positions, if it has any. aside: as a CUDA graph has it, where images are few (`lane`):
        matching runs beside attention and its projection, and takes what they leave of it.
        """
        c, num_slots = tower.width, num_tokens - r
        attention = self.op(attention_case(batch, num_tokens, tower.heads, c // tower.heads, layout=layout)).time
        matching = self.op(match_case(batch, num_tokens, tower.heads, c // tower.heads, r)).time if r else 0.0
        if aside and batch <= ONE_LAUNCH_IMAGES:
            projection = batch * num_tokens * c * c / self.machine.gemm * 2 + self.machine.launch
            matching = max(0.0, matching - attention - projection)
        merging = self.op(merge_case(batch, num_tokens, r, c)).time if r else self._pass(batch, num_tokens, c)
        gemms = self._gemms(batch * num_tokens * 4 * c * c) + self._gemms(batch * num_slots * 8 * c * c)
        rest = gemms + self._pass(batch, num_slots, c)
        return Block(attention, matching, merging, rest, self._pass(batch, num_tokens, c))

    def unmerged_block(self, tower: "Tower", batch: int, num_tokens: int, ours: bool = True) -> float:
        """The same block without merging, in seconds, on attention of FlashAttention 3's class.

        ours: or on our attention, where that is faster.
        """
        c, padded = tower.width, cdiv(num_tokens, 128) * 128
        flops, moved = 4 * batch * padded**2 * c, 4 * batch * num_tokens * c * 2
        theirs = max(flops / self.machine.attention, moved / self.machine.bandwidth) + self.machine.launch
        own = self.op(attention_case(batch, num_tokens, tower.heads, c // tower.heads, sized=False)).time
        gemms = self._gemms(batch * num_tokens * 4 * c * c) + self._gemms(batch * num_tokens * 8 * c * c)
        return (min(theirs, own) if ours else theirs) + gemms + 2 * self._pass(batch, num_tokens, c)

    def speedup(self, tower: "Tower", batch: int, r: int, aside: bool = False, ours: bool = True) -> float:
        """A whole tower that merges r tokens in every layer, over the same without.

        aside: see `block`. ours: see `unmerged_block`.
        """
        merged, tokens = 0.0, tower.tokens
        for _ in range(tower.depth):
            gone = min(r, (tokens - 1) // 2)
            merged += self.block(tower, batch, tokens, gone, aside=aside).time
            tokens -= gone
        return tower.depth * self.unmerged_block(tower, batch, tower.tokens, ours) / merged

    def _gemms(self, macs: int) -> float:
        """Two of a block's four."""
        return 2 * macs / self.machine.gemm + 2 * self.machine.launch

    def _pass(self, batch: int, num_tokens: int, width: int) -> float:
        """Residual add and LayerNorm, as torch.compile fuses them: two streams read, two written."""
        return 4 * batch * num_tokens * width * 2 / self.machine.bandwidth + self.machine.launch


@dataclass(frozen=True)
class Block:
    """Seconds of a block's parts. merging: with residual add and LayerNorm, which alone would take add_norm."""

    attention: float
    matching: float
    merging: float
    rest: float
    add_norm: float

    @property
    def time(self) -> float:
        return self.attention + self.matching + self.merging + self.rest

    @property
    def overhead(self) -> float:
        """What merging adds, as a share of the block."""
        return (self.matching + max(0.0, self.merging - self.add_norm)) / self.time


@dataclass(frozen=True)
class Tower:
    """A vision transformer; tokens: with the class token."""

    name: str
    width: int
    heads: int
    depth: int
    tokens: int


B16, L14 = Tower("ViT-B/16", 768, 12, 12, 197), Tower("ViT-L/14", 1024, 16, 24, 257)
