"""Figures that others print: the ALT paper (arXiv 2311.15619), X-CLIP's (arXiv 2208.02816), torchvision's weights."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Published:
    """A row of a paper's table.

    gflops: of all views together, in 10^9 MACs (the papers' convention). params, tunable: millions, text branch left
    out. top1: per cent on Kinetics-400.
    """

    table: str
    row: str
    model: str
    options: dict[str, Any] = field(default_factory=dict)
    gflops: float | None = None
    views: int = 1
    params: float | None = None
    tunable: float | None = None
    top1: float | None = None


def _table_1() -> list[Published]:
    rows = {
        "alt_b16": (124.6, [(8, 330, 83.6), (16, 657, 84.6), (32, 1308, 85.4)]),
        "alt_l14": (427.1, [(8, 1245, 86.7), (16, 2478, 87.6), (32, 4947, 87.9)]),
    }
    names = {"alt_b16": "ALT-B/16", "alt_l14": "ALT-L/14"}
    return [
        Published("Table 1", f"{names[model]}, {t} x 1 x 3", model, {"frames": t}, gflops, 3, params, None, top1)
        for model, (params, by_frames) in rows.items()
        for t, gflops, top1 in by_frames
    ]


ROWS = [
    *_table_1(),
    Published("Table 7", "frozen", "alt_b16", {"tuning": "frozen"}, 110, 1, 125, 38, 81.1),
    Published("Table 7", "S-adapter", "alt_b16", {"tuning": "s"}, 116, 1, 129, 42, 81.4),
    Published("Table 7", "SM-adapter", "alt_b16", {"tuning": "sm"}, 123, 1, 132, 45, 81.5),
    Published("Table 7", "STM-adapter", "alt_b16", {"tuning": "stm"}, 163, 1, 136, 49, 82.0),
    Published("Table 7", "fine-tune", "alt_b16", {}, 110, 1, 125, 125, 82.4),
    # without merging there are no regions, and the paper aligns the frame token alone
    Published("Table 8", "r = 0", "alt_b16", {"r": 0, "regions": False}, 141, top1=82.6),
    Published("Table 8", "r = 4", "alt_b16", {"r": 4}, 129, top1=82.4),
    Published("Table 8", "r = 8", "alt_b16", {"r": 8}, 110, top1=82.4),
    Published("Table 8", "r = 13", "alt_b16", {"r": 13}, 86, top1=81.9),
]

CONTROLS = [
    Published("control", "X-CLIP-B/16, 8 frames", "xclip_b16", {"frames": 8}, 145),
    Published("control", "X-CLIP-B/16, 16 frames", "xclip_b16", {"frames": 16}, 287),
    Published("control", "X-CLIP-L/14, 8 frames", "xclip_l14", {"frames": 8}, 658, params=451.2),
    Published("control", "X-CLIP-B/16, 8 frames, without prompts", "xclip_b16", {"frames": 8, "prompts": False}, 145),
    Published("control", "X-CLIP-B/16, 16 frames, without prompts", "xclip_b16", {"frames": 16, "prompts": False}, 287),
    Published("control", "X-CLIP-L/14, 8 frames, without prompts", "xclip_l14", {"frames": 8, "prompts": False}, 658),
    Published("control", "torchvision ViT-B/16", "vit_b_16", {}, 17.564, params=86.568),
    Published("control", "torchvision ViT-L/16", "vit_l_16", {}, 61.555, params=304.327),
    Published("control", "CLIP ViT-B/16 image tower", "ViT-B-16"),
    Published("control", "CLIP ViT-L/14 image tower", "ViT-L-14"),
]
"""Models that are not ours: the counters must find what their own authors print. CLIP's paper prints no GFLOPs.

X-CLIP's prompts are made on the text side, from each video for every class; whether its figures hold them it does not
say, so it is counted with and without.
"""

PEERS = [
    ("MTV-H/16", 45537, 89.1),
    ("ViViT-H/16", 48916, 84.9),
    ("VideoSwin-L", 7248, 83.1),
    ("ActionCLIP-B/16", 16890, 83.8),
    ("ST-Adapter-L/14", 8248, 87.2),
    ("EVL-L/14", 8088, 87.3),
    ("AIM-L/14", 11208, 87.5),
    ("X-CLIP-L/14", 7896, 87.1),
    ("Uniformer-B", 3108, 83.0),
    ("MViTv1-B", 4095, 81.2),
]
"""Of Table 1: GFLOPs of all views, top-1 on Kinetics-400."""
