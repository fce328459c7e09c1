"""The page of a test: its numbers, and that it works in a browser."""

from pathlib import Path
from urllib.parse import unquote

import pytest
import torch

from alt_fast.data.config import Loading
from alt_fast.distributed import World
from alt_fast.evaluate import main
from alt_fast.inference.alignment import use_text
from alt_fast.inference.assess import AssessmentOptions, TestedList, ladder
from alt_fast.inference.lists import run_lists
from alt_fast.inference.scoring import EvalConfig, evaluate
from alt_fast.inference.statistics import calibration, confusion, per_class
from alt_fast.inference.trained import load
from tests.browser import data_of, look, needs_browser

SCORES = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.55, 0.45, 0.0], [0.0, 0.95, 0.05]])
LABELS = torch.tensor([0, 0, 0, 1])


def test_classes_and_confusions() -> None:
    first, second, third = per_class(SCORES, LABELS, ["a", "b", "c"])
    assert first == {"name": "a", "videos": 3, "top1": 2 / 3, "precision": 1.0, "taken_for": "b"}
    assert second == {"name": "b", "videos": 1, "top1": 1.0, "precision": 0.5, "taken_for": ""}
    assert (third["videos"], third["top1"], third["precision"]) == (0, None, None)
    assert confusion(SCORES, LABELS) == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_calibration_is_the_expected_error() -> None:
    """Bins 0.5, 0.8 and 0.9 (of two videos, 0.9 and 0.95, both right)."""
    found = calibration(SCORES, LABELS)
    assert [entry["videos"] for entry in found["bins"]] == [1, 1, 2]
    assert found["error"] == pytest.approx((0.45 + 0.8 + 2 * 0.075) / 4)
    assert calibration(torch.eye(3), torch.arange(3))["error"] == 0


def test_costs_are_those_of_who_scores(trained_run: Path) -> None:
    """CLIP's own head aligns and decodes nothing."""
    trained = load(trained_run)
    (_, videos, names), *_ = run_lists(trained_run, trained)
    classes = trained.embed(names)
    gflops = {}
    for head in ("alt", "clip", "both"):
        testing = EvalConfig(2, loading=Loading(workers=0), head=head)
        result = evaluate(trained.model, videos[:2], trained.spec, classes, testing)
        options = AssessmentOptions(testing, (), 0, trained_run, World())
        (row,) = ladder(TestedList(videos[:2], names, classes, result), trained, options)
        gflops[head] = row["gflops"]
    assert gflops["clip"] < gflops["alt"] <= gflops["both"]


