"""The ops on a CPU with as many tokens as high resolutions and long videos have."""

import pytest
import torch
from torch.nn import functional as F

from alt_fast_kernels import Rotary, match, merge, proportional_attention, rotate
from benchmarks.apart import apart, peak_bytes

pytestmark = pytest.mark.reference_only
SHORT, LONG = 4097, 16385  # a class token, and 64 x 64 or 128 x 128 patches


def check(num_tokens: int) -> int:
    """Match, merge and attend, forward and backward; some tokens are held to their formulas. Returns peak bytes.

    Matching also with a tenth of the tokens as destinations, merging with a residual and a norm, attention also turned.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, num_tokens, 1, 8, requires_grad=True) for _ in range(3))
    plan = match(key.detach(), num_tokens // 4, 1)
    some = plan.order[0, plan.num_slots :][torch.randperm(num_tokens // 4)[:20]].long()  # of those that join another
    joined = plan.order[0, plan.slot[0, some].long()].long()
    unit = F.normalize(key.detach()[0, :, 0], dim=-1)
    assert (unit[some] * unit[joined]).sum(-1).tolist() == pytest.approx((unit[some] @ unit[1::2].T).amax(-1).tolist())
    tenth = match(key.detach(), num_tokens, 1, 10)
    some = tenth.order[0, tenth.num_slots :][torch.randperm(num_tokens // 2)[:20]].long()
    joined = tenth.order[0, tenth.slot[0, some].long()].long()
    assert (unit[some] * unit[joined]).sum(-1).tolist() == pytest.approx((unit[some] @ unit[9::10].T).amax(-1).tolist())

    tokens, size = torch.randn(1, num_tokens, 4), torch.randint(1, 9, (1, num_tokens)).float()
    merged, merged_size = merge(tokens, size, plan)[:2]
    slots, shape = plan.slot[0].long(), (plan.num_slots, 4)
    total = torch.zeros(shape).index_add(0, slots, size[0, :, None] * tokens[0])
    torch.testing.assert_close(merged[0], total / merged_size[0, :, None])
    norm = torch.nn.LayerNorm(4)
    fused, _, normed = merge(tokens, size, plan, tokens, norm=norm)
    torch.testing.assert_close(fused, 2 * merged)
    torch.testing.assert_close(normed, norm(2 * merged))

    angle = torch.rand(1, num_tokens, 1, 8)
    for rotary in (None, Rotary(angle.cos(), angle.sin(), False)):
        out = proportional_attention(query, key, value, size, rotary=rotary)
        q, k = (x if rotary is None else rotate(x, rotary) for x in (query, key))
        some = torch.randperm(num_tokens)[:20]
        weight = (q[0, some, 0] @ k[0, :, 0].T * 8**-0.5 + size[0].log()).softmax(-1)
        torch.testing.assert_close(out[0, some], weight @ value[0, :, 0])
        cotangent = torch.zeros_like(out).index_fill(1, some, 1.0)
        ours, plain = (
            torch.autograd.grad(result.sum(), (query, key, value), retain_graph=True)
            for result in (out * cotangent, weight @ value[0, :, 0])
        )
        for one, other in zip(ours, plain, strict=True):
            torch.testing.assert_close(one, other)
    return peak_bytes()


def peaks() -> tuple[int, int, int]:
    """Peak bytes before, after SHORT and after LONG tokens."""
    check(65)  # what first calls take
    return peak_bytes(), check(SHORT), check(LONG)


def test_right_and_without_a_matrix_of_all_scores() -> None:
    """Memory is less than the scores of one half of the tokens with the other take, and grows about as N does."""
    before, short, long = apart(peaks)
    assert long - before < 4 * (LONG // 2) ** 2
    assert long - before < 8 * (short - before)  # by N 4 times, by its square 16 times
