"""Video vectors: of a list of videos, in memory or on disk, where an interrupted extraction goes on."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from alt_fast.data.annotations import Video
from alt_fast.data.augment import is_blank
from alt_fast.data.batch import Failure
from alt_fast.data.config import ClipSpec
from alt_fast.data.dataset import EvalClips
from alt_fast.distributed import World
from alt_fast.errors import RunError
from alt_fast.files import differences, make_folder, read_json, sole_writer, write_atomically, write_json
from alt_fast.inference.predict import check_finite
from alt_fast.inference.scoring import EvalConfig, mean_over_views
from alt_fast.model.alt import ALT
from alt_fast.progress import Progress


class Features(NamedTuple):
    """vectors: [N, d] fp32, zeros where unreadable. failures: unreadable videos. blank: those of one colour (paths)."""

    vectors: Tensor
    failures: list[Failure]
    blank: list[str]


def features(
    model: ALT, spec: ClipSpec, videos: Sequence[Video], testing: EvalConfig, name: str | None = None
) -> Features:
    """Return video vectors (the paper's z, eq. 9), the mean over a video's views.

    name: the progress bar's; None: no bar.
    """
    model.eval()
    clips = EvalClips(videos, spec, testing.crops, testing.clips)
    width, device = model.alignment.entities.shape[1], model.logit_scale.device

    def described(video: Tensor) -> Tensor:
        """The vectors [B, d], and whether a clip is of one colour: [B, d + 1]."""
        blank = is_blank(video, spec.augment.normalize).all(1, keepdim=True)
        return torch.cat([vectors := model.describe(video), blank.to(vectors.dtype)], 1)

    mean, causes, _ = mean_over_views(clips, testing, device, described, width + 1, name)
    readable = torch.tensor([str(video.path) not in causes for video in videos], dtype=torch.bool)
    check_finite(mean[readable])
    vectors, blank = mean[:, :width] * readable[:, None], (mean[:, width] == 1) & readable
    of_one_colour = [str(video.path) for video, nothing in zip(videos, blank.tolist(), strict=True) if nothing]
    return Features(vectors, [Failure(path, cause) for path, cause in causes.items()], of_one_colour)


def write_features(
    model: ALT,
    spec: ClipSpec,
    videos: Sequence[Video],
    testing: EvalConfig,
    folder: Path,
    per_file: int,
    world: World,
) -> tuple[list[Failure], list[str]]:
    """Write `folder`/00000.safetensors and so on, each with "video" [n, d] and "label" [n] of `per_file` videos.

    Beside each lies a list of its videos with the cause of what could not be read, and whether all that was seen is of
    one colour. Files that are there are kept, but for those with an unreadable video, which may be readable by now; the
    processes share the others. Returns all failures, and the videos of one colour by path.
    """
    count = math.ceil(len(videos) / per_file)
    missing = [number for number in range(count) if not _is_whole(folder / f"{number:05}.safetensors")]
    world.gather(None)  # all have looked before any writes
    for number in Progress(missing[world.rank :: world.size], "features", "file", shown=world.main):
        part = videos[number * per_file : (number + 1) * per_file]
        vectors, failed, blank = features(model, spec, part, testing, f"file {number:05}" if world.main else None)
        causes, paths = dict(failed), [str(video.path) for video in part]
        rows = [{"path": path, "unreadable": causes.get(path), "blank": path in blank} for path in paths]
        tensors = {"video": vectors, "label": torch.tensor([video.label for video in part])}
        write_atomically(folder / f"{number:05}.safetensors", partial(save_file, tensors))
        write_json(folder / f"{number:05}.json", {"videos": rows})  # last: it tells that the vectors are its own
    world.gather(None)  # all have written
    lists = [read_json(folder / f"{number:05}.json", "videos")["videos"] for number in range(count)]
    told = [row for rows in lists for row in rows]
    failures = [Failure(row["path"], row["unreadable"]) for row in told if row["unreadable"]]
    return failures, [row["path"] for row in told if row.get("blank")]  # which older lists do not say


def _is_whole(file: Path) -> bool:
    """Whether a file of vectors is there with its list, in which all could be read."""
    listed = file.with_suffix(".json")
    if not (file.exists() and listed.exists()):
        return False
    return not any(row["unreadable"] for row in read_json(listed, "videos")["videos"])


@contextmanager
def open_folder(folder: Path, settings: dict[str, Any]) -> Iterator[None]:
    """Make the folder, or check that it was begun with the same settings; inside, nobody else can open it.

    Raises RunError.
    """
    recorded = folder / "config.json"
    if recorded.exists():
        changed = differences(read_json(recorded), settings)
        if changed:
            raise RunError(f"{folder} was begun otherwise: {'; '.join(changed)}. Choose another --out")
    make_folder(folder)
    with sole_writer(folder):
        if not recorded.exists():
            write_json(recorded, settings)
        yield
