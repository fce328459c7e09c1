"""Name the action in a video file or a camera's picture as it goes, with onnxruntime, numpy and av, without PyTorch.

    alt-fast export --checkpoint RUN --out mine --onnx
    python examples/live_onnx.py mine clip.mp4
    python examples/live_onnx.py mine /dev/video0 0.5

A clip is the last frames, 0.25 seconds apart or as said. Every frame is encoded once, whatever the clips that it is in.
"""

import json
import sys
from collections import deque

import av
import numpy as np
from av.video.reformatter import Interpolation
from onnxruntime import InferenceSession

folder, source, every = (*sys.argv[1:], "0.25")[:3] if len(sys.argv) in (3, 4) else sys.exit(__doc__)
due, every = 0.0, float(every)
paths = (f"{folder}/{part}.onnx" for part in ("frame_encoder", "decoder"))
encoder, decoder = (InferenceSession(path, providers=["CPUExecutionProvider"]) for path in paths)
about = json.loads(encoder.get_modelmeta().custom_metadata_map["alt_fast"])
classes = np.load(f"{folder}/classes.npy")
smooth = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
clip = deque(maxlen=about["frames"])  # what the encoder made of each frame
container = av.open(source, format="v4l2" if source.startswith("/dev/video") else None)
rate = container.streams.video[0].average_rate or 25  # for streams whose pictures have no time
for number, picture in enumerate(container.decode(video=0)):
    now = float(number / rate) if picture.time is None else picture.time
    if now < due:
        continue
    due = max(due + every, now)
    whole = picture.to_ndarray(format="rgb24", interpolation=smooth)
    whole = np.rot90(whole, picture.rotation // 90 % 4)  # as telephones write that they were held
    side = round(about["test_crop"] * min(whole.shape[:2]))  # of the square in the middle
    top, left = (round((extent - side) / 2) for extent in whole.shape[:2])
    square = np.ascontiguousarray(whole[top : top + side, left : left + side])
    small = av.VideoFrame.from_ndarray(square, "rgb24").reformat(*about["size"][::-1], interpolation=smooth)
    frame = ((small.to_ndarray() / 255 - about["mean"]) / about["std"]).transpose(2, 0, 1)[None].astype(np.float32)
    clip.append(encoder.run(["frame", "pooled"], {"frames": frame}))
    if len(clip) == clip.maxlen:
        frames, pooled = (np.stack(features, 1) for features in zip(*clip, strict=True))  # [1, T, d] each
        scores = decoder.run(None, {"frame": frames, "pooled": pooled, "classes": classes})[0][0]
        print(f"{now:8.2f} s  {scores.max():6.1%}  {about['labels'][scores.argmax()]}", flush=True)
