"""Write videos that decode everywhere."""

from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from alt_fast.files import write_atomically


def write_video(path: Path, frames: NDArray[np.uint8], rate: int = 10) -> None:
    """Write frames [T, H, W, 3] uint8 RGB as VP9 in WebM, always the same bytes. The file appears whole or not at all.

    rate: frames per second. Raises FileError.
    """
    options = {"crf": "24", "b": "0", "deadline": "realtime", "cpu-used": "8"}

    def write(partial: Path) -> None:
        with av.open(str(partial), "w", format="webm", options={"fflags": "+bitexact"}) as container:
            stream = container.add_stream("libvpx-vp9", rate=rate, options=options)
            stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
            stream.codec_context.thread_count = 1
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode(None))

    write_atomically(path, write)
