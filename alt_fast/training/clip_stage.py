"""Contrastive training of the tiny CLIP on captioned single frames (Radford et al., 2021), before ALT trains.

ALT presumes a vision-language model; where none can be downloaded, this makes a small one that knows what is in Motion
Shapes' frames and has never seen a motion. It stands in for 400 million pairs of image and text, and what those teach
by their number is told here:

- No image shows a motion, so that image and text alone would leave the text tower deaf to motions, and all labels of an
  object the same. Real text towers have read about motions: a text-to-text term has labels match their rewordings.
- From many captions each, CLIP's image tokens come to mean what they show. Here the generator knows what is where: a
  grounding term has every patch match the corpus's texts of what it shows, and the class token those of the frame, with
  where it is and how large.
"""

import signal
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from alt_fast.corpus import Corpus
from alt_fast.data.augment import MEAN_STD
from alt_fast.data.motion_shapes import ALIGNED, LEVELS
from alt_fast.data.motion_shapes.drawing import owners
from alt_fast.data.rng import Stream, generator
from alt_fast.model.text import clip_tokenizer, encode_text
from alt_fast.training.config import PretrainConfig
from alt_fast.training.loop import StageSettings
from alt_fast.training.schedule import Schedule

CORPUS_CAPTIONS = 0.25
"""Share of captions that are the corpus's own texts."""

BACKGROUND_WEIGHT = 0.25
"""Of patches of background in the grounding term."""


class CaptionedFrames(Dataset[tuple[Tensor, str, Tensor, Tensor]]):
    """By index, endless: a frame [3, size, size] fp32 normalised, its caption, what the frame and its patches show.

    The latter are [K] and [P, K] fp32, distributions over `texts`, the corpus's and the level's layouts; zeros where a
    patch shows nothing for sure. A frame's have the same for the layouts that are true of it besides.
    """

    def __init__(
        self, level: int, corpus: Corpus, seed: int, size: int, patch: tuple[int, int], normalize: str
    ) -> None:
        self.level, self.seed, self.size, self.patch = level, seed, size, patch
        self.texts = {entity.unit: entity.text for entity in corpus.entities}
        self.texts |= {text: text for group in LEVELS[level].LAYOUTS for text in group}
        self.place = {unit: place for place, unit in enumerate(self.texts)}
        self.mean, self.std = (torch.tensor(values).view(3, 1, 1) for values in MEAN_STD[normalize])

    def __getitem__(self, index: int) -> tuple[Tensor, str, Tensor, Tensor]:
        image, caption, about, things, layout = LEVELS[self.level].captioned_frame(self.seed, index, self.size)
        rng = generator(self.seed, Stream.CAPTION, 1, index)
        if rng.random() < CORPUS_CAPTIONS:
            caption = self.texts[about[int(rng.integers(len(about)))]]
        names = [[name for names in thing.names.values() for name in names] for thing in things]
        frame, *shown = (self._evenly(units) for units in (about, *names, []))  # the last one: nothing for sure
        frame = frame + len(layout) * self._evenly(layout)
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255
        patches = torch.stack(shown)[owners(things, self.patch).ravel()]
        return (pixels - self.mean) / self.std, caption, frame, patches

    def _evenly(self, units: Sequence[str]) -> Tensor:
        """The distribution over the corpus that gives the same to each of these units."""
        weight = torch.zeros(len(self.texts))
        weight[[self.place[unit] for unit in units]] = 1 / max(1, len(set(units)))
        return weight


