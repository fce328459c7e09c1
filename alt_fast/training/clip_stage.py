"""Contrastive training of the tiny CLIP on captioned single frames (Radford et al., 2021), the default job's start.

ALT presumes a vision-language model; where none can be downloaded, this makes a small one that knows Motion Shapes'
objects, colours, sizes, places and backgrounds, and has never seen a motion. Captions never name one either, so that
image and text alone would leave the text tower deaf to motions, and all labels of an object the same. Real text towers
have read about motions; here a text-to-text term stands in for that: labels must match their rewordings, no images.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from alt_fast.data.augment import MEAN_STD
from alt_fast.data.motion_shapes.captions import captioned_frame, reworded_labels
from alt_fast.model.text import clip_tokenizer
from alt_fast.training.config import PretrainConfig
from alt_fast.training.loop import StageSettings
from alt_fast.training.schedule import Schedule


class CaptionedFrames(Dataset[tuple[Tensor, str]]):
    """Frame [3, size, size] fp32 normalised and its caption, by index; endless."""

    def __init__(self, seed: int, size: int, normalize: str) -> None:
        self.seed, self.size = seed, size
        self.mean, self.std = (torch.tensor(values).view(3, 1, 1) for values in MEAN_STD[normalize])

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        image, caption = captioned_frame(self.seed, index, self.size)
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255
        return (pixels - self.mean) / self.std, caption


def contrastive_loss(image: Tensor, text: Tensor, captions: Sequence[str], scale: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy of unit vectors [B, d]; pairs with the same caption are all positives."""
    number = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    ids = torch.tensor([number[caption] for caption in captions], device=image.device)
    target = (ids[:, None] == ids[None, :]).float()
    target = target / target.sum(1, keepdim=True)
    logits = scale * image @ text.T
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


class ClipStage:
    """Trains `clip` in place (see `loop.Stage`)."""

    name = "clip"
    tested = None

    def __init__(
        self,
        clip: open_clip.CLIP,
        config: PretrainConfig,
        seed: int,
        normalize: str,
        workers: int,
        device: torch.device,
    ) -> None:
        self.module, self.config, self.workers, self.device = clip, config, workers, device
        self.tokenizer = clip_tokenizer(clip.context_length)
        # Wider than CLIP's 0.02, which needs far longer training to tell words apart.
        torch.nn.init.normal_(clip.token_embedding.weight, std=0.3)
        self.labels, rewordings = reworded_labels()
        self.sentences = self.tokenizer(self.labels + rewordings).to(device)
        self.frames = CaptionedFrames(seed, clip.visual.image_size[0], normalize)
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

    def batches(self, step: int) -> "DataLoader[Any]":
        """Return batches of frames and their captions from a step and on."""
        size = self.config.batch_size
        indices = [list(range(s * size, (s + 1) * size)) for s in range(step, self.config.steps)]
        return DataLoader(self.frames, batch_sampler=indices, num_workers=self.workers)

    def loss(self, batch: tuple[Tensor, list[str]], number: int) -> Tensor:
        """Return CLIP's loss of frames against captions, and of labels against their rewordings."""
        clip, (images, captions) = self.module, batch
        image = clip.encode_image(images.to(self.device), normalize=True)
        text = clip.encode_text(self.tokenizer(captions).to(self.device), normalize=True)
        label, reworded = clip.encode_text(self.sentences, normalize=True).chunk(2)
        scale = clip.logit_scale.exp().clamp(max=100)
        return contrastive_loss(image, text, captions, scale) + contrastive_loss(label, reworded, self.labels, scale)

    def samples(self, step: int) -> list[str]:
        """Return the numbers of the generated frames."""
        size = self.config.batch_size
        return [f"generated frames {step * size} to {(step + 1) * size - 1}"]

    def synchronize(self, last: bool) -> None:
        """Do nothing: one process trains it."""

    def end_epoch(self, done: int) -> None:
        """Do nothing: it is tested as a part of ALT."""
