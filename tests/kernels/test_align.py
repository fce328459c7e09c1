"""Entity alignment: hard forward, soft backward, reproducible noise."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from alt_fast_kernels import align, use_backend
from alt_fast_kernels.align import triton as triton_kernels
from alt_fast_kernels.align.reference import gumbel_noise
from alt_fast_kernels.configs import Arch, configured_for
from alt_fast_kernels.dispatch import Backend
from alt_fast_kernels.launch import recording
from alt_fast_kernels.testing import Result, assert_as_accurate


@pytest.fixture(params=[False, True])
def held(request: pytest.FixtureRequest, interpreted: bool) -> Iterator[None]:
    """Kernels configured as for this GPU, or interpreted ones as for Hopper, which holds 16-bit tokens in registers."""
    if not request.param:
        yield
    elif interpreted:
        with configured_for("sm_90"):
            yield
    else:
        pytest.skip("compiled kernels are configured for the GPU at hand, and a reference for none")


def test_chooses_the_most_similar_entity() -> None:
    tokens, entities = torch.randn(3, 7, 16), torch.randn(11, 16)
    index, aligned = align(tokens, entities)
    similarity = F.cosine_similarity(tokens.double()[:, :, None], entities.double(), dim=-1)
    assert torch.equal(index, similarity.argmax(-1))
    assert torch.equal(aligned, entities[index])


def test_forward_is_hard_while_training() -> None:
    tokens, entities = torch.randn(5, 8, requires_grad=True), torch.randn(4, 8)
    index, aligned = align(tokens, entities, 0.5, torch.tensor(1))
    torch.testing.assert_close(aligned, entities[index], rtol=0, atol=1e-6)


@pytest.mark.reference_only
@pytest.mark.parametrize("hard", [True, False])
def test_gradient_is_that_of_the_soft_assignment(hard: bool) -> None:
    tokens, entities = torch.randn(6, 5, dtype=torch.float64), torch.randn(9, 5, dtype=torch.float64)
    weight, tau, seed = torch.randn(6, 5, dtype=torch.float64), 0.3, torch.tensor(7)

    def gradient(function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        x = tokens.clone().requires_grad_()
        (function(x) * weight).sum().backward()
        assert x.grad is not None
        return x.grad

    def soft(x: torch.Tensor) -> torch.Tensor:
        cosine = F.cosine_similarity(x[:, None], entities, dim=-1)
        return (cosine / tau + gumbel_noise(seed, 6, 9, cosine.dtype)).softmax(-1) @ entities

    torch.testing.assert_close(gradient(lambda x: align(x, entities, tau, seed, hard)[1]), gradient(soft))
    index, aligned = align(tokens, entities, tau, seed, hard)
    torch.testing.assert_close(aligned, entities[index] if hard else soft(tokens))


def test_a_soft_choice_names_the_same_entities(backend: str) -> None:
    """By any backend: no kernel computes it."""
    tokens, entities, seed = torch.randn(4, 3, 8), torch.randn(7, 8), torch.tensor(2)
    index, aligned = align(tokens, entities, 0.01, seed, hard=False)
    assert torch.equal(index, align(tokens, entities, 0.01, seed)[0])
    with use_backend("reference"):
        assert torch.equal(aligned, align(tokens, entities, 0.01, seed, hard=False)[1])
    for dtype in (torch.float16, torch.bfloat16):
        assert align(tokens.to(dtype), entities, hard=False)[1].dtype == dtype


def test_ties_go_to_the_lower_index() -> None:
    entities = torch.eye(4).repeat(2, 1)
    index, _ = align(torch.eye(4), entities)
    assert index.tolist() == [0, 1, 2, 3]


@pytest.mark.reference_only
def test_noise_is_gumbel_and_reproducible() -> None:
    noise = gumbel_noise(torch.tensor(3), 400, 500)
    assert torch.equal(noise, gumbel_noise(torch.tensor(3), 400, 500))
    assert not torch.equal(noise, gumbel_noise(torch.tensor(4), 400, 500))
    assert torch.equal(noise[:100, :100], gumbel_noise(torch.tensor(3), 100, 100))  # a function of row and column alone
    assert noise.isfinite().all()
    uniform = (-(-noise.double()).exp()).exp().flatten().sort().values
    expected = (torch.arange(uniform.numel()) + 0.5).double() / uniform.numel()
    assert (uniform - expected).abs().max() < 0.004  # Kolmogorov-Smirnov, far below 1 % for 200,000 samples
    for rows in (noise[1:], noise[:, 1:]):
        other = noise[:-1] if rows.shape[0] < 400 else noise[:, :-1]
        assert torch.corrcoef(torch.stack([rows.flatten(), other.flatten()]))[0, 1].abs() < 0.02


@pytest.mark.reference_only
def test_noise_is_finite_at_the_ends_of_the_hash() -> None:
    many = gumbel_noise(torch.tensor(12345), 3000, 3000)
    assert many.isfinite().all()


@pytest.mark.kernel_only
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.float16, 1e-5), (torch.bfloat16, 1e-5)])
def test_kernels_draw_the_noise_of_the_reference(dtype: torch.dtype, error: float) -> None:
    """Of a single entity and cosine 0 the sum of exponentials, which forward leaves, is the sample's exp, by ln 2."""
    rows, seed = 20_000, torch.tensor(11)
    tokens, entity = torch.zeros(rows, 64, dtype=dtype), torch.ones(1, 64, dtype=dtype)
    _, _, stats = torch.ops.alt_fast.align(tokens, entity, 1.0, seed, rows)
    found = stats[:, 0].double() * math.log(2) - math.log(math.log(2))
    expected = gumbel_noise(seed, rows, 1, torch.float64)[:, 0]
    assert expected.max() > 9  # a uniform number nearly 1
    torch.testing.assert_close(found, expected, rtol=3e-7, atol=error)  # a large sample is rounded to fp32