def contrastive_loss(image: Tensor, text: Tensor, captions: Sequence[str], scale: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy of unit vectors [B, d]; pairs with the same caption are all positives."""
    logits = scale * image @ text.T
    return matching_loss(logits, logits.T, captions)


def matching_loss(of_images: Tensor, of_texts: Tensor, captions: Sequence[str]) -> Tensor:
    """Cross-entropy of each image's logits of all texts [B, B], and of each text's of all images.

    Pairs with the same caption are all positives.
    """
    number = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    ids = torch.tensor([number[caption] for caption in captions], device=of_images.device)
    target = (ids[:, None] == ids[None, :]).float()
    target = target / target.sum(1, keepdim=True)
    return (F.cross_entropy(of_images, target) + F.cross_entropy(of_texts, target)) / 2


def frame_loss(image: Tensor, texts: Tensor, shown: Tensor, scale: Tensor, members: Tensor) -> Tensor:
    """Cross-entropy of unit class tokens [B, d] and unit texts [K, d] against what frames show, [B, K].

    members: [C, K] bool, the texts of each category or layout, among which alone its own are told apart.
    """
    logits = (scale * image @ texts.T)[:, None].masked_fill(~members, -torch.inf).log_softmax(-1)
    of_category = shown[:, None] * members
    return -(of_category * logits.masked_fill(~members, 0.0)).sum() / len(image)


def patch_loss(patches: Tensor, texts: Tensor, shown: Tensor, scale: Tensor, scene: Tensor) -> Tensor:
    """Cross-entropy of unit patch tokens [B, P, d] and unit texts [K, d] against what the patches show, [B, P, K].

    scene: [K] bool, which texts are of backgrounds, most patches: theirs count BACKGROUND_WEIGHT in all.
    """
    loss = -(shown * (scale * patches @ texts.T).log_softmax(-1)).sum(-1)
    behind = shown @ scene.float()
    thing = shown.sum(-1) - behind

    def mean(weight: Tensor) -> Tensor:
        return (loss * weight).sum() / weight.sum().clamp(min=1)

    return mean(thing) + BACKGROUND_WEIGHT * mean(behind)


class Seen(NamedTuple):
    """A batch as both towers see it, embeddings of unit length.

    number: of the batch. pixels: [B, 3, size, size]. captions: as they read; tokens: theirs, [B, L]; caption: their
    embeddings [B, d]. image: class tokens [B, d]. patches: [B, P, d]. texts: [K, d], those of `CaptionedFrames`, as are
    of_frame [B, K] and of_patches [B, P, K]. scale: of logits.
    """

    number: int
    pixels: Tensor
    captions: list[str]
    tokens: Tensor
    image: Tensor
    patches: Tensor
    caption: Tensor
    texts: Tensor
    of_frame: Tensor
    of_patches: Tensor
    scale: Tensor


def _end_by_the_main_process(worker: int) -> None:
    """Ignore what a whole group of processes is sent: the main one writes a checkpoint, and ends its workers itself."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class ClipStage:
    """Trains `clip` in place on a level of Motion Shapes (see `loop.Stage`)."""

    name = "clip"
    tested = None

    def __init__(
        self,
        clip: open_clip.CLIP,
        config: PretrainConfig,
        level: int,
        seed: int,
        normalize: str,
        workers: int,
        device: torch.device,
    ) -> None:
        self.module, self.config, self.level, self.seed = clip, config, LEVELS[level], seed
        self.workers, self.device = workers, device
        self.tokenizer = clip_tokenizer(clip.context_length)
        clip.visual.output_tokens = True
        corpus = Corpus.load(self.level.CORPUS).select(ALIGNED)
        size, patch = clip.visual.image_size[0], clip.visual.patch_size
        self.frames = CaptionedFrames(level, corpus, seed, size, patch, normalize)
        self.texts = self.tokenizer(list(self.frames.texts.values())).to(device)
        groups = [[entity.unit for entity in corpus.entities if entity.category == name] for name in ALIGNED]
        groups += map(list, self.level.LAYOUTS)
        self.members = torch.tensor([[name in group for name in self.frames.texts] for group in groups], device=device)
        self.settings = StageSettings(
            schedule=Schedule(config.steps, warmup=min(50, config.steps // 4)),
            steps_per_epoch=config.steps,
            batch_size=config.batch_size,
            weight_decay=0.01,
            clip_grad=1.0,
        )

    def learning_rate(self, parameter: str) -> float:
        """Return the same for all."""
        return self.config.lr

    def batches(self, step: int) -> Iterator[Any]:
        """Give batches of frames, their captions and what they show, from a step and on."""
        size = self.config.batch_size
        indices = [list(range(s * size, (s + 1) * size)) for s in range(step, self.config.steps)]
        yield from DataLoader(
            self.frames, batch_sampler=indices, num_workers=self.workers, worker_init_fn=_end_by_the_main_process
        )

    def loss(self, batch: tuple[Tensor, list[str], Tensor, Tensor], number: int) -> dict[str, Tensor]:
        """Return CLIP's loss of frames against captions, of labels against rewordings, and the grounding term."""
        clip, (images, captions, *shown) = self.module, batch
        labels, rewordings = self.level.reworded_labels(generator(self.seed, Stream.CAPTION, 2, number))
        tokens = torch.cat([self.tokenizer([*captions, *labels, *rewordings]).to(self.device), self.texts])
        parts = (len(captions), len(labels), len(labels), len(self.texts))
        caption, label, reworded, texts = F.normalize(encode_text(clip, tokens), dim=-1).split(parts)
        pixels = images.to(self.device)
        image, patches = clip.visual(pixels)
        image, patches = F.normalize(image, dim=-1), F.normalize(patches @ clip.visual.proj, dim=-1)
        scale = clip.logit_scale.exp().clamp(max=100)
        loss = contrastive_loss(image, caption, captions, scale)
        loss = loss + contrastive_loss(label, reworded, labels, scale)
        if self.config.grounding:
            of_frame, of_patches = (part.to(self.device) for part in shown)
            own = tokens[: len(captions)]
            seen = Seen(number, pixels, captions, own, image, patches, caption, texts, of_frame, of_patches, scale)
            loss = loss + self.config.grounding * self.grounding(seen)
        return {"loss": loss}

    def grounding(self, seen: Seen) -> Tensor:
        """Return what image tokens are taught beside CLIP's loss: the corpus's texts of what they show."""
        of_frames = frame_loss(seen.image, seen.texts, seen.of_frame, seen.scale, self.members)
        scene = self.members[ALIGNED.index("scene")]
        return of_frames + patch_loss(seen.patches, seen.texts, seen.of_patches, seen.scale, scene)

    def samples(self, step: int) -> list[str]:
        """Return the numbers of the generated frames."""
        size = self.config.batch_size
        return [f"generated frames {step * size} to {(step + 1) * size - 1}"]

    def synchronize(self, last: bool) -> None:
        """Do nothing: one process trains it."""

    def end_epoch(self, done: int) -> None:
        """Do nothing: it is tested as a part of ALT."""
