"""The forward pass of a block that merges, common to all hosts: attention, merge, MLP."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from alt_fast.errors import ArgumentError
from alt_fast.tome.merge import Tokens, merge_step
from alt_fast_kernels import unmerge


@dataclass(frozen=True)
class BlockSettings:
    """What apply_patch decided for one block.

    r: tokens to remove, or a fraction. protected: leading tokens that never merge. prop_attn: attention uses sizes.
    trace: keep where tokens went. unmerge: the last block gives every patch its token's features. last: of its tower.
    """

    r: int | float
    protected: int
    prop_attn: bool
    trace: bool
    unmerge: bool
    last: bool


class Patched(nn.Module):
    """Mixed into a host's module for as long as it is patched: it has a class made of this and its own."""

    host: ClassVar[type[nn.Module]]  # the class that the module had, and gets back

    def unpatch(self) -> None:
        """Turn it back."""
        self.__class__ = self.host  # type: ignore[assignment]


class MergingBlock(Patched):
    """Mixed into a host's pre-norm block. The first block takes a tensor, the last returns one; `Tokens` go between.

    So sizes travel as arguments: activation checkpointing, compilation and threads see no hidden state.
    """

    sequence_first: ClassVar[bool] = False  # the host's blocks take [N, B, C]
    tome: BlockSettings
    last_trace: tuple[Tensor, Tensor] | None

    def attention_branch(self, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map x [B, N, C] to the attention branch up to the residual add [B, N, C], and keys [B, N, H, D]."""
        raise NotImplementedError

    def mlp_norm(self) -> nn.Module:
        """Return the norm before the MLP."""
        raise NotImplementedError

    def mlp_branch(self, normed: Tensor) -> Tensor:
        """Map the normed tokens to the MLP branch, up to the residual add."""
        raise NotImplementedError

    def forward(self, hidden: Tensor | Tokens, *args: Any, **options: Any) -> Tensor | Tokens:
        """Take the block's tokens, return merged ones. The host's further arguments must say nothing: no mask."""
        refuse_options(args, options)
        if isinstance(hidden, Tokens):
            tokens = hidden
            if tokens.x.requires_grad and not torch.is_grad_enabled():
                raise RuntimeError(
                    "reentrant activation checkpointing loses the gradient of merged tokens: pass use_reentrant=False"
                )
        else:
            tokens = Tokens(hidden.transpose(0, 1) if self.sequence_first else hidden)
        tokens = self.run(tokens, self.tome.r)
        return self._finish(tokens) if self.tome.last else tokens

    def run(self, tokens: Tokens, r: int | float, adapters: nn.ModuleDict | None = None) -> Tokens:
        """Attend, merge r tokens away, and apply the MLP.

        adapters: "spatial" is applied to the attention branch and added to it, "mlp" runs beside the MLP.
        """
        tome = self.tome
        at = {} if adapters is None else dict(adapters.items())
        branch, key = self.attention_branch(tokens.x, tokens.size if tome.prop_attn else None)
        if "spatial" in at:
            branch = branch + at["spatial"](branch)
        follow = tome.trace or tome.unmerge
        tokens, normed = merge_step(tokens, branch, key, self.mlp_norm(), r, tome.protected, follow)
        x = tokens.x + self.mlp_branch(normed)
        if "mlp" in at:
            x = x + at["mlp"](normed)
        return tokens._replace(x=x)

    def _finish(self, tokens: Tokens) -> Tensor:
        x, size, source = tokens
        if self.tome.trace:
            batch, num_tokens = x.shape[:2]
            if size is None or source is None:  # nothing merged
                size = torch.ones(batch, num_tokens, device=x.device)
                source = torch.arange(num_tokens, dtype=torch.int32, device=x.device).expand(batch, -1)
            self.last_trace = (source, size)
        if self.tome.unmerge and source is not None:
            x = unmerge(x, source)
        return x.transpose(0, 1) if self.sequence_first else x

    @classmethod
    def patch(cls, block: nn.Module, settings: BlockSettings) -> None:
        """Turn the host's block into this class."""
        block.__class__ = cls
        block.tome = settings  # type: ignore[assignment]
        block.last_trace = None  # type: ignore[assignment]

    def unpatch(self) -> None:
        super().unpatch()
        del self.tome, self.last_trace


def refuse_options(args: tuple[Any, ...], options: dict[str, Any]) -> None:
    """Hosts pass masks and flags along, None or False when unused; raise ArgumentError for any that is in use.

    While exporting, transformers makes a mask that masks nothing: the exported program then checks that it does so.
    """
    positional = {f"argument {i + 2}": value for i, value in enumerate(args)}
    named = {name: value for name, value in options.items() if name in REFUSED}
    for name, value in {**positional, **named}.items():
        if isinstance(value, Tensor) and torch.compiler.is_exporting():
            keeps_all = value.all() if value.dtype == torch.bool else (value == 0).all()
            torch._assert_async(keeps_all, f"a merging block cannot honour {name}")
        elif value is not None and value is not False:
            raise ArgumentError(f"a merging block cannot honour {name}: tokens change their number from block to block")


REFUSED = {"attn_mask", "attention_mask", "is_causal", "output_attentions", "k_x", "v_x", "head_mask", "rope"}
"""Options of host blocks that depend on which token is which."""


@dataclass(frozen=True)
class Tower:
    """What a host's adapter finds: blocks in order, leading tokens that never merge, and whether patches are read
    after the last block (pooling, dense features), so that they must be unmerged there."""

    blocks: list[nn.Module]
    protected: int
    reads_patches: bool
    merging: dict[type[nn.Module], type[MergingBlock]]  # the host's block class -> ours
