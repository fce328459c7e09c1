"""Size-weighted merging, plain and fused with the residual add and LayerNorm."""

import copy
from collections.abc import Iterator
from typing import Any

import open_clip
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from alt_fast_kernels import MergePlan, match, merge, unmerge, use_backend
from alt_fast_kernels.dispatch import Backend
from alt_fast_kernels.launch import recording
from alt_fast_kernels.merge.reference import layer_norm_reference
from alt_fast_kernels.testing import Result, assert_as_accurate

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def make_case(
    batch: int, num_tokens: int, channels: int, r: int, protected: int = 1, destinations: int = 2
) -> tuple[Tensor, Tensor, MergePlan]:
    """Tokens, sizes, and a plan: the reference's, which costs less to find in the interpreter."""
    x = torch.randn(batch, num_tokens, channels)
    size = torch.randint(1, 3000, (batch, num_tokens)).float()
    with use_backend("reference"):
        return x, size, match(x, r, protected, destinations)


def random_norm(channels: int, dtype: torch.dtype = torch.float32) -> nn.LayerNorm:
    norm = nn.LayerNorm(channels, dtype=dtype)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 60), st.integers(0, 30), st.integers(0, 2**31))
def test_equals_the_weighted_mean_of_every_slot(num_tokens: int, r: int, seed: int) -> None:
    torch.manual_seed(seed)
    x, size, plan = make_case(2, num_tokens, 5, r)
    merged, new_size = merge(x, size, plan)
    assert merged.shape == (2, plan.num_slots, 5)
    for image in range(2):
        for slot in range(plan.num_slots):
            members = plan.slot[image] == slot
            weights = size[image, members].double()
            expected = (x[image, members].double() * weights[:, None]).sum(0) / weights.sum()
            torch.testing.assert_close(merged[image, slot].double(), expected, rtol=1e-5, atol=1e-5)
            assert new_size[image, slot] == weights.sum()
    torch.testing.assert_close(new_size.sum(1), size.sum(1))  # sizes are conserved


def test_a_token_alone_passes_through_exactly() -> None:
    x, size, plan = make_case(2, 33, 7, 8)
    merged, _ = merge(x, size, plan)
    for image in range(2):
        counts = plan.slot[image].bincount()
        for token, slot in enumerate(plan.slot[image].tolist()):
            if counts[slot] == 1:
                assert torch.equal(merged[image, slot], x[image, token])


def test_a_token_alone_passes_through_exactly_when_division_does_not() -> None:
    """Forward and backward, at sizes whose product with their reciprocal is not 1 in fp32."""
    x, _, plan = make_case(2, 33, 7, 8)
    size = torch.tensor([55.0, 107.0, 110.0, 115.0, 121.0, 123.0])[torch.arange(33) % 6].expand(2, -1)
    leaf, upstream = x.clone().requires_grad_(), torch.randn(2, plan.num_slots, 7)
    merged, _ = merge(leaf, size, plan)
    merged.backward(upstream)
    assert leaf.grad is not None
    for image in range(2):
        counts = plan.slot[image].bincount()
        for token, slot in enumerate(plan.slot[image].tolist()):
            if counts[slot] == 1:
                assert torch.equal(merged[image, slot], x[image, token])
                assert torch.equal(leaf.grad[image, token], upstream[image, slot])


def test_many_tokens_in_one_slot() -> None:
    x, size = torch.randn(1, 40, 6), torch.randint(1, 3000, (1, 40)).float()
    order = torch.cat([torch.tensor([7, 3]), torch.tensor([i for i in range(40) if i not in (3, 7)])])[None].int()
    slot = torch.zeros(1, 40, dtype=torch.int32)
    slot[0, 3] = 1
    plan = MergePlan(slot, order, torch.tensor([[0, 38, 38]], dtype=torch.int32), 2)
    merged, new_size = merge(x, size, plan)
    rest = [i for i in range(40) if i != 3]
    expected = (x[0, rest] * size[0, rest, None]).sum(0) / size[0, rest].sum()
    torch.testing.assert_close(merged[0], torch.stack([expected, x[0, 3]]))
    assert new_size.tolist() == [[size[0, rest].sum().item(), size[0, 3].item()]]


