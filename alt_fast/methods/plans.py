"""What the methods share: plans of merges that `match` does not make, similarities, and how many tokens are left."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from alt_fast.errors import ArgumentError
from alt_fast.tome.schedule import Reduction, merge_schedule
from alt_fast.tome.tokens import Attended, Tokens
from alt_fast_kernels import MergePlan, max_r
from alt_fast_kernels.dispatch import without_autocast


def removable(at: Attended) -> int:
    """How many tokens a layer removes: r, but at most half of those that are not protected, as ToMe does."""
    return min(at.reduction, max_r(at.tokens.x.shape[1], at.protected))


def tokens_left(num_tokens: int, protected: int, num_layers: int, r: Reduction) -> list[int]:
    """Tokens that enter the MLP of each layer, where layers remove r, but at most half of what is not protected.

    Raises what `merge_schedule` raises.
    """
    left = []
    for removed in merge_schedule(r, num_layers):
        wanted = int(removed * (num_tokens - protected)) if isinstance(removed, float) else removed
        num_tokens -= min(wanted, max_r(num_tokens, protected))
        left.append(num_tokens)
    return left


def plan_to(keeper: Tensor, num_slots: int) -> MergePlan:
    """The plan in which tokens go where they are told; slots are in the order of the tokens that keep them.

    keeper: [B, N] int64, the token whose slot each token goes to: itself for the `num_slots` that stay in every image.
    """
    num_tokens = keeper.shape[1]
    token = torch.arange(num_tokens, device=keeper.device).expand_as(keeper)
    goes = keeper != token
    slot = ((~goes).cumsum(1) - 1).gather(1, keeper)
    order = ((goes * num_slots + slot) * num_tokens + token).sort(1).values % num_tokens
    joined = goes.new_zeros(len(keeper), num_slots + 1, dtype=torch.int64).scatter_add(1, slot + 1, goes.long())
    return MergePlan(slot.int(), order.int(), joined.cumsum(1).int(), num_slots)


def plan_for_all(keeper: Tensor, num_slots: int, batch: int) -> MergePlan:
    """The same plan for all images: keeper [N], as in `plan_to`."""
    slot, order, start, _ = plan_to(keeper[None], num_slots)
    return MergePlan(slot.expand(batch, -1), order.expand(batch, -1), start.expand(batch, -1), num_slots)


def check_padding(at: Attended) -> None:
    """Raise ArgumentError where `padded_plan` would be read as more than padding: tokens of size 0 as real ones."""
    if not (at.prop_attn and at.tokens.unmerges):
        raise ArgumentError("a method whose images keep different numbers of tokens needs prop_attn and unmerge")


def padded_plan(keeper: Tensor, size: Tensor) -> MergePlan:
    """A plan for images that keep different numbers of tokens, each padded to the longest by empty ones behind it.

    keeper: [B, N], as in `plan_to`. size: [B, N], 0 for tokens that are empty already: they may all go. The plan has
    P more tokens than there are, as many as the longest image keeps more than the shortest: `Attended.merge` takes them
    for empty. The numbers of tokens must be known to the host, so it waits for the device, and a compiled graph breaks.
    """
    num_tokens = keeper.shape[1]
    token = torch.arange(num_tokens, device=keeper.device)
    kept = (keeper == token) & (size > 0)
    count = kept.sum(1)
    longest, shortest = torch.stack((count.max(), count.min())).tolist() if len(count) else (num_tokens, num_tokens)
    somewhere = kept.int().argmax(1, keepdim=True)  # for what has no size, and so moves nothing
    spare = torch.arange(longest - shortest, device=keeper.device)
    fills = spare < longest - count[:, None]
    keeper = torch.cat((keeper.where(size > 0, somewhere), (num_tokens + spare).where(fills, somewhere)), 1)
    return plan_to(keeper, longest)


def kept_alone(plan: MergePlan, size: Tensor) -> Tensor:
    """Weights [B, N] like size: 1 for the tokens that keep a slot, 0 for those that are dropped into it."""
    return torch.zeros_like(size).scatter(1, plan.order[:, : plan.num_slots].long(), 1.0)


def rescaled(at: Attended, tokens: Tokens, scale: Tensor) -> tuple[Tokens, Tensor]:
    """What a step returns, of merged tokens that are multiplied by scale [B, N'] first."""
    x = tokens.x * scale.to(tokens.x.dtype).unsqueeze(-1)
    return replace(tokens, x=x), x if at.norm is None else at.norm(x)


def cosines(features: Tensor, others: Tensor | None = None) -> Tensor:
    """Cosine similarities [B, N, M] of features [B, N, C] to others [B, M, C], by default themselves.

    Of keys [B, N, H, D] it is the mean over heads that counts, as in `match`. In fp32 (fp64 for fp64), inside autocast
    too.
    """
    with without_autocast(features):
        first = _unit(features)
        return first @ (first if others is None else _unit(others)).transpose(1, 2)


def _unit(features: Tensor) -> Tensor:
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    return F.normalize(features.mean(2) if features.ndim == 4 else features, dim=-1)
