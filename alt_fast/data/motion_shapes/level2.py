"""Level 2: an actor carries one of sixty tools, among other tools that lie about.

The label is a sentence, "a robot moving left with a kettle". A tool's name says nothing of how it looks: who has not
seen tools and read their names cannot tell which is which. The tools of unseen classes are in no training video, but
CLIP's pretraining saw them: only text carries over what they are called. The two classes of a tool have the same actor
and opposite motions: what is in a single frame leaves both.

Actor and motion alone name most classes, though: forty have 32 of them, so that who knows both and no tool is right in
up to four of five. Whether a tool is known shows among labels that differ in nothing else (`benchmarks.alignment`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from alt_fast.data.motion_shapes.drawing import (
    MOTIONS,
    OPPOSITE,
    PLACES,
    SPLITS,
    TEXTURES,
    WORDINGS,
    Captioned,
    Image8,
    Mask,
    Thing,
    background,
    coverage,
    place_name,
    progress_at,
    travel,
    visible,
    with_article,
)
from alt_fast.data.rng import Stream, generator

CORPUS = "motion_shapes_2"

SHAPES = ("circle", "triangle", "star", "cross", "heart")
FILLS = ("solid", "hollow", "striped")
COLORS = {"red": (255, 90, 80), "green": (90, 225, 90), "blue": (105, 140, 255), "yellow": (250, 230, 70)}

NAMES = (
    *("hammer", "kettle", "lamp", "drum", "spoon", "ladder", "rope", "broom", "candle", "bell"),
    *("basket", "bottle", "brush", "bucket", "camera", "clock", "comb", "cup", "fan", "flag"),
    *("flute", "fork", "glove", "guitar", "hat", "helmet", "jar", "key", "kite", "knife"),
    *("mirror", "needle", "paddle", "pencil", "pillow", "pipe", "plate", "racket", "rake", "ruler"),
    *("saw", "shovel", "sponge", "stamp", "sword", "tape", "torch", "trumpet", "umbrella", "vase"),
    *("whistle", "wrench", "axe", "anchor", "balloon", "hook", "net", "tray", "wheel", "whip"),
)
"""Tools: those of the trained classes, those of the unseen ones, and those that only lie about; twenty of each."""

CARRIED, CARRIED_UNSEEN, LYING = NAMES[:20], NAMES[20:40], NAMES[40:]

ACTORS = {"robot": "square", "ghost": "circle", "bird": "triangle", "cat": "moon"}
"""The outline of every actor. They are white, with eyes."""

WHITE, DARK = (250, 250, 250), 20

ORBIT = 0.18  # radius of a circling actor's path, as a fraction of the frame

_STREAM = 16  # counters of level 2 begin here

_STRIPE = 0.3  # brightness of dark stripes
_HOLE = 0.55  # size of what hollow tools lack


@dataclass(frozen=True)
class Look:
    """What a tool looks like."""

    shape: str
    fill: str
    color: str

    @property
    def text(self) -> str:
        return f"a {self.fill} {self.color} {self.shape}"


def _looks() -> dict[str, Look]:
    looks = [Look(*parts) for parts in product(SHAPES, FILLS, COLORS)]
    return {
        name: looks[i] for name, i in zip(NAMES, generator(0, Stream.VIDEO, _STREAM - 1).permutation(60), strict=True)
    }


LOOKS = _looks()

Triple = tuple[str, str, str]
"""An actor, a motion and a tool."""


def _classes(tools: Sequence[str]) -> Iterator[Triple]:
    actors = list(ACTORS)
    for i, tool in enumerate(tools):
        actor, motion = actors[(i + i // 4) % 4], MOTIONS[2 * (i % 4)]
        yield actor, motion, tool
        yield actor, OPPOSITE[motion], tool


TRAINED, UNSEEN = tuple(_classes(CARRIED)), tuple(_classes(CARRIED_UNSEEN))

_UNSEEN = frozenset(UNSEEN)


@dataclass(frozen=True)
class Lying:
    """A tool that lies about. place: x, y and radius."""

    tool: str
    place: tuple[float, float, float]


@dataclass(frozen=True)
class Clip:
    """Everything random about a video. Lengths and places are fractions of the frame, angles clockwise radians."""

    actor: str
    motion: str
    tool: str
    lying: tuple[Lying, ...]
    texture: str
    center: tuple[float, float]  # x, y of the actor half way through
    actor_radius: float
    tool_radius: float
    tool_angle: float  # where the actor holds the tool
    tilt: float
    phase: float  # where on its circle a circling actor is half way through
    amount: float  # distance moved, angle travelled, or log of the growth
    start: float  # when the motion starts and ends, as fractions of the clip
    stop: float
    tint: tuple[int, int, int]
    background: int  # seed of the texture
    drift: tuple[float, float]  # how far the background moves
    noise: float  # standard deviation of pixel noise, in grey levels


def label_of(triple: Triple) -> str:
    """ "a robot moving left with a kettle" """
    actor, motion, tool = triple
    return f"{with_article(actor)} {motion} with {with_article(tool)}"


EXTENTS = {"tiny": 0.0, "small": 0.1, "middle-sized": 0.12, "large": 0.14, "huge": 0.17}
"""How large an actor is, and from which radius on."""


def _layouts(actor: str) -> tuple[list[str], list[str]]:
    """Where an actor may be, and how large."""
    return [f"{with_article(actor)} at the {place}" for place in PLACES], [f"a {extent} {actor}" for extent in EXTENTS]


LAYOUTS = tuple(tuple(texts) for actor in ACTORS for texts in _layouts(actor))


def draw_clip(seed: int, split: str, index: int, triple: Triple) -> Clip:
    """The random choices of clip `index` of a split."""
    clip, rng = _draw_clip(seed, split, index, triple)
    return _lay(clip, rng, LYING, np.linspace(0, 1, 5).tolist())


def _draw_clip(seed: int, split: str, index: int, triple: Triple) -> tuple[Clip, np.random.Generator]:
    part = _STREAM + SPLITS.index(split)
    rng = generator(seed, Stream.VIDEO, part, index)
    actor, motion, tool = triple
    amount = {"moving": (0.3, 0.45), "circling": (3.5, 5.0)}.get(motion.split()[0], (0.6, 0.9))
    clip = Clip(
        actor=actor,
        motion=motion,
        tool=tool,
        lying=(),
        texture=str(rng.choice(TEXTURES)),
        center=(float(rng.uniform(0.4, 0.6)), float(rng.uniform(0.4, 0.6))),
        actor_radius=float(rng.uniform(0.115, 0.145)),
        tool_radius=float(rng.uniform(0.115, 0.145)),
        tool_angle=float(rng.uniform(0, 2 * np.pi)),
        tilt=float(rng.uniform(-0.25, 0.25)),
        phase=float(rng.uniform(0, 2 * np.pi)),
        amount=float(rng.uniform(*amount)),
        start=float(rng.uniform(0, 0.2)),
        stop=float(rng.uniform(0.8, 1)),
        tint=tuple(int(c) for c in rng.integers(20, 90, 3)),  # type: ignore[arg-type]
        background=part << 48 | index,
        drift=tuple(float(d) for d in rng.uniform(-0.2, 0.2, 2)),  # type: ignore[arg-type]
        noise=float(rng.uniform(0, 8)),
    )
    return clip, rng


def _lay(clip: Clip, rng: np.random.Generator, tools: Sequence[str], times: Sequence[float]) -> Clip:
    """Put two of the tools where nothing passes, as far as there is room."""
    taken = [place for time in times for _, place in _moving(clip, time)]
    lying = []
    for tool in rng.choice([name for name in tools if name != clip.tool], 2, replace=False):
        radius = float(rng.uniform(0.1, 0.13))
        for x, y in rng.uniform(radius, 1 - radius, (40, 2)).tolist():
            if all((x - a) ** 2 + (y - b) ** 2 > (radius + other) ** 2 for a, b, other in taken):
                lying.append(Lying(str(tool), (x, y, radius)))
                taken.append((x, y, radius))
                break
    return replace(clip, lying=tuple(lying))


def _moving(clip: Clip, time: float) -> list[tuple[str, tuple[float, float, float]]]:
    """The carried tool and the actor at a time, each with x, y and radius."""
    progress = progress_at(time, clip.start, clip.stop)
    dx, dy, scale = travel(clip.motion, clip.amount, progress, clip.phase, ORBIT)
    x, y = clip.center[0] + dx, clip.center[1] + dy
    reach = scale * (clip.actor_radius + clip.tool_radius)
    tool = (x + reach * float(np.cos(clip.tool_angle)), y + reach * float(np.sin(clip.tool_angle)))
    return [(clip.tool, (*tool, scale * clip.tool_radius)), (clip.actor, (x, y, scale * clip.actor_radius))]


def _drawn(clip: Clip, time: float) -> list[tuple[str, tuple[float, float, float]]]:
    """All that is drawn on the background, in this order."""
    return [*((lying.tool, lying.place) for lying in clip.lying), *_moving(clip, time)]


def render(clip: Clip, seed: int, times: Sequence[float], size: int) -> Image8:
    """Frames [len(times), size, size, 3] uint8 RGB of a clip at times in [0, 1]."""
    texture = background(clip.texture, clip.tint, generator(seed, Stream.VIDEO, _STREAM - 2, clip.background), 2 * size)
    noise = generator(seed, Stream.VIDEO, _STREAM - 3, clip.background)
    frames = []
    for time in times:
        left, top = (round(size / 2 + d * size * (time - 0.5)) for d in clip.drift)
        frame = texture[top : top + size, left : left + size].astype(np.float64)
        for name, place in _drawn(clip, time):
            mask, color = _paint(name, place, clip.tilt, size)
            frame = frame * (1 - mask[..., None]) + color * mask[..., None]
        frame = frame + noise.normal(0, clip.noise, frame.shape)
        frames.append(frame.clip(0, 255).astype(np.uint8))
    return np.stack(frames)


def _paint(name: str, place: tuple[float, float, float], tilt: float, size: int) -> tuple[Mask, NDArray[np.float32]]:
    """Coverage [size, size] and colour [size, size, 3] of a thing."""
    x, y, radius = place
    pixel = (np.arange(size, dtype=np.float32) + 0.5) / size
    right, down = (pixel[None, :] - x) / radius, (pixel[:, None] - y) / radius
    mask = coverage(_outline(name), place, tilt, size)
    if name in ACTORS:
        eyes = ((np.abs(right) - 0.35) ** 2 + down**2 < 0.2**2)[..., None]
        return mask, np.where(eyes, np.float32(DARK), np.array(WHITE, np.float32))
    look = LOOKS[name]
    color = np.broadcast_to(np.array(COLORS[look.color], np.float32), (size, size, 3))
    if look.fill == "hollow":
        mask = mask - coverage(look.shape, (x, y, radius * _HOLE), tilt, size)
    if look.fill == "striped":
        color = np.where((2 * down % 1 < 0.5)[..., None], color, color * _STRIPE)
    return mask, color


def _outline(name: str) -> str:
    return ACTORS[name] if name in ACTORS else LOOKS[name].shape


def things(clip: Clip, time: float, size: int) -> list[Thing]:
    """The background, the tools and the actor, with the corpus's units that are true of them."""
    drawn = _drawn(clip, time)
    masks = [np.ones((size, size), np.float32)]
    masks += [coverage(_outline(name), place, clip.tilt, size) for name, place in drawn]
    names = [{"scene": frozenset({f"{clip.texture} background"})}]
    names += [{"body" if name in ACTORS else "object": frozenset({name})} for name, _ in drawn]
    return [Thing(*pair) for pair in zip(names, visible(masks), strict=True)]


