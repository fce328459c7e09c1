"""The audit of a way of removing tokens: what it saves, what arrives on the clock, what it costs, what is wrong."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from alt_fast.errors import ArgumentError
from alt_fast.measure.ceiling import dropping
from alt_fast.measure.counting import inference_macs
from alt_fast.measure.faults import FAULTS, Fault, Patch, call, find_faults, is_close, look, patched
from alt_fast.measure.memory import saved_bytes
from alt_fast.measure.observe import Counts, block_names, count_tokens
from alt_fast.measure.outputs import agreement, as_tensor
from alt_fast.measure.timing import Race, Step, every_compilation_counts, first_line, in_turn

PLAIN, METHOD, DROPPED = "un-merged", "method", "dropped"
"""Who runs in every race; DROPPED has the method's tokens and does nothing for them: the ceiling."""

Quartiles = tuple[float, float, float]
"""The lower one, the median, the upper one."""

Mode = Literal["inference", "inference-compiled", "training", "training-compiled"]
MODES: tuple[Mode, ...] = get_args(Mode)

TOO_FAST = 1.2
"""Times as fast as dropping, in three quarters of the rounds, that noise does not explain."""


@dataclass(frozen=True)
class Raced:
    """One mode and batch. seconds: of every round, by contestant. memory: bytes by contestant.

    flop_ratio: MACs of the un-merged model over the method's, on this batch: some remove what the images allow.

    skipped: who did not start, and why. uncaptured: who ran call by call on a GPU, where the others are CUDA graphs,
    and why.
    """

    mode: Mode
    batch: int
    seconds: dict[str, list[float]]
    memory: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    uncaptured: dict[str, str] = field(default_factory=dict)
    flop_ratio: float = 1.0

    @property
    def speedup(self) -> Quartiles | None:
        """How many times faster the method is: quartiles of the rounds' own ratios. None where it did not run."""
        return self.ratio(PLAIN, METHOD)

    @property
    def ceiling(self) -> Quartiles | None:
        """How many times faster it is to drop as many tokens."""
        return self.ratio(PLAIN, DROPPED)

    @property
    def share(self) -> Quartiles | None:
        """The speed-up over the ceiling."""
        return self.ratio(DROPPED, METHOD)

    def as_row(self) -> dict[str, Any]:
        """Return it as plain data: seconds too, from which the ratios can be computed again."""
        ratios: dict[str, Any] = {name: getattr(self, name) for name in ("speedup", "ceiling", "share")}
        others = [who for who in self.seconds if who not in (PLAIN, METHOD, DROPPED)]
        return {**asdict(self), **ratios, "beside": {who: self.ratio(PLAIN, who) for who in others}}

    def ratio(self, slow: str, fast: str) -> Quartiles | None:
        """Quartiles of how many times faster `fast` is than `slow`, round by round; None where one did not run."""
        if not self.seconds.get(slow) or not self.seconds.get(fast):
            return None
        return Race(seconds=self.seconds).ratio(slow, fast)


@dataclass(frozen=True)
class Judgement:
    """All about one method at one r.

    flop_ratio: MACs of the un-merged model over the method's, on the images. agreement: see `outputs.agreement`;
    beside: that of other models in the races. properties: by name, "yes", or why not. races: by mode and batch.
    """

    method: str
    r: Any
    counts: Counts
    flop_ratio: float
    agreement: dict[str, float]
    properties: dict[str, str]
    faults: list[Fault]
    races: list[Raced]
    beside: dict[str, dict[str, float]] = field(default_factory=dict)

    def as_row(self) -> dict[str, Any]:
        """Return all of it as plain data, for a result file or a page."""
        return {
            "method": self.method,
            "r": self.r,
            "tokens": self.counts._asdict(),
            "flop_ratio": self.flop_ratio,
            "agreement": self.agreement,
            "beside": self.beside,
            "properties": self.properties,
            "faults": [{**asdict(fault), "what": FAULTS[fault.name]} for fault in self.faults],
            "races": [raced.as_row() for raced in self.races],
        }

    def verdict(self, claim: float) -> "Verdict":
        """What to think of a claimed speed-up. Raises ArgumentError where no race has a ceiling.

        The method's own speed-up does not count: one that leaves work out would prove its own claim.
        """
        reached = [(raced.ceiling, raced) for raced in self.races if raced.ceiling is not None]
        if not reached:
            reasons = {raced.skipped[DROPPED] for raced in self.races if DROPPED in raced.skipped}
            raise ArgumentError(
                f"a claim needs a ceiling, and no race has one ({'; '.join(reasons) or 'none was run'})"
            )
        (_, ceiling, _), raced = max(reached, key=lambda pair: pair[0][1])
        most = max(high for (_, _, high), _ in reached)
        return Verdict(claim, raced.flop_ratio, ceiling, most, f"{raced.mode}, batch {raced.batch}")