def test_choices_follow_the_softmax(interpreted: bool) -> None:
    dtype = torch.float16 if interpreted else torch.float32  # half precision has the taller tiles
    tokens, entities = torch.randn(1, 6).to(dtype).expand(20000, 6), torch.randn(5, 6)
    index, _ = align(tokens, entities, tau=0.5, seed=torch.tensor(0))
    share = index.bincount(minlength=5) / 20000
    expected = (F.cosine_similarity(tokens[:1, None].float(), entities, dim=-1) / 0.5).softmax(-1)[0]
    torch.testing.assert_close(share, expected, rtol=0, atol=0.015)


@pytest.mark.same_arithmetic
@pytest.mark.kernel_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("rows", "num_entities", "width"), [(1, 2, 16), (37, 150, 48), (130, 33, 100), (61, 1200, 32)])
@pytest.mark.parametrize("noisy", [False, True])
def test_kernel_is_as_accurate_as_pytorch(
    rows: int,
    num_entities: int,
    width: int,
    dtype: torch.dtype,
    noisy: bool,
    interpreted: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if num_entities == 1200 and interpreted:  # a part of the corpus has as many tiles, and there are as many chunks
        num_entities = 300
        monkeypatch.setattr(triton_kernels, "SPLITS", 2)
        monkeypatch.setattr(triton_kernels, "CHUNK", 128)
    draws = 16 if rows == 1 else 4 if rows < 100 else 2  # the largest error of a few rows is luck

    def draw() -> list[Result]:
        grads = [compare_once(rows, num_entities, width, dtype, noisy) for _ in range(draws)]
        kernel, plain, exact = (torch.cat(parts) for parts in zip(*grads, strict=True))
        return [(kernel, plain, exact)]

    assert_as_accurate(draw)


@pytest.mark.same_arithmetic
@pytest.mark.kernel_only
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "num_entities", "width"), [(1, 2, 16), (37, 64, 48), (130, 33, 100), (9, 65, 250), (61, 300, 32)]
)
@pytest.mark.parametrize("noisy", [False, True])
def test_tokens_held_in_registers_are_as_accurate(
    rows: int,
    num_entities: int,
    width: int,
    dtype: torch.dtype,
    noisy: bool,
    interpreted: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As Hopper holds them: one tile of entities, several, and several parts of several."""
    if not interpreted:
        pytest.skip("compiled kernels are configured for the GPU at hand")
    monkeypatch.setattr(triton_kernels, "SPLITS", 2)
    assert forward_of("sm_90", width, dtype, noisy) == "align_fwd_held"
    with configured_for("sm_90"):
        assert_as_accurate(lambda: [compare_once(rows, num_entities, width, dtype, noisy)])


def forward_of(arch: Arch, width: int, dtype: torch.dtype, noisy: bool = False, tau: float = 0.2) -> str:
    """Name the kernel that tokens are aligned by."""
    seed = torch.tensor(1) if noisy else None
    with recording(arch) as launches:
        align(torch.randn(3, width).to(dtype), torch.randn(5, width), tau, seed)
    (name,) = {launch.name for launch in launches if launch.name.startswith("align_fwd")}
    return name


@pytest.mark.kernel_only
def test_which_tokens_are_held_in_registers() -> None:
    """Those of 16 bits whose halves are tiles and fit, without a tau too small for a bound, on Hopper."""
    for width, name in ((64, "align_fwd_held"), (512, "align_fwd_held"), (320, "align_fwd"), (768, "align_fwd")):
        for noisy in (False, True):
            assert forward_of("sm_90", width, torch.bfloat16, noisy) == name
    assert forward_of("sm_90", 512, torch.float32) == "align_fwd"
    assert forward_of("sm_90", 512, torch.float16, tau=0.02) == "align_fwd"
    for arch in ("sm_80", "sm_100", "gfx942"):
        assert forward_of(arch, 512, torch.float16) == "align_fwd"


@pytest.mark.kernel_only
@pytest.mark.parametrize(("num_tokens", "parts"), [(1, 8), (25856, 5), (200_000, 1)])
def test_many_tokens_held_in_registers_are_loaded_less_often(num_tokens: int, parts: int) -> None:
    """Once for every part of the corpus: there are fewer where tokens alone fill a GPU."""
    with recording("sm_90") as launches:
        align(torch.empty(num_tokens, 64, dtype=torch.float16), torch.empty(5000, 64, dtype=torch.float16), 0.5)
    (launch,) = (launch for launch in launches if launch.name == "align_fwd_held")
    assert len(launch.arguments()["best_out"]) == parts
    assert launch.grid == parts * -(-num_tokens // 128)


def compare_once(rows: int, num_entities: int, width: int, dtype: torch.dtype, noisy: bool) -> Result:
    """Holds the choices to be the best; returns the gradients: the kernel's, PyTorch's in this precision, the exact."""
    tokens, entities = torch.randn(rows, width).to(dtype), torch.randn(num_entities, width)
    tau, seed = 0.2, torch.tensor(-(2**40) + 77) if noisy else None
    unit = F.normalize(entities, dim=-1).to(dtype)  # what half-precision tokens meet
    weight = torch.randn(rows, width)

    def run(backend: Backend, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        leaf = tokens.to(dtype, copy=True).requires_grad_()
        with use_backend(backend):
            index, aligned = align(leaf, unit.to(dtype), tau, seed)
        (aligned * weight.to(dtype)).sum().backward()
        assert leaf.grad is not None
        return index, aligned.detach(), leaf.grad

    index, aligned, grad = run("triton", dtype)
    plain = tokens.clone().requires_grad_()  # what one would write in this precision
    noise = 0 if seed is None else gumbel_noise(seed, rows, num_entities).to(dtype)
    assignment = (F.normalize(plain, dim=-1) @ unit.T / tau + noise).softmax(-1)
    (assignment @ unit * weight.to(dtype)).sum().backward()
    _, _, exact_grad = run("reference", torch.float64)
    assert torch.equal(aligned, unit.to(dtype)[index])
    assert plain.grad is not None
    logits = F.normalize(tokens.double(), dim=-1) @ F.normalize(unit.double(), dim=-1).T / tau
    if seed is not None:
        logits = logits + gumbel_noise(seed, rows, num_entities, logits.dtype)
    chosen = logits.gather(1, index[:, None])[:, 0]
    assert (logits.max(-1).values - chosen).max() < 1e-5 / tau  # the best one, up to rounding
    with torch.no_grad():  # inference takes no soft assignment and chooses the same
        assert torch.equal(align(tokens, unit, tau, seed)[0], index)
    return grad, plain.grad, exact_grad


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("tau", [1.0, 0.01])
def test_ties_across_the_whole_corpus_go_to_the_lower_index(tau: float, dtype: torch.dtype) -> None:
    entities = torch.eye(16)[torch.arange(900) % 16]
    index, _ = align(torch.eye(16, dtype=dtype), entities, tau)
    assert index.tolist() == list(range(16))


@pytest.mark.usefixtures("held")
@pytest.mark.kernel_only  # the reference's products are a BLAS's, which may give equal entities different last bits
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_ties_of_inexact_sums_go_to_the_lower_index(dtype: torch.dtype) -> None:
    tokens = torch.randn(16, 64).to(dtype)
    index, _ = align(tokens, tokens[torch.arange(900) % 16], 0.5)
    assert index.tolist() == list(range(16))


def test_lengths_do_not_count_and_a_zero_token_follows_the_noise() -> None:
    """Those of the entities neither. All cosines of a token of length 0 are 0: the first entity, or the noise's."""
    tokens, entities = torch.randn(6, 8) * 1e6, torch.randn(9, 8) * torch.logspace(-3, 3, 9)[:, None]
    tokens[2] = 0
    index, aligned = align(tokens, entities)
    assert torch.equal(index, F.cosine_similarity(tokens.double()[:, None], entities.double(), dim=-1).argmax(-1))
    assert torch.equal(aligned, entities[index])
    seed = torch.tensor(1)
    (noise,) = gumbel_noise(seed, 6, 9)[2:3]
    assert noise.argmax() != 0  # where NaN would end
    assert align(tokens, entities, 1.0, seed)[0][2] == noise.argmax()


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("num_entities", [3, 300])  # in one part, and in several
@pytest.mark.parametrize("noisy", [False, True])
def test_a_token_that_is_no_number_chooses_some_entity_and_spoils_no_other(
    num_entities: int, noisy: bool, dtype: torch.dtype
) -> None:
    tokens, entities = torch.randn(5, 16).to(dtype), torch.randn(num_entities, 16).to(dtype)
    seed = torch.tensor(2) if noisy else None
    expected, _ = align(tokens, entities, 1.0, seed)
    tokens[1, 3], tokens[3] = float("nan"), float("inf")
    index, aligned = align(tokens, entities, 1.0, seed)
    assert torch.equal(aligned, entities[index])  # so it is one of them
    assert torch.equal(index[::2], expected[::2])


@pytest.mark.usefixtures("held")
@pytest.mark.kernel_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("num_entities", [5, 300])
@pytest.mark.parametrize("noisy", [False, True])
def test_what_forward_leaves_for_backward(
    num_entities: int, dtype: torch.dtype, noisy: bool, interpreted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient tells little of it: most errors of these sums are divided out. No cosine here is above 0."""
    if interpreted:
        monkeypatch.setattr(triton_kernels, "SPLITS", 2)
    tokens, entities, tau = -torch.rand(9, 64).to(dtype), torch.rand(num_entities, 64).to(dtype), 0.2
    seed = torch.tensor(3) if noisy else None
    _, index, stats = torch.ops.alt_fast.align(tokens, entities, tau, seed, 9)
    logits = F.normalize(tokens.double(), dim=-1) @ F.normalize(entities.double(), dim=-1).T / tau
    if seed is not None:
        logits = logits + gumbel_noise(seed, 9, num_entities, torch.float64) + math.log(math.log(2))
    assert (logits.amax(-1) - logits.gather(1, index[:, None])[:, 0]).max() < 1e-5
    torch.testing.assert_close(stats[:, 0].double() * math.log(2), logits.logsumexp(-1), rtol=0, atol=1e-5)
    torch.testing.assert_close(stats[:, 1].double(), logits.softmax(-1).amax(-1), rtol=1e-4, atol=0)


@pytest.mark.kernel_only
def test_what_forward_left_may_have_any_strides() -> None:
    tokens, entities, grad = torch.randn(20, 64), torch.randn(30, 64), torch.randn(20, 64)
    _, index, stats = torch.ops.alt_fast.align(tokens, entities, 0.5, None, 20)
    wide = torch.stack((index, index.new_full((20,), 10**9)), 1)[:, 0], torch.stack((stats, stats), 2)[..., 0]
    expected, found = (
        torch.ops.alt_fast.align_backward(grad, *left, tokens, entities, 0.5, None, 20)
        for left in ((index, stats), wide)
    )
    assert torch.equal(found, expected)


def test_empty_batch() -> None:
    leaf = torch.empty(0, 3, 8, requires_grad=True)
    index, aligned = align(leaf, torch.randn(4, 8))
    assert index.shape == (0, 3)
    aligned.sum().backward()


def test_repeats_exactly() -> None:
    tokens, entities = torch.randn(40, 24), torch.randn(70, 24)

    def once() -> torch.Tensor:
        leaf = tokens.clone().requires_grad_()
        align(leaf, entities, 0.5, torch.tensor(3))[1].square().sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    assert torch.equal(once(), once())


@pytest.mark.parametrize("tau", [1.0, 0.01])
@pytest.mark.parametrize("num_entities", [40, 300])  # a part of the corpus is a tile, and several
def test_a_small_tau_keeps_a_running_maximum(tau: float, num_entities: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of +-100 natural units are beyond what exp can hold; of those of tau = 1 a bound is enough."""
    monkeypatch.setattr(triton_kernels, "SPLITS", 2)
    tokens, entities = torch.randn(5, 16), torch.randn(num_entities, 16)
    for seed in (None, torch.tensor(3)):
        leaf, exact = tokens.clone().requires_grad_(), tokens.double().requires_grad_()
        index, aligned = align(leaf, entities, tau, seed)
        with use_backend("reference"):
            expected, sure = align(exact, entities.double(), tau, seed)
        assert torch.equal(index, expected)
        upstream = torch.randn_like(aligned)
        aligned.backward(upstream)
        sure.backward(upstream.double())
        assert leaf.grad is not None
        assert exact.grad is not None
        rounding = 4 * torch.finfo(torch.float32).eps / tau  # of logits, and so of weights
        norms = [x.norm(dim=-1) for x in (upstream, entities, tokens)]
        unit = (norms[0].max() * norms[1].max() / norms[2].min()).item()  # of a gradient, whose weights may all cancel
        atol = rounding * max(exact.grad.abs().max().item(), unit)
        torch.testing.assert_close(leaf.grad.double(), exact.grad, rtol=1e-3, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_entities_of_another_dtype(dtype: torch.dtype, backend: str) -> None:
    """They are converted to the tokens' first: kernels that read two dtypes spill, and read more."""
    tokens = torch.randn(6, 16).to(dtype).requires_grad_()
    for other in (torch.float16, torch.float32, torch.float64):
        entities = 3 * torch.randn(20, 16).to(other)
        results = []
        for corpus in (entities, entities.to(dtype)):
            index, aligned = align(tokens, corpus, 0.5, torch.tensor(3))
            results.append((index, aligned, *torch.autograd.grad(aligned.sum(), tokens)))
        assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
        assert torch.equal(results[0][1], entities[results[0][0]].to(dtype))


@pytest.mark.kernel_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_entity_of_nearly_nothing_spoils_no_gradient(dtype: torch.dtype) -> None:
    """Its weight over its norm is more than half precision holds."""
    tokens, entities, upstream = (torch.randn(rows, 64).to(dtype) for rows in (16, 300, 16))
    entities[7], entities[8] = 0, 1e-6 * entities[8]
    backends: dict[Backend, torch.dtype] = {"triton": dtype, "reference": torch.float64}
    gradients = []
    for backend, kind in backends.items():
        leaf = tokens.detach().to(kind, copy=True).requires_grad_()
        with use_backend(backend):
            align(leaf, entities.to(kind), 0.5)[1].backward(upstream.to(kind))
        assert leaf.grad is not None
        gradients.append(leaf.grad.double())
    rounding = 8 * torch.finfo(dtype).eps * gradients[1].abs().max().item()
    torch.testing.assert_close(*gradients, rtol=0, atol=rounding)


@pytest.mark.same_arithmetic
@pytest.mark.kernel_only
@pytest.mark.parametrize(
    ("tau", "norm", "upstream", "length"), [(1, 0.01, 1e-5, 1), (0.1, 1, 1e-3, 1), (0.1, 9, 999, 9)]
)
def test_small_and_large_gradients_in_fp16(tau: float, norm: float, upstream: float, length: float) -> None:
    """Weights of about 1 / K times the first are below what fp16 holds; times the last, without care, above it."""
    tokens, grads = norm * F.normalize(torch.randn(5, 64), dim=-1), upstream * torch.randn(5, 64)
    entities = length * F.normalize(torch.randn(1000, 64), dim=-1)
    tokens, grads, entities = (x.half() for x in (tokens, grads, entities))
    runs: tuple[tuple[Backend, torch.dtype], ...]
    runs = (("triton", torch.float16), ("reference", torch.float16), ("reference", torch.float64))
    found = []
    for backend, dtype in runs:
        leaf = tokens.to(dtype, copy=True).requires_grad_()
        with use_backend(backend):
            align(leaf, entities.to(dtype), tau)[1].backward(grads.to(dtype))
        assert leaf.grad is not None
        found.append(leaf.grad.double())
    kernel, plain, exact = found
    assert (kernel - exact).norm() < 3 * (plain - exact).norm()


@pytest.mark.kernel_only
def test_no_memory_grows_with_the_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor as large as the corpus is allocated, forward or backward; nor one of [tokens, entities]."""
    monkeypatch.setattr(triton_kernels, "CHUNK", 64)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            if function.namespace == "alt_fast":  # what our operators allocate inside
                with self:
                    return function._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **(kwargs or {}))
            out = function(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple | list) else (out,):
                if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() != entities.data_ptr():
                    largest = max(largest, x.untyped_storage().nbytes() // x.itemsize)
            return out

    tokens, entities = torch.randn(2, 64, requires_grad=True), torch.randn(400, 64)
    with recording("sm_80"), Watch():  # the interpreter copies what it is given
        _, aligned = align(tokens, entities, 0.5, torch.tensor(1))
        aligned.sum().backward()
    assert largest <= 64 * 64  # one chunk


@pytest.mark.kernel_only  # of the reference PyTorch differentiates the matmuls, as it does of any other
def test_gradient_is_exact_when_backward_runs_inside_autocast() -> None:
    tokens, entities = torch.randn(9, 32), torch.randn(50, 32)

    def gradient(enabled: bool) -> torch.Tensor:
        leaf = tokens.clone().requires_grad_()
        _, aligned = align(leaf, entities, 0.3)
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=enabled):
            aligned.backward(torch.linspace(-1, 1, 32).expand_as(aligned))
        assert leaf.grad is not None
        return leaf.grad

    assert torch.equal(gradient(True), gradient(False))


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_function_transforms(dtype: torch.dtype) -> None:
    """vmap gives every mapped token what it has alone, the noise included; vmap(grad) likewise."""
    tokens, entities, seed = torch.randn(3, 5, 16).to(dtype), torch.randn(20, 16).to(dtype), torch.tensor(5)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return align(x, entities, 0.5, seed)[1].sin().sum()

    index, aligned = torch.vmap(lambda x: align(x, entities, 0.5, seed))(tokens)
    grads = torch.vmap(torch.func.grad(loss))(tokens)
    for i, x in enumerate(tokens):
        alone = align(x, entities, 0.5, seed)
        assert torch.equal(index[i], alone[0])
        assert torch.equal(aligned[i], alone[1])
        leaf = x.clone().requires_grad_()
        torch.testing.assert_close(grads[i], torch.autograd.grad(loss(leaf), leaf)[0])
        torch.testing.assert_close(torch.func.grad(loss)(x), grads[i])


@pytest.mark.kernel_only
def test_other_derivatives_are_refused() -> None:
    tokens, entities = torch.randn(3, 8), torch.randn(4, 8)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return align(x, entities)[1].square().sum()

    with pytest.raises(NotImplementedError, match="no formula for forward-mode"):
        torch.func.jvp(loss, (tokens,), (tokens,))
    leaf = tokens.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match="no formula for a second derivative"):
        grad.sum().backward()
    with pytest.raises(NotImplementedError, match="per-image tensors only"):
        torch.vmap(lambda s: align(tokens, entities, 1.0, s)[0])(torch.arange(2))


def test_meta_tensors() -> None:
    index, aligned = align(torch.empty(2, 3, 8, device="meta"), torch.empty(4, 8, device="meta"))
    assert index.shape == (2, 3)
    assert aligned.shape == (2, 3, 8)


def test_bad_input() -> None:
    tokens, entities = torch.randn(3, 8), torch.randn(4, 8)
    with pytest.raises(ValueError, match="entities must be"):
        align(tokens, entities[:0])
    with pytest.raises(ValueError, match="entities must be"):
        align(tokens[:, :0], entities[:, :0])
    with pytest.raises(ValueError, match="tokens must have"):
        align(tokens[:, :5], entities)
    with pytest.raises(ValueError, match="tau must be > 0"):
        align(tokens, entities, tau=0.0)
    with pytest.raises(TypeError, match="seed must be one int64"):
        align(tokens, entities, seed=torch.tensor(1.0))
    with pytest.raises(ValueError, match="entities must not require grad"):
        align(tokens, entities.clone().requires_grad_())
    with pytest.raises(TypeError, match="tokens must be floating point"):
        align(tokens.long(), entities)
    with pytest.raises(ValueError, match="entities must be on"):
        align(tokens, entities.to("meta"))
