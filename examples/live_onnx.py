"""Name the action in a video file or a camera's picture as it goes, with onnxruntime, numpy and av, without PyTorch.

    alt-fast export --checkpoint RUN --out mine --onnx
    python examples/live_onnx.py mine clip.mp4
    python examples/live_onnx.py mine /dev/video0

A clip is the last frames, `--every` seconds apart. Every frame is encoded once, whatever the clips that it is in.
"""

import argparse
import json
from collections import deque

import av
import numpy as np
import onnxruntime
from av.video.reformatter import Interpolation

parser = argparse.ArgumentParser(description="Name the action in a video file or a camera's picture as it goes.")
parser.add_argument("folder", help="of alt-fast export --onnx")
parser.add_argument("source", help="video file, or camera: /dev/video0")
parser.add_argument("--every", type=float, default=0.25, metavar="S", help="seconds between frames (default 0.25)")
options = parser.parse_args()

encoder, decoder = (
    onnxruntime.InferenceSession(f"{options.folder}/{part}.onnx", providers=["CPUExecutionProvider"])
    for part in ("frame_encoder", "decoder")
)
about = json.loads(encoder.get_modelmeta().custom_metadata_map["alt_fast"])
classes = np.load(f"{options.folder}/classes.npy")
height, width = about["size"]
clip = deque(maxlen=about["frames"])  # what the encoder made of each frame

SMOOTH = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
due = 0.0
with av.open(options.source, format="v4l2" if options.source.startswith("/dev/video") else None) as container:
    for picture in container.decode(video=0):
        if picture.time < due:
            continue
        due = max(due + options.every, picture.time)
        whole = picture.to_ndarray(format="rgb24", interpolation=SMOOTH)
        side = round(about["test_crop"] * min(picture.width, picture.height))  # of the square in the middle
        top, left = (round((extent - side) / 2) for extent in (picture.height, picture.width))
        square = np.ascontiguousarray(whole[top : top + side, left : left + side])
        small = av.VideoFrame.from_ndarray(square, "rgb24").reformat(width, height, interpolation=SMOOTH)
        pixels = small.to_ndarray() / 255
        frame = ((pixels - about["mean"]) / about["std"]).transpose(2, 0, 1)[None].astype(np.float32)
        clip.append(encoder.run(["frame", "pooled"], {"frames": frame}))
        if len(clip) == clip.maxlen:
            frames, pooled = (np.stack(features, 1) for features in zip(*clip, strict=True))  # [1, T, d] each
            (scores,) = decoder.run(None, {"frame": frames, "pooled": pooled, "classes": classes})
            best = int(scores[0].argmax())
            print(f"{picture.time:8.2f} s  {scores[0, best]:6.1%}  {about['labels'][best]}", flush=True)
