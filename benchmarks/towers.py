"""Towers at their real size, merged beside dropped: how much of what removing tokens can gain, merging gains.

    python -m benchmarks.towers [NAME ...] [--share 0.1] [--batch 1] [--rounds 5] [--results FILE.jsonl]

Weights are random. "dropped" removes as many tokens, the last ones, at the same places, and neither chooses nor merges
any: the ceiling of the machine. Contestants run in turn, round by round; ratios are medians of rounds.
"""

import argparse
import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import alt_fast
from alt_fast import cli
from alt_fast.errors import ArgumentError
from alt_fast.measure.ceiling import drop_last_step
from alt_fast.measure.counting import count_macs
from alt_fast.measure.lines import append_row, check_rows
from alt_fast.measure.timing import Race

PLAIN, MERGED, DROPPED = "un-merged", "merged", "dropped"


@dataclass(frozen=True)
class Case:
    """A tower and what it reads. shape: of one input. tokens: before the first layer. call: what is timed."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    tokens: int
    call: Callable[[Any, Tensor], object]


def _dense() -> nn.Module:
    import timm

    model: nn.Module = timm.create_model("vit_small_patch14_reg4_dinov2", img_size=448)
    return model


def _taps(model: Any, images: Tensor) -> object:
    return model.forward_intermediates(images, indices=[2, 5, 8, 11], output_fmt="NLC", intermediates_only=True)


def _dinov3() -> nn.Module:
    import timm

    model: nn.Module = timm.create_model("vit_base_patch16_dinov3", img_size=1024)
    return model


def _videomae() -> nn.Module:
    from transformers import VideoMAEConfig, VideoMAEModel

    return VideoMAEModel(VideoMAEConfig())


def _vjepa2() -> nn.Module:
    from transformers import VJEPA2Config, VJEPA2Model

    return VJEPA2Model(VJEPA2Config())


CASES = {
    "dense": Case(_dense, (3, 448, 448), 1029, _taps),
    "videomae": Case(_videomae, (16, 3, 224, 224), 1568, lambda model, x: model(x)),
    "dinov3": Case(_dinov3, (3, 1024, 1024), 4101, lambda model, x: model(x)),
    "vjepa2": Case(_vjepa2, (64, 3, 256, 256), 8192, lambda model, x: model(x, skip_predictor=True)),
}
"""dense: DINOv2 S with registers, four layers read as grids. VideoMAE B. DINOv3 B at 1,024 pixels. V-JEPA 2 L, 64
frames."""


def flop_ratio(case: Case, share: float, batch: int) -> float:
    """FLOPs un-merged over those with a share of the tokens dropped in every layer, attention's included."""
    with torch.device("meta"), torch.no_grad():
        plain, x = case.build().eval(), torch.empty(batch, *case.shape)
        dropping = alt_fast.apply_patch(copy.deepcopy(plain), r=share, step=drop_last_step)
        return count_macs(lambda: case.call(plain, x)) / count_macs(lambda: case.call(dropping, x))


def measure(name: str, share: float, batch: int, rounds: int, device: str) -> dict[str, Any]:
    """Time one tower un-merged, merged and dropped."""
    case = CASES[name]
    torch.manual_seed(0)
    plain = case.build().eval().to(device)
    x = torch.randn(batch, *case.shape, device=device)
    merging = alt_fast.apply_patch(copy.deepcopy(plain), r=share)
    dropping = alt_fast.apply_patch(copy.deepcopy(plain), r=share, step=drop_last_step)
    race = Race()
    with torch.inference_mode():
        race.add(PLAIN, lambda: case.call(plain, x), device, graph=False)
        race.add(MERGED, lambda: case.call(merging, x), device, graph=False)
        race.add(DROPPED, lambda: case.call(dropping, x), device, graph=False)
        if race.skipped:
            raise RuntimeError(f"{name}: {race.skipped}")
        contestants = [PLAIN, MERGED, DROPPED]
        for _ in range(rounds):
            for contestant in contestants:
                race.run(contestant)
            contestants.append(contestants.pop(0))  # another one first
    return {
        "tower": name,
        "tokens": case.tokens,
        "batch": batch,
        "share": share,
        "flop_ratio": round(flop_ratio(case, share, batch), 3),
        "speedup": [round(ratio, 3) for ratio in race.ratio(PLAIN, MERGED)],
        "ceiling": [round(ratio, 3) for ratio in race.ratio(PLAIN, DROPPED)],
        "share_of_ceiling": [round(1 / ratio, 3) for ratio in reversed(race.ratio(MERGED, DROPPED))],
        "seconds": race.seconds,
    }


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.towers", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("towers", nargs="*", metavar="NAME", help=f"of {', '.join(CASES)}; all by default")
    parser.add_argument("--share", type=float, default=0.1, help="of the tokens merge in every layer")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, help="at least 2")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--results", type=Path, metavar="FILE", help="also add JSON lines to a file")
    return parser


def work(options: argparse.Namespace) -> int:
    """Measure the towers, print a line each, and add it to the results."""
    unknown = sorted(set(options.towers) - set(CASES))
    if unknown:
        raise ArgumentError(f"towers are {', '.join(CASES)}, got {', '.join(unknown)}")
    if options.rounds < 2:
        raise ArgumentError(f"--rounds must be at least 2, got {options.rounds}")
    check_rows(options.results)
    for name in options.towers or CASES:
        row = measure(name, options.share, options.batch, options.rounds, options.device)
        print(
            f"{name}: {row['tokens']} tokens, FLOP ratio {row['flop_ratio']}, merged {row['speedup'][1]} x, dropped "
            f"{row['ceiling'][1]} x, {row['share_of_ceiling'][1]:.0%} of it",
            flush=True,
        )
        if options.results is not None:
            append_row(options.results, row)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return cli.run(make_parser, work, arguments)


if __name__ == "__main__":
    sys.exit(main())
