"""Matching beside attention: which stream it is launched on, when, and that nothing else changes."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import DiffAttention, ParallelThingsBlock, VisionTransformer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import alt_fast
from alt_fast.tome import block, tokens
from alt_fast_kernels import MergePlan, attention, proportional_attention
from alt_fast_kernels import lane as lanes
from alt_fast_kernels.lane import Lane, aside, lane, open_lane
from alt_fast_kernels.match.plan import ONE_LAUNCH_IMAGES


@dataclass
class Streams:
    """Stands in for torch.cuda: what was asked of two streams, in order."""

    told: list[str] = field(default_factory=list)
    on: str = "main"

    def __post_init__(self) -> None:
        self.main, self.side = self._stream("main"), self._stream("side")

    def _stream(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(
            name=name, device="cuda:0", wait_stream=lambda other: self.told.append(f"{name} waits for {other.name}")
        )

    def current_stream(self, device: object) -> SimpleNamespace:
        return self.main

    @contextmanager
    def stream(self, stream: SimpleNamespace) -> Iterator[None]:
        before, self.on = self.on, stream.name
        yield
        self.on = before


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    found = Streams()
    monkeypatch.setattr(torch.cuda, "current_stream", found.current_stream)
    monkeypatch.setattr(torch.cuda, "stream", found.stream)
    monkeypatch.setattr(Tensor, "record_stream", lambda x, stream: found.told.append(f"read on {stream.name}"))
    return found


def laid(streams: Streams) -> AbstractContextManager[None]:
    return lanes._lay(Lane(streams.side))  # type: ignore[arg-type]


def test_a_block_matches_beside_attention(streams: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lane opens with the keys, right before attention, and is waited for before the merge; so in every block."""

    def spied(owner: object, name: str, what: str) -> None:
        function = getattr(owner, name)

        def spy(*args: object, **options: object) -> object:
            streams.told.append(f"{what} on {streams.on}")
            return function(*args, **options)

        monkeypatch.setattr(owner, name, spy)

    spied(tokens, "match", "match")
    spied(tokens, "merge", "merge")
    spied(torch.nn.functional, "scaled_dot_product_attention", "attention")
    spied(attention, "attention_packed", "attention")
    monkeypatch.setattr(block, "lane", lambda x: laid(streams))
    vit = timm.create_model("vit_tiny_patch16_224", depth=3, img_size=32, embed_dim=32, num_heads=2).eval()
    image = torch.randn(2, 3, 32, 32)
    alt_fast.apply_patch(vit, r=[1, 0, 1])
    with torch.no_grad():
        found = vit(image)
    opened = ["side waits for main", "attention on main"]
    merging = [*opened, "match on side", "main waits for side", *3 * ["read on main"], "merge on main"]
    nothing_to_match = [*opened, "main waits for side"]
    assert streams.told == [*merging, *nothing_to_match, *merging]
    monkeypatch.setattr(block, "lane", lane)
    streams.told.clear()
    torch.testing.assert_close(vit(image), found, rtol=0, atol=0)
    assert not [line for line in streams.told if "side" in line]


@dataclass
class Made(TorchDispatchMode):
    """Notes what is read on the second stream that was made on the first one after the fork."""

    streams: Streams
    made: dict[int, int] = field(default_factory=dict)  # how many lines had been told when memory was filled
    kept: list[object] = field(default_factory=list)  # so that no memory is used twice
    late: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        places = [x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        found = function(*args, **(kwargs or {}))
        self.kept.append(found)
        if self.streams.on == "side":
            fork = len(self.streams.told)
            self.late += [str(function) for place in places if self.made.get(place, 0) >= fork]
        else:
            filled = [x.untyped_storage().data_ptr() for x in tree_leaves(found) if isinstance(x, Tensor)]
            self.made |= {place: len(self.streams.told) for place in filled if place not in self.made}
        return found


GRID = alt_fast.OnePerCell((4, 4), (2, 2))


@pytest.mark.parametrize(
    ("options", "patch", "layers"),
    [
        ({}, {"r": 3}, 3),
        ({}, {"r": 3, "destinations": 4}, 3),
        ({}, {"r": [3, 2, 0], "destinations": GRID}, 1),  # the first layer's list of tokens is made too late
        ({"block_fn": ParallelThingsBlock}, {"r": 3}, 0),  # and so are keys of several attentions
        ({"block_fn": ParallelThingsBlock, "attn_layer": DiffAttention}, {"r": 3}, 0),
        ({"qk_norm": True}, {"r": 3}, 3),
    ],
    ids=["plain", "one in four", "of a grid", "several attentions", "several of padded keys", "normed keys"],
)
def test_nothing_is_read_beside_attention_that_was_made_after_it_began(
    streams: Streams, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], patch: dict[str, Any], layers: int
) -> None:
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}
    vit = alt_fast.apply_patch(VisionTransformer(**shape, **options).eval(), **patch)
    image = torch.randn(2, 3, 32, 32)
    expected = vit(image)
    monkeypatch.setattr(block, "lane", lambda x: laid(streams))
    with torch.no_grad(), Made(streams) as made:
        found = vit(image)
    assert made.late == []
    torch.testing.assert_close(found, expected)
    assert streams.told.count("read on main") == 3 * layers


