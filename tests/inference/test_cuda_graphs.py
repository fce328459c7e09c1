"""What a picture costs `live`, launched at once as CUDA graphs, is what it is without them."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alt_fast import live
from alt_fast.data.config import AugmentConfig
from alt_fast.errors import ArgumentError
from alt_fast.inference.stream import Recogniser, join
from alt_fast.inference.trained import TrainedModel
from alt_fast.model.config import Head
from tests.conftest import SMALL_LABELS, small_alt

HEADS: tuple[Head, ...] = ("alt", "clip", "both")


def hold(head: Head, device: str) -> None:
    """Judge pictures one by one and together, both ways. What was seen before must survive what is seen next."""
    trained = TrainedModel(small_alt(pool="size"), SMALL_LABELS, ["{}"], AugmentConfig()).to(device)
    plain, graphed = Recogniser(trained, head=head), Recogniser(trained, head=head, cuda_graphs=True)
    pictures = [
        plain.cut(planes) for planes in np.random.default_rng().integers(0, 256, (3, 3, 50, 70), dtype=np.uint8)
    ]
    one_by_one = [graphed.see([picture]) for picture in pictures]
    for seen, picture in zip(one_by_one, pictures, strict=True):
        for part, expected in zip(seen, plain.see([picture]), strict=True):
            torch.testing.assert_close(part, expected)
    for first in range(2):
        pair = plain.see(pictures[first : first + 2])
        probabilities = dict(plain.judge(pair))
        assert dict(graphed.judge(join(one_by_one[first : first + 2]))) == pytest.approx(probabilities, rel=1e-3)
        assert dict(graphed.judge(graphed.see(pictures[first : first + 2]))) == pytest.approx(probabilities, rel=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("head", HEADS)
def test_graphs_judge_as_the_model_does(head: Head) -> None:
    hold(head, "cuda")


def fake_graph(step: Callable[..., Any], inputs: tuple[Tensor, ...]) -> Callable[..., Any]:
    """As PyTorch's: inputs of the shapes and dtypes that were captured, and outputs where they were captured."""
    outputs = torch.utils._pytree.tree_map(torch.clone, step(*inputs))

    def replay(*given: Tensor) -> Any:
        for mine, new in zip(inputs, given, strict=True):
            assert (mine.shape, mine.dtype, mine.device) == (new.shape, new.dtype, new.device)
            mine.copy_(new)
        for kept, new in zip(*map(torch.utils._pytree.tree_leaves, (outputs, step(*inputs))), strict=True):
            kept.copy_(new)
        return outputs

    return replay


@pytest.mark.parametrize("head", HEADS)
def test_shapes_stay_and_what_was_seen_survives(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fake_graph)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(TrainedModel, "device", property(lambda self: torch.device("cuda")))
    hold(head, "cpu")


def test_without_a_gpu_they_are_refused(trained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = TrainedModel(small_alt(), SMALL_LABELS, ["{}"], AugmentConfig())
    with pytest.raises(ArgumentError, match="CUDA graphs need a model on a GPU, and this one is on cpu"):
        Recogniser(trained, cuda_graphs=True)
    command = ["clip.mp4", "--checkpoint", str(trained_run), "--device", "cpu", "--cuda-graphs"]
    assert live.main(command) == 2
    assert capsys.readouterr().err.count("\n") == 1