def captioned_frame(seed: int, index: int, size: int) -> Captioned:
    """A single frame and a caption: what CLIP's pretraining sees.

    Any tool is carried here, anywhere, larger or smaller than in videos, and any lies about. Captions tell actor, tool,
    place and background. Where one names a motion, as captions of photographs do, it is any: a still frame shows none.
    It is never that of an unseen class.
    """
    clip, time, rng = _captioned_clip(seed, index)
    about = (clip.tool, clip.tool, clip.actor, f"{clip.texture} background")
    image, shown = render(clip, seed, [time], size)[0], things(clip, time, size)
    return Captioned(image, _caption(clip, time, rng), about, shown, _layout(clip, time))


def _layout(clip: Clip, time: float) -> tuple[str, str]:
    x, y, radius = dict(_moving(clip, time))[clip.actor]
    extent = [name for name, least in EXTENTS.items() if radius >= least][-1]
    return f"{with_article(clip.actor)} at the {place_name(x, y)}", f"a {extent} {clip.actor}"


def _captioned_clip(seed: int, index: int) -> tuple[Clip, float, np.random.Generator]:
    rng = generator(seed, Stream.CAPTION, _STREAM, index)
    actor, motion = str(rng.choice(list(ACTORS))), str(rng.choice(MOTIONS))
    clip, _ = _draw_clip(seed, "pretrain", index, (actor, motion, NAMES[index % len(NAMES)]))
    time = float(rng.uniform())
    scale = float(np.exp(rng.uniform(-0.4, 0.4)))
    clip = replace(
        clip,
        center=(float(rng.uniform(0.2, 0.8)), float(rng.uniform(0.2, 0.8))),
        actor_radius=scale * clip.actor_radius,
        tool_radius=scale * clip.tool_radius,
    )
    return _lay(clip, rng, NAMES, [time]), time, rng


