"""Most tokens of a video tower merge away in one layer, into destinations of the user's choice."""

import copy
import pickle
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import alt_fast
from alt_fast import OnePerCell
from alt_fast.errors import ArgumentError
from alt_fast.tome.destinations import Destinations
from alt_fast.tome.schedule import merge_schedule
from alt_fast.tome.tokens import Attended, Tokens, merge_step
from alt_fast_kernels import use_backend

GRID = (5, 4, 4)  # of ten frames of 64 x 64 pixels, two in a tubelet
PATCHES = 80
FRAMES = OnePerCell.frames(4, GRID)


class Video(NamedTuple):
    """A tower of two layers, and of its last one the attention, the two norms, the keys and the MLP branch."""

    model: nn.Module
    call: Callable[..., Any]
    attention: nn.Module
    norms: tuple[nn.Module, nn.Module]
    key: nn.Module
    mlp: Callable[[Tensor], Tensor]
    final: Callable[[Tensor], Tensor]


def videomae() -> Video:
    from transformers import VideoMAEConfig, VideoMAEModel

    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    model = VideoMAEModel(VideoMAEConfig(image_size=64, num_frames=10, **sizes)).eval()
    layer = model.encoder.layer[1]
    mlp = nn.Sequential(layer.intermediate, layer.output.dense)
    norms = layer.layernorm_before, layer.layernorm_after
    return Video(model, lambda m, x: m(x), layer.attention, norms, layer.attention.attention.key, mlp, lambda x: x)


def vjepa2() -> Video:
    from transformers import VJEPA2Config, VJEPA2Model

    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_ratio": 2.0}
    config = VJEPA2Config(crop_size=64, frames_per_clip=10, pred_num_hidden_layers=1, pred_hidden_size=48, **sizes)
    model = VJEPA2Model(config).eval()
    layer = model.encoder.layer[1]
    norms = layer.norm1, layer.norm2

    def call(model: nn.Module, x: Tensor) -> Any:
        return model(x, skip_predictor=True)

    return Video(model, call, layer.attention, norms, layer.attention.key, layer.mlp, model.encoder.layernorm)


TOWERS = {"VideoMAE": videomae, "V-JEPA 2": vjepa2}


def clip() -> Tensor:
    return torch.randn(2, 10, 3, 64, 64)


def run(video: Video, x: Tensor, call: Any = None) -> Tensor:
    with torch.no_grad():
        features: Tensor = (video.call if call is None else call)(video.model, x).last_hidden_state
    return features


def mean_of_groups(x: Tensor, key: Tensor, receiving: Sequence[int], r: int) -> Tensor:
    """The r tokens most similar to one that receives are averaged with it: [B, N, C], for every patch its group's."""
    sources = torch.tensor([token for token in range(x.shape[1]) if token not in receiving])
    unit = F.normalize(key, dim=-1)
    best, partner = (unit[:, sources] @ unit[:, receiving].mT).max(-1)
    group = torch.arange(x.shape[1]).repeat(len(x), 1)
    for image, leaving in enumerate(best.argsort(descending=True)[:, :r]):
        group[image, sources[leaving]] = torch.tensor(receiving)[partner[image, leaving]]
    same = (group[:, :, None] == group[:, None, :]).float()
    return same @ x / same.sum(-1, keepdim=True)


