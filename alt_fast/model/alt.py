"""ALT, "align before adapt": video -> region tokens -> aligned entities -> queries -> action (paper, section 3)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alt_fast.corpus import Corpus
from alt_fast.errors import ArgumentError
from alt_fast.files import cache_folder
from alt_fast.model.alignment import Alignment
from alt_fast.model.clip_weights import build_clip
from alt_fast.model.config import PRESETS, TINY, TINY_ROPE, Head, ModelConfig
from alt_fast.model.decoder import VideoDecoder
from alt_fast.model.encoder import MergeSchedule, RegionEncoder, Regions, check_tower
from alt_fast.model.text import TextTower
from alt_fast_kernels.dispatch import without_autocast

MOST_SOFT = 20_000
"""Entities that a soft choice takes: it keeps every token's weight of each, 62 MiB for 8 frames of 101 tokens."""


class Output(NamedTuple):
    """What `ALT.forward` gives.

    logits: [B, I] over classes. video: [B, d], the paper's z. entity: [B, T, n], corpus index of each aligned token.
    frame: [B, T, d], class tokens in the joint space.
    """

    logits: Tensor
    video: Tensor
    entity: Tensor
    frame: Tensor


class FrameFeatures(NamedTuple):
    """All that a clip's score takes of its frames, [..., T, ...] of clips or [F, ...] of frames by themselves.

    frame: [..., d] the class token in the joint space. pooled: [..., d] what its query is made of. entity: [..., n]
    int64, the corpus index of each aligned token. source: [..., N] int32, as in `Regions`, for who draws them.
    """

    frame: Tensor
    pooled: Tensor
    entity: Tensor
    source: Tensor


