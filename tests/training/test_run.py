"""What a job says before it trains: of a choice that chance makes, and of a corpus that is not its data's."""

from pathlib import Path

import pytest
import torch

from alt_fast.corpus import Corpus
from alt_fast.data.config import AugmentConfig
from alt_fast.distributed import World
from alt_fast.errors import RunError
from alt_fast.inference.trained import TrainedModel, save_model
from alt_fast.model.alignment import certainty
from alt_fast.training.config import parse
from alt_fast.training.job import Job, Lists
from alt_fast.training.run import load_corpus, single_view, warn_of_chance
from tests.conftest import SMALL_LABELS, few_blocks, small_alt


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        ({"tau": 1.0}, True),
        ({"tau": 1e-3}, False),
        ({"tau": 1.0, "noise": False}, False),
        ({"query": "learned"}, False),
    ],
    ids=["tau = 1", "a low tau", "no noise", "no entities"],
)
def test_a_choice_that_noise_decides_is_told(
    options: dict[str, object], warned: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = small_alt(**options)
    lists = Lists([], [], [], [], [])
    warn_of_chance(Job(parse([]), tmp_path, torch.device("cpu"), lists, model.corpus, None, World()), model)
    said = capsys.readouterr().out
    if not warned:
        assert said == ""
        return
    assert model.corpus is not None
    sure = certainty(model.alignment.entities, 1.0)
    assert sure < 0.5
    assert f"with tau = 1, {len(model.corpus)} entities and noise, a token equal to an entity chooses it in " in said
    assert f"chooses it in {100 * sure:.2g} % of steps. A lower model.tau makes the choice surer" in said


def test_the_corpus_of_generated_videos_is_that_of_their_level(tmp_path: Path) -> None:
    for level, own, other in ((1, "motion_shapes", "motion_shapes_2"), (2, "motion_shapes_2", "motion_shapes")):
        options = ["--data.shapes.level", str(level), "--corpus"]
        with pytest.raises(
            RunError, match=rf"^corpus {other} is not that of level {level}: take --config motion_shapes_2"
        ):
            load_corpus(parse([*options, other]))
        corpus = load_corpus(parse([*options, own]))
        assert corpus == Corpus.load(own)
        corpus.save(tmp_path / "own.json")
        assert load_corpus(parse([*options, str(tmp_path / "own.json")])) == corpus  # one's own may be of anything
    listed = ["--data.generate", "null", "--data.train", "a.csv"]
    assert load_corpus(parse([*listed, "--corpus", "motion_shapes_2"])) == Corpus.load("motion_shapes_2")
    with pytest.raises(RunError, match=r"name the text corpus: --corpus FILE \(or --model.query learned"):
        load_corpus(parse([*listed, "--corpus", "null"]))
    assert load_corpus(parse([*listed, "--model.query", "learned"])) is None


def test_each_process_tests_as_many_clips_at_once_as_it_trains_on(tmp_path: Path) -> None:
    config = parse(["--optim.batch_size", "48", "--optim.accumulate", "3"])
    lists = Lists([], [], [], [], [])
    for processes, expected in ((1, 16), (8, 2)):
        job = Job(config, tmp_path, torch.device("cpu"), lists, None, None, World(size=processes))
        assert single_view(job).batch_size == expected


def test_categories_that_an_earlier_run_left_out_need_its_corpus(tmp_path: Path) -> None:
    model = small_alt(categories=["object", "scene"])
    save_model(tmp_path / "first.safetensors", TrainedModel(model, SMALL_LABELS, ["{}"], AugmentConfig()))
    listed = ["--data.generate", "null", "--data.train", "a.csv", "--pretrain", "null", "--model.pretrained", "null"]
    start = [*listed, "--start_from", str(tmp_path / "first.safetensors"), "--corpus", "null", "--model.categories"]
    with few_blocks():
        assert load_corpus(parse([*start, '["object"]'])) == model.corpus
        with pytest.raises(RunError, match=r"first\.safetensors kept no entity of category body, motion: name its"):
            load_corpus(parse([*start, '["object", "motion", "body"]']))