def test_r_0_is_the_identity() -> None:
    x, size, plan = make_case(2, 10, 4, 0)
    merged, new_size = merge(x, size, plan)
    assert torch.equal(merged, x)
    assert torch.equal(new_size, size)
    norm = random_norm(4)
    summed, _, normed = merge(x, size, plan, x, norm=norm)
    assert torch.equal(summed, x + x)
    torch.testing.assert_close(normed, norm(x + x))


def test_unmerge_is_constant_on_slots() -> None:
    x, size, plan = make_case(3, 30, 4, 9)
    merged, _ = merge(x, size, plan)
    grid = unmerge(merged, plan.slot)
    for image in range(3):
        for token in range(30):
            assert torch.equal(grid[image, token], merged[image, plan.slot[image, token]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_accumulates_in_fp32(dtype: torch.dtype) -> None:
    # Half precision cannot add 1 to 3000: the mean of one 0 among 3000 equal tokens would be lost.
    x = torch.tensor([[[4.0], [0.0]]], dtype=dtype)
    size = torch.tensor([[3000.0, 1000.0]])
    slot, order, start = torch.tensor([[0, 0], [0, 1], [0, 1]], dtype=torch.int32)[:, None]
    plan = MergePlan(slot, order, start, 1)
    merged, new_size = merge(x, size, plan)
    assert merged.dtype == dtype
    assert merged.item() == 3.0
    assert new_size.item() == 4000.0


@pytest.mark.same_arithmetic
@pytest.mark.kernel_only
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_tokens", "channels", "r", "destinations"),
    [
        *((2, 3, 1, 2), (17, 33, 8, 2), (65, 128, 20, 2), (20, 1100, 3, 2), (1025, 16, 300, 2)),
        *((101, 33, 90, 10), (201, 16, 199, 201)),  # nine to one on average, and 199 to one
    ],
)
def test_fused_kernel_is_as_accurate_as_pytorch(
    num_tokens: int, channels: int, r: int, destinations: int, dtype: torch.dtype
) -> None:
    def draw() -> Iterator[Result]:
        protected = int(num_tokens > 2)  # two must be free to merge
        x, size, plan = make_case(2, num_tokens, channels, r, protected, destinations)
        residual = torch.randn_like(x)
        x, residual = x.to(dtype), residual.to(dtype)
        weights = torch.randn(2, 2, plan.num_slots, channels)  # of the loss
        state = random_norm(channels, dtype).state_dict()

        def run(backend: Backend, dtype: torch.dtype, fused: bool) -> list[Tensor]:
            norm = random_norm(channels, dtype)
            norm.load_state_dict(state)
            leaves = [t.to(dtype, copy=True).requires_grad_() for t in (x, residual)]
            counts = size.double() if dtype == torch.float64 else size
            with use_backend(backend):
                if not fused:
                    out = [merge(leaves[0], counts, plan)[0]]
                elif backend == "triton":
                    out = list(merge(leaves[0], counts, plan, leaves[1], norm=norm)[::2])
                else:  # the norm that the kernel is held to, not the module's own
                    merged, _ = merge(leaves[0], counts, plan, leaves[1])
                    out = [merged, layer_norm_reference(merged, norm.weight, norm.bias, norm.eps)]
            (sum((o * w.to(dtype)).sum() for o, w in zip(out, weights, strict=False))).backward()
            learned = [norm.weight.grad, norm.bias.grad, leaves[1].grad] if fused else []
            return [*out, leaves[0].grad, *learned]  # type: ignore[list-item]

        for fused in (False, True):
            yield from zip(
                run("triton", dtype, fused),
                run("reference", dtype, fused),
                run("reference", torch.float64, fused),
                strict=True,
            )

    assert_as_accurate(draw)


def test_only_one_output_used_in_training() -> None:
    def gradient(case: tuple[Tensor, Tensor, MergePlan], norm: nn.LayerNorm, used: int, dtype: torch.dtype) -> Tensor:
        x, size, plan = case
        leaf = x.to(dtype, copy=True).requires_grad_()
        counts = size.to(dtype)
        merge(leaf, counts, plan, norm=copy.deepcopy(norm).to(dtype))[used].square().sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    def draw() -> Iterator[Result]:
        case, norm = make_case(2, 12, 8, 4), random_norm(8)
        for used in (0, 2):
            found = gradient(case, norm, used, torch.float32)
            with use_backend("reference"):
                yield found, gradient(case, norm, used, torch.float32), gradient(case, norm, used, torch.float64)

    assert_as_accurate(draw)


@pytest.mark.kernel_only
@pytest.mark.parametrize("needed", ["x", "residual", "weight", "bias", "x bias", "residual weight bias"])
def test_only_the_gradients_needed_are_computed(needed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from alt_fast_kernels.merge import triton as kernels

    launched = []

    def record(*args: Any) -> Any:
        launched.append(launch(*args))
        return launched[-1]

    x, size, plan = make_case(2, 12, 8, 4)
    norm = random_norm(8).requires_grad_(False)
    leaves = {"x": x, "residual": torch.randn_like(x), "weight": norm.weight, "bias": norm.bias}
    for name in needed.split():
        leaves[name].requires_grad_()

    def gradients() -> list[Tensor]:
        _, _, normed = merge(x, size, plan, leaves["residual"], norm=norm)
        return list(torch.autograd.grad(normed.square().sum(), [leaves[name] for name in needed.split()]))

    with use_backend("reference"):
        expected = gradients()
    launch = kernels.merge_bwd_launch
    monkeypatch.setattr(kernels, "merge_bwd_launch", record)
    for grad, right in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(grad, right)
    (options,) = (one.options for one in launched)
    assert options["NEEDS_X"] == ("x" in needed.split() or "residual" in needed)
    assert options["NEEDS_NORM"] == ("weight" in needed or "bias" in needed)


@pytest.mark.parametrize("r", [0, 4])
def test_a_layer_norm_has_autocast_s_dtype(r: int) -> None:
    """What the Linear behind it reads; the stream and the sizes keep full precision."""
    x, size, plan = make_case(2, 12, 8, r)
    norm = random_norm(8)
    leaf = x.clone().requires_grad_()
    with torch.autocast(x.device.type, torch.bfloat16):
        merged, new_size, normed = merge(leaf, size, plan, x, norm=norm)
    assert (merged.dtype, new_size.dtype, normed.dtype) == (torch.float32, torch.float32, torch.bfloat16)
    torch.testing.assert_close(normed, layer_norm_reference(merged, norm.weight, norm.bias, norm.eps).bfloat16())
    normed.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == torch.float32


class _Step(nn.Module):
    def __init__(self, norm: nn.Module, size: Tensor, plan: MergePlan) -> None:
        super().__init__()
        self.norm, self.size, self.plan = norm, size, plan

    def forward(self, x: Tensor) -> Tensor:
        merged, _, normed = merge(x, self.size, self.plan, x, norm=self.norm)
        return merged.sin().sum() + normed.square().sum()


def test_gradients_of_function_transforms() -> None:
    """grad, and per-sample gradients of tokens and weights by vmap(grad): those of one backward pass per sample."""
    _, size, plan = make_case(2, 12, 8, 4)
    samples, norm = torch.randn(3, 2, 12, 8), random_norm(8)
    step = _Step(norm, size, plan)

    def loss(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        found: Tensor = torch.func.functional_call(step, weights, (x,))
        return found

    weights = {name: weight.detach() for name, weight in step.named_parameters()}
    grad = torch.func.grad(loss, argnums=(0, 1))
    per_sample = torch.vmap(grad, in_dims=(0, None))(samples, weights)
    for i, sample in enumerate(samples):
        leaf = sample.clone().requires_grad_()
        expected = torch.autograd.grad(step(leaf), [leaf, *step.parameters()])
        for found in (grad(sample, weights), (per_sample[0][i], {k: v[i] for k, v in per_sample[1].items()})):
            torch.testing.assert_close([found[0], *found[1].values()], list(expected))


def test_sizes_alone_may_be_mapped() -> None:
    x, sizes = torch.randn(2, 8, 16), torch.rand(3, 2, 8)
    plan = match(x, 2, 1)
    found = torch.vmap(lambda size: merge(x, size, plan)[0])(sizes)
    torch.testing.assert_close(found, torch.stack([merge(x, size, plan)[0] for size in sizes]))


@pytest.mark.kernel_only
def test_other_derivatives_are_refused() -> None:
    x, size, plan = make_case(2, 12, 8, 4)
    step = _Step(random_norm(8), size, plan)
    with pytest.raises(NotImplementedError, match="no formula for forward-mode"):
        torch.func.jvp(step, (x,), (x,))
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(step(leaf), leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match="no formula for a second derivative"):
        grad.sum().backward()


def test_strided_tokens_and_mixed_dtypes() -> None:
    x, size, plan = make_case(2, 20, 16, 5)
    residual = torch.randn(2, 16, 20).mT.bfloat16()  # channels are strided; autocast leaves branches in half precision
    merged, _, normed = merge(
        x.transpose(0, 1).contiguous().transpose(0, 1), size, plan, residual, norm=random_norm(16)
    )
    assert merged.dtype == normed.dtype == torch.float32
    expected, _ = merge(x + residual, size, plan)
    torch.testing.assert_close(merged, expected)
    leaf = residual.clone().requires_grad_()
    merge(x, size, plan, leaf)[0].sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == torch.bfloat16


def test_sizes_of_fp64_stay_so() -> None:
    """No kernel takes them: counts are exact in fp32."""
    x, size, plan = make_case(2, 20, 16, 5)
    expected, expected_size = merge(x, size, plan)
    leaf, norm = x.clone().requires_grad_(), random_norm(16)
    merged, new_size, normed = merge(leaf, size.double(), plan, x, norm=norm)
    assert new_size.dtype == torch.float64
    torch.testing.assert_close(new_size, expected_size.double())
    torch.testing.assert_close(merged, 2 * expected)
    torch.autograd.grad(normed.sum(), (leaf, *norm.parameters()))


@pytest.mark.kernel_only
def test_what_promotes_to_fp64_is_the_reference_s() -> None:
    x, size, plan = make_case(2, 20, 16, 5)
    with pytest.raises(TypeError, match="the Triton kernels take fp32, fp16 and bf16, got torch.float64"):
        merge(x, size, plan, x.double())


@pytest.mark.kernel_only
@pytest.mark.parametrize("norm", [None, random_norm(16)])
def test_no_kernel_is_given_fp64(norm: nn.LayerNorm | None) -> None:
    """The interpreter would take it; a GPU's compiler does not."""
    x, size, plan = make_case(2, 20, 16, 5)
    leaf = x.requires_grad_()
    with recording("sm_90") as launches:
        merged, _, *normed = merge(leaf, size.double(), plan, norm=norm)
        sum(x.sum() for x in (merged, *normed)).backward()
    tensors = [x for launch in launches for x in launch.args if isinstance(x, Tensor)]
    assert len(launches) == 2
    assert not any(x.dtype == torch.float64 for x in tensors)


def test_what_is_merged_may_change_in_place_before_its_gradient_is_asked_for() -> None:
    x, size, plan = make_case(2, 20, 16, 5)
    gradients = []
    for in_place in (False, True):
        leaf = x.clone().requires_grad_()
        merged, _ = merge(leaf, size, plan)
        (merged.mul_(3) if in_place else 3 * merged).sum().backward()
        gradients.append(leaf.grad)
    assert gradients[0] is not None
    assert torch.equal(*gradients)  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [8192, 8200])
def test_wide_tokens(channels: int) -> None:
    """As many channels as a kernel's tile holds; beyond, PyTorch takes over."""
    x, size, plan = make_case(1, 7, channels, 3)
    merged, _, normed = merge(x, size, plan, x, norm=nn.LayerNorm(channels))
    members = plan.slot[0] == plan.slot[0, plan.order[0, -1]]
    share = size[0, members] / size[0, members].sum()
    slot = int(plan.slot[0, plan.order[0, -1]])
    torch.testing.assert_close(merged[0, slot], 2 * (x[0, members] * share[:, None]).sum(0))
    torch.testing.assert_close(normed, torch.nn.functional.layer_norm(merged, (channels,)))


def test_norm_without_weights() -> None:
    x, size, plan = make_case(2, 20, 16, 5)
    for norm in (nn.LayerNorm(16, elementwise_affine=False), nn.LayerNorm(16, bias=False)):
        merged, _, normed = merge(x, size, plan, norm=norm)
        torch.testing.assert_close(normed, norm(merged))


class OwnNorm(nn.LayerNorm):
    """A user's own idea of LayerNorm, which no kernel knows."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


def five_times(_: nn.Module, grads: tuple[Tensor, ...] | Tensor, __: object) -> tuple[Tensor]:
    return (grads[0] * 5,)


def other_norms() -> dict[str, nn.Module]:
    """Norms over 16 channels that the kernel must not stand in for."""
    before, behind, backward = random_norm(16), random_norm(16), random_norm(16)
    before.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 2,))
    behind.register_forward_hook(lambda _, inputs, output: output * 3)
    backward.register_full_backward_hook(five_times)
    replaced = random_norm(16)
    replaced.forward = lambda x: nn.LayerNorm.forward(replaced, x) + 1  # type: ignore[assignment, method-assign]
    return {
        "own": OwnNorm(16),
        "rms": nn.RMSNorm(16),
        "in front": before,
        "behind": behind,
        "backward": backward,
        "replaced": replaced,
        "many": nn.Sequential(random_norm(16), nn.Tanh()),
    }


@pytest.mark.parametrize("r", [0, 5])
@pytest.mark.parametrize("kind", list(other_norms()))
def test_any_other_norm_acts_as_a_module(kind: str, r: int) -> None:
    """With its hooks, its own forward, and autocast's dtype: as on the merged tokens themselves."""
    x, size, plan = make_case(2, 20, 16, r)
    norm = other_norms()[kind].to(x.device)
    residual = torch.randn_like(x, dtype=torch.bfloat16)
    with torch.autocast(x.device.type, torch.bfloat16):
        leaf, same = x.bfloat16().requires_grad_(), x.bfloat16().requires_grad_()
        normed = merge(leaf, size, plan, residual, norm=norm)[2]
        expected = norm(merge(same, size, plan, residual)[0])
    assert normed.dtype == expected.dtype
    assert torch.equal(normed, expected)
    normed.square().sum().backward()
    expected.square().sum().backward()
    assert leaf.grad is not None
    assert same.grad is not None
    assert torch.equal(leaf.grad, same.grad)
    assert leaf.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", [nn.LayerNorm, timm.layers.LayerNorm, open_clip.transformer.LayerNorm])
def test_the_kernel_computes_a_plain_layer_norm_where_it_runs(
    kind: type[nn.LayerNorm], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def count(self: nn.LayerNorm, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.nn.functional.layer_norm(x, (16,), self.weight, self.bias, self.eps)

    monkeypatch.setattr(kind, "forward", count)
    for r, by_kernel in ((5, backend == "triton"), (0, False)):
        x, size, plan = make_case(2, 20, 16, r)
        calls = 0
        merge(x, size, plan, norm=kind(16))
        assert calls == (0 if by_kernel else 1)


@pytest.mark.reference_only
def test_gradient() -> None:
    x, size, plan = make_case(2, 9, 3, 3)
    norm = random_norm(3, torch.float64)
    leaves = (x.double().requires_grad_(), torch.randn_like(x, dtype=torch.float64).requires_grad_())
    assert torch.autograd.gradcheck(lambda x, y: merge(x, size.double(), plan, y, norm=norm)[::2], leaves)


def test_empty_batch() -> None:
    plan = match(torch.empty(0, 6, 4), 2)
    leaf = torch.empty(0, 6, 4, requires_grad=True)
    merged, new_size, normed = merge(leaf, torch.empty(0, 6), plan, norm=nn.LayerNorm(4))
    assert merged.shape == normed.shape == (0, 4, 4)
    assert new_size.shape == (0, 4)
    normed.sum().backward()
    assert leaf.grad is not None


def test_repeats_exactly() -> None:
    x, size, plan = make_case(3, 65, 40, 25)
    norm = random_norm(40)

    def once() -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        norm.zero_grad()
        merged, _, normed = merge(leaf, size, plan, norm=norm)
        (merged.sum() + normed.square().sum()).backward()
        return [merged, normed, leaf.grad, norm.weight.grad, norm.bias.grad]  # type: ignore[list-item]

    for a, b in zip(once(), once(), strict=True):
        assert torch.equal(a, b)


def test_bad_input() -> None:
    x, size, plan = make_case(2, 8, 4, 2)
    with pytest.raises(ValueError, match="x must be"):
        merge(x[0], size, plan)
    with pytest.raises(TypeError, match="x must be floating point"):
        merge(x.long(), size, plan)
    with pytest.raises(ValueError, match="plan.slot must be"):
        merge(x[:, :5], size[:, :5], plan)
    with pytest.raises(ValueError, match="plan.start must be"):
        merge(x, size, plan._replace(start=plan.start[:, 1:]))
    with pytest.raises(ValueError, match="size must be"):
        merge(x, size[:, :5], plan)
    with pytest.raises(TypeError, match=r"size must be fp32 \(or fp64\), got torch.bfloat16"):
        merge(x, size.bfloat16(), plan)
    with pytest.raises(ValueError, match="size must not require grad"):
        merge(x, size.clone().requires_grad_(), plan)
    with pytest.raises(ValueError, match="residual must be"):
        merge(x, size, plan, x[:, :5])
    with pytest.raises(ValueError, match=r"norm must be over 4 channels, got LayerNorm\(\(5,\)"):
        merge(x, size, plan, norm=nn.LayerNorm(5))
    with pytest.raises(TypeError, match="norm must be an nn.Module"):
        merge(x, size, plan, norm=torch.relu)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="size must be on"):
        merge(x, size.to("meta"), plan)
    with pytest.raises(ValueError, match="x must be"):
        unmerge(x[0], plan.slot)
    with pytest.raises(ValueError, match="slot must be"):
        unmerge(x, plan.slot[:1])
    with pytest.raises(TypeError, match=r"slot must be int32 or int64, got torch.float32"):
        unmerge(x, plan.slot.float())
    if x.device.type == "cpu":  # values are not read on a GPU
        with pytest.raises(ValueError, match=r"slot must be from 0 to 2, got 0 to [3-9]"):
            unmerge(x[:, :3], plan.slot)


def test_tokens_without_channels() -> None:
    x, size, plan = make_case(2, 20, 6, 8)
    x = x[..., :0]
    merged, new_size = merge(x, size, plan)
    assert merged.shape == (2, plan.num_slots, 0)
    assert new_size.sum() == size.sum()
    assert unmerge(merged, plan.slot).shape == x.shape


def test_tokens_of_size_0_leave_no_trace() -> None:
    """They move no token that counts; where none counts the survivor stays as it is."""
    x, size, plan = make_case(2, 20, 6, 8)
    slots = plan.slot[:, plan.order[0, -1]].long()
    empty = plan.slot == slots[:, None]  # every token of one slot of each image
    size[empty] = 0
    size[0, plan.order[0, plan.num_slots].long()] = 0
    leaf = x.clone().requires_grad_()
    merged, new_size = merge(leaf, size, plan)
    merged.sum().backward()
    for image in range(2):
        for slot in range(plan.num_slots):
            members = plan.slot[image] == slot
            weights = size[image, members].double()
            assert new_size[image, slot] == weights.sum()
            if weights.sum() > 0:
                expected = (x[image, members].double() * weights[:, None]).sum(0) / weights.sum()
                torch.testing.assert_close(merged[image, slot].double(), expected, rtol=1e-5, atol=1e-5)
            else:
                assert torch.equal(merged[image, slot], x[image, plan.order[image, slot].long()])
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad.sum(1), torch.full((2, 6), float(plan.num_slots)))


@pytest.mark.parametrize("bad", [-1.0, float("nan")])
def test_sizes_must_not_be_negative(bad: float) -> None:
    from alt_fast_kernels import check_values, proportional_attention

    x, size, plan = make_case(2, 8, 4, 2)
    size[1, 3] = bad
    with check_values():
        with pytest.raises(ValueError, match="size must be >= 0"):
            merge(x, size, plan)
        with pytest.raises(ValueError, match="size must be >= 0"):
            proportional_attention(x[:, :, None], x[:, :, None], x[:, :, None], size)
