"""Videos to decode in benchmarks, made on the spot: by default as large and long as Kinetics' usually are."""

import argparse
import re
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F

FRAMES, SIZE = 300, (340, 256)
RATE = 30  # frames a second


def write_video(path: Path, codec: str, seed: int, size: tuple[int, int] = SIZE, frames: int = FRAMES) -> None:
    """Thirty frames a second of a camera that sways over a coloured texture, with noise. size: width, height, even."""
    rng, (width, height) = np.random.default_rng(seed), size
    coarse = torch.from_numpy(rng.uniform(0, 255, (1, 3, height // 8 + 6, width // 8 + 11))).float()
    texture = F.interpolate(coarse, scale_factor=8, mode="bicubic")[0].permute(1, 2, 0).numpy()
    noise = rng.normal(0, 4, (height, width, 3)).astype(np.float32)
    with av.open(str(path), "w") as container:
        options = {"cpu-used": "6"} if codec == "libvpx-vp9" else {}
        stream: Any = container.add_stream(codec, rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        if codec == "libvpx-vp9":
            stream.bit_rate = 600_000
        for i in range(frames):
            left, top = int(40 + 40 * np.sin(i / 30)), int(20 + 20 * np.cos(i / 45))
            picture = texture[top : top + height, left : left + width] + np.roll(noise, 7 * i, axis=1)
            frame = av.VideoFrame.from_ndarray(picture.clip(0, 255).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def parse_size(text: str) -> tuple[int, int]:
    """Parse a width and a height, as in 1920x1080. Raises argparse.ArgumentTypeError."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None or any(int(side) < 2 or int(side) % 2 for side in match.groups()):
        raise argparse.ArgumentTypeError(f"must be as 1920x1080, in even numbers, got {text}")
    return int(match[1]), int(match[2])
