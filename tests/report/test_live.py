"""The page that shows what is being recognised: who may see it, that it is text, and that it works in a browser."""

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from PIL import Image

from alt_fast.errors import ArgumentError
from alt_fast.report.live import LivePage
from tests.browser import look, needs_browser

NAME = "</script><b>rtsp://camera</b>"
LABELS = [("<b>surfing</b>", 0.75), ("diving", 0.25)]
DRAWN = {
    "grid": (2, 3),
    "regions": [1, 1, 2, 1, 1, 2],
    "tokens": ["sea", "<i>board</i>", "sea"],
    "entities": [("sea", 2 / 3), ("<i>board</i>", 1 / 3)],
}


@contextlib.contextmanager
def served(host: str | None = None) -> Iterator[LivePage]:
    threads = set(threading.enumerate())
    with LivePage(0, host, NAME) as page:
        yield page
    assert set(threading.enumerate()) <= threads


def get(page: LivePage, path: str, host: str | None = None) -> http.client.HTTPResponse:
    """What is answered; the caller closes it."""
    connection = http.client.HTTPConnection("127.0.0.1", int(page.address.split(":")[2].split("/")[0]), timeout=20)
    connection.request("GET", path, headers={} if host is None else {"Host": host})
    return connection.getresponse()


def next_event(answer: http.client.HTTPResponse) -> Any:
    """The next one that holds something."""
    while not (line := answer.readline()).startswith(b"data: "):
        assert line, "the events ended"
    return json.loads(line[6:])


def test_the_page_needs_nothing_from_elsewhere_and_is_text() -> None:
    with served() as page, get(page, "/") as answer:
        text = answer.read().decode()
        headers = dict(answer.getheaders())
    assert "http" not in text
    assert NAME not in text
    assert "the model has no corpus, or CLIP alone judges" in text  # where no region is aligned
    assert json.loads(text.partition('id="data">')[2].partition("</script>")[0]) == {"source": NAME}
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; connect-src 'self'; img-src data:;")
    assert (headers["Cache-Control"], headers["Referrer-Policy"]) == ("no-store", "no-referrer")


def test_events_tell_what_was_judged_and_how_it_goes() -> None:
    looks = []

    def seen() -> tuple[dict[str, Any], Image.Image]:
        looks.append(1)
        return DRAWN, Image.new("RGB", (900, 600))

    with served() as page:
        page.show(1.5, LABELS, seen)
        assert not looks  # nobody is there
        with get(page, "/events") as answer:
            assert answer.getheader("Content-Type") == "text/event-stream"
            assert next_event(answer) == {"past": [[1.5, [list(pair) for pair in LABELS]]]}
            page.tell("latency 40 ms")
            assert next_event(answer) == {"status": "latency 40 ms"}
            page.show(2.0, LABELS, seen)
            told = next_event(answer)
            assert told["picture"].startswith("data:image/jpeg;base64,")
            assert (told["time"], told["regions"], len(looks)) == (2.0, DRAWN["regions"], 1)


def test_a_status_said_at_once_replaces_no_judgement() -> None:
    """However late the thread that sends them wakes."""
    with served() as page, get(page, "/events") as answer:
        next_event(answer)
        for number in range(5):
            page.show(float(number), LABELS, lambda: (DRAWN, Image.new("RGB", (60, 40))))
            page.tell(f"latency {number} ms")
            assert next_event(answer)["time"] == number
            assert next_event(answer) == {"status": f"latency {number} ms"}


def test_a_page_on_this_machine_answers_to_no_other_name() -> None:
    """Else a web page could read it, once its own name leads to this machine."""
    with served() as page:
        assert page.address.startswith("http://127.0.0.1:")
        for path, host, status in [
            ("/", None, 200),
            ("/", "localhost:8000", 200),
            ("/", "evil.example", 404),
            ("/events", "127.0.0.1.evil.example:80", 404),
            ("/../secret", None, 404),
        ]:
            with get(page, path, host) as answer:
                assert answer.status == status, (path, host)


