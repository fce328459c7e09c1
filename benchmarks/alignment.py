"""Is aligning first worth it? The question's rows on levels 2 and 3 of Motion Shapes, over many seeds, and controls.

python -m benchmarks.alignment --out FILE.jsonl
python -m benchmarks.alignment --out FILE.jsonl --seeds 20 --rows frame learned entities permuted
python -m benchmarks.alignment --out FILE.jsonl --seeds 5 --shots 1 8 -- --model.tuning=finetune
python -m benchmarks.alignment --out FILE.jsonl --shots --beside LEVEL_2.jsonl -- --data.shapes.level=3 \
    --data.shapes.train_per_class=6 --data.root=data/motion_shapes_3

The tower is frozen and every clip's tokens are computed once, so that a run, alignment and decoder trained on
trained classes, takes seconds. Seeds draw first weights, order and noise; videos and tower stay. Each run is tested on
trained classes and, zero-shot, on the 40 unseen ones, as it is and with the queries of other videos, and after training
on 1, 2, 4 and 8 videos of each unseen class. Beside top-1 stands how often the tool is right, whatever its motion, and
how often it would be by what queries are made of alone, untrained: by cosines with class names, and by the weights that
make it of the corpus's entities ("linear"). Actor and motion alone leave few classes: so "tool alone" asks for the tool
among labels that differ in nothing else. With `--model.tuning=finetune` the tower trains along, a tenth as fast, on
the same draws of the clips, and a run takes minutes. Stop it, and the same command goes on where it was. `--beside`
compares with rows of another file, of other options, as level 2 has them.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from scipy.stats import ttest_rel
from torch import Tensor

from alt_fast.corpus import Corpus
from alt_fast.data.annotations import Video, read_list
from alt_fast.data.augment import ClipRecord
from alt_fast.data.dataset import EvalClips, TrainClips, batched
from alt_fast.data.loader import Loader, open_backend
from alt_fast.data.motion_shapes import LEVELS, level2, list_files
from alt_fast.data.motion_shapes.generate import generate
from alt_fast.data.motion_shapes.truth import clip_of, read_dataset, things_in
from alt_fast.data.rng import Stream, integer
from alt_fast.errors import AltFastError, ArgumentError
from alt_fast.inference.alignment import others_of
from alt_fast.inference.trained import TrainedModel
from alt_fast.measure.lines import Row, append_row, check_rows, read_rows
from alt_fast.model.alt import ALT
from alt_fast.model.config import ModelConfig
from alt_fast.model.encoder import Regions
from alt_fast.model.text import PROMPTS
from alt_fast.paper.ablations import spread_text
from alt_fast.progress import Progress
from alt_fast.training.config import TrainConfig, parse
from alt_fast.training.schedule import Schedule, parameter_groups
from benchmarks.alignment_clips import Clips, Seen, Texts, Tokens, Videos, pool_things
from benchmarks.alignment_rows import AFTERWARDS, AS_SHIPPED, CASES, HYPOTHESES, KNOWN, LEVEL_2, Case

SHOTS = (1, 2, 4, 8)
DRAWS = 4  # of every training video: frames and crops
FEW_SHOT_EPOCHS = 20


def weigh_by_frame(chosen: Tensor, index: Tensor, frame: Tensor, tau: float) -> Tensor:
    """Pool the entities that a frame's tokens chose, each once, by how likely the frame token is to choose it (eq. 4).

    chosen: [B, T, N', d], their embeddings. index: [B, T, N']. frame: [B, T, d]. Returns [B, T, d].
    """
    fit = (F.cosine_similarity(frame[:, :, None], chosen, dim=-1) / tau).softmax(-1)
    weight = fit / (index[..., None] == index[..., None, :]).sum(-1)
    return (weight[..., None, :] @ chosen).squeeze(-2) / weight.sum(-1, keepdim=True)


class Experiment:
    """Rows of one tower on one dataset. What the tower sees is kept by r; where it trains along, the clips are."""

    def __init__(self, config: TrainConfig, shots: Sequence[int]) -> None:
        """shots: of each unseen class, what rows are trained on once more; each at most the most of SHOTS."""
        self.config, self.shots = config, shots
        self.level = LEVELS[config.data.shapes.level]
        if self.level.CORPUS != level2.CORPUS:
            raise ArgumentError(f"level {config.data.shapes.level} has no tools: take level 2 or 3")
        self.frozen = config.model.tuning == "frozen"
        assert config.data.root is not None
        shapes = replace(config.data.shapes, few_shot_per_class=max(SHOTS))
        self.root = Path(f"{config.data.root}_few_shot")  # the job's own has no such videos
        generate(self.root, shapes)
        self.corpus = Corpus.load(str(config.corpus))
        self.units = [entity.unit for entity in self.corpus.select(config.model.categories).entities]
        self.seen: dict[Any, Seen] = {}

    def build(self, changes: Mapping[str, Any]) -> ALT:
        """Return the model of a row."""
        model_config: ModelConfig = replace(self.config.model, **changes)
        model = ALT(model_config, self.corpus if model_config.query == "entities" else None)
        model.embed_corpus()
        return model

    def look(self, r: Any) -> Seen:
        """Return what the frozen tower sees in all lists, merging by r; or the clips, for one that trains along."""
        key = str(r) if self.frozen else "clips"
        if key not in self.seen:
            model = self.build({"r": r}).eval()
            files = list_files(self.root)
            triples = (self.level.TRAINED, self.level.UNSEEN)
            names, unseen = ([self.level.label_of(triple) for triple in own] for own in triples)
            trained = TrainedModel(model, names, list(PROMPTS[self.config.templates]), self.config.augment)
            lists = [(files["train"], names), (files["test"], names), (files["unseen"], unseen)]
            lists.append((str(self.root / "few_shot.txt"), unseen))
            videos = [read_list(path, own, None, "test")[0] for path, own in lists]
            train, test, zero, few = (self.encode(trained, part, training=not n) for n, part in enumerate(videos))
            texts = (Texts.of(own, trained.embed) for own in triples)
            self.seen[key] = Seen(train, test, zero, few, *texts)
        return self.seen[key]

    @torch.no_grad()
    def encode(self, trained: TrainedModel, videos: Sequence[Video], training: bool) -> Clips:
        """Return a list of `look`: of training videos several draws, of others the middle frames."""
        loading, model = self.config.data.loading, trained.model
        numbers = range(len(videos))
        clips: TrainClips | EvalClips = EvalClips(videos, trained.spec)
        keys = [(number, 0) for number in numbers]
        if training:
            clips = TrainClips(videos, trained.spec, self.config.seed)
            keys = [(draw, number) for draw in range(DRAWS) for number in numbers]
        backend, _ = open_backend(loading.loader, clips, torch.device("cpu"), torch.float32, max(1, loading.workers))
        truth = torch.tensor([self.truth(video) for video in videos]).repeat(DRAWS if training else 1, 1)
        loader = Loader(clips, list(batched(keys, 32)), backend, loading)
        if not self.frozen:
            drawn = [(batch.label, batch.video) for batch in Progress(loader, "clips", "batch")]
            labels, frames = (torch.cat(parts) for parts in zip(*drawn, strict=True))
            return Videos(labels, truth, frames)
        found = []
        for batch in Progress(loader, f"tokens, r = {model.config.r}", "batch"):
            found.append((*model.encode(batch.video), batch.label))
        tokens, size, source, label = (torch.cat(parts) for parts in zip(*found, strict=True))
        known = []
        for key, *seen in zip(Progress(keys, "things", "clip"), tokens, size, source, strict=True):
            video = videos[next(clips.candidates(key))].path
            known.append(self.known(trained, video, clips.record(key), Regions(*seen)))
        things, shown = (torch.stack(parts) for parts in zip(*known, strict=True))
        return Tokens(label, truth, tokens, size, things, shown)

    def truth(self, video: Video) -> list[int]:
        """Return the corpus's index of all that is in a video, as `Clips` has it."""
        dataset = read_dataset(video.path)
        clip = None if dataset is None else clip_of(video.path, dataset)
        assert clip is not None
        lying = [*(lying.tool for lying in clip.lying), clip.tool, clip.tool][:2]
        return [self.units.index(name) for name in (clip.tool, clip.actor, f"{clip.texture} background", *lying)]

    def known(self, trained: TrainedModel, video: Path, record: ClipRecord, seen: Regions) -> tuple[Tensor, Tensor]:
        """Return `pool_things` of a clip, [T, 5, d] and [T, N' - 1], the second as indices of the corpus.

        seen: of the clip, [T, ...].
        """
        frames = things_in(video, record, trained.spec.size)
        assert frames is not None
        patch = trained.model.encoder.visual.patch_size
        things, shown = pool_things(frames, seen.tokens, seen.source[:, 1:].long(), patch)
        names = [name for thing in frames[0] for units in thing.names.values() for name in units]  # one of each thing
        return things, torch.tensor([self.units.index(name) for name in names])[shown]

    def run(self, case: Case, seed: int) -> Row:
        """Train and test a row."""
        seen = self.look(case.changes.get("r", self.config.model.r))
        torch.manual_seed(seed)
        model = self.build(case.changes)
        order = torch.randperm(len(model.corpus or ()))  # whose names entities have under "permuted"
        each = self.config.data.shapes.train_per_class
        if not (each * case.share).is_integer():
            raise ArgumentError(f"{case.name}: {each} videos of each class have no such share")
        video = torch.arange(len(seen.train.label)) % each  # of its class: they are neighbours
        kept = int((seen.trained_texts.tool < case.tools).sum())  # classes: those of a tool are neighbours
        part = seen.train.take((seen.train.label < kept) & (video < case.share * each))
        epochs = self.config.optim.epochs / DRAWS * len(seen.train.label) / len(part.label)
        self.train(model, case, order, part, seen.trained_texts.classes[:kept], epochs, seed)
        found: Row = {}
        for name, part, texts in (("test", seen.test, seen.trained_texts), ("unseen", seen.unseen, seen.unseen_texts)):
            found |= {f"{name}{kind}": score for kind, score in self.test(model, case, order, part, texts).items()}
        before = {name: value.clone() for name, value in model.state_dict().items()}
        for shots, column in zip(self.shots, few_shot(self.shots), strict=True):
            model.load_state_dict(before)
            number = range(len(seen.unseen_texts.classes))
            part = seen.few_shot.take(torch.cat([(seen.few_shot.label == c).nonzero()[:shots, 0] for c in number]))
            self.train(model, case, order, part, seen.unseen_texts.classes, FEW_SHOT_EPOCHS, seed)
            found[column] = self.test(model, case, order, seen.unseen, seen.unseen_texts)[""]
        return found

    def pooled(
        self, model: ALT, case: Case, order: Tensor, part: Tokens, seed: Tensor | None, tau: float | None = None
    ) -> Tensor:
        """Return what the queries of clips are made of, [B, T, d]."""
        tokens, size = part.tokens, part.size
        if case.control in ("regions", "true choice"):
            tokens, size = tokens[:, :, 1:], size[:, :, 1:]
        elif case.control == "true regions":
            tokens, size = part.things, torch.ones(part.things.shape[:-1])
        pooled, index = model.alignment(tokens, size, seed, tau)
        if case.control in (None, "regions", "true regions"):
            return pooled
        if case.control == "weighed":
            return weigh_by_frame(model.alignment.entities[index], index, tokens[:, :, 0], model.config.tau)
        if case.control == "true choice":
            index = part.shown
        elif case.control in KNOWN:
            index = part.truth[:, KNOWN[case.control]][:, None].expand(-1, part.tokens.shape[1], -1)
            size = torch.ones_like(index, dtype=size.dtype)
        elif case.control == "permuted":
            index = order[index]
        else:
            index = torch.randint(len(order), index.shape)
        return model.alignment.pool(model.alignment.entities[index], index, size)

    def train(
        self, model: ALT, case: Case, order: Tensor, part: Clips, classes: Tensor, epochs: float, seed: int
    ) -> None:
        """Train a model on clips of these classes, by the configuration's recipe."""
        optim = self.config.optim
        batch = min(optim.batch_size, len(part.label))
        steps = round(epochs * (len(part.label) // batch))
        schedule = Schedule(steps, steps // 6, optim.final_lr)
        groups = parameter_groups(model, optim.rate, optim.weight_decay)
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
        shuffle = torch.Generator().manual_seed(seed)
        model.train()
        index = torch.empty(0, dtype=torch.int64)
        for step in range(steps):
            if len(index) < batch:
                index = torch.randperm(len(part.label), generator=shuffle)
            own, index = part.take(index[:batch]).seen(model), index[batch:]
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * schedule.factor(step)
            noise = torch.tensor(integer(seed, Stream.STEP, sample=step)) if model.config.noise else None
            tau = model.config.tau_at(schedule.progress(step))
            z = model.answer(self.pooled(model, case, order, own, noise, tau), own.tokens[:, :, 0])
            loss = F.cross_entropy(model.logits(z, classes), own.label, label_smoothing=optim.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            if optim.clip_grad is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip_grad)
            optimizer.step()

    @torch.inference_mode()
    def test(self, model: ALT, case: Case, order: Tensor, clips: Clips, texts: Texts) -> dict[str, float]:
        """Return top-1 by what was done to the queries; "clip" and "both": by CLIP's frame tokens, and with them.

        "tool": the share of videos whose tool is right. "untrained": likewise, by what queries are made of alone;
        "linear": by its weights as a sum of entities, the least ones by squares. "tool alone": the share whose tool is
        right among labels of the video's own actor and motion, which tell nothing of it there.
        """
        part = clips.seen(model.eval())
        frames = part.tokens[:, :, 0]
        pooled = self.pooled(model, case, order, part, None)
        classes = texts.classes
        answer = model.answer(pooled, frames)
        alt = model.logits(answer, classes).softmax(-1)
        clip = model.clip_logits(frames, classes).softmax(-1)
        others = others_of(len(pooled), torch.Generator().manual_seed(0))
        shuffled = model.logits(model.answer(pooled[others], frames), classes)

        def top1(scores: Tensor) -> float:
            return (scores.argmax(1) == part.label).float().mean().item()

        def tool(scores: Tensor) -> float:
            return (texts.tool[scores.argmax(1)] == texts.tool[part.label]).float().mean().item()

        def tool_alone(z: Tensor) -> float:
            scores = model.logits(z, texts.by_tool.flatten(0, 1)).unflatten(1, texts.by_tool.shape[:2])
            own = scores[torch.arange(len(z)), part.label]
            return (own.argmax(1) == texts.tool[part.label]).float().mean().item()

        found = {
            "": top1(alt),
            ", tool": tool(alt),
            ", tool alone": tool_alone(answer),
            ", untrained": tool(model.logits(pooled.mean(1), classes)),
            ", tool alone, untrained": tool_alone(pooled.mean(1)),
            ", shuffled": top1(shuffled),
            ", clip": top1(clip),
            ", both": top1(alt + clip),
        }
        if model.corpus is not None and len(model.corpus) == len(self.units):  # a part of it has other numbers
            weight = pooled.mean(1) @ torch.linalg.pinv(model.alignment.entities)
            carried = part.truth[:, 0]
            tools = carried.unique()
            found[", linear"] = (tools[weight[:, tools].argmax(1)] == carried).float().mean().item()
        return found


ZERO_SHOT = (
    "test",
    "test, shuffled",
    "unseen",
    "unseen, tool",
    "unseen, tool alone",
    "unseen, untrained",
    "unseen, tool alone, untrained",
    "unseen, linear",
    "unseen, shuffled",
    "unseen, both",
)


def few_shot(shots: Sequence[int]) -> list[str]:
    """Return the columns of a row that is trained on these many videos of each unseen class."""
    return [f"{count}-shot" for count in shots]


def table(rows: Sequence[Row], cases: Sequence[str], seeds: Sequence[int], shots: Sequence[int]) -> str:
    """Markdown: top-1 in per cent, mean and sample deviation over the seeds."""
    columns = [*ZERO_SHOT, *few_shot(shots)]
    lines: list[list[str]] = [["queries", *columns], ["---", *["--:"] * len(columns)]]
    for case in cases:
        own = [row for row in rows if row["case"] == case and row["seed"] in seeds]
        known = ([100 * row[column] for row in own if column in row] for column in columns)
        lines.append([CASES[case].name, *map(spread_text, known)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def hypotheses(rows: Sequence[Row], seeds: Sequence[int]) -> str:
    """Markdown: the hypotheses, by paired t-tests over the seeds that both rows have."""
    lines = [["hypothesis", "on", "difference", "seeds", "p, one-sided"], ["---", "---", "--:", "--:", "--:"]]
    by = {(row["case"], row["seed"]): row for row in rows}
    for name, first, second, column in (*HYPOTHESES, *AS_SHIPPED, *AFTERWARDS):
        shared = [seed for seed in seeds if (first, seed) in by and (second, seed) in by]
        if len(shared) < 2:
            continue
        a, b = ([100 * by[case, seed][column] for seed in shared] for case in (first, second))
        difference = sum(x - y for x, y in zip(a, b, strict=True)) / len(shared)
        p = ttest_rel(a, b, alternative="greater").pvalue
        told = f"{name}: {CASES[first].name} > {CASES[second].name}"
        lines.append([told, column, f"{difference:+.1f}", str(len(shared)), f"{p:.2g}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


COMPARED = ("test, tool alone", "unseen", "unseen, tool", "unseen, tool alone")
"""Of level 3 beside level 2, written down before any row of level 3 had been seen: if training loses tools because the
labels of level 2 hardly ask for them, then "unseen, tool alone" gains by frame tokens, by entities as shipped
("annealed") and by the oracle, each at p < 0.05. If it gains by none, another step is to blame."""


def compared(rows: Sequence[Row], beside: Sequence[Row], cases: Sequence[str], seeds: Sequence[int]) -> str:
    """Markdown: what rows gain on those of other options, by paired t-tests over the seeds that both have."""
    lines = [["queries", "on", "beside", "here", "gain", "seeds", "p, two-sided"]]
    lines.append(["---", "---", *5 * ["--:"]])
    here, there = ({(row["case"], row["seed"]): row for row in part} for part in (rows, beside))
    for case in cases:
        shared = [(case, seed) for seed in seeds if (case, seed) in here and (case, seed) in there]
        for column in COMPARED if len(shared) > 1 else ():
            b, a = ([100 * part[key][column] for key in shared] for part in (there, here))
            gain = sum(x - y for x, y in zip(a, b, strict=True)) / len(shared)
            told = [CASES[case].name, column, spread_text(b), spread_text(a), f"{gain:+.1f}", str(len(shared))]
            lines.append([*told, f"{ttest_rel(a, b).pvalue:.2g}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rows_of(asked: Sequence[str] | None, config: TrainConfig) -> list[str]:
    """Return the rows that were asked for, or all that a job can have. Raises ArgumentError for others.

    What regions show is known of a tower that stays as it is.
    """
    of_regions = [name for name, case in CASES.items() if case.control in ("true regions", "true choice")]
    refused = [] if config.model.tuning == "frozen" else of_regions
    if asked is None:
        return [name for name in CASES if name not in refused]
    if wrong := [name for name in asked if name in refused]:
        raise ArgumentError(f"rows {', '.join(wrong)} need a frozen tower, not tuning {config.model.tuning!r}")
    return list(asked)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.alignment", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=20, metavar="N", help="default: 20")
    parser.add_argument("--rows", nargs="+", choices=CASES, metavar="ROW", help=f"default: all of {', '.join(CASES)}")
    parser.add_argument(
        "--shots",
        type=int,
        nargs="*",
        choices=SHOTS,
        default=list(SHOTS),
        metavar="N",
        help="few-shot columns, none by --shots alone; default: 1 2 4 8",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="JSON lines; what it has is not repeated"
    )
    parser.add_argument("--beside", type=Path, metavar="FILE", help="rows of other options, to compare with")
    parser.add_argument(
        "options", nargs="*", metavar="OPTION", help="after --: changes motion_shapes_2, as in -- --optim.epochs=4"
    )
    given = parser.parse_args(arguments)
    seeds = range(given.seeds)
    try:
        config = parse([*LEVEL_2, *given.options])
        cases, columns = rows_of(given.rows, config), set(few_shot(given.shots))
        beside = [] if given.beside is None else read_rows(given.beside)
        if given.beside is not None and not beside:
            raise ArgumentError(f"{given.beside} holds no rows to compare with")
        check_rows(given.out)
        known = [row for row in read_rows(given.out) if row.get("options") == given.options]
        mine = {(row["case"], row["seed"]): row for row in sorted(known, key=lambda row: columns <= set(row))}
        asked = [(case, seed) for seed in seeds for case in cases]
        missing = [pair for pair in asked if pair not in mine or not columns <= set(mine[pair])]
        experiment = Experiment(config, given.shots) if missing else None
        for case, seed in Progress(missing, "rows", "run"):
            assert experiment is not None
            row = {"case": case, "seed": seed, "options": given.options, **experiment.run(CASES[case], seed)}
            append_row(given.out, row)
            mine[case, seed] = row
    except AltFastError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.status
    rows = list(mine.values())
    print(f"{table(rows, cases, seeds, given.shots)}\n\n{hypotheses(rows, seeds)}")
    if given.beside is not None:
        print(f"\n{compared(rows, beside, cases, seeds)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