@pytest.fixture(scope="module")
def page(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    data = trained_run.parent / "data"
    lines = (data / "test.txt").read_text().splitlines()
    (folder / "list.txt").write_text("\n".join([*lines, "<b>gone.webm 0"]) + "\n")
    command = ["--checkpoint", str(trained_run), "--list", str(folder / "list.txt"), "--root", str(data)]
    command += ["--workers", "0", "--report", str(folder / "out #1.html"), "--probe-alignment", "--interpolate", "0"]
    assert main([*command, "--also-r", "0", "4", "--explain", "2"]) == 1  # a video is not there
    return folder / "out #1.html"


def test_the_page_holds_what_was_measured(
    page: Path, trained_run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (found,) = data_of(page)["lists"]
    assert found["row"]["videos"] == 37
    assert len(found["row"]["unreadable"]) == 1
    assert sum(map(sum, found["confusion"])) == 36
    right = sum(found["confusion"][i][i] for i in range(36))
    assert found["row"]["top1"] == pytest.approx(right / 37)
    assert found["uses"] == use_text(found["row"]["alignment"])
    unmerged, merged = found["ladder"]
    wrong = merged["mistakes"]
    assert len(wrong) == 36 - right > 2
    confidences = [mistake["confidence"] for mistake in wrong]
    assert confidences == sorted(confidences, reverse=True)
    assert list(found["pages"]) == [mistake["path"] for mistake in wrong[:2]]
    explained = [page.parent / unquote(address) for address in found["pages"].values()]
    assert [path.relative_to(page.parent) for path in explained] == [
        Path("out #1-explain/1-list") / name for name in ("000.html", "001.html")
    ]
    assert [(row["r"], row["own"]) for row in found["ladder"]] == [("0", False), ("4", True)]
    assert unmerged["gflops"] > merged["gflops"] > 0
    assert merged["top1"] == found["row"]["top1"]
    assert unmerged["ms"] > 0
    assert len(unmerged["mistakes"]) == 37 - 1 - round(37 * unmerged["top1"])
    for mistake in wrong:
        assert found["confusion"][mistake["label"]][mistake["predicted"]] > 0
    views = data_of(explained[0])["views"]
    assert [view["r"] for view in views] == ["0", "4"]
    assert views[1]["labels"][0][0] == found["names"][wrong[0]["predicted"]]
    capsys.readouterr()
    bare = ["--checkpoint", str(trained_run), "--list", str(page.parent / "list.txt"), "--workers", "0"]
    for options, message in [
        (["--also-r", "0"], "name it with --report FILE"),
        (["--report", str(tmp_path / "a.txt")], "--report must end in .html"),
        (["--report", str(tmp_path / "a.html"), "--also-r", "-1"], "r must be >= 0 in every layer"),
        (["--report", str(tmp_path / "a.html"), "--explain", "-1"], "--explain must be >= 0"),
    ]:
        assert main([*bare, *options]) == 2
        assert message in capsys.readouterr().err


@needs_browser
def test_in_a_browser(page: Path, tmp_path: Path) -> None:
    """Without errors; a heading sorts its table and turns it round; a pair shows its videos; names are text."""
    probe = """
const part = (title) => [...document.querySelectorAll("section")].find((one) => one.firstChild.textContent === title);
const classes = [...document.querySelectorAll("table")].find((table) => table.textContent.includes("precision"));
const column = () => [...classes.tBodies[0].rows].map((row) => row.cells[0].textContent);
const seen = {before: column(), bold: document.querySelectorAll("td b").length};
seen.links = [...document.links].map((link) => link.getAttribute("href"));
classes.tHead.querySelector("button").click();
seen.rising = column();
classes.tHead.querySelector("button").click();
seen.falling = column();
const canvas = document.querySelector("canvas"), box = canvas.getBoundingClientRect();
canvas.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + 1, clientY: box.bottom - 1}));
const wrong = part("Mistakes");
const listed = () => [...wrong.querySelectorAll("tbody tr")].map((row) => [1, 2].map((i) => row.cells[i].textContent));
seen.all = listed().length;
const pair = part("Worst confusions").querySelector("tbody tr");
seen.pair = [...pair.cells].map((cell) => cell.textContent);
pair.querySelector("button").click();
seen.chosen = listed();
wrong.querySelector("p button").click();
seen.again = listed().length;
classes.tBodies[0].querySelector("button").click();
seen.ofClass = listed();
part("Accuracy against cost").querySelector("tbody button").click();
seen.atZero = [wrong.querySelector("p span").textContent, listed().length];
seen.points = [...document.querySelectorAll("svg")].map((plot) => plot.querySelectorAll("circle").length);
seen.cell = canvas.nextSibling.textContent;
const many = document.createElement("div");
const refill = table(many, [{head: "n", key: "n", show: String}], Array.from({length: 301}, (_, n) => ({n})));
seen.many = [many.querySelectorAll("tbody tr").length, many.lastChild.textContent];
const reductions = document.createElement("div");
table(reductions, [{head: "r", key: "r"}], ["13", "0", "4"].map((r) => ({r})));
reductions.querySelector("button").click();
seen.tables = [...document.querySelectorAll("#lists table")].map((one) => [...one.rows].map((row) =>
  [...row.cells].map((cell) => cell.textContent)));
seen.reductions = [...reductions.querySelectorAll("td")].map((cell) => cell.textContent);
refill([]);
seen.none = many.lastChild.textContent;
seen.text = document.querySelector(".scores").textContent;
seen.uses = part("Alignment").querySelector("p").textContent;
seen.wide = document.documentElement.scrollWidth > innerWidth;
seen.errors = window.failures;
document.body.replaceChildren(JSON.stringify(seen));
"""
    seen = look(page, probe, tmp_path)
    (found,) = data_of(page)["lists"]
    assert seen["errors"] == []
    assert seen["before"] == found["names"]
    assert seen["rising"] == sorted(found["names"])
    assert seen["falling"] == sorted(found["names"], reverse=True)
    assert seen["bold"] == 0
    assert seen["links"] == [f"out%20%231-explain/1-list/{name}" for name in ("000.html", "001.html")]
    assert seen["cell"] == f"{found['names'][-1]} taken for {found['names'][0]}: {found['confusion'][-1][0]} videos"
    assert f"top-1 {100 * found['row']['top1']:.1f} %" in seen["text"]
    label, predicted, count, _ = seen["pair"]
    assert int(count) == max(found["confusion"][i][j] for i in range(36) for j in range(36) if i != j)
    assert seen["chosen"] == [[label, predicted]] * int(count)
    unmerged, merged = (row["mistakes"] for row in found["ladder"])
    assert seen["all"] == seen["again"] == len(merged)
    assert seen["atZero"] == [f"{len(unmerged)} at r = 0. ", len(unmerged)]
    first = found["names"].index(seen["falling"][0])  # the table was turned round
    assert len(seen["ofClass"]) == sum(found["confusion"][first]) - found["confusion"][first][first]
    assert seen["points"] == [2, 2]
    assert [row for table in seen["tables"] for row in table if "" in row[:-1] or "undefined" in row] == []
    assert seen["tables"][0] == [["video", "cause"], [found["row"]["unreadable"][0]["path"], "no such file"]]
    assert len(seen["tables"]) == 7
    alignment, probed = found["row"]["alignment"], dict(seen["tables"][1][1:])
    assert seen["uses"] == found["uses"]
    assert probed["shuffled top1"] == f"{100 * alignment['shuffled_top1']:.1f} %"
    assert probed["entities"] == str(alignment["entities"])
    assert float(probed["margin"]) == pytest.approx(alignment["margin"], rel=0.005)
    by_category = {f"region accuracy {name}" for name in alignment["region_accuracy"]}
    assert {name for name in probed if name.startswith("region accuracy ")} == by_category
    assert "used" not in probed  # it is said in words
    share, trained, clip = seen["tables"][2]
    assert (share[0], trained[:2], clip[0]) == (
        "share of the trained tower",
        ["1", f"{100 * found['row']['top1']:.1f} %"],
        "0",
    )
    assert seen["many"] == [300, "300 of 301: sort or choose to see the others."]
    assert seen["none"] == "None."
    assert seen["reductions"] == ["0", "4", "13"]
    assert not seen["wide"]
