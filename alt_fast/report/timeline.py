"""What happens when in a long video: a table of segments, subtitles, and a page to look around in."""

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alt_fast.errors import ArgumentError
from alt_fast.files import make_folder, write_csv, write_text
from alt_fast.report.page import fill_page


@dataclass(frozen=True)
class Segment:
    """A label from `start` to `end`, in seconds. score: its mean probability; peak: its highest."""

    start: float
    end: float
    label: str
    score: float
    peak: float


@dataclass(frozen=True)
class Gap:
    """From `start` to `end`, in seconds, nothing could be told, and why."""

    start: float
    end: float
    cause: str


@dataclass(frozen=True)
class Picture:
    """What the video shows at a time, in seconds, as JPEG."""

    time: float
    jpeg: bytes


@dataclass(frozen=True)
class Timeline:
    """What a model saw happen in a video.

    video: the name of its file. duration: seconds. window: seconds that one score is of, one every `every` seconds.
    windows: how many there are. encoded: frames that the model encoded for them. segments: by their start. gaps: what
    could not be judged. times: [K] when each step begins, in seconds; of each, the likeliest labels: top [K, k] int32
    into `labels`, by falling probability [K, k] fp32. entities: what its frames aligned to most, strongest first.
    pictures: some, over the whole video.
    """

    video: str
    duration: float
    every: float
    window: float
    windows: int
    encoded: int
    labels: Sequence[str]
    segments: Sequence[Segment]
    gaps: Sequence[Gap]
    times: NDArray[np.float64]
    top: NDArray[np.int32]
    probability: NDArray[np.float32]
    entities: Sequence[Sequence[str]]
    pictures: Sequence[Picture]

    def as_dict(self) -> dict[str, Any]:
        """Return what is told of the video as plain data, for JSON."""
        segments, gaps = ([asdict(part) for part in parts] for parts in (self.segments, self.gaps))
        return {"video": self.video, "duration": self.duration, "segments": segments, "gaps": gaps}

    def save(self, path: str | Path) -> None:
        """Write the segments as a table (.csv, .jsonl) or as subtitles (.srt), or all of it as a page (.html).

        Raises ArgumentError for other names, FileError when it cannot be written.
        """
        path = Path(path)
        write = WRITERS[check_suffix(path)]
        make_folder(path.parent)
        write(path, self)


def check_suffix(path: Path) -> str:
    """Return the suffix of a name that `Timeline.save` takes. Raises ArgumentError for others."""
    if path.suffix not in WRITERS:
        raise ArgumentError(f"the file must end in {', '.join(WRITERS)}, got {path}")
    return path.suffix


def clock(seconds: float, separator: str = ".") -> str:
    """ "0:01:02.5" as "00:01:02.500": hours, minutes, seconds and thousandths."""
    rest, thousandths = divmod(round(1000 * seconds), 1000)
    return f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}{separator}{thousandths:03}"


def _write_csv(path: Path, timeline: Timeline) -> None:
    rows = [
        (f"{segment.start:.3f}", f"{segment.end:.3f}", segment.label, f"{segment.score:.4f}", f"{segment.peak:.4f}")
        for segment in timeline.segments
    ]
    write_csv(path, ("start", "end", "label", "score", "peak"), rows)


def _write_json_lines(path: Path, timeline: Timeline) -> None:
    write_text(path, "".join(json.dumps(asdict(segment)) + "\n" for segment in timeline.segments))


def _write_subtitles(path: Path, timeline: Timeline) -> None:
    cues = []
    for number, segment in enumerate(timeline.segments, start=1):
        label = " ".join(segment.label.split())  # an empty line would end the cue
        shown = f"{clock(segment.start, ',')} --> {clock(segment.end, ',')}"
        cues.append(f"{number}\n{shown}\n{label} ({segment.score:.0%})\n")
    write_text(path, "\n".join(cues))


def _write_page(path: Path, timeline: Timeline) -> None:
    write_text(path, fill_page("timeline.html", page_data(timeline)))


def page_data(timeline: Timeline) -> dict[str, Any]:
    """Return what the page's script reads."""
    used = sorted(set(timeline.top.ravel().tolist()))
    place = {label: i for i, label in enumerate(used)}
    return {
        **timeline.as_dict(),
        "every": timeline.every,
        "window": timeline.window,
        "labels": [timeline.labels[label] for label in used],
        "steps": [
            {
                "time": time,
                "top": [(place[label], round(p, 4)) for label, p in zip(labels, values, strict=True)],
                "entities": entities,
            }
            for time, labels, values, entities in zip(
                timeline.times.tolist(),
                timeline.top.tolist(),
                timeline.probability.tolist(),
                timeline.entities,
                strict=True,
            )
        ],
        "pictures": [
            {"time": picture.time, "uri": "data:image/jpeg;base64," + base64.b64encode(picture.jpeg).decode()}
            for picture in timeline.pictures
        ],
    }


WRITERS: dict[str, Callable[[Path, Timeline], None]] = {
    ".csv": _write_csv,
    ".jsonl": _write_json_lines,
    ".srt": _write_subtitles,
    ".html": _write_page,
}
"""Who writes a file, by how its name ends."""