@dataclass(frozen=True)
class Verdict:
    """A claimed speed-up beside what is possible.

    ceiling: the highest median of all races; where: which one's; flop_ratio: of that race. most: the highest upper
    quartile of any ceiling: what is above the ceiling and not above this is within the noise.
    """

    claim: float
    flop_ratio: float
    ceiling: float
    most: float
    where: str

    @property
    def possible(self) -> bool:
        """Whether this machine gave as much to fewer tokens, noise included."""
        return self.claim <= self.most

    def __str__(self) -> str:
        flops = "above" if self.claim > self.flop_ratio else "within"
        ceiling = "within" if self.claim <= self.ceiling else "within the noise of" if self.possible else "above"
        return (
            f"a speed-up of {self.claim:g} is {'possible' if self.possible else 'impossible'} here: {flops} the FLOP "
            f"ratio of {self.flop_ratio:.2f}, {ceiling} the ceiling of {self.ceiling:.2f} ({self.where})"
        )


@dataclass(frozen=True)
class Settings:
    """How to measure. rounds: of every race, at least 2."""

    modes: Sequence[Mode] = MODES
    batches: Sequence[int] = (1, 8)
    rounds: int = 9

    def __post_init__(self) -> None:
        if self.rounds < 2:
            raise ArgumentError(f"rounds must be >= 2, for quartiles, got {self.rounds}")
        if min(self.batches, default=0) < 1:
            raise ArgumentError(f"batches must be >= 1, got {list(self.batches)}")

    def races(self) -> Iterator[tuple[Mode, int]]:
        """Yield every mode and batch."""
        for mode in self.modes:
            for batch in sorted(set(self.batches)):
                yield mode, batch


def judge(
    name: str,
    model: nn.Module,
    patch: Patch,
    r: Any,
    images: Tensor,
    settings: Settings,
    claimed: Sequence[int] | None = None,
    beside: dict[str, nn.Module] | None = None,
) -> Judgement:
    """Audit a method.

    name: of the method. model: un-merged, in eval mode, with one vision tower that `apply_patch` knows; stays as it is.
    patch: patch(model, r) patches in place. images: [B, 3, H, W] with B >= 2, on the model's device, which speak for
    agreement and faults; batches of races are made of them. claimed: tokens at every MLP that the method claims, or
    None. beside: other models to race, by name, as a method's public code.
    Raises UncountedError for an op that nobody counts, ArgumentError for a model that has no tower, and what the method
    raises.
    """
    blocks = block_names(model)
    method = patched(model, patch, r)
    (plain, expected), (own, found) = (look(who, images, blocks) for who in (model, method))

    beside = beside or {}
    ratios = {
        len(given): inference_macs(model, given) / _macs(method, given)
        for given in (images, *(batch_of(images, batch) for _, batch in settings.races()))
    }

    def raced(mode: Mode, batch: int) -> Raced:
        given = batch_of(images, batch)
        counts = count_tokens(method, blocks, given, lambda: call(method, given))  # of some methods they depend on it
        models = {PLAIN: model, METHOD: method, DROPPED: dropping(model, counts, given), **beside}
        return replace(race(models, given, mode, settings.rounds), flop_ratio=ratios[batch])

    faults, facts = find_faults(model, patch, r, images, blocks, claimed), properties(model, method, images)
    if plain == own and is_close(found, expected):
        facts["effect"] = "none: all tokens stay, and the result"
    races = [raced(mode, batch) for mode, batch in settings.races()]
    return Judgement(
        name,
        r,
        own,
        ratios[len(images)],
        agreement(found, expected),
        facts,
        faults + too_fast(races),
        races,
        {who: agreement(call(other, images), expected) for who, other in beside.items()},
    )


def _macs(method: nn.Module, images: Tensor) -> int:
    """Count the MACs of a call. Raises ArgumentError for none."""
    macs = inference_macs(method, images)
    if not macs:
        raise ArgumentError("method must compute in every call, and one on images that it saw before computed nothing")
    return macs


