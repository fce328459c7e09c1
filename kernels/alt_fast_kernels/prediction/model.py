"""How long a kernel should run: a model of its compiled code, its tensors and its grid."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from alt_fast_kernels.launch import Launch, cdiv
from alt_fast_kernels.match.plan import sides
from alt_fast_kernels.prediction.around import TorchCall
from alt_fast_kernels.prediction.compiled import Code, Loop


@dataclass(frozen=True)
class Machine:
    """The constants of every prediction: an H100 SXM's, and how much of its peaks code like this reaches.

    bandwidth, cache_bandwidth: bytes/s from memory and from L2. throughput: dense FLOP/s in fp16 and bf16. gemm,
    attention: FLOP/s that cuBLAS and FlashAttention 3 reach at these shapes. clock: Hz. issue_attention, issue:
    instructions per cycle and scheduler that loops with tensor cores, and other code, reach; the first is calibrated on
    one point, Triton's flash attention at 512 tokens of 64 channels, 340 TFLOP/s (FlashAttention 3, arXiv 2407.08608).
    lone_warp: cycles an instruction takes where a scheduler has one warp to issue from. barrier: cycles a block then
    waits at one. launch: seconds per kernel.
    """

    bandwidth: float = 3.0e12
    cache_bandwidth: float = 5.5e12
    throughput: float = 800e12
    gemm: float = 650e12
    attention: float = 333e12
    multiprocessors: int = 132
    clock: float = 1.7e9
    issue_attention: float = 0.57
    issue: float = 0.7
    lone_warp: float = 3.5
    barrier: float = 30.0
    launch: float = 2e-6


@dataclass(frozen=True)
class Trips:
    """How often a loop of a kernel runs, and those inside it each time."""

    count: float
    inner: tuple["Trips", ...] = ()


def _attention_keys(a: dict[str, Any]) -> tuple[Trips, ...]:
    """Of the forward kernel and the queries' backward: sizes looked through, tiles without masks and with."""
    sizes = (Trips(cdiv(a["num_k"], 256)),) if a["HAS_SIZE"] else ()
    return *sizes, *_streamed(a["num_k"], a["BLOCK_N"], a.get("NARROW", 0))


def _streamed(count: int, block: int, narrow: int) -> tuple[Trips, ...]:
    """Full tiles, the one behind them, and narrow ones in its place if they are compiled: see `tiles.wide_rows`."""
    full, left = divmod(count, block)
    if not narrow:
        return Trips(full), Trips(int(left > 0))
    few = left <= block // 2
    return Trips(full), Trips(int(not few)), Trips(cdiv(left, narrow) if few else 0)


def _attention_queries(a: dict[str, Any]) -> tuple[Trips, ...]:
    return _streamed(a["num_q"], a["BLOCK_N"], a.get("NARROW", 0))


