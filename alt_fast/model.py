"""ALT, "align before adapt": video -> region tokens -> aligned entities -> queries -> action (paper, section 3)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alt_fast.adapters import Tuning
from alt_fast.alignment import Alignment, QuerySource
from alt_fast.cache import cache_folder
from alt_fast.clip import TINY, load_clip
from alt_fast.corpus import Corpus
from alt_fast.decoder import VideoDecoder
from alt_fast.encoder import RegionEncoder
from alt_fast.text import TextTower


@dataclass(frozen=True)
class ModelConfig:
    """What the model is; defaults are the paper's ALT-B/16 with 8 frames.

    Args:
        backbone: open_clip model name, or "tiny".
        pretrained: CLIP weights: None for random ones, a tag of open_clip ("openai"), or a checkpoint file.
        image_size: pixels; None for the backbone's own.
        frames: frames per clip.
        r: tokens merged away per layer: an int, one int per layer, or [r, inflect] with a float inflect.
        depth: decoder blocks, the paper's M.
        query: what queries the video: aligned entities, learned vectors (Table C3), or the frame tokens (Table 5).
        regions: align region tokens and the frame token; false: the frame token only (Table 5).
        categories: corpus categories to use (Table C3); None for all.
        tau: softmax temperature of eq. 4; the paper says 1.
        noise: Gumbel noise of eq. 4 while training.
        self_attention: self-attention among the decoder's queries (Table C4).
        conv: 1-D convolution over the decoder's frames (Table C4).
        tuning: how the backbone trains: all of it, not at all, or with AIM's adapters (Table 7).
        cosine: eq. 10 on unit vectors with CLIP's learned scale; false: its literal dot products.
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
    noise: bool = True
    self_attention: bool = True
    conv: bool = True
    tuning: Tuning = "finetune"
    cosine: bool = True

    def __post_init__(self) -> None:
        for name in ("frames", "depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not self.tau > 0:
            raise ValueError(f"tau must be > 0, got {self.tau}")


PRESETS = {
    "alt_b16": ModelConfig(),
    "alt_l14": ModelConfig(backbone="ViT-L-14", depth=6),
    "alt_tiny": ModelConfig(backbone=TINY, r=4, depth=2),
}


class Output(NamedTuple):
    """logits [B, I] over classes; video [B, d], the paper's z; entity [B, T, n], corpus index of each aligned token."""

    logits: Tensor
    video: Tensor
    entity: Tensor


class ALT(nn.Module):
    """The model. `corpus` is None exactly when the queries are not entities; call `embed_corpus` before first use."""

    def __init__(self, config: ModelConfig, corpus: Corpus | None) -> None:
        super().__init__()
        if (corpus is None) == (config.query == "entities"):
            raise ValueError(f"query {config.query!r} needs {'a' if corpus is None else 'no'} corpus")
        self.config = config
        self.corpus = None if corpus is None else corpus.select(config.categories)
        clip = load_clip(config.backbone, config.pretrained, config.image_size)
        visual, clip.visual = clip.visual, None
        width = visual.proj.shape[1]
        self.text = TextTower(clip)
        self.encoder = RegionEncoder(visual, config.r, config.tuning, config.frames)
        entities = torch.zeros(len(self.corpus or ()), width)  # filled by embed_corpus, or from a checkpoint
        self.alignment = Alignment(entities, config.query, config.frames, config.regions, config.tau)
        self.decoder = VideoDecoder(width, config.depth, config.self_attention, config.conv)
        scale = clip.logit_scale.detach().clone().view(1)  # one dimension: FSDP splits no scalars
        self.logit_scale = nn.Parameter(scale, requires_grad=config.cosine)

    def forward(self, video: Tensor, classes: Tensor, seed: Tensor | None = None) -> Output:
        """video: [B, T, 3, H, W] normalised. classes: [I, d] of `text.classes`. seed: int64 scalar, eq. 4's noise."""
        z, entity = self.describe(video, seed)
        return Output(self.logits(z, classes), z, entity)

    def describe(self, video: Tensor, seed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """All of `forward` that needs no class names: the video vectors z [B, d] and the entities [B, T, n]."""
        tokens = self.encode(video)
        queries, entity = self.alignment(tokens, seed if self.training and self.config.noise else None)
        return self.decoder(queries, tokens[:, :, 0]), entity

    def encode(self, video: Tensor) -> Tensor:
        """Class and region tokens of every frame in the joint space, [B, T, N', d]."""
        if video.ndim != 5 or video.shape[1] != self.config.frames:
            raise ValueError(f"video must be [B, {self.config.frames}, 3, H, W], got shape {tuple(video.shape)}")
        return self.encoder(video.flatten(0, 1)).tokens.unflatten(0, video.shape[:2])

    def logits(self, z: Tensor, classes: Tensor) -> Tensor:
        """Similarity of video vectors [B, d] to classes [I, d] (eq. 10)."""
        if not self.config.cosine:
            return z.float() @ classes.T
        return self.logit_scale.exp() * F.normalize(z.float(), dim=-1) @ classes.T

    def clip_logits(self, video: Tensor, classes: Tensor) -> Tensor:
        """CLIP's own zero-shot scores [B, I], the mean frame token against the classes: no ALT training needed."""
        frames = F.normalize(self.encode(video)[:, :, 0].float(), dim=-1)
        return self.logit_scale.exp() * F.normalize(frames.mean(1), dim=-1) @ classes.T

    def embed_corpus(self) -> None:
        """The entities' embeddings by the text tower as it is now; those of open_clip's towers are kept on disk."""
        if self.corpus is None:
            return
        texts = [entity.text for entity in self.corpus.entities]
        if self.config.backbone == TINY:  # cheap, and its weights are made anew by every run
            self.alignment.entities = self.text(texts)
        else:
            self.alignment.entities = self.text.cached(texts, cache_folder("embeddings"))

    def use_corpus(self, corpus: Corpus | None, categories: Sequence[str] | None = None) -> None:
        """Align to another corpus from now on, of any size: no weight depends on it. None keeps the present one.

        categories: the ones to use, by default all. Raises ValueError for a model that does not align, CorpusError when
        no entity is of these categories.
        """
        if self.corpus is None:
            raise ValueError(f"the model's queries are {self.config.query!r}: it aligns to no corpus")
        self.corpus = (self.corpus if corpus is None else corpus).select(categories)
        self.embed_corpus()

    def count_parameters(self, trainable: bool = False) -> int:
        """Parameters without the text branch, as the paper's Table 1 counts them; or only the trainable ones."""
        own = (p for name, p in self.named_parameters() if not name.startswith("text."))
        return sum(p.numel() for p in own if p.requires_grad or not trainable)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the frames it takes, in pixels."""
        return tuple(self.encoder.visual.image_size)


def create_model(name: str, corpus: Corpus | None = None, **overrides: Any) -> ALT:
    """Build "alt_b16", "alt_l14" or "alt_tiny" with any ModelConfig field overridden.

    create_model("alt_b16", corpus, pretrained="openai", r=13)

    Raises ValueError for an unknown name or option, WeightsError when weights cannot be had or do not fit.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown model {name!r}; known are {', '.join(PRESETS)}")
    unknown = sorted(set(overrides) - set(ModelConfig.__dataclass_fields__))
    if unknown:
        raise ValueError(
            f"unknown model option {', '.join(unknown)}; known are {', '.join(ModelConfig.__dataclass_fields__)}"
        )
    model = ALT(replace(PRESETS[name], **overrides), corpus)
    model.embed_corpus()
    return model
