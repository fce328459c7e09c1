"""Models that encoder races share: built once, of the same weights, and held to each other."""

import pytest
import torch

from benchmarks.encoders import Encoders
from benchmarks.peers import DROPPED, MERGED, OURS, PLAIN, PUBLISHED
from benchmarks.session import Once

NAME = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def encoders() -> Encoders:
    return Encoders(Once(), "cpu", torch.float32)


def test_the_un_merged_model_is_shared_and_others_are_of_their_r(encoders: Encoders) -> None:
    assert encoders.racing(PLAIN, NAME, 8) is encoders.racing(PLAIN, NAME, 13)
    assert encoders.racing(OURS, NAME, 8) is encoders.racing(OURS, NAME, 8)
    assert encoders.racing(OURS, NAME, 8) is not encoders.racing(OURS, NAME, 13)
    assert encoders.racing(PLAIN, NAME, 8, compiled=True) is encoders.racing(PLAIN, NAME, 13, compiled=True)


def test_contestants_agree_as_far_as_they_compute_the_same(encoders: Encoders) -> None:
    found = encoders.agreement((PLAIN, PUBLISHED, DROPPED, OURS, MERGED), NAME, 8)
    assert found[OURS]["cosine_to_published"] > 0.9999
    assert found[MERGED]["cosine_to_published"] > 0.9999
    assert found[PLAIN]["max_logit_difference"] == 0
    assert found[DROPPED]["max_logit_difference"] > found[OURS]["max_logit_difference"] > 0
    assert found is encoders.agreement((PLAIN, PUBLISHED, DROPPED, OURS, MERGED), NAME, 8)


def test_a_race_in_another_dtype_leaves_the_model_it_was_made_of(encoders: Encoders) -> None:
    halves = Encoders(encoders.once, "cpu", torch.bfloat16)
    assert next(halves.racing(OURS, NAME, 8).parameters()).dtype == torch.bfloat16
    assert halves.racing(OURS, NAME, 8) is halves.racing(OURS, NAME, 8)
    assert next(encoders.racing(OURS, NAME, 8).parameters()).dtype == torch.float32