def test_another_host_needs_the_token() -> None:
    with served("0.0.0.0") as other:
        assert other.token is not None
    with served("0.0.0.0") as page:
        assert page.token is not None
        assert len(page.token) > 30
        assert page.token != other.token
        assert page.address.endswith(f"/{page.token}/")
        assert not page.address.startswith("http://0.0.0.0")  # which a browser elsewhere would take for its own machine
        with urlopen(page.address, timeout=20) as answer:
            assert answer.status == 200
        for path, status in [
            (f"/{page.token}/", 200),
            (f"/{page.token}/events", 200),
            (f"/{page.token}", 404),
            (f"/{other.token}/", 404),
            ("/", 404),
            ("/events", 404),
        ]:
            with get(page, path, "camera.example") as answer:
                assert answer.status == status, path


def test_a_browser_that_is_gone_is_forgotten() -> None:
    with served() as page:
        with get(page, "/events") as answer:
            next_event(answer)
        for _ in range(1000):
            page.tell("still here")
            if not page.watched:
                break
            threading.Event().wait(0.01)
        assert not page.watched


def test_what_cannot_be_served() -> None:
    with served() as page:
        port = int(page.address.split(":")[2].rstrip("/"))
        with pytest.raises(ArgumentError, match=rf"cannot be served on 127\.0\.0\.1, port {port}: .*in use"):
            LivePage(port, None, NAME)
    with pytest.raises(ArgumentError, match="cannot be served on nonsense.invalid, port 0"):
        LivePage(0, "nonsense.invalid", NAME)
    with pytest.raises(ArgumentError, match=r"the page cannot be served on a\.\.b, port 0"):
        LivePage(0, "a..b", NAME)
    with pytest.raises(ArgumentError, match="in 0 ... 65535, got 70000"):
        LivePage(70000, None, NAME)


@needs_browser
def test_in_a_browser(tmp_path: Path) -> None:
    """Without errors; labels and entities are text; regions are drawn; it fits a phone."""
    with served() as page, get(page, "/") as answer:
        (tmp_path / "page.html").write_bytes(answer.read())
    blank = "data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' width='60' height='40'></svg>"
    judged = DRAWN | {"time": 3.0, "labels": LABELS, "picture": blank}
    probe = f"""
const tell = (told) => events.onmessage({{data: JSON.stringify(told)}});
tell({{past: [[1, {json.dumps(LABELS)}], [2, [["diving", 0.5]]]]}});
tell({{status: "latency 40 ms"}});
const seen = {{status: byId("status").textContent}};
tell({json.dumps(judged)});
seen.rows = [...document.querySelectorAll(".row")].map((row) => row.textContent);
seen.legend = byId("legend").textContent;
seen.markup = document.querySelectorAll("b, #entities i i").length;
seen.past = past.length;
image.onload = () => {{
  drawPicture();
  const canvas = byId("picture");
  seen.sizes = [canvas.width, canvas.height];
  const pixel = (x, y) => [...canvas.getContext("2d").getImageData(x, y, 1, 1).data];
  seen.painted = pixel(60, 60)[3] > 0;
  byId("paint").click();
  seen.bare = pixel(60, 60)[3] === 0;
  seen.title = byId("title").textContent;
  events.onerror();
  seen.lost = byId("status").textContent;
  seen.wide = document.documentElement.scrollWidth > innerWidth;
  seen.errors = window.failures;
  document.body.replaceChildren(JSON.stringify(seen));
}};
"""
    assert look(tmp_path / "page.html", probe, tmp_path) == {
        "status": "latency 40 ms",
        "rows": ["<b>surfing</b>75.0 %", "diving25.0 %", "sea66.7 %", "<i>board</i>33.3 %"],
        "legend": "<b>surfing</b>divingfrom 1.0 s to 3.0 s",
        "markup": 0,
        "past": 3,
        "sizes": [448, 448 * 2 / 3 // 1],
        "painted": True,
        "bare": True,
        "title": NAME,
        "lost": "not connected: the command has ended, or cannot be reached",
        "wide": False,
        "errors": [],
    }