def _chunks(a: dict[str, Any]) -> tuple[Trips, ...]:
    """Of channels: a single one is no loop."""
    return (Trips(a["WIDTH"] // a["BLOCK_C"]),) if a["WIDTH"] > a["BLOCK_C"] else ()


def _by_channels(a: dict[str, Any]) -> tuple[Trips, ...]:
    """Of what alignment does token by token."""
    return (Trips(a["width"] // a["BLOCK_C"]),)


def _joined(a: dict[str, Any]) -> Trips:
    """Tokens that join a tile of slots."""
    return Trips(min(1.0, (a["num_tokens"] - a["num_slots"]) / cdiv(a["num_slots"], a["ROWS"])))


def _plan(a: dict[str, Any]) -> tuple[Trips, ...]:
    """Of `_write_plan`: the merged tokens, then the slots before those of the destinations."""
    num_destinations = sides(a["num_tokens"], a["protected"], a["num_listed"]).num_destinations
    first_destination_slot = a["num_tokens"] - a["r"] - num_destinations
    return Trips(cdiv(a["r"], a["CHOSEN"])), Trips(cdiv(first_destination_slot, a["BLOCK"]))


def _searched(a: dict[str, Any]) -> Trips:
    return Trips(cdiv(a["num_runs"], a["SEARCHED"]))


def _place(a: dict[str, Any]) -> tuple[Trips, ...]:
    """Of the last program, which counts the most survivors."""
    num_sources = sides(a["num_tokens"], a["protected"], a["num_listed"]).num_sources
    return Trips(cdiv(num_sources, a["COUNTED"])), _searched(a), _searched(a)


TRIPS: dict[str, Callable[[dict[str, Any]], tuple[Trips, ...]]] = {
    "attention_fwd": _attention_keys,
    "attention_bwd_q": _attention_keys,
    "attention_bwd_kv": _attention_queries,
    "match_pair": lambda a: (*_chunks(a), *_plan(a)),
    "match_once": _plan,
    "match_best": lambda a: (Trips(cdiv(a["split_size"], a["BLOCK_B"]), _chunks(a)),),
    "match_sort": lambda a: (Trips(a["splits"] // 4), Trips(a["splits"] % 4)) if a["PROPOSALS"] else (),  # unrolled
    "match_select": lambda a: (_searched(a),),
    "match_place": _place,
    "align_fwd": lambda a: (Trips(cdiv(a["per_split"], a["BLOCK_N"]), (Trips(cdiv(a["width"], a["BLOCK_C"])),)),),
    "align_fwd_held": lambda a: (Trips(cdiv(a["per_split"], a["BLOCK_N"]) - 1),),
    "align_bwd": lambda a: 2 * (Trips(cdiv(a["width"], a["BLOCK_C"])),),
    "align_norm": _by_channels,
    "align_pick": _by_channels,
    "align_pivot": _by_channels,
    "align_finish": lambda a: 2 * _by_channels(a),
    "merge_fwd": lambda a: (_joined(a),),
    "merge_bwd": lambda a: (Trips(a["num_tiles"] / a["programs"], (_joined(a),) if a["NEEDS_X"] else ()),),
}
"""The loops of every kernel that has some, in the order of its code, by its arguments.

Counts are means over programs. Sizes are positive, and merged tokens all join slots of different tiles.
"""


def _attention_flops(products: int) -> Callable[[dict[str, Any]], int]:
    def flops(a: dict[str, Any]) -> int:
        batch, num_q, heads, dim = a["q"].shape
        return 2 * products * batch * heads * num_q * int(a["k"].shape[1]) * dim

    return flops


FLOPS: dict[str, Callable[[dict[str, Any]], int]] = {
    "attention_fwd": _attention_flops(2),
    "attention_bwd_q": _attention_flops(3),
    "attention_bwd_kv": _attention_flops(4),
    "align_fwd": lambda a: 2 * a["num_tokens"] * a["num_entities"] * a["width"],
    "align_fwd_held": lambda a: 2 * a["num_tokens"] * a["num_entities"] * a["WIDTH"],
    "align_bwd": lambda a: 4 * a["num_tokens"] * a["chunk"] * a["width"],
}
"""FLOPs of matrix products; the other kernels' are too few to matter."""


def _align_reads(a: dict[str, Any], products: int, num_entities: int) -> int:
    """Both operands of every tile of every product."""
    tiles = cdiv(a["num_tokens"], a["BLOCK_M"]) * cdiv(num_entities, a["BLOCK_N"])
    return int(products * tiles * (a["BLOCK_M"] + a["BLOCK_N"]) * a["width"] * a["tokens"].itemsize)


def _align_held_reads(a: dict[str, Any]) -> int:
    """Entities for every tile of tokens, tokens for every part of the corpus."""
    tokens, entities = a["tokens"], a["entities"]
    return int(cdiv(a["num_tokens"], a["BLOCK_M"]) * entities.nbytes + len(a["best_out"]) * tokens.nbytes)


CACHE_BYTES: dict[str, Callable[[dict[str, Any]], int]] = {
    "align_fwd": lambda a: _align_reads(a, 1, a["num_entities"]),
    "align_fwd_held": _align_held_reads,
    "align_bwd": lambda a: _align_reads(a, 2, a["chunk"]),
}
"""Bytes that kernels read again and again from the L2 cache, where they matter."""


@dataclass(frozen=True)
class Time:
    """Of one kernel, in seconds: the four limits, each alone, and the prediction."""

    memory: float
    cache: float
    tensor: float
    issue: float
    predicted: float

    @property
    def limit(self) -> str:
        """The largest of the limits."""
        return max(("memory", "cache", "tensor", "issue"), key=lambda name: getattr(self, name))


def executed(code: Code, trips: tuple[Trips, ...], kernel: str) -> float:
    """Instructions that one warp executes. Raises RuntimeError where the code's loops are not those of TRIPS."""

    def within(first: int, last: int, loops: tuple[Loop, ...], trips: tuple[Trips, ...]) -> float:
        if len(loops) != len(trips):
            raise RuntimeError(f"{kernel} was compiled to {len(loops)} loops where TRIPS has {len(trips)}")
        straight = last - first + 1 - sum(loop.last - loop.first + 1 for loop in loops)
        pairs = zip(loops, trips, strict=True)
        return straight + sum(trip.count * within(x.first, x.last, x.inner, trip.inner) for x, trip in pairs)

    return within(0, len(code.instructions) - 1, code.loops, trips)


def predict(launch: Launch, code: Code, machine: Machine) -> Time:
    """Predict one kernel's time from its compiled code, the tensors it is given and its grid."""
    arguments = launch.arguments()
    trips = TRIPS[launch.name](arguments) if launch.name in TRIPS else ()
    memory = _bytes(launch) / machine.bandwidth
    cache = CACHE_BYTES.get(launch.name, lambda _: 0)(arguments) / machine.cache_bandwidth
    tensor = FLOPS.get(launch.name, lambda _: 0)(arguments) / machine.throughput
    rate = machine.issue_attention if code.mix()["tensor"] else machine.issue
    per_warp = executed(code, trips, launch.name)
    barriers = sum(i.name.startswith("BAR") for i in code.instructions) * machine.barrier

    def wave(blocks: float) -> float:
        """Cycles until as many blocks on one multiprocessor, at most those that fit, have run."""
        warps = blocks * code.warps / 4  # per scheduler
        return max(per_warp * warps / rate, per_warp * machine.lone_warp + barriers)

    resident = code.blocks_per_multiprocessor
    waves = launch.grid / (resident * machine.multiprocessors)
    if waves > 4:  # blocks begin as others end
        cycles = waves * wave(resident)
    else:
        left = launch.grid - int(waves) * resident * machine.multiprocessors
        cycles = int(waves) * wave(resident) + (wave(cdiv(left, machine.multiprocessors)) if left else 0)
    issue = cycles / machine.clock
    return Time(memory, cache, tensor, issue, max(memory, cache, tensor, issue) + machine.launch)


def predict_torch(call: TorchCall, machine: Machine) -> float:
    """Predict the seconds of one of PyTorch's own kernels, which does nothing but move bytes or multiply matrices."""
    return max(call.bytes / machine.bandwidth, call.flops / machine.gemm) + machine.launch


def _bytes(launch: Launch) -> int:
    """Of every tensor that a kernel is given, once."""
    tensors = {(x.data_ptr(), x.shape, x.stride()): x.nbytes for x in launch.args if isinstance(x, Tensor)}
    return sum(tensors.values())