def _caption(clip: Clip, time: float, rng: np.random.Generator) -> str:
    pair = f"{with_article(clip.actor)} with {with_article(clip.tool)}"
    place = place_name(*dict(_moving(clip, time))[clip.actor][:2])
    motions = [motion for motion in MOTIONS if (clip.actor, motion, clip.tool) not in _UNSEEN]
    kinds = (
        [with_article(clip.tool), f"a photo of {with_article(clip.tool)}"],
        [pair, f"{pair} on a {clip.texture} background"],
        [f"{pair} at the {place}", f"{with_article(clip.actor)} at the {place}"],
        [label_of((clip.actor, str(rng.choice(motions)), clip.tool))],
    )
    return str(rng.choice(kinds[rng.integers(len(kinds))]))


def reworded_labels(rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Forty-eight labels that are none of the unseen classes', with any tools, and the same in other words."""
    drawn = ((str(rng.choice(list(ACTORS))), str(rng.choice(MOTIONS)), str(rng.choice(NAMES))) for _ in range(96))
    triples = list(dict.fromkeys(triple for triple in drawn if triple not in _UNSEEN))[:48]
    wordings = [
        f"{with_article(actor)} {WORDINGS[motion]} holding {with_article(tool)}" for actor, motion, tool in triples
    ]
    return [label_of(triple) for triple in triples], wordings
