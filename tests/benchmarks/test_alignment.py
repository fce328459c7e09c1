"""The rows of the alignment's question, on the smallest data: every run once, and controls that are what they say."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from alt_fast.data.motion_shapes import level2
from alt_fast.data.motion_shapes.drawing import Thing
from alt_fast.inference.trained import save_module
from alt_fast.model.clip_weights import build_clip
from alt_fast.model.config import TINY, ModelConfig
from alt_fast.training.config import parse
from benchmarks import alignment
from benchmarks.alignment import COMPARED, ZERO_SHOT, Experiment, compared, hypotheses, main, rows_of, table
from benchmarks.alignment_clips import Tokens, Videos, pool_things
from benchmarks.alignment_rows import CASES, LEVEL_2, LITERAL, Case


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test leaves its videos to the others."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def small(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options of a job of seconds, on a tower that nothing has trained."""
    save_module(tmp_path / "tower.safetensors", build_clip(TINY, None, 64))
    monkeypatch.setattr(alignment, "SHOTS", (1, 2))
    monkeypatch.setattr(alignment, "DRAWS", 1)
    monkeypatch.setattr(alignment, "FEW_SHOT_EPOCHS", 1)
    shapes = ("train_per_class=1", "test_per_class=1", "frames=4", "size=64")
    model = (f"pretrained={tmp_path / 'tower.safetensors'}", "frames=2", "depth=1")
    return [
        *(f"--data.shapes.{option}" for option in shapes),
        *(f"--model.{option}" for option in model),
        *("--optim.epochs=1", "--optim.batch_size=20", "--optim.warmup_epochs=0", "--data.workers=0"),
        f"--data.root={data}",
    ]


