"""What `alt-fast judge` says, in lines and on its page."""

import re
from pathlib import Path
from typing import Any

import pytest

from alt_fast.report.judgement import judgement_lines, sweep_lines, write_judgement
from tests.browser import data_of, look, needs_browser

ABOUT = {
    "model": "timm:<b>vit",
    "images": "2 images, 64 x 64 pixels, of </script>",
    "dtype": "float32",
    "weights": "random",
    "provenance": {"device": "AMD", "packages": {"torch": "2.13.0"}},
}


@pytest.fixture
def row() -> dict[str, Any]:
    """A method with a fault, raced twice, once in vain."""
    seconds = {"un-merged": [4.0, 4.0], "method": [2.0, 2.0], "dropped": [1.0, 1.0], "public code": [4.0, 4.0]}
    raced = {
        "mode": "inference",
        "batch": 8,
        "seconds": seconds,
        "memory": {"method": 2**21},
        "skipped": {},
        "uncaptured": {"method": "it waits"},
        "beside": {"public code": (0.9, 1.0, 1.1)},
        "speedup": (1.9, 2.0, 2.1),
        "ceiling": (3.9, 4.0, 4.1),
        "share": (0.49, 0.5, 0.51),
        "flop_ratio": 1.25,
    }
    nothing = {"speedup": None, "ceiling": None, "share": None}
    failed = {**raced, **nothing, "mode": "training", "seconds": {}, "skipped": {"method": "RuntimeError: <i>"}}
    failed |= {"memory": {}, "uncaptured": {}, "beside": {}}
    return {
        "method": "mine:<b>patch",
        "r": 8,
        "tokens": {"attention": (17, 9), "mlp": (9, 5)},
        "flop_ratio": 1.25,
        "agreement": {"cosine": 0.99, "cosine_min": 0.9, "max_difference": 0.5, "same_top1": 0.75},
        "beside": {"public tome": {"cosine": 0.98, "cosine_min": 0.8, "max_difference": 0.6, "same_top1": 0.5}},
        "properties": {"deterministic": "yes", "gradients": "none for 2 parameters"},
        "faults": [{"name": "state", "seen": "after other images", "what": "it remembers"}],
        "races": [raced, failed],
        "verdict": {"possible": False, "text": "a speed-up of 9 is impossible here"},
    }


def test_lines_say_all_of_it(row: dict[str, Any]) -> None:
    assert list(judgement_lines(row)) == [
        "mine:<b>patch, r = 8: 17 tokens at first, 5 at last",
        "  FLOPs       x 1.250, counted",
        "  agreement   cosine 0.9900 (least 0.9000), largest difference 0.5, top-1 75% the same",
        "  public tome: cosine 0.9800 (least 0.8000), largest difference 0.6, top-1 50% the same",
        "  inference, batch 8                x 2.00 (1.90 to 2.10)   ceiling 4.00   50% of it   public code x 1.00"
        "   method 2 MiB   method without a CUDA graph: it waits",
        "  training, batch 8                 not measured   method did not run: RuntimeError: <i>",
        "  deterministic: yes; gradients: none for 2 parameters",
        "  FAULT state: it remembers (after other images)",
        "  a speed-up of 9 is impossible here",
    ]
    assert "  no fault found" in judgement_lines({**row, "faults": [], "verdict": None})
    refused = {"method": "evit", "r": 8, "refused": "ArgumentError: no class token"}
    assert list(judgement_lines(refused)) == ["evit, r = 8: not judged: ArgumentError: no class token"]


def settings() -> list[dict[str, Any]]:
    """Two settings, the slower of which agrees better, and one that both beat."""
    points = [(1.2, 0.99), (1.5, 0.95), (1.1, 0.94)]
    return [
        {
            "method": f"method {i}",
            "r": 8,
            "flop_ratio": 1.5,
            "speedup": (speed - 0.1, speed, speed + 0.1),
            "agreement": {"cosine": cosine, "cosine_min": 0.5, "same_top1": 1.0},
        }
        for i, (speed, cosine) in enumerate(points)
    ]


def test_a_sweep_is_a_table_fastest_first_with_the_front_marked() -> None:
    _, *lines, last = sweep_lines(settings(), [1, 0])
    assert [line[:10] for line in lines] == ["* method 1", "* method 0", "  method 2"]
    assert lines[0].split()[3:] == ["8", "1.500", "1.50", "1.40", "to", "1.60", "0.9500", "0.5000", "100%"]
    assert last.startswith("* faster than the model, and no other setting is as fast and agrees as well")


def test_the_page_holds_the_numbers_and_nothing_from_elsewhere(row: dict[str, Any], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    write_judgement(page, ABOUT, [row], settings(), [1, 0])
    found = data_of(page)
    assert found["rows"][0]["races"][0]["speedup"] == [1.9, 2.0, 2.1]
    assert (len(found["sweep"]), found["front"]) == (3, [1, 0])
    text = page.read_text().replace("http://www.w3.org/2000/svg", "")  # a name, no address
    assert not re.search(r"""(src|href)=["']?(?!data:)|https?://|url\(|@import""", text)


@needs_browser
def test_in_a_browser(row: dict[str, Any], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    write_judgement(page, ABOUT, [row], settings(), [1, 0])
    seen = look(
        page,
        """
        const cells = (row) => [...row.cells].map((cell) => cell.textContent);
        const seen = {failures, title: byId("title").textContent, text: byId("judgements").innerText};
        seen.settings = [...byId("settings").rows].map(cells);
        seen.front = [...document.querySelectorAll("tr.front")].length;
        seen.circles = byId("plot").querySelectorAll("circle").length;
        seen.provenance = [...byId("provenance").rows].map(cells);
        seen.wide = document.documentElement.scrollWidth > innerWidth;
        document.body.textContent = JSON.stringify(seen);
        """,
        tmp_path,
    )
    assert seen["failures"] == []
    assert seen["title"] == "timm:<b>vit"
    for words in ("mine:<b>patch, r = 8", "state: it remembers (after other images)", "x 2.00, 50.0 % of the ceiling"):
        assert words in seen["text"]
    assert [row[0] for row in seen["settings"]] == ["method 1", "method 0", "method 2"]
    assert seen["front"] == 2
    assert seen["circles"] == 3 + 3  # settings, and the legend
    assert ["packages", "torch 2.13.0"] in seen["provenance"]
    assert not seen["wide"]
