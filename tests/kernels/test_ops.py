"""The kernels as PyTorch operators: torch.library's own checks, torch.compile, autocast, vmap, CUDA graphs."""

import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import alt_fast_kernels as ops
from alt_fast_kernels import dispatch
from alt_fast_kernels.align.op import align_backward_op, align_op
from alt_fast_kernels.attention.op import (
    attention_backward_op,
    attention_op,
    attention_packed_backward_op,
    attention_packed_op,
)
from alt_fast_kernels.dispatch import takes_kernel
from alt_fast_kernels.match.op import match_op
from alt_fast_kernels.merge.op import merge_backward_op, merge_op


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch.compiler.reset()


def operators() -> dict[str, tuple[object, tuple]]:
    """Every registered op with arguments."""
    x = torch.randn(2, 9, 6, requires_grad=True)
    size = torch.randint(1, 9, (2, 9)).float()
    weight, bias = torch.randn(2, 6).unbind(0)
    plan = ops.match(x.detach(), 3, 1)
    out, new_size, _, moments = merge_op(x.detach(), x.detach(), size, *plan[1:], weight, bias, 1e-5, None)
    qkv = torch.randn(2, 9, 3, 2, 16, requires_grad=True)
    q, k, v = (t.detach().requires_grad_() for t in qkv.unbind(2))
    attended, lse2 = attention_op(q, k, v, size, 0.25)
    turn = (*torch.randn(2, 1, 9, 1, 16).unbind(0), True)
    turned, turned_lse2 = attention_op(q, k, v, size, 0.25, *turn)
    saved_turned = (turned.detach(), turned.detach(), turned_lse2.detach())
    tokens, entities, seed = torch.randn(5, 64), torch.randn(7, 64), torch.tensor(3)
    aligned, index, stats = align_op(tokens, entities, 0.5, seed, 5)
    saved = (attended.detach(), attended.detach(), lse2.detach())
    return {
        "match": (match_op, (qkv.detach()[:, :, 1], 3, 1)),
        "match_listed": (match_op, (qkv.detach()[:, :, 1], 6, 1, torch.tensor([2, 7]))),
        "merge": (merge_op, (x.detach(), None, size, *plan[1:], None, None, 0.0, None)),
        "merge_fused": (merge_op, (x.detach(), x.detach(), size, *plan[1:], weight, bias, 1e-5, torch.bfloat16)),
        "merge_backward": (
            merge_backward_op,
            (out, out, out, new_size, size, plan.order, plan.start, moments, weight, True, True, 2),
        ),
        "attention": (attention_op, (q, k, v, size, 0.25)),
        "attention_backward": (attention_backward_op, (*saved, q.detach(), k.detach(), v.detach(), size, 0.25)),
        "attention_backward_of_q": (
            attention_backward_op,
            (*saved, q.detach(), k.detach(), v.detach(), size, 0.25, None, None, False, False),
        ),
        "attention_packed": (attention_packed_op, (qkv, size, 0.25)),
        "attention_packed_backward": (attention_packed_backward_op, (*saved, qkv.detach(), size, 0.25)),
        "attention_rotary": (attention_op, (q, k, v, size, 0.25, *turn)),
        "attention_rotary_backward": (
            attention_backward_op,
            (*saved_turned, q.detach(), k.detach(), v.detach(), size, 0.25, *turn),
        ),
        "attention_rotary_packed": (attention_packed_op, (qkv, size, 0.25, *turn)),
        "attention_rotary_packed_backward": (
            attention_packed_backward_op,
            (*saved_turned, qkv.detach(), size, 0.25, *turn),
        ),
        "align": (align_op, (tokens, entities, 0.5, seed, 5)),
        "align_backward": (align_backward_op, (aligned, index, stats, tokens, entities, 0.5, seed, 5)),
    }


NAMES = [
    *("match", "match_listed", "merge", "merge_fused", "merge_backward", "attention", "attention_backward"),
    *("attention_packed", "attention_packed_backward", "attention_rotary", "attention_rotary_backward"),
    *(
        "attention_backward_of_q",
        "attention_rotary_packed",
        "attention_rotary_packed_backward",
        "align",
        "align_backward",
    ),
]


@pytest.mark.kernel_only
@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name: str) -> None:
    op, arguments = operators()[name]
    torch.library.opcheck(op, arguments)  # type: ignore[arg-type]


class Block(nn.Module):
    """A transformer block's worth of ops, as a user would write it."""

    def __init__(self, dim: int = 32, heads: int = 2) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.heads = heads

    def forward(self, x: Tensor, size: Tensor, r: int = 3) -> tuple[Tensor, Tensor]:
        qkv = self.qkv(self.norm1(x)).view(*x.shape[:2], 3, self.heads, -1)
        out = self.proj(ops.proportional_attention_qkvpacked(qkv, size))
        x, size, normed = ops.merge(x, size, ops.match(qkv[:, :, 1], r, 1), out, norm=self.norm2)
        return x + normed, size