def test_keys_are_not_taken_for_others_that_lie_where_they_lay(streams: Streams) -> None:
    """Memory that is free is used again, often at once."""
    with laid(streams):
        for _ in range(50):
            open_lane(torch.randn(64, 64))  # which nothing else keeps
            found = lanes._current()
            assert found is not None
            assert not found.has(torch.randn(64, 64))


def test_only_few_captured_images_have_a_lane(streams: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    """And none inside of vmap, whose tensors have no memory of their own."""

    class Captured(Tensor):
        is_cuda = True

    def inside(x: Tensor) -> Tensor:
        assert isinstance(lane(x), nullcontext)
        return x

    monkeypatch.setattr(lanes, "_stream", lambda device: streams.side)
    q = torch.randn(1, 3, 1, 4)
    for count, capturing, waits in ((ONE_LAUNCH_IMAGES, True, 2), (ONE_LAUNCH_IMAGES + 1, True, 0), (1, False, 0)):
        streams.told.clear()
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda is_so=capturing: is_so)
        with lane(torch.empty(count).as_subclass(Captured)):
            proportional_attention(q, q, q)
        assert len(streams.told) == waits
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with monkeypatch.context() as as_on_a_gpu:
        as_on_a_gpu.setattr(Tensor, "is_cuda", True)
        torch.vmap(inside)(torch.empty(2, 3))
    assert not torch.empty(1).is_cuda
    with lane(torch.empty(1)):
        proportional_attention(q, q, q)
    assert not streams.told


def test_every_thread_has_streams_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads that capture must not meet on one."""
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: SimpleNamespace(device=device))
    found = []

    def find() -> None:
        found.append([lanes._stream(torch.device("cuda", number)) for number in (0, 1, 0)])

    for _ in range(2):
        worker = threading.Thread(target=find)
        worker.start()
        worker.join()
    assert all(first is again is not other for first, other, again in found)
    assert found[0][0] is not found[1][0]


def test_another_thread_s_attention_leaves_the_lane_alone(streams: Streams) -> None:
    plan = MergePlan(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 2), 2)
    q = torch.randn(1, 3, 1, 4)
    with laid(streams):
        worker = threading.Thread(target=lambda: (proportional_attention(q, q, q), aside(q, lambda: plan)))
        worker.start()
        worker.join()
        assert not streams.told
        assert aside(q, lambda: plan) is plan  # nothing has opened it
        assert not streams.told


@pytest.mark.gpu
@pytest.mark.kernel_only
def test_a_captured_tower_is_the_tower(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, on fresh images, replay after replay."""
    torch.use_deterministic_algorithms(False)  # filling memory is no part of the graph
    vit = timm.create_model("vit_tiny_patch16_224", depth=4).cuda().half().eval().requires_grad_(False)
    alt_fast.apply_patch(vit, r=16)
    opened: list[Lane] = []
    open_lane = Lane.open

    def counted(lane: Lane, keys: Tensor) -> None:
        opened.append(lane)
        open_lane(lane, keys)

    def tower(image: Tensor) -> Tensor:
        found: Tensor = vit(image)
        return found

    monkeypatch.setattr(Lane, "open", counted)
    image = torch.randn(8, 3, 224, 224, device="cuda", dtype=torch.float16)
    captured = torch.cuda.make_graphed_callables(tower, (image,))
    assert len(opened) == 4
    for _ in range(20):
        fresh = torch.randn_like(image)
        torch.testing.assert_close(captured(fresh), tower(fresh), rtol=0, atol=0)
