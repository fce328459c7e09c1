"""How kernels are held to references: accuracy relative to PyTorch's own, and plans judged in double precision."""

import itertools
import math
import statistics
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from alt_fast_kernels.match.plan import MergePlan, first_of_every, max_r

Result = tuple[Tensor, Tensor, Tensor]
"""The kernel's, PyTorch's at the same precision, and the exact one, computed in fp64."""


def assert_as_accurate(draw: Callable[[], Iterable[Result]]) -> None:
    """Maximum and RMS error are at most twice those of PyTorch at the same precision.

    draw: the results of one run on fresh inputs. A single draw may be unlucky, since few rows decide its largest
    error: when it fails, the median of five draws decides. An error 16 times PyTorch's fails in any draw.
    """
    worst = [_worst_ratio(draw())]
    if worst[0] > 2:
        worst += [_worst_ratio(draw()) for _ in range(4)]
    if not (statistics.median(worst) <= 2 and max(worst) <= 16):
        shown = ", ".join(f"{ratio:.3g}" for ratio in worst)
        raise AssertionError(f"errors of {shown} times those of PyTorch in {len(worst)} draws")


def _worst_ratio(results: Iterable[Result]) -> float:
    """The largest error ratio of the results, infinity where one is not finite.

    One rounding of the result's dtype is granted, since PyTorch may be right by luck.
    """
    worst = 0.0
    for actual, at_precision, exact in results:
        if actual.dtype != at_precision.dtype or actual.shape != exact.shape:
            raise AssertionError(
                f"expected {at_precision.dtype} of shape {tuple(exact.shape)}, got {actual.dtype} {tuple(actual.shape)}"
            )
        if actual.numel() == 0:
            continue
        exact = exact.double()
        rounding = torch.finfo(actual.dtype).eps
        for norm in (torch.inf, 2):
            got, allowed, unit = (
                torch.linalg.vector_norm(x, norm).item()
                for x in (actual.double() - exact, at_precision.double() - exact, exact)
            )
            beyond = got - rounding * unit
            if not beyond <= 0:
                worst = max(worst, beyond / allowed if math.isfinite(beyond) and allowed > 0 else math.inf)
    return worst


def assert_best_plan(
    plan: MergePlan, key: Tensor, r: int, protected: int, destinations: int | Tensor = 2, tolerance: float = 1e-6
) -> None:
    """The plan is one that the definition of `match` allows when cosines closer than `tolerance` may swap.

    key: [B, N, H, D]. Two implementations round differently, so a near tie may fall either way; all else is exact.
    """
    metric = torch.nn.functional.normalize(key.double().mean(2), dim=-1).cpu()
    num_tokens = key.shape[1]
    r = min(r, max_r(num_tokens, protected, destinations))
    if isinstance(destinations, int):
        receiving = list(range(first_of_every(destinations, protected), num_tokens, destinations))
    else:
        receiving = destinations.tolist()
    sources = [token for token in range(protected, num_tokens) if token not in receiving]
    if plan.num_slots != num_tokens - r:
        raise AssertionError(f"expected {num_tokens - r} slots, got {plan.num_slots}")
    if r == 0:
        identity = torch.arange(num_tokens).expand(len(key), -1).tolist()
        if plan.slot.tolist() != identity or plan.order.tolist() != identity or bool(plan.start.any()):
            raise AssertionError("r = 0 must give the identity plan")
        return
    for image in range(len(key)):
        scores = metric[image, sources] @ metric[image, receiving].T
        slot, order, start = (part[image].tolist() for part in (plan.slot, plan.order, plan.start))
        survivors, merged = order[: plan.num_slots], order[plan.num_slots :]
        if sorted(order) != list(range(num_tokens)) or [slot[t] for t in survivors] != list(range(plan.num_slots)):
            raise AssertionError(f"image {image}: order {order} does not list the survivor of every slot of {slot}")
        if merged != sorted(merged, key=lambda t: (slot[t], t)) or not set(merged) <= set(sources):
            raise AssertionError(f"image {image}: {merged} are not sources by slot and index")
        if start != [sum(slot[t] < j for t in merged) for j in range(plan.num_slots + 1)]:
            raise AssertionError(f"image {image}: {start} does not say where the tokens that join each slot begin")
        first_receiving = plan.num_slots - len(receiving)
        kept = survivors[protected:first_receiving]
        if survivors[:protected] != list(range(protected)) or survivors[first_receiving:] != receiving:
            raise AssertionError(f"image {image}: protected tokens or destinations are out of place in {survivors}")
        best = {token: scores[i].max().item() for i, token in enumerate(sources)}
        ranks = [best[token] for token in kept]
        falling = all(a >= b - tolerance for a, b in itertools.pairwise(ranks))
        if not (kept == sorted(kept) if protected else falling):
            raise AssertionError(f"image {image}: surviving sources {kept} are in the wrong order")
        for token in merged:
            partner = survivors[slot[token]]
            score = scores[sources.index(token), receiving.index(partner)].item()
            if score < best[token] - tolerance:
                raise AssertionError(f"image {image}: token {token} joined {partner} at {score}, best is {best[token]}")
        if kept and min(best[token] for token in merged) < max(ranks) - tolerance:
            raise AssertionError(f"image {image}: a token less similar than a survivor merged")
