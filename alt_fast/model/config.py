"""What a model is: settings, and the paper's models by name. Without PyTorch: command lines are read at once."""

import math
import operator
from dataclasses import dataclass
from typing import Literal, get_args

from alt_fast.errors import ArgumentError, check_at_least
from alt_fast.tome.rules import RotaryRule, check_rule

TINY, TINY_ROPE = "tiny", "tiny_rope"
"""Backbones that `motion_shapes_clip` trains from scratch: the first by default, the other with rotary positions."""

QuerySource = Literal["entities", "learned", "frame"]
"""What queries the video: aligned entities (the paper), learned vectors (Table C3's empty corpus), or the frame tokens
themselves, without any alignment (Table 5)."""

Head = Literal["alt", "clip", "both"]
"""Who scores videos: ALT; "clip", the frame tokens against class names; or both, the mean of their probabilities. The
second is CLIP's own zero-shot classifier, over merged tokens, only while the image tower is CLIP's (not trained, frozen
in training, or put back by `TrainedModel.interpolate` with share 0) and pixels are CLIP's (augment.normalize clip)."""


def check_head(head: str) -> None:
    """Raise ArgumentError for none of Head."""
    if head not in get_args(Head):
        raise ArgumentError(f"head must be one of {', '.join(get_args(Head))}, got {head!r}")


Pooling = Literal["mean", "size", "attention", "distinct"]
"""How the entities that a frame's tokens chose become one: every token alike (the paper), by the patches it stands for,
by learned attention, or every entity once."""

Tuning = Literal["finetune", "frozen", "s", "sm", "stm"]
"""What of the backbone trains: all of it, nothing, or adapters (spatial; + MLP; + temporal) on a frozen one."""


@dataclass(frozen=True)
class ModelConfig:
    """What the model is; defaults are the paper's ALT-B/16 with 8 frames.

    Args:
        backbone: open_clip model name, "tiny", or "tiny_rope".
        pretrained: CLIP weights: None for random ones, a tag of open_clip ("openai"), "motion_shapes" or
            "motion_shapes_2" for a tiny CLIP that comes along, or a checkpoint file.
        image_size: pixels; None for the backbone's own.
        frames: frames per clip.
        r: tokens merged away per layer: an int, one int per layer, or [r, inflect] with a float inflect.
        depth: decoder blocks, the paper's M.
        query: what queries the video: aligned entities, learned vectors (Table C3), or the frame tokens (Table 5).
        regions: align region tokens and the frame token; false: the frame token only (Table 5).
        categories: corpus categories to use (Table C3); None for all.
        tau: softmax temperature of eq. 4; the paper says 1.
        tau_start: temperature of training's first step, from which it falls to tau by its last (`tau_at`); None for tau
            throughout, the paper's.
        noise: Gumbel noise of eq. 4 while training.
        hard: align a token to its best entity, with the gradient of eq. 4's soft assignment (eq. 5); false: to the mean
            of all entities by this assignment.
        pool: how the entities that a frame's tokens chose become one.
        query_norm: LayerNorm before eq. 6's MLP, which the paper has not.
        unit_entities: text embeddings of unit length; false: as the text tower gives them, which the paper seems to.
        shortcut: add what the queries are made of to the video vector, which the paper does not: what is in the
            corpus and was never trained on then reaches the class names.
        self_attention: self-attention among the decoder's queries (Table C4).
        conv: 1-D convolution over the decoder's frames (Table C4).
        tuning: how the backbone trains: all of it, not at all, or with AIM's adapters (Table 7).
        cosine: eq. 10 on unit vectors with CLIP's learned scale; false: its literal dot products.
        rotary: what turns a merged token of "tiny_rope", the backbone with rotary positions (`tome.rules`).
    """

    backbone: str = "ViT-B-16"
    pretrained: str | None = None
    image_size: int | None = None
    frames: int = 8
    r: int | list[int] | tuple[int, float] = 8
    depth: int = 4
    query: QuerySource = "entities"
    regions: bool = True
    categories: list[Literal["object", "body", "scene", "motion"]] | None = None
    tau: float = 1.0
    tau_start: float | None = None
    noise: bool = True
    hard: bool = True
    pool: Pooling = "mean"
    query_norm: bool = False
    unit_entities: bool = True
    shortcut: bool = False
    self_attention: bool = True
    conv: bool = True
    tuning: Tuning = "finetune"
    cosine: bool = True
    rotary: RotaryRule = "mean"

    def __post_init__(self) -> None:
        if hasattr(self.r, "__index__") and not isinstance(self.r, bool):  # NumPy's ints are no JSON
            object.__setattr__(self, "r", operator.index(self.r))  # type: ignore[arg-type]
        check_at_least(self, frames=1, depth=1)
        if self.image_size is not None:
            check_at_least(self, image_size=16)
        if not self.tau > 0:
            raise ArgumentError(f"tau must be > 0, got {self.tau}")
        if self.tau_start is not None and not self.tau <= self.tau_start < math.inf:
            raise ArgumentError(f"tau_start must be a finite number >= tau = {self.tau}, got {self.tau_start}")
        check_rule(self.rotary)
        if self.rotary != "mean" and self.backbone != TINY_ROPE:
            raise ArgumentError(
                f"rotary {self.rotary!r} is for {TINY_ROPE!r}: backbone {self.backbone!r} has no rotary positions"
            )

    def tau_at(self, progress: float) -> float:
        """Return the temperature of a step of training; progress: 0 at its first one, 1 at its last.

        From tau_start it falls by the same factor in every step, exponentially as in Jang et al. (arXiv 1611.01144).
        """
        if self.tau_start is None:
            return self.tau
        return float(self.tau_start ** (1 - progress) * self.tau**progress)


PRESETS = {
    "alt_b16": ModelConfig(),
    "alt_l14": ModelConfig(backbone="ViT-L-14", depth=6),
    "alt_tiny": ModelConfig(backbone=TINY, r=4, depth=2),
}
