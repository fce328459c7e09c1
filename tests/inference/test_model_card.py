"""What a card says of the queries, and of what tokens align to, is what was measured."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from alt_fast.errors import FileError
from alt_fast.inference.model_card import model_card
from alt_fast.inference.trained import load

FOUND = {
    "videos": 640,
    "top1": 0.969,
    "shuffled_top1": 0.156,
    "mean_query_top1": 0.0251,
    "used": True,
    "shuffled_error": 0.0154,
    "permuted_entities_top1": 0.27,
    "random_entities_top1": 0.458,
    "entities": 4125,
    "entities_used": 1077,
    "frame_accuracy": {"all": 0.8153, "object": 0.808},
    "region_accuracy": {"all": 0.9218, "object": 0.874, "scene": 1.0},
}


@pytest.fixture
def said(trained_run: Path, tmp_path: Path) -> Any:
    """What the card of the small run says of its queries when the probe has found this."""
    trained = load(trained_run)
    for name in ("config.yaml", "environment.json"):
        shutil.copy(trained_run / name, tmp_path)
    metrics = json.loads((trained_run / "metrics.json").read_text())

    def lines(found: dict[str, Any]) -> list[str]:
        (tmp_path / "metrics.json").write_text(json.dumps({**metrics, "alignment": found}))
        measured = model_card(trained, tmp_path).partition("## Measured")[2].partition("One view of every video")[0]
        return [line for line in measured.splitlines() if line and not line.startswith("|")]

    return lines


def test_queries_entities_and_what_they_are_true_of(said: Any) -> None:
    assert said(FOUND) == [
        "The model uses its queries: on 640 videos top-1 is 96.9 %, with the queries of other videos 15.6 % (standard "
        "error of the difference 1.5 points), with those of the mean 2.5 %.",
        "With entities that changed places it is 27.0 %, with entities at random 45.8 %; 1,077 of 4,125 entities are "
        "used.",
        "What frames align to is true of what they show, by category of entity: all 81.5 %, object 80.8 %.",
        "What regions align to is true of what they show, by category of entity: all 92.2 %, object 87.4 %, scene "
        "100.0 %.",
    ]


@pytest.mark.parametrize(
    ("used", "start"),
    [
        (False, "The model does not use its queries: on 640 videos top-1 is "),
        (None, "640 videos are too few to tell whether the model uses its queries: on 640 videos top-1 is "),
    ],
)
def test_queries_that_are_not_used_or_may_be(used: bool | None, start: str, said: Any) -> None:
    assert said({**FOUND, "used": used})[0].startswith(start)


def test_learned_queries_are_those_of_all_videos(said: Any) -> None:
    found = {name: FOUND[name] for name in ("videos", "top1", "shuffled_top1", "mean_query_top1")}
    assert said(found) == [
        "Its queries are learned and the same for all videos: on 640 videos top-1 is 96.9 %, with those of the mean "
        "2.5 %."
    ]


def test_rates_are_those_of_the_steps_and_a_tower_that_stays_is_frozen(trained_run: Path, tmp_path: Path) -> None:
    for name in ("config.yaml", "environment.json", "metrics.json"):
        shutil.copy(trained_run / name, tmp_path)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    config["optim"] |= {"lr": 1e-3, "backbone_lr": 1e-4, "batch_size": 4, "scale_from": 64}
    for tuning, tower in (("finetune", "6.25e-06"), ("s", "frozen"), ("frozen", "frozen")):
        config["model"]["tuning"] = tuning
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        assert f"learning rates 6.25e-05, image tower {tower};" in model_card(load(trained_run), tmp_path)


def test_files_that_no_run_wrote_are_an_error(trained_run: Path, tmp_path: Path) -> None:
    trained = load(trained_run)
    for name, text, missing in (
        ("metrics.json", "{}", "unreadable"),
        ("config.yaml", "data: {}\nmodel: {}\noptim: {}\n", "generate"),
        ("config.yaml", "data:\nmodel:\noptim:\n", "NoneType"),
    ):
        for file in ("config.yaml", "environment.json", "metrics.json"):
            shutil.copy(trained_run / file, tmp_path)
        (tmp_path / name).write_text(text)
        with pytest.raises(FileError, match=rf"cannot read {tmp_path}: .* is not what alt-fast wrote \(.*{missing}"):
            model_card(trained, tmp_path)


def test_a_run_without_readable_videos_says_nothing_of_them(said: Any) -> None:
    assert said({"videos": 0}) == []