class ALT(nn.Module):
    """The model. `corpus` is None exactly when the queries are not entities; call `embed_corpus` before first use."""

    def __init__(self, config: ModelConfig, corpus: Corpus | None, activation_checkpointing: bool = False) -> None:
        """activation_checkpointing: of the image tower (`RegionEncoder`)."""
        super().__init__()
        if (corpus is None) == (config.query == "entities"):
            raise ArgumentError(f"query {config.query!r} needs {'a' if corpus is None else 'no'} corpus")
        self.config = config
        self.corpus = None if corpus is None else _select(corpus, config.categories, config)
        clip = build_clip(config.backbone, config.pretrained, config.image_size)
        visual, clip.visual = clip.visual, None
        check_tower(visual)
        width = visual.proj.shape[1]
        self.text = TextTower(clip)
        self.encoder = RegionEncoder(visual, config.r, config.tuning, config.frames, activation_checkpointing)
        if config.backbone == TINY_ROPE:
            self.encoder.set_rotary(config.rotary)
        entities = torch.zeros(len(self.corpus or ()), width)  # filled by embed_corpus, or from a checkpoint
        self.alignment = Alignment(entities, config)
        self.decoder = VideoDecoder(width, config.depth, config.self_attention, config.conv)
        scale = clip.logit_scale.detach().clone().view(1)  # one dimension: FSDP splits no scalars
        self.shortcut = nn.Parameter(torch.ones(1)) if config.shortcut else None
        self.logit_scale = nn.Parameter(scale, requires_grad=config.cosine)

    def forward(
        self,
        video: Tensor,
        classes: Tensor,
        seed: Tensor | None = None,
        schedule: MergeSchedule | None = None,
        tau: float | None = None,
    ) -> Output:
        """Score videos against class names.

        video: [B, T, 3, H, W] normalised. classes: [I, d] of `text.classes`. seed: int64 scalar, eq. 4's noise.
        schedule: tokens to merge away by layer; by default the encoder's own. tau: eq. 4's temperature; by default the
        configuration's, which training may end with (`ModelConfig.tau_at`).
        """
        tokens, size, _ = self.encode(video, schedule)
        z, entity = self._describe(tokens, size, seed, tau)
        return Output(self.logits(z, classes), z, entity, tokens[:, :, 0])

    def describe(self, video: Tensor) -> Tensor:
        """Return video vectors z [B, d]: all of `forward` that needs no class names."""
        tokens, size, _ = self.encode(video)
        z, _ = self._describe(tokens, size)
        return z

    def _describe(
        self, tokens: Tensor, size: Tensor, seed: Tensor | None = None, tau: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return z and entities [B, T, n]. tokens, size: of `encode`."""
        pooled, entity = self.alignment(tokens, size, seed if self.training and self.config.noise else None, tau)
        return self.answer(pooled, tokens[:, :, 0]), entity

    def answer(self, pooled: Tensor, frames: Tensor) -> Tensor:
        """Return video vectors z [B, d] of what the alignment gave and of the frame tokens, both [B, T, d]."""
        z = self.decoder(self.alignment.queries(pooled), frames)
        if self.shortcut is None:
            return z
        return F.normalize(z, dim=-1) + self.shortcut * F.normalize(pooled.mean(1), dim=-1)

    def encode(self, video: Tensor, schedule: MergeSchedule | None = None) -> Regions:
        """Return class and region tokens of every frame in the joint space: `Regions`, with [B, T] in place of [F]."""
        if video.ndim != 5 or video.shape[1] != self.config.frames:
            raise ArgumentError(f"video must be [B, {self.config.frames}, 3, H, W], got shape {tuple(video.shape)}")
        return Regions(*(part.unflatten(0, video.shape[:2]) for part in self.encoder(video.flatten(0, 1), schedule)))

    def logits(self, z: Tensor, classes: Tensor) -> Tensor:
        """Return the similarity of video vectors [B, d] to classes [I, d] (eq. 10), fp32 inside autocast, too."""
        with without_autocast(z):  # a scale of 100 leaves bf16 steps of 0.125 and more
            if not self.config.cosine:
                return z.float() @ classes.T
            return self.logit_scale.exp() * F.normalize(z.float(), dim=-1) @ classes.T

    def clip_logits(self, frames: Tensor, classes: Tensor) -> Tensor:
        """Return the scores [B, I] of clips' class tokens [B, T, d] against class names: those of the mean frame.

        Zero-shot CLIP's only while the image tower is CLIP's (`config.Head`). The scale is the trained one even then:
        it changes how sure they are, not which is ahead.
        """
        with without_autocast(frames):
            mean = F.normalize(frames.float(), dim=-1).mean(1)
            return self.logit_scale.exp() * F.normalize(mean, dim=-1) @ classes.T

    def probabilities(
        self, video: Tensor, classes: Tensor, head: Head = "alt", schedule: MergeSchedule | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return how likely each class is, [B, I] fp32, by who scores, and entities [B, T, n]; arguments of `forward`.

        The head "clip" aligns nothing: n is 0.
        """
        seen = self.look(video, head, schedule)
        return self.score(seen, classes, head), seen.entity

    def look(self, video: Tensor, head: Head = "alt", schedule: MergeSchedule | None = None) -> FrameFeatures:
        """Encode clips for `score`, which may then compare them with several lists of classes; as `forward` takes them.

        Returns features [B, T, ...].
        """
        return self._features(self.encode(video, schedule), head)

    def see(self, frames: Tensor, head: Head = "alt") -> FrameFeatures:
        """Encode frames [F, 3, H, W], normalised, each by itself: clips that share a frame need it once.

        Any T of them are a clip for `score`, which makes of them what `probabilities` makes of the clip. Raises
        ArgumentError for a model with an adapter over time, whose frames look at each other.
        """
        if self.config.tuning == "stm":
            raise ArgumentError(
                "this model has adapters over time (tuning 'stm'): its frames cannot be seen one by one"
            )
        regions = Regions(*(part[:, None] for part in self.encoder(frames)))
        return FrameFeatures(*(part[:, 0] for part in self._features(regions, head)))

    def score(self, seen: FrameFeatures, classes: Tensor, head: Head = "alt") -> Tensor:
        """Return how likely each class is in clips of T frames, [B, I] fp32. seen: [B, T, ...]. classes: [I, d]."""
        scores = []
        if head != "clip":
            pooled = seen.pooled
            if self.config.query == "learned":  # by place in the clip, whatever the frame
                pooled = self.alignment.learned.expand(pooled.shape[0], -1, -1)
            scores.append(self.logits(self.answer(pooled, seen.frame), classes).float().softmax(-1))
        if head != "alt":
            scores.append(self.clip_logits(seen.frame, classes).softmax(-1))
        return torch.stack(scores).mean(0)

    def _features(self, regions: Regions, head: Head) -> FrameFeatures:
        """regions: of `encode`."""
        frame = regions.tokens[:, :, 0]
        if head == "clip":
            nothing = torch.empty(*frame.shape[:2], 0, dtype=torch.int64, device=frame.device)
            return FrameFeatures(frame, frame, nothing, regions.source)
        pooled, entity = self.alignment(regions.tokens, regions.size, None)
        return FrameFeatures(frame, pooled, entity, regions.source)

    def embed_corpus(self) -> None:
        """Set the entities' embeddings by the text tower as it is now; those of open_clip's towers are kept on disk."""
        if self.corpus is None:
            return
        texts = [entity.text for entity in self.corpus.entities]
        unit = self.config.unit_entities
        if self.config.backbone in (TINY, TINY_ROPE):  # cheap, and its weights are made anew by every run
            self.alignment.entities = self.text(texts, unit)
        else:
            self.alignment.entities = self.text.cached(texts, cache_folder("embeddings"), unit)

    def use_corpus(self, corpus: Corpus | None, categories: Sequence[str] | None = None) -> None:
        """Align to another corpus from now on, of any size: no weight depends on it. None keeps the present one.

        categories: the ones to use, by default all. Raises ArgumentError for a model that does not align and for more
        entities than a soft choice takes, CorpusError when no entity is of these categories.
        """
        if self.corpus is None:
            raise ArgumentError(f"the model's queries are {self.config.query!r}: it aligns to no corpus")
        self.corpus = _select(self.corpus if corpus is None else corpus, categories, self.config)
        self.config = replace(self.config, categories=None if categories is None else list(categories))  # type: ignore[arg-type]
        self.embed_corpus()

    def count_parameters(self, trainable: bool = False) -> int:
        """Count parameters without the text branch, as the paper's Table 1 counts them; or only the trainable ones."""
        own = (p for name, p in self.named_parameters() if not name.startswith("text."))
        return sum(p.numel() for p in own if p.requires_grad or not trainable)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the frames it takes, in pixels."""
        return tuple(self.encoder.visual.image_size)


def _select(corpus: Corpus, categories: Sequence[str] | None, config: ModelConfig) -> Corpus:
    """Return the part of a corpus that a model aligns to. Raises ArgumentError for one too large for a soft choice."""
    corpus = corpus.select(categories)
    if not config.hard and len(corpus) > MOST_SOFT:
        raise ArgumentError(
            f"a soft choice (model.hard false) keeps the weights of all {len(corpus):,} entities in memory, at most "
            f"{MOST_SOFT:,}: choose categories, or model.hard true, which takes any number"
        )
    return corpus


def create_model(name: str, corpus: Corpus | None = None, **overrides: Any) -> ALT:
    """Build "alt_b16", "alt_l14" or "alt_tiny" with any ModelConfig field overridden.

        create_model("alt_b16", corpus, pretrained="openai", r=13)

    Raises ArgumentError for an unknown name or option, WeightsError when weights cannot be had or do not fit.
    """
    if name not in PRESETS:
        raise ArgumentError(f"unknown model {name!r}; known are {', '.join(PRESETS)}")
    unknown = sorted(set(overrides) - set(ModelConfig.__dataclass_fields__))
    if unknown:
        raise ArgumentError(
            f"unknown model option {', '.join(unknown)}; known are {', '.join(ModelConfig.__dataclass_fields__)}"
        )
    model = ALT(replace(PRESETS[name], **overrides), corpus)
    model.embed_corpus()
    return model