def run(model: Callable, x: Tensor, size: Tensor, seed: Tensor) -> list[Tensor]:
    leaf = x.clone().requires_grad_()
    tokens, sizes = model(leaf, size)
    _, aligned = ops.align(tokens, torch.linspace(-1, 1, 160, device=x.device).sin().view(5, 32), 0.5, seed)
    (tokens.square().sum() + aligned.sum()).backward()
    assert leaf.grad is not None
    return [tokens, sizes, aligned, leaf.grad]


def test_compiles_without_graph_breaks_and_equals_eager() -> None:
    block = Block()
    x, size = torch.randn(2, 21, 32), torch.randint(1, 5, (2, 21)).float()
    expected = run(block, x, size, torch.tensor(4))
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")  # tests/test_train.py generates code
    for a, b in zip(run(compiled, x, size, torch.tensor(4)), expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.kernel_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_compiled_kernels_equal_eager_ones(dtype: torch.dtype) -> None:
    """The kernels alone, forward and backward: what they are given is the same, so is what they return."""
    qkv, x = torch.randn(2, 21, 3, 2, 16, dtype=dtype), torch.randn(2, 21, 32, dtype=dtype)
    entities, size, seed = torch.randn(7, 32), torch.randint(1, 5, (2, 21)).float(), torch.tensor(5)
    norm = nn.LayerNorm(32, dtype=dtype)

    def forward(qkv: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        out = ops.proportional_attention_qkvpacked(qkv, size)
        merged, sizes, normed = ops.merge(x, size, ops.match(qkv[:, :, 1], 6, 1), out, norm=norm)
        return normed, sizes, ops.align(merged, entities, 0.5, seed)[1]

    def run(function: Callable) -> list[Tensor]:
        leaves = qkv.clone().requires_grad_(), x.clone().requires_grad_()
        normed, sizes, aligned = function(*leaves)
        upstream = torch.ones_like(normed), torch.linspace(-1, 1, 32, dtype=dtype).expand_as(aligned)
        return [normed, sizes, aligned, *torch.autograd.grad((normed, aligned), leaves, upstream)]

    for a, b in zip(run(torch.compile(forward, fullgraph=True)), run(forward), strict=True):
        torch.testing.assert_close(a, b)


def test_rotary_compiles_without_graph_breaks_and_equals_eager() -> None:
    qkv, size = torch.randn(2, 21, 3, 2, 16), torch.randint(1, 5, (2, 21)).float()
    cos, sin = torch.randn(2, 1, 21, 1, 16).unbind(0)

    def forward(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return ops.proportional_attention_qkvpacked(qkv, size, rotary=ops.Rotary(cos, sin, True))

    def run(function: Callable) -> list[Tensor]:
        leaf = qkv.clone().requires_grad_()
        out = function(leaf, cos, sin)
        return [out, *torch.autograd.grad(out.square().sum(), leaf)]

    for a, b in zip(run(torch.compile(forward, fullgraph=True)), run(forward), strict=True):
        torch.testing.assert_close(a, b)


def test_layers_of_equal_shape_share_their_graph() -> None:
    """One compilation per distinct token count, none for a second pass over the same shapes."""
    compiles = 0

    def counting_backend(graph: torch.fx.GraphModule, _: list) -> Callable:
        nonlocal compiles
        compiles += 1
        return graph.forward

    block = Block()
    step = torch.compile(block, fullgraph=True, backend=counting_backend, dynamic=False)
    x = torch.randn(2, 21, 32)
    for _ in range(2):
        tokens, size = x, torch.ones(2, 21)
        with torch.no_grad():
            for r in (0, 3, 3, 0, 0, 3):
                tokens, size = step(tokens, size, r)
    assert compiles == 5  # (21, 0), (21, 3), (18, 3), (15, 0), (15, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    block = Block()
    x, size = torch.randn(2, 21, 32), torch.ones(2, 21)
    with torch.autocast(x.device.type, dtype):
        qkv = block.qkv(x).unflatten(-1, (3, 2, -1))
        q, k, v = x[:, :, None, None].expand(-1, -1, 3, 2, -1).unbind(2)
        assert ops.proportional_attention(q, k, v).dtype == dtype
        rotary = ops.Rotary(torch.ones(1, 21, 1, 32), torch.zeros(1, 21, 1, 32), False)
        turned = ops.proportional_attention(q, k, v, rotary=rotary)
        torch.testing.assert_close(turned, ops.proportional_attention(q, k, v))
        assert (
            ops.proportional_attention_qkvpacked(x.unflatten(-1, (1, 2, 16)).expand(-1, -1, 3, -1, -1)).dtype == dtype
        )
        merged, new_size, normed = ops.merge(x, size, ops.match(qkv[:, :, 1], 4, 1), block.proj(x), norm=block.norm2)
    assert merged.dtype == new_size.dtype == torch.float32  # the stream and sizes keep full precision
    assert normed.dtype == dtype  # what the Linear behind it reads


def test_vmap() -> None:
    keys = torch.randn(3, 2, 11, 2, 16)
    size = torch.randint(1, 5, (3, 2, 11)).float()
    x = torch.randn(3, 2, 11, 6)
    weight, bias = torch.randn(6), torch.randn(6)
    norm = nn.LayerNorm(6)
    norm.load_state_dict({"weight": weight, "bias": bias})

    def step(key: Tensor, size: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        plan = ops.match(key, 3, 1)
        merged, new_size, normed = ops.merge(x, size, plan, norm=norm)
        return ops.proportional_attention(key, key, key, size), new_size, merged + normed

    mapped = torch.vmap(step)(keys, size, x)
    looped = [torch.stack(parts) for parts in zip(*map(step, keys, size, x), strict=True)]
    for a, b in zip(mapped, looped, strict=True):
        torch.testing.assert_close(a, b)
    shared = torch.vmap(step, in_dims=(0, None, 1))(keys, size[0], x.transpose(0, 1))
    torch.testing.assert_close(
        shared[1], torch.stack([step(key, size[0], x)[1] for key, x in zip(keys, x, strict=True)])
    )


@pytest.mark.parametrize("destinations", [3, [2, 4, 9]])
def test_destinations_compile_and_map_without_graph_breaks(destinations: int | list[int]) -> None:
    keys, size = torch.randn(3, 2, 11, 2, 16), torch.ones(2, 11)
    chosen = destinations if isinstance(destinations, int) else torch.tensor(destinations)

    def step(key: Tensor) -> tuple[Tensor, Tensor]:
        plan = ops.match(key, 6, 1, chosen)
        return plan.slot, ops.merge(key.flatten(2), size, plan)[0]

    expected = [step(key) for key in keys]
    mapped = torch.vmap(step)(keys)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for i, key in enumerate(keys):
        for a, b, c in zip(expected[i], compiled(key), [part[i] for part in mapped], strict=True):
            torch.testing.assert_close(b, a)
            torch.testing.assert_close(c, a)


def test_vmap_of_rotary_tables() -> None:
    """Mapped or not, of every image or of all."""
    qkv = torch.randn(3, 2, 7, 3, 2, 16)

    def step(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return ops.proportional_attention_qkvpacked(qkv, rotary=ops.Rotary(cos, sin, False))

    for batch in (1, 2):
        cos, sin = torch.randn(2, 3, batch, 7, 1, 16).unbind(0)
        mapped = torch.vmap(step)(qkv, cos, sin)
        torch.testing.assert_close(mapped, torch.stack([step(*x) for x in zip(qkv, cos, sin, strict=True)]))
        mapped = torch.vmap(step, in_dims=(0, None, None))(qkv, cos[0], sin[0])
        torch.testing.assert_close(mapped, torch.stack([step(x, cos[0], sin[0]) for x in qkv]))


def losses() -> dict[str, tuple[Callable[[Tensor], Tensor], Tensor]]:
    """Of every op that has a gradient, what `torch.func` differentiates, and where."""
    size, entities = torch.ones(2, 9), torch.randn(7, 6)
    plan = ops.match(torch.randn(2, 9, 6), 3, 1)
    return {
        "packed": (lambda x: ops.proportional_attention_qkvpacked(x).square().sum(), torch.randn(2, 9, 3, 2, 4)),
        "attention": (lambda x: ops.proportional_attention(x, x, x).square().sum(), torch.randn(2, 9, 2, 4)),
        "merge": (lambda x: ops.merge(x, size, plan, x)[0].square().sum(), torch.randn(2, 9, 6)),
        "align": (lambda x: ops.align(x, entities)[1].square().sum(), torch.randn(5, 6)),
    }


@pytest.mark.parametrize("name", ["packed", "attention", "merge", "align"])
def test_compiled_transforms(name: str, backend: str) -> None:
    """A gradient is that of eager mode, of a tensor that is given twice too; what has no formula is no zero."""
    loss, x = losses()[name]
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(leaf), leaf)[0], expected)
    gradient = torch.compile(torch.func.grad(loss), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradient(x), expected)
    if backend == "triton":
        refused = {
            "forward-mode": lambda x: torch.func.jvp(loss, (x,), (x,)),
            "a gradient under vmap": lambda x: torch.vmap(torch.func.grad(loss))(x[None]),
        }
        for what, transformed in refused.items():
            with pytest.raises(torch._dynamo.exc.Unsupported, match=f"no formula for {what}"):
                torch.compile(transformed, fullgraph=True, backend="aot_eager")(x)


@pytest.mark.kernel_only
def test_the_compiler_is_not_imported_before_it_compiles() -> None:
    """It takes seconds."""
    code = "import sys, torch, alt_fast_kernels; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.kernel_only
def test_vmap_over_weights_is_refused() -> None:
    x, size = torch.randn(2, 11, 6), torch.ones(2, 11)
    plan = ops.match(x, 3, 1)
    with pytest.raises(NotImplementedError, match="per-image tensors only"):
        torch.vmap(lambda w: merge_op(x, None, size, *plan[1:], w, w, 1e-5, None)[0])(torch.randn(3, 6))


@pytest.mark.kernel_only
def test_fp64_is_refused_by_the_kernels() -> None:
    with pytest.raises(TypeError, match="fp32, fp16 and bf16"):
        ops.match(torch.randn(2, 9, 4, dtype=torch.float64), 1)


def test_backend_names() -> None:
    with pytest.raises(ValueError, match="backend must be"), ops.use_backend("fast"):  # type: ignore[arg-type]
        pass
    with pytest.raises(ValueError, match="attention must be"), ops.use_backend(attention="fast"):  # type: ignore[arg-type]
        pass


def test_backend_returns_after_an_error() -> None:
    def fail() -> None:
        with ops.use_backend("reference" if before else "triton"):
            assert takes_kernel(torch.empty(1)) != before
            raise ZeroDivisionError

    before = takes_kernel(torch.empty(1))
    with pytest.raises(ZeroDivisionError):
        fail()
    assert takes_kernel(torch.empty(1)) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a GPU")
def test_tensors_of_a_gpu_are_traced_where_there_is_none() -> None:
    with FakeTensorMode(), ops.use_backend("auto"):
        assert takes_kernel(torch.empty(2, device="cuda")) == dispatch.HAS_TRITON
        key = torch.empty(2, 20, 2, 16, device="cuda", dtype=torch.float16)
        assert ops.match(key, 5).num_slots == 15


@pytest.mark.parametrize(("major", "taken"), [(7, False), (8, True), (12, True)])
def test_gpus_before_ampere_take_the_reference(major: int, taken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []

    def properties(device: torch.device) -> SimpleNamespace:
        asked.append(device)
        return SimpleNamespace(major=major)

    monkeypatch.setattr(dispatch, "_known", {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    x: Any = SimpleNamespace(is_cuda=True, dtype=torch.float16, device=torch.device("cuda", 0))
    with ops.use_backend("auto"):
        assert takes_kernel(x) == takes_kernel(x) == (taken and dispatch.HAS_TRITON)
    assert asked == [x.device]


@pytest.mark.gpu
@pytest.mark.kernel_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_cuda_graph_capture_and_replay(dtype: torch.dtype) -> None:
    torch.use_deterministic_algorithms(False)  # filling memory is no part of the graph
    block = Block().to(dtype)
    x, size = torch.randn(4, 197, 32, dtype=dtype), torch.ones(4, 197)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        run(block, x, size, torch.tensor(1))
    torch.cuda.current_stream().wait_stream(side)
    leaf, seed = x.clone().requires_grad_(), torch.tensor(1)
    entities = torch.randn(50, 32)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens, sizes = block(leaf, size)
        aligned = ops.align(tokens, entities, 0.5, seed)[1]
        (grad,) = torch.autograd.grad((tokens.square().sum() + aligned.sum()), leaf)
    fresh = torch.randn_like(x)
    with torch.no_grad():
        leaf.copy_(fresh)
    graph.replay()
    other = fresh.clone().requires_grad_()
    expected, expected_sizes = block(other, size)
    (expected.square().sum() + ops.align(expected, entities, 0.5, seed)[1].sum()).backward()
    assert torch.equal(sizes, expected_sizes)
    torch.testing.assert_close(tokens, expected)
    torch.testing.assert_close(grad, other.grad)


@pytest.mark.gpu
@pytest.mark.kernel_only
def test_reduce_overhead_mode() -> None:
    torch.use_deterministic_algorithms(False)
    block = Block().eval()
    x, size = torch.randn(4, 197, 32), torch.ones(4, 197)
    compiled = torch.compile(block, mode="reduce-overhead", fullgraph=True)
    with torch.no_grad():
        for _ in range(4):
            torch.testing.assert_close(compiled(x, size)[0], block(x, size)[0])