def too_fast(races: Sequence[Raced]) -> list[Fault]:
    """Whether the method beats the ceiling in a race by more than noise: it saves something else than tokens."""
    for raced in races:
        if raced.share is not None and raced.share[0] > TOO_FAST:
            seen = f"{raced.share[1]:.2f} times as fast in {raced.mode}, batch {raced.batch}"
            return [Fault("too fast", seen)]
    return []


def batch_of(images: Tensor, batch: int) -> Tensor:
    """Return so many images [batch, 3, H, W], repeated where there are fewer."""
    return images.repeat(-(-batch // len(images)), 1, 1, 1)[:batch]


def _same(a: Tensor, b: Tensor) -> bool:
    """Return whether two results are equal, where both are no number, too."""
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


def properties(model: nn.Module, method: nn.Module, images: Tensor) -> dict[str, str]:
    """What else a user wants to know of a method, each "yes" or why not."""
    found = {
        "deterministic": "yes" if _same(*(_unseeded(method, images) for _ in range(2))) else "two calls differ",
        "gradients": _gradients(model, method, images),
        "compiles without breaks": _compiles(method, images),
    }
    if images.is_cuda:
        found["CUDA graph"] = _captures(method, images)
    else:
        found["CUDA graph"] = "not tried: needs a GPU"
    return found


def _unseeded(model: nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return as_tensor(model(images))


def _gradients(model: nn.Module, method: nn.Module, images: Tensor) -> str:
    """Whether every parameter that the model trains is trained with the method, too."""
    try:
        missing = _trained(model, images) - _trained(method, images)
    except Exception as error:  # whatever a method does in its backward pass
        return first_line(error)
    return f"none for {len(missing)} parameters, such as {min(missing)}" if missing else "yes"


def _trained(model: nn.Module, images: Tensor) -> set[str]:
    """The names of parameters that get a gradient. No copy's: what patched a model may know its own blocks only."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    before = [parameter.requires_grad for parameter in parameters]
    try:
        model.requires_grad_(True)
        loss = as_tensor(model(images[:2])).float().square().mean()
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    finally:
        for parameter, needed in zip(parameters, before, strict=True):
            parameter.requires_grad_(needed)
    return {n for n, g in zip(names, grads, strict=True) if g is not None and bool(g.isfinite().all())}


def _compiles(method: nn.Module, images: Tensor) -> str:
    torch.compiler.reset()
    try:
        with torch.inference_mode():
            torch.compile(method, fullgraph=True, dynamic=False, backend="eager")(images)
    except Exception as error:  # whatever a method does, while it is traced
        return first_line(error)
    finally:
        torch.compiler.reset()
    return "yes"


def _captures(method: nn.Module, images: Tensor) -> str:
    trial = Race()
    trial.add(METHOD, lambda: _unseeded(method, images), "cuda")
    return trial.skipped.get(METHOD, "yes")


def race(models: dict[str, nn.Module], images: Tensor, mode: Mode, rounds: int) -> Raced:
    """Time models on a batch in turn, round by round, each time beginning with another one."""
    steps = {who: step_of(model, images, mode) for who, model in models.items()}
    torch.compiler.reset()
    contest, uncaptured, device = Race(), {}, images.device.type
    with every_compilation_counts() if mode.endswith("compiled") else nullcontext():
        for who, step in steps.items():
            contest.add(who, step, device, graph=not mode.startswith("training"))
            if images.is_cuda and who in contest.skipped and not mode.startswith("training"):
                uncaptured[who] = contest.skipped.pop(who)
                contest.add(who, step, device, graph=False)
    order = list(contest.contestants)
    for who in in_turn(order, rounds):
        contest.run(who)
    if images.is_cuda:
        memory = {who: found.peak_bytes for who, found in contest.contestants.items() if found.peak_bytes is not None}
    else:
        memory = {who: saved_bytes(steps[who]) for who in order} if mode == "training" else {}
    return Raced(mode, len(images), contest.seconds, memory, contest.skipped, uncaptured)


def step_of(model: nn.Module, images: Tensor, mode: Mode) -> Step:
    """Return what a race calls: a forward pass, or forward and backward without an optimizer."""
    run: Callable[[Tensor], Any] = torch.compile(model, dynamic=False) if mode.endswith("compiled") else model

    def infer() -> Tensor:
        with torch.inference_mode():
            return as_tensor(run(images))

    def train() -> list[Tensor]:
        loss = as_tensor(run(images)).float().square().mean()
        return list(torch.autograd.grad(loss, parameters, allow_unused=True))

    parameters = [p for p in model.parameters() if p.requires_grad]
    return train if mode.startswith("training") else infer
