"""Videos to decode in benchmarks: as large and long as Kinetics' usually are, made on the spot."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F

FRAMES, WIDTH, HEIGHT = 300, 340, 256


def write_video(path: Path, codec: str, seed: int) -> None:
    """Ten seconds of a camera that sways over a coloured texture, with noise."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(0, 255, (1, 3, 52, 103)))
    texture = F.interpolate(coarse, scale_factor=8, mode="bicubic")[0].permute(1, 2, 0).numpy()
    noise = rng.normal(0, 4, (HEIGHT, WIDTH, 3))
    with av.open(str(path), "w") as container:
        options = {"cpu-used": "6"} if codec == "libvpx-vp9" else {}
        stream: Any = container.add_stream(codec, rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        if codec == "libvpx-vp9":
            stream.bit_rate = 600_000
        for i in range(FRAMES):
            left, top = int(40 + 40 * np.sin(i / 30)), int(20 + 20 * np.cos(i / 45))
            picture = texture[top : top + HEIGHT, left : left + WIDTH] + np.roll(noise, 7 * i, axis=1)
            frame = av.VideoFrame.from_ndarray(picture.clip(0, 255).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
