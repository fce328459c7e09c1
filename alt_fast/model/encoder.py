"""Frames to region tokens: a CLIP image tower whose blocks merge tokens (paper, eq. 1 to 3)."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from alt_fast.errors import ArgumentError
from alt_fast.model.adapters import make_adapters
from alt_fast.model.config import Tuning
from alt_fast.model.rotary_tower import RotaryTower
from alt_fast.tome.attention import attend_multihead
from alt_fast.tome.block import BlockSettings, MergingBlock
from alt_fast.tome.hosts import open_clip as host_library
from alt_fast.tome.rules import RotaryRule, check_rule
from alt_fast.tome.schedule import Reduction, merge_schedule
from alt_fast.tome.tokens import Tokens

CLASS_TOKENS = 1  # the class token leads the sequence and never merges
MergeSchedule = Sequence[int | float]
"""Tokens to merge away, or a fraction of them, by layer (`merge_schedule`)."""


class Regions(NamedTuple):
    """What the encoder sees in each of F frames.

    tokens: [F, N', d] class token first, then regions, in the joint image-text space (not normalised).
    size: [F, N'] fp32, patches in each token.
    source: [F, N] int32, the token that each of the N initial tokens (class token, then patches by row) ended in.
    """

    tokens: Tensor
    size: Tensor
    source: Tensor


class RegionBlock(MergingBlock, ResidualAttentionBlock):
    """open_clip's block with merging, the one that `apply_patch` uses, as a part of ALT: nothing takes it out again."""

    host = ResidualAttentionBlock
    layout = host_library.LAYOUT
    arguments = ("k_x", "v_x", "attn_mask")

    def unpatch(self) -> None:
        """Stay: ALT is made of it."""


class RegionEncoder(nn.Module):
    """Runs an open_clip VisionTransformer with attention, merge, MLP in every block.

    The tower's parameters stay where open_clip put them (`visual.*`), so any of its checkpoints loads. With r = 0 the
    class token equals open_clip's image feature. Raises ArgumentError for towers this order of operations cannot
    honour.

    activation_checkpointing: keep only what lies between blocks for the backward pass, and compute the rest anew: less
    memory, more time.
    """

    def __init__(
        self,
        visual: VisionTransformer,
        r: Reduction,
        tuning: Tuning,
        num_frames: int,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_tower(visual)
        self.visual = visual
        blocks = visual.transformer.resblocks
        for number, block in enumerate(blocks):  # for who runs the tower alone, too
            settings = BlockSettings(
                0, CLASS_TOKENS, True, trace=True, unmerge=False, layer=number, num_layers=len(blocks)
            )
            RegionBlock.patch(block, settings)
        self.set_r(r)
        self.num_frames = num_frames
        self.activation_checkpointing = activation_checkpointing
        self.adapters = nn.ModuleList(make_adapters(tuning, visual.conv1.out_channels) for _ in blocks)
        visual.requires_grad_(tuning == "finetune")

    def set_r(self, r: Reduction) -> None:
        """Change the merge schedule; no weight depends on it."""
        self.schedule = merge_schedule(r, len(self.visual.transformer.resblocks))

    def set_rotary(self, rule: RotaryRule) -> None:
        """Change the rule for rotary positions of merged tokens; no weight depends on it.

        Raises ArgumentError for a rule that is none, and for a tower without rotary positions.
        """
        check_rule(rule)
        if not isinstance(self.visual, RotaryTower):
            raise ArgumentError(f"rotary {rule!r} is for image towers with rotary positions, and this one has none")
        for block in self.visual.transformer.resblocks:
            block.tome = replace(block.tome, rotary=rule)

    def forward(self, frames: Tensor, schedule: MergeSchedule | None = None) -> Regions:
        """Turn the frames of clips into region tokens.

        frames: [F, 3, H, W] normalised, the frames of a clip in a row (the temporal adapter looks along them).
        schedule: tokens to merge away by layer; by default the encoder's own.
        """
        tokens = self.start(frames)
        for layer in self.layers(schedule):
            if self.activation_checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(self.run_layer, *layer, tokens, use_reentrant=False)
            else:
                tokens = self.run_layer(*layer, tokens)
        return self.finish(tokens)

    def start(self, frames: Tensor) -> Tokens:
        """Return the tokens before the first layer."""
        return Tokens(self.embed(frames))

    def finish(self, tokens: Tokens) -> Regions:
        """Return the tokens after the last layer, in the joint space."""
        return Regions(self.visual.ln_post(tokens.x) @ self.visual.proj, tokens.sizes(), tokens.source())

    def run_layer(self, block: RegionBlock, adapters: nn.ModuleDict, r: int | float, tokens: Tokens) -> Tokens:
        """Run one block, with what Table 7 adapts in it."""
        if "temporal" in adapters:
            tokens = replace(tokens, x=tokens.x + adapters["temporal"](self._attend_over_time(block, tokens.x)))
        return block.run(tokens, r, adapters)

    def layers(self, schedule: MergeSchedule | None = None) -> Iterator[tuple[RegionBlock, nn.ModuleDict, int | float]]:
        """Yield what `run_layer` takes before the tokens, layer by layer: block, adapters, tokens to merge away."""
        schedule = self.schedule if schedule is None else schedule
        return zip(self.visual.transformer.resblocks, self.adapters, schedule, strict=True)  # type: ignore[arg-type]

    def embed(self, frames: Tensor) -> Tensor:
        """Make patches, class token and positions, unless they are rotary: [F, 3, H, W] -> [F, N, width] (eq. 1)."""
        visual = self.visual
        height, width = visual.image_size
        if frames.ndim != 4 or tuple(frames.shape[1:]) != (3, height, width):
            raise ArgumentError(f"frames must be [F, 3, {height}, {width}], got shape {tuple(frames.shape)}")
        x = visual.conv1(frames).flatten(2).transpose(1, 2)
        class_token = visual.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        x = torch.cat([class_token, x], dim=1)
        if visual.positional_embedding is not None:
            x = x + visual.positional_embedding.to(x.dtype)
        return visual.ln_pre(x)

    def _attend_over_time(self, block: RegionBlock, x: Tensor) -> Tensor:
        """Apply the block's own attention along the frames, slot by slot, as AIM does.

        After merging, a slot need not show the same place in every frame; only the class token surely corresponds.
        Rotary positions do not turn here: the same place turns queries and keys alike, which changes no score.
        """
        clips = x.unflatten(0, (-1, self.num_frames)).transpose(1, 2)  # [B, N, T, width]
        out, _ = attend_multihead(block.attn, block.ln_1(clips.flatten(0, 1)), None)  # type: ignore[arg-type, operator]
        return out.unflatten(0, clips.shape[:2]).transpose(1, 2).flatten(0, 1)


def check_tower(visual: nn.Module) -> None:
    """Refuse image towers whose forward pass is not the one above."""
    tower = host_library.find_tower(visual)
    if tower is None:
        raise ArgumentError(f"the image tower must be open_clip's VisionTransformer, got {type(visual).__name__}")
    reasons = {
        "attentional pooling": visual.attn_pool is not None,
        "pooling other than the class token": visual.pool_type != "tok" or visual.output_tokens,
        "a final norm after pooling": visual.final_ln_after_pool,
        "patch dropout": not isinstance(visual.patch_dropout, nn.Identity),
        "no projection": visual.proj is None,
    }
    refused = [reason for reason, holds in reasons.items() if holds]
    if refused:
        raise ArgumentError(f"this image tower cannot be used: it has {', '.join(refused)}")