def test_it_runs_every_row_once(small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.jsonl"
    command = ["--seeds", "2", "--rows", "frame", "entities", "oracle", "--out", str(out), "--", *small]
    assert main(command) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["case"], row["seed"]) for row in rows] == [
        (case, seed) for seed in (0, 1) for case in ("frame", "entities", "oracle")
    ]
    linear = "unseen, linear"
    assert all(0 <= row[column] <= 1 for row in rows for column in ZERO_SHOT if column != linear)
    assert [linear in row for row in rows] == 2 * [False, True, True]
    assert all(0 <= row[linear] <= 1 for row in rows if linear in row)
    printed = capsys.readouterr().out
    assert "| oracle: the true tool, actor and background |" in printed
    assert "more than frame tokens: entities of regions > frame tokens" in printed
    assert "1-shot | 2-shot |" in printed.splitlines()[0]
    out.write_text(out.read_text()[:-40])  # killed while it wrote
    assert main(command) == 0
    again = [json.loads(line) for line in out.read_text().splitlines() if line.endswith("}")]
    assert [{**row, "provenance": 0} for row in again] == [{**row, "provenance": 0} for row in rows]
    capsys.readouterr()
    assert main(["--shots", "2", *command]) == 0  # part of what is there
    assert capsys.readouterr().out.splitlines()[0].endswith("unseen, both | 2-shot |")
    assert main(["--shots", *command]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("unseen, both |")
    assert len(out.read_text().splitlines()) == len(rows) + 1  # and the broken one


def test_a_row_may_be_trained_on_fewer_tools(small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or on fewer videos of each, in as many steps; it is tested on all classes."""
    options = ["--data.shapes.level=3", "--data.shapes.train_per_class=4", f"--data.root={tmp_path / 'data'}"]
    experiment = Experiment(parse([*LEVEL_2, *small, *options]), [1])
    trained = []

    def train(model: object, case: Case, order: object, part: Tokens, classes: torch.Tensor, *more: float) -> None:
        trained.append((part.label.unique(return_counts=True), len(classes), more[0] * len(part.label)))

    monkeypatch.setattr(experiment, "train", train)
    for case in ("entities", "entities-5", "entities-few"):
        experiment.run(CASES[case], 0)
    for (labels, each), count, clips in trained[1::2]:  # one shot of the unseen classes
        assert (labels.tolist(), set(each.tolist()), count, clips) == (list(range(40)), {1}, 40, 40)
    for ((labels, each), count, clips), classes, videos in zip(trained[::2], (160, 40, 160), (4, 4, 1), strict=True):
        assert (labels.tolist(), set(each.tolist()), count, clips) == (list(range(classes)), {videos}, classes, 640)


def test_controls_change_the_entities_and_nothing_else(small: list[str]) -> None:
    experiment = Experiment(parse([*LEVEL_2, *small]), [1])
    model = experiment.build({"pool": "mean"}).eval()
    entities, count = model.alignment.entities, len(model.corpus or ())
    tokens, size, things = torch.randn(3, 2, 5, 64), torch.ones(3, 2, 5), torch.randn(3, 2, 5, 64)
    part = Tokens(torch.arange(3), torch.arange(15).view(3, 5), tokens, size, things, torch.arange(24).view(3, 2, 4))
    order = torch.randperm(count)
    _, index = model.alignment(part.tokens, part.size, None)

    def pooled(name: str) -> torch.Tensor:
        return experiment.pooled(model, CASES[name], order, part, None)

    torch.testing.assert_close(pooled("entities"), entities[index].mean(2))
    torch.testing.assert_close(pooled("permuted"), entities[order[index]].mean(2))
    torch.testing.assert_close(pooled("oracle"), entities[part.truth[:, :3]].mean(1)[:, None].expand(3, 2, 64))
    torch.testing.assert_close(pooled("no-tool"), entities[part.truth[:, 1:3]].mean(1)[:, None].expand(3, 2, 64))
    torch.testing.assert_close(pooled("everything"), entities[part.truth].mean(1)[:, None].expand(3, 2, 64))
    torch.testing.assert_close(pooled("regions"), entities[index[:, :, 1:]].mean(2))
    chosen, _ = model.alignment(things, size, None)
    torch.testing.assert_close(pooled("true-regions"), chosen)
    torch.testing.assert_close(pooled("true-choice"), entities[part.shown].mean(2))
    weight = torch.cosine_similarity(tokens[:, :, :1], entities[index], dim=-1).div(model.config.tau).exp()
    for clip, frame in np.ndindex(3, 2):
        there = index[clip, frame].unique()
        first = [index[clip, frame].tolist().index(number) for number in there]
        expected = weight[clip, frame, first] @ entities[there] / weight[clip, frame, first].sum()
        torch.testing.assert_close(pooled("weighed")[clip, frame], expected)
    assert not torch.equal(pooled("random"), pooled("random"))
    for case in CASES.values():
        experiment.build(case.changes)


def test_the_tool_alone_is_told_among_labels_of_the_same_actor_and_motion(
    small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a model that answers with the label of an actor, a motion and a tool."""
    experiment = Experiment(parse([*LEVEL_2, *small]), [1])
    seen = experiment.look(0)
    texts = seen.unseen_texts
    assert texts.by_tool.shape == (40, 20, 64)
    model, label = experiment.build({}).eval(), torch.arange(40)
    assert torch.equal(seen.unseen.label, label)
    torch.testing.assert_close(texts.by_tool[label, label // 2], texts.classes)
    monkeypatch.setattr(model, "answer", lambda pooled, frames: pooled.mean(1))

    def told(answers: torch.Tensor) -> list[float]:
        monkeypatch.setattr(experiment, "pooled", lambda *_: answers[:, None])
        found = experiment.test(model, CASES["entities"], label, seen.unseen, texts)
        return [found[kind] for kind in ("", ", tool", ", tool alone", ", tool alone, untrained")]

    assert told(texts.classes) == [1, 1, 1, 1]
    assert told(texts.by_tool[label, (label // 2 + 1) % 20])[2:] == [0, 0]


def test_actor_and_motion_nearly_name_a_class() -> None:
    """What docs/motion_shapes.md says: whoever knows them and no tool can be right about 80 % of the classes."""
    for triples in (level2.TRAINED, level2.UNSEEN):
        assert len({triple[:2] for triple in triples}) == 0.8 * len(triples)


def test_level_3_is_compared_with_level_2(small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "level_2.jsonl"
    there = ({"case": "frame", "seed": seed, **dict.fromkeys(COMPARED, 0.4 + 0.2 * seed)} for seed in (0, 1))
    other.write_text("".join(f"{json.dumps(row)}\n" for row in there))
    level = ["--data.shapes.level=3", f"--data.root={tmp_path / 'data'}"]
    out = ["--seeds", "2", "--rows", "frame", "--shots", "--out", str(tmp_path / "rows.jsonl"), "--beside"]
    assert main([*out, str(other), "--", *small, *level]) == 0
    told = capsys.readouterr().out.splitlines()[-len(COMPARED) :]
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    for line, column in zip(told, COMPARED, strict=True):
        gain = 50 * sum(row[column] for row in rows) - 50
        assert line.startswith(f"| frame tokens | {column} | 50.0 ± 14.1 |")
        assert f" | {gain:+.1f} | 2 | " in line
    assert main([*out, str(tmp_path / "nothing"), "--", *small, *level]) == 2
    assert "nothing holds no rows" in capsys.readouterr().err
    assert main([*out, str(other), "--", *small, "--data.shapes.level=1", f"--data.root={tmp_path / 'one'}"]) == 2
    assert "level 1 has no tools" in capsys.readouterr().err


def test_gains_are_paired_by_seed() -> None:
    here = [{"case": "frame", "seed": seed, **dict.fromkeys(COMPARED, x)} for seed, x in enumerate((0.5, 0.6, 0.9))]
    beside = [{"case": "frame", "seed": seed, **dict.fromkeys(COMPARED, x)} for seed, x in ((2, 0.8), (1, 0.4))]
    line = compared(here, beside, ["frame", "oracle"], range(3)).splitlines()[-1]
    assert line == "| frame tokens | unseen, tool alone | 60.0 ± 28.3 | 75.0 ± 21.2 | +15.0 | 2 | 0.2 |"


def test_a_tower_that_trains_along_starts_as_the_frozen_one_and_moves(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    along = Experiment(parse([*LEVEL_2, *small, "--model.tuning=finetune", "--optim.epochs=3"]), [1])
    clips = along.look(4)
    assert isinstance(clips.train, Videos)
    assert along.look(0) is clips  # they depend on no r
    model = along.build({}).eval()
    tokens = Experiment(parse([*LEVEL_2, *small]), [1]).look(4)
    for seen in ("train", "test", "unseen", "few_shot"):
        own, frozen = getattr(clips, seen), getattr(tokens, seen)
        torch.testing.assert_close(own.seen(model).tokens, frozen.tokens)
        assert torch.equal(own.truth, frozen.truth)
        assert torch.equal(own.label, frozen.label)
    for name in ("permuted", "oracle"):
        model = along.build({})
        tower = model.encoder.visual.state_dict()  # shares memory with the weights
        before = {part: value.clone() for part, value in tower.items()}
        order = torch.randperm(len(model.corpus or ()))
        along.train(model, CASES[name], order, clips.train, clips.trained_texts.classes, 3, 0)
        assert not any(torch.equal(value, before[part]) for part, value in tower.items())
    out = ["--out", str(tmp_path / "rows.jsonl"), "--rows"]
    assert main([*out, "true-regions", "true-choice", "oracle", "--", "--model.tuning=finetune"]) == 2
    assert "rows true-regions, true-choice need a frozen tower, not tuning 'finetune'" in capsys.readouterr().err
    job = parse([*LEVEL_2, *small, "--model.tuning=finetune"])
    assert set(CASES) - set(rows_of(None, job)) == {"true-regions", "true-choice"}
    assert rows_of(None, parse([*LEVEL_2, *small])) == list(CASES)
    asked = [*out, "random", "--seeds", "1", "--", *small, "--model.tuning=finetune"]
    assert main(["--shots", *asked]) == main(["--shots", *asked]) == main(asked) == 0
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert ["1-shot" in row for row in rows] == [False, True]  # measured again for the columns it lacked


def test_the_letter_differs_from_the_defaults_where_the_docs_say_so() -> None:
    """The defaults are the paper's but for what the table of docs/protocols.md tells to pass."""
    text = (Path(__file__).parents[2] / "docs" / "protocols.md").read_text(encoding="utf-8")
    said = dict(re.findall(r"--model\.(\S+) (\w+)", text.split("## The paper, to the letter")[1]))
    differs = {name: value for name, value in LITERAL.items() if value != getattr(ModelConfig(), name)}
    assert differs == {name.replace("-", "_"): value == "true" for name, value in said.items()}
    assert len(said) == 2


def test_the_truth_is_that_of_the_labels(small: list[str]) -> None:
    experiment = Experiment(parse([*LEVEL_2, *small]), [1])
    seen = experiment.look(0)
    assert isinstance(seen.train, Tokens)
    assert isinstance(seen.unseen, Tokens)
    units = [entity.unit for entity in experiment.corpus.select(["object", "body", "scene"]).entities]
    assert seen.train.tokens.shape == (40, 2, 65, 64)
    assert seen.unseen.label.tolist() == list(range(40))
    tool, actor, scene, *lying = (units[number] for number in seen.unseen.truth[0].tolist())
    assert (tool, actor) == ("flute", "robot")
    assert scene.endswith(" background")
    assert set(lying) <= {"flute", *level2.LYING}
    assert len(set(seen.unseen.truth[:, 3:].ravel().tolist())) > 10
    assert seen.train.things.shape == (40, 2, 5, 64)
    assert seen.train.shown.shape == (40, 2, 64)
    there = seen.unseen.truth[:, None, None, :] == seen.unseen.shown[..., None]
    assert there.any(-1).all()  # no patch shows what is not in the video
    assert there.flatten(1, 2).any(1)[:, :3].float().mean(0).min() > 0.9  # few are too small to have most of a patch


def test_a_thing_is_the_mean_of_its_patches_and_a_region_what_it_shows_most_of() -> None:
    """Four patches of 2 x 2 pixels: the thing fills the last one and half of the third, and both are one token."""
    mask = np.array([[0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 1, 1]], np.float32)
    frame = [Thing({}, 1 - mask), Thing({}, mask), Thing({}, np.zeros_like(mask))]  # the last one cannot be seen
    tokens = torch.randn(1, 4, 8)  # of the frame, and three regions
    _, first, second, both = tokens[0]
    things, shown = pool_things([frame], tokens, torch.tensor([[1, 2, 3, 3]]), (2, 2))
    background = (first + second + 0.5 * both) / 2.5
    torch.testing.assert_close(things[0], torch.stack([background, both, *[background] * 3]))
    assert shown.tolist() == [[0, 0, 1]]
    things, _ = pool_things([frame], tokens, torch.tensor([[1, 1, 2, 3]]), (2, 2))
    torch.testing.assert_close(things[0, 1], (0.5 * second + both) / 1.5)


def test_the_table_and_its_tests_are_over_seeds() -> None:
    numbers = {"entities": [0.5, 0.6, 0.7], "permuted": [0.2, 0.2, 0.4], "learned": [0.6, 0.5, 0.7]}
    rows = [
        {"case": case, "seed": seed, **dict.fromkeys(ZERO_SHOT, value)}
        for case, values in numbers.items()
        for seed, value in enumerate(values)
    ]
    assert "| names permuted | 26.7 ± 11.5 |" in table(rows, ["permuted"], range(3), [])
    lines = hypotheses(rows, range(3)).splitlines()
    assert "| C3: entities of regions > names permuted | unseen | +33.3 | 3 | 0.0049 |" in lines
    assert "| C3: entities of regions > learned queries | unseen | +0.0 | 3 | 0.5 |" in lines
    assert len(lines) == 4  # hypotheses without both rows have no line
    shipped = [{**row, "case": "annealed"} for row in rows if row["case"] == "entities"]
    shipped += [{**row, "case": "permuted-annealed"} for row in rows if row["case"] == "permuted"]
    told = "| as shipped: C3: tau from 1 to 0.05 >"
    assert hypotheses([*rows, *shipped], range(3)).splitlines() == [
        *lines,
        f"{told} learned queries | unseen | +0.0 | 3 | 0.5 |",
        f"{told} names permuted, tau from 1 to 0.05 | unseen | +33.3 | 3 | 0.0049 |",
    ]
    again = [{**row, "case": case} for row in rows for case in CASES if case == f"no-shortcut-{row['case']}"]
    again += [{**row, "case": "no-shortcut"} for row in rows if row["case"] == "entities"]
    added = hypotheses([*rows, *again], range(3)).splitlines()
    assert added[:4] == lines
    told = "| added afterwards: C3: without the shortcut >"
    assert added[4:] == [
        f"{told} learned queries, without the shortcut | unseen | +0.0 | 3 | 0.5 |",
        f"{told} names permuted, without the shortcut | unseen | +33.3 | 3 | 0.0049 |",
    ]
