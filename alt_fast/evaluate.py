"""Test a trained model on a list of videos."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from alt_fast.data.annotations import Video
from alt_fast.data.dataset import ClipSpec, EvalClips, Failure, eval_loader
from alt_fast.model import ALT


@dataclass(frozen=True)
class Result:
    """Scores of every video of a list, in its order.

    logits: [N, I] fp32; rows of unreadable videos are zero. labels: [N]. failures: unreadable videos; they count as
    wrong, so that leaving out hard files cannot raise a score.
    """

    logits: Tensor
    labels: Tensor
    failures: list[Failure]
    readable: Tensor

    def top(self, k: int) -> float:
        """Share of videos whose class is among the k highest scores (k at most the number of classes)."""
        best = self.logits.topk(min(k, self.logits.shape[1])).indices
        hits = (best == self.labels[:, None]).any(1) & self.readable
        return hits.float().mean().item()


@torch.inference_mode()
def evaluate(
    model: ALT,
    videos: Sequence[Video],
    spec: ClipSpec,
    classes: Tensor,
    batch_size: int,
    workers: int,
    name: str = "test",
) -> Result:
    """Score single views (middle frames, center crop) of videos against class embeddings [I, d]."""
    model.eval()
    device = classes.device
    logits, failures = [], []
    loader = eval_loader(EvalClips(videos, spec), batch_size, workers)
    for batch in tqdm(loader, name, unit="batch", disable=None):
        logits.append(model(batch.video.to(device), classes).logits.float().cpu())
        failures += batch.failures
    bad = {failure.path for failure in failures}
    readable = torch.tensor([str(video.path) not in bad for video in videos])
    labels = torch.tensor([video.label for video in videos])
    return Result(torch.cat(logits) * readable[:, None], labels, failures, readable)
