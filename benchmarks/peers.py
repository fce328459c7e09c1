"""What users would run instead, and the ceiling: published ToMe, tokens only dropped, other biased attentions."""

import copy
import importlib
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alt_fast.model.alt import ALT
from alt_fast.model.encoder import RegionEncoder, Regions

# Who runs in an encoder's race, as result files name them.
OURS, PUBLISHED, ORIGINAL = "alt_fast", "published ToMe", "ToMe, original code"
DROPPED, PLAIN = "dropped, not merged", "un-merged (SDPA)"
MERGED = "alt_fast, patches left merged"  # without the grid that `apply_patch` gives back by default


class PublishedBlock(nn.Module):
    """A timm block with token merging as ToMe published it (arXiv 2210.09461): attention as matrices, a dozen steps.

    Written from the paper's description. Sorting is unstable and sums are scattered, as there.
    """

    def __init__(self, block: nn.Module, r: int) -> None:
        super().__init__()
        self.block, self.r = block, r

    def forward(self, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor]:
        """x: [B, N, C]. size: [B, N, 1], None at first."""
        block, attn = self.block, self.block.attn
        batch, num_tokens, channels = x.shape
        qkv = attn.qkv(block.norm1(x)).view(batch, num_tokens, 3, attn.num_heads, attn.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        weights = q * attn.scale @ k.transpose(-2, -1)
        if size is None:
            size = x.new_ones(batch, num_tokens, 1)
        else:
            weights = weights + size.log().transpose(1, 2).unsqueeze(1)
        out = (weights.softmax(-1) @ v).transpose(1, 2).reshape(batch, num_tokens, channels)
        x, size = published_merge(x + attn.proj(out), size, k.mean(1), self.r)
        return x + block.mlp(block.norm2(x)), size


def published_merge(x: Tensor, size: Tensor, metric: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Merge tokens x [B, N, C] of `size` [B, N, 1] by their similarity in `metric` [B, N, D]."""
    merge = published_matching(metric, r)
    total = merge(size)
    return merge(x * size) / total, total


class PublishedEncoder(nn.Module):
    """ALT's image encoder with token merging as published, in plain PyTorch; the weights are the encoder's."""

    def __init__(self, encoder: RegionEncoder) -> None:
        super().__init__()
        self.visual, self.embed, self.schedule = encoder.visual, encoder.embed, encoder.schedule

    def forward(self, frames: Tensor, schedule: None = None) -> Regions:
        """frames: [F, 3, H, W]. Merges by the encoder's own schedule only. Where patches went is not traced."""
        x = self.embed(frames)
        size = x.new_ones(*x.shape[:2], 1)
        for block, r in zip(self.visual.transformer.resblocks, self.schedule, strict=True):
            attn = block.attn
            qkv = F.linear(block.ln_1(x), attn.in_proj_weight, attn.in_proj_bias)
            q, k, v = qkv.unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
            weights = q * attn.head_dim**-0.5 @ k.transpose(-2, -1) + size.log().transpose(1, 2).unsqueeze(1)
            out = attn.out_proj((weights.softmax(-1) @ v).transpose(1, 2).flatten(2))
            x, size = published_merge(x + out, size, k.mean(1), r)
            x = x + block.mlp(block.ln_2(x))
        untraced = torch.empty(len(x), 0, dtype=torch.int32, device=x.device)
        return Regions(self.visual.ln_post(x) @ self.visual.proj, size[..., 0], untraced)


def published_alt(model: ALT) -> ALT:
    """A copy of ALT whose tokens merge as published."""
    model = copy.deepcopy(model)
    model.encoder = PublishedEncoder(model.encoder)
    return model


def published_matching(metric: Tensor, r: int) -> Callable[[Tensor], Tensor]:
    """metric: [B, N, D], class token first. Returns the function that sums tokens [B, N, C] into [B, N - r, C]."""
    r = min(r, (metric.shape[1] - 1) // 2)
    with torch.no_grad():
        unit = metric / metric.norm(dim=-1, keepdim=True)
        even, odd = unit[:, ::2], unit[:, 1::2]
        scores = even @ odd.transpose(1, 2)
        scores[:, 0] = -torch.inf  # the class token
        best, partner = scores.max(-1)
        ranked = best.argsort(-1, descending=True)
        kept, merged = ranked[:, r:].sort(-1).values, ranked[:, :r]
        target = partner.gather(1, merged)

    def merge(x: Tensor) -> Tensor:
        even, odd = x[:, ::2], x[:, 1::2]

        def rows(index: Tensor) -> Tensor:
            return index.unsqueeze(-1).expand(-1, -1, x.shape[2])

        joined = odd.scatter_reduce(1, rows(target), even.gather(1, rows(merged)), "sum")
        return torch.cat([even.gather(1, rows(kept)), joined], 1)

    return merge


class PublishedToMe(nn.Module):
    """A timm VisionTransformer with PublishedBlocks; parameters are copied."""

    def __init__(self, model: nn.Module, r: int) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.blocks = nn.ModuleList(PublishedBlock(block, r) for block in self.model.blocks)

    def forward(self, images: Tensor) -> Tensor:
        """images: [B, 3, H, W] -> logits [B, classes]."""
        x, size = self.model._pos_embed(self.model.patch_embed(images)), None
        for block in self.blocks:
            x, size = block(x, size)
        return self.model.forward_head(self.model.norm(x))


class TokensDropped(nn.Module):
    """A timm VisionTransformer that drops its last r tokens where merging would stand; parameters are copied.

    It chooses and merges nothing, so no way of removing r tokens a layer can be faster: the ceiling of a machine.
    """

    def __init__(self, model: nn.Module, r: int) -> None:
        super().__init__()
        self.model, self.r = copy.deepcopy(model), r

    def forward(self, images: Tensor) -> Tensor:
        """images: [B, 3, H, W] -> logits [B, classes]."""
        x = self.model._pos_embed(self.model.patch_embed(images))
        for block in self.model.blocks:
            x = x + block.attn(block.norm1(x))
            x = x[:, : x.shape[1] - min(self.r, (x.shape[1] - 1) // 2)]
            x = x + block.mlp(block.norm2(x))
        return self.model.forward_head(self.model.norm(x))


def attention_peers(qkv: Tensor, size: Tensor, flashbias: Path | None = None) -> dict[str, Callable[[], Tensor]]:
    """Ways to compute softmax(q k^T / sqrt(D) + log size) v, and plain flash attention, which ignores sizes.

    qkv: [B, N, 3, H, D]. size: [B, N]. flashbias: a checkout of github.com/thuml/FlashBias, which takes a bias as a
    product of two thin matrices. Results are [B, N, H * D], as the output projection wants them.
    """
    q, k, v = (x.transpose(1, 2) for x in qkv.unbind(2))  # [B, H, N, D]
    dim = qkv.shape[-1]
    log_size = size.log()
    mask = log_size.to(qkv.dtype)[:, None, None]
    peers: dict[str, Callable[[], Tensor]] = {
        "SDPA without sizes": lambda: _joined(F.scaled_dot_product_attention(q, k, v)),
        "SDPA, mask": lambda: _joined(F.scaled_dot_product_attention(q, k, v, attn_mask=mask)),
    }
    column = F.pad(log_size[:, None, :, None].expand(-1, q.shape[1], -1, 1), (0, 7)).to(qkv.dtype)
    ones = F.pad(torch.full_like(column[..., :1], dim**0.5), (0, 7))

    def extra_column() -> Tensor:
        """log size is rank one: one more channel of q and k (eight, for alignment) carries it."""
        wide_q, wide_k = torch.cat([q, ones], -1), torch.cat([k, column], -1)
        return _joined(F.scaled_dot_product_attention(wide_q, wide_k, F.pad(v, (0, 8)), scale=dim**-0.5)[..., :dim])

    peers["SDPA, extra column"] = extra_column
    if qkv.is_cuda:
        peers["FlexAttention"] = _flex_attention(q, k, v, log_size)
        if find_spec("flash_attn"):
            peers["FlexAttention, FlashAttention 4"] = _flex_attention(q, k, v, log_size, {"BACKEND": "FLASH"})
        if find_spec("xformers"):
            peers["xformers, bias"] = _xformers(qkv, log_size)
        if flashbias is not None:
            peers["FlashBias"] = _flashbias(flashbias, qkv, log_size)
    return peers


def absent_attention_peers(device: str, flashbias: Path | None = None) -> dict[str, str]:
    """Peers that `attention_peers` leaves out on this machine, and why."""
    if device != "cuda":
        peers = ["FlexAttention", "FlexAttention, FlashAttention 4", "xformers, bias", "FlashBias"]
        return dict.fromkeys(peers, "needs a GPU")
    packages = {"FlexAttention, FlashAttention 4": "flash_attn", "xformers, bias": "xformers"}
    absent = {peer: f"{name} is not installed" for peer, name in packages.items() if not find_spec(name)}
    return absent if flashbias is not None else absent | {"FlashBias": "no checkout given (--flashbias PATH)"}


def original_tome(checkout: Path, model: nn.Module, r: int) -> nn.Module:
    """A copy of timm's `model` patched by a checkout of ToMe itself. Raises whatever importing or patching raises."""
    patch = _module_of(checkout, "tome.patch").timm
    patched = copy.deepcopy(model)
    patch(patched)
    patched.r = r
    return patched


def _module_of(checkout: Path, name: str) -> Any:
    """Import a module of a repository that is no package."""
    sys.path.insert(0, str(checkout))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(checkout))


def _flashbias(checkout: Path, qkv: Tensor, log_size: Tensor) -> Callable[[], Tensor]:
    attend = _module_of(checkout / "flash_bias", "flash_bias_triton").flash_bias_func
    q, k, v = qkv.unbind(2)
    column = log_size[:, :, None, None].to(qkv.dtype)  # log size is rank one: [1, N, 1, 1] times [B, M, 1, 1]
    ones = torch.ones_like(column[:1])
    return lambda: attend(q, k, v, ones, column).flatten(2)


def _joined(heads: Tensor) -> Tensor:
    """[B, H, N, D] -> [B, N, H * D]."""
    return heads.transpose(1, 2).flatten(2)


def _flex_attention(
    q: Tensor, k: Tensor, v: Tensor, log_size: Tensor, options: dict[str, Any] | None = None
) -> Callable[[], Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    def add(score: Tensor, b: Tensor, h: Tensor, q_index: Tensor, k_index: Tensor) -> Tensor:
        return score + log_size[b, k_index]

    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: _joined(compiled(q, k, v, score_mod=add, kernel_options=options))


def _xformers(qkv: Tensor, log_size: Tensor) -> Callable[[], Tensor]:
    import xformers.ops as xops

    q, k, v = qkv.unbind(2)
    batch, num_tokens, num_heads = q.shape[:3]
    padded = (num_tokens + 7) // 8 * 8  # its bias must have a stride of a multiple of 8
    bias = F.pad(log_size, (0, padded - num_tokens)).to(qkv.dtype)[:, None, None]
    bias = bias.expand(batch, num_heads, num_tokens, padded).contiguous()[..., :num_tokens]
    return lambda: xops.memory_efficient_attention(q, k, v, attn_bias=bias).flatten(2)