@pytest.mark.parametrize("tower", list(TOWERS))
@pytest.mark.parametrize(
    ("destinations", "receiving", "r"),
    [
        (4, range(3, PATCHES, 4), 60),  # 75 %
        (10, range(9, PATCHES, 10), 72),  # 90 %
        (FRAMES, range(48, 64), 40),  # the one whole cell of four frames ends with the fourth
        (OnePerCell(GRID, (1, 2, 2)), [t for t in range(PATCHES) if t % 4 in (1, 3) and t // 4 % 4 in (1, 3)], 60),
        (OnePerCell(GRID, (5, 2, 4)), [71, 79], 78),
    ],
)
def test_a_layer_that_loses_most_tokens_is_merging_as_defined(
    tower: str, destinations: Destinations, receiving: Sequence[int], r: int
) -> None:
    video, x, seen = TOWERS[tower](), clip(), {}

    def attended(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen["branch"] = output[0] if isinstance(output, tuple) else output

    hooks = [
        video.norms[0].register_forward_hook(lambda _, args, normed: seen.update(x=args[0], normed=normed)),
        video.attention.register_forward_hook(attended),
    ]
    plain = run(video, x)
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        key = video.key(seen["normed"]).unflatten(-1, (4, 16)).mean(2)
        merged = mean_of_groups(seen["x"] + seen["branch"], key, receiving, r)
        expected = video.final(merged + video.mlp(video.norms[1](merged)))

    alt_fast.apply_patch(video.model, r=[0, r], destinations=destinations, trace_source=True)
    found = run(video, x)
    assert found.shape == plain.shape  # every patch has features
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    source, size = alt_fast.merge_trace(video.model)
    assert size.shape == (2, PATCHES - r)
    assert size.sum(1).tolist() == [PATCHES] * 2
    for image in range(2):  # patches of one token are equal bit for bit, and each that receives has its own
        for token in source[image].unique():
            assert len(found[image, source[image] == token].unique(dim=0)) == 1
        assert len(set(source[image, receiving].tolist())) == len(receiving)
    alt_fast.remove_patch(video.model)
    assert torch.equal(run(video, x), plain)


@pytest.mark.parametrize("tower", list(TOWERS))
@pytest.mark.parametrize("destinations", [10, FRAMES])
def test_without_a_reduction_destinations_mean_nothing(tower: str, destinations: Destinations) -> None:
    video, x = TOWERS[tower](), clip()
    expected = run(video, x)
    found = run(video._replace(model=alt_fast.apply_patch(video.model, r=0, destinations=destinations)), x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(found, run(video._replace(model=alt_fast.apply_patch(video.model, r=0)), x))


@pytest.mark.parametrize("tower", list(TOWERS))
@pytest.mark.parametrize(("destinations", "r"), [(10, [72, 0]), (FRAMES, [64, 0])])
def test_compiles_once_without_graph_breaks(tower: str, destinations: Destinations, r: list[int]) -> None:
    video, graphs = TOWERS[tower](), 0
    alt_fast.apply_patch(video.model, r=r, destinations=destinations)

    def counting(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        nonlocal graphs
        graphs += 1
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(video.call, fullgraph=True, backend=counting)
    for x in (clip(), clip()):
        torch.testing.assert_close(run(video, x, compiled), run(video, x), rtol=1e-4, atol=1e-4)
    assert graphs == 1


def test_the_example_in_the_documentation_loses_what_it_says() -> None:
    text = (Path(__file__).parent.parent.parent / "docs" / "token_merging.md").read_text()
    code = re.search(r"<!-- destinations -->\n```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    small = "VideoMAEConfig(hidden_size=24, intermediate_size=24, num_attention_heads=1)"
    with torch.no_grad():
        exec(code[1].replace("VideoMAEConfig()", small), names)
    assert names["features"].shape == (1, 1568, 24)
    assert len(names["features"][0].unique(dim=0)) == 2 * 14 * 14


def sizes_after(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        model(x)
    return alt_fast.merge_trace(model).size


def test_an_int_holds_in_every_layer_and_a_grid_in_the_first_that_merges() -> None:
    model, x = videomae().model, clip()
    for destinations, r, left in (
        (4, 0.75, 5),  # 80, 20, 5
        (4, [70, 10], 10),  # at most 60 of 80, then 10 of 20
        (OnePerCell(GRID, (1, 2, 2)), [60, 15], 10),  # later at most half
        (OnePerCell(GRID, (1, 2, 2)), [0, 60], 20),
        (OnePerCell(GRID, (1, 2, 2)), 0.5, 20),
    ):
        alt_fast.apply_patch(model, r=r, destinations=destinations, trace_source=True)
        assert sizes_after(model, x).shape == (2, left)


def image_tower() -> nn.Module:
    """A class token, and a grid of 4 x 4."""
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
    model: nn.Module = timm.models.VisionTransformer(**options).eval()
    return model


def test_a_grid_lies_behind_the_prefix_tokens() -> None:
    model = image_tower()
    alt_fast.apply_patch(model, r=[12, 0], destinations=OnePerCell((4, 4), (2, 2)), trace_source=True)
    size = sizes_after(model, torch.randn(2, 3, 32, 32))
    source = alt_fast.merge_trace(model).source
    assert size[:, 0].tolist() == [1, 1]
    assert source[:, [0, 6, 8, 14, 16]].tolist() == [[0, 1, 2, 3, 4]] * 2  # class token, ends of the cells


@pytest.mark.parametrize("destinations", [4, OnePerCell((4, 4), (2, 2))])
def test_exports(destinations: Destinations, tmp_path: Path) -> None:
    import onnxruntime as runtime

    x = torch.randn(2, 3, 32, 32)
    model = alt_fast.apply_patch(image_tower(), r=[12, 0], destinations=destinations)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = model(x)
        exported = torch.export.export(model, (x,)).module()(x)
        traced = torch.jit.trace(model, x, check_trace=False)(x)
        torch.onnx.export(model, (x,), tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    for result in (exported, traced, torch.from_numpy(found)):
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_the_merge_is_the_same_by_the_kernels() -> None:
    x, branch, key = torch.randn(2, 81, 16), torch.randn(2, 81, 16), torch.randn(2, 81, 2, 8)

    def step() -> Tokens:
        return merge_step(Attended(Tokens(x), branch, key, 75, 1, destinations=OnePerCell(GRID, (5, 2, 2))))[0]

    expected = step()
    with use_backend("triton"):
        found = step()
    assert expected.x.shape == (2, 81 - 75, 16)
    assert torch.equal(found.source(), expected.source())
    torch.testing.assert_close(found.x, expected.x)


def test_patched_models_copy_and_pickle() -> None:
    video, x = videomae(), clip()
    alt_fast.apply_patch(video.model, r=[64, 0], destinations=FRAMES)
    expected = run(video, x)
    for other in (copy.deepcopy(video.model), pickle.loads(pickle.dumps(video.model))):
        assert torch.equal(run(video._replace(model=other), x), expected)


def test_fractions_may_be_as_large_as_destinations_are_few() -> None:
    assert merge_schedule(0.9, 2, 10) == [0.9, 0.9]
    assert merge_schedule(0.5, 2, FRAMES) == [0.5, 0.5]
    assert all(merge_schedule(1 - 1 / k, 1, k) == [1 - 1 / k] for k in range(2, 200))  # some are above (k - 1) / k
    for destinations, most in ((2, "0.5"), (3, "0.666667"), (10, "0.9"), (FRAMES, "0.5")):
        with pytest.raises(ArgumentError, match=rf"r as a fraction must be in \[0, {most}\], got 0.91"):
            merge_schedule(0.91, 2, destinations)


@pytest.mark.parametrize(
    ("destinations", "error", "message"),
    [
        (1, ArgumentError, "destinations must be >= 2, every k-th token, or alt_fast.OnePerCell, got 1"),
        (True, TypeError, "destinations must be an int or alt_fast.OnePerCell, got bool"),
        ([3, 7], TypeError, "destinations must be an int or alt_fast.OnePerCell, got list"),
        (torch.tensor([3, 7]), TypeError, "destinations must be an int or alt_fast.OnePerCell, got Tensor"),
        (np.array([3, 7]), TypeError, "destinations must be an int or alt_fast.OnePerCell, got ndarray"),
    ],
)
def test_bad_destinations_leave_the_model_as_it_was(destinations: Any, error: type[Exception], message: str) -> None:
    model = videomae().model
    with pytest.raises(error, match=message):
        alt_fast.apply_patch(model, r=8, destinations=destinations)
    assert type(model.encoder.layer[0]).__name__ == "VideoMAELayer"  # type: ignore[index]


@pytest.mark.parametrize(
    ("grid", "cell"),
    [((4, 4), (2,)), ((4, 4), (2, 5)), ((4, 4), (0, 2)), ((4, 4), (1, 1)), ((), ())],
)
def test_a_cell_that_does_not_fit_is_an_error(grid: Any, cell: Any) -> None:
    with pytest.raises(ArgumentError, match="cell must have as many axes as grid, fit into it and hold two patches"):
        OnePerCell(grid, cell)


@pytest.mark.parametrize(
    ("grid", "cell", "message"),
    [
        ((14, 14), 2, r"cell must be a tuple of ints, got 2"),
        (196, (2, 2), r"grid must be a tuple of ints, got 196"),
        ((4, 4.0), (2, 2), r"grid must be a tuple of ints, got \(4, 4.0\)"),
    ],
)
def test_grids_and_cells_are_tuples_of_ints(grid: Any, cell: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        OnePerCell(grid, cell)


def test_ints_of_numpy_are_ints() -> None:
    cells = OnePerCell(tuple(np.array(GRID)), tuple(np.array((4, 1, 1))))
    assert cells == FRAMES
    assert all(type(extent) is int for extent in (*cells.grid, *cells.cell))


def test_tokens_that_are_no_such_grid_are_an_error() -> None:
    video = videomae()
    alt_fast.apply_patch(video.model, r=[0, 8], destinations=OnePerCell((8, 4, 4), (2, 2, 2)))
    with pytest.raises(ArgumentError, match="of a grid of 8 x 4 x 4 patches, and the first layer that merges has 80"):
        run(video, clip())
