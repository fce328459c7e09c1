"""A page that shows what is being recognised, served to browsers on this machine; to others only with a token."""

import ipaddress
import json
import secrets
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

from alt_fast.errors import ArgumentError
from alt_fast.report.page import data_uri, fill_page

LOOPBACK = "127.0.0.1"
WIDEST = 448  # pixels of the picture on the page
REMEMBERED = 240  # judgements that a page shows when it is opened
CHARTED = 5  # labels of each of them
_SILENCE = 3.0  # seconds that a browser may keep a thread waiting
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; img-src data:; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'",
    "Referrer-Policy": "no-referrer",  # the address may hold the token
    "X-Content-Type-Options": "nosniff",
}


class LivePage:
    """Serves the page in threads of its own until it is left as a context manager.

    port: 0 takes any that is free. host: by default the loopback address, which only this machine reaches; for another
    one, a random token is in `address` and needed. source: the page's title.

    Raises ArgumentError for a host or port that cannot be served.
    """

    def __init__(self, port: int, host: str | None, source: str) -> None:
        self.token = None if host is None else secrets.token_urlsafe()
        self._page = fill_page("live.html", {"source": source}).encode()
        self._past: deque[tuple[float, list[tuple[str, float]]]] = deque(maxlen=REMEMBERED)
        self._latest = {"judgement": (0, ""), "status": (0, "")}  # the newest of each, with its number
        self._number, self._viewers, self._closed = 0, 0, False
        self._changed = threading.Condition()
        host = LOOPBACK if host is None else host
        if not 0 <= port < 65536:
            raise ArgumentError(f"the port of the page must be in 0 ... 65535, got {port}")
        try:
            self._server = _Server(self, host, port)
        except (OSError, UnicodeError) as e:  # what is no name of a host
            raise ArgumentError(f"the page cannot be served on {host}, port {port}: {e}") from e
        host = _reachable(host, self._server)
        where = f"[{host}]" if ":" in host else host
        self.address = f"http://{where}:{self._server.server_port}/" + (f"{self.token}/" if self.token else "")
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="page")

    def __enter__(self) -> "LivePage":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()  # waits for the threads of open pages

    @property
    def watched(self) -> bool:
        """Whether a browser has the page open."""
        return self._viewers > 0

    def show(
        self, time: float, labels: list[tuple[str, float]], look: Callable[[], tuple[dict[str, Any], Image.Image]]
    ) -> None:
        """Show a judgement. time: in seconds. labels: with probabilities, likeliest first.

        look: returns what else the page's script takes, and the picture; it is called when somebody looks.
        """
        with self._changed:
            self._past.append((time, labels[:CHARTED]))
        if self.watched:
            more, picture = look()
            picture.thumbnail((WIDEST, WIDEST))
            self._publish("judgement", more | {"time": time, "labels": labels, "picture": data_uri(picture)})

    def tell(self, status: str) -> None:
        """Show a line about how it goes."""
        self._publish("status", {"status": status})

    def _publish(self, kind: str, told: dict[str, Any]) -> None:
        with self._changed:
            self._number += 1
            self._latest[kind] = self._number, json.dumps(told)
            self._changed.notify_all()

    def answer(self, handler: "_Handler") -> None:
        """Answer a request for the page, or for what it shows; any other is not found."""
        name = self._permitted(handler.path.partition("?")[0], handler.headers.get("Host", ""))
        if name == "":
            handler.begin("text/html; charset=utf-8")
            handler.wfile.write(self._page)
        elif name == "events":
            handler.begin("text/event-stream")
            self._stream(handler)
        else:
            handler.send_error(404)

    def _permitted(self, path: str, host: str) -> str | None:
        """Return what is asked for, None where the token is missing.

        Without one, the request must name this machine: a web page whose own name leads here could read all.
        """
        if self.token is None:
            ours = host.partition(":")[0] in (LOOPBACK, "localhost")
            return path.removeprefix("/") if ours else None
        given, slash, name = path.removeprefix("/").partition("/")
        return name if slash and secrets.compare_digest(given.encode(), self.token.encode()) else None

    def _stream(self, handler: "_Handler") -> None:
        """Send every judgement that there is time for, as server-sent events, the past ones first."""
        with self._changed:
            self._viewers += 1
            number, past = self._number, list(self._past)
        try:
            handler.send_event(json.dumps({"past": past}))
            while not self._closed:
                with self._changed:
                    if number == self._number and not self._closed:
                        self._changed.wait(_SILENCE)
                    news = [text for told, text in self._latest.values() if told > number]
                    number = self._number
                for text in news or [""]:
                    handler.send_event(text)
        finally:
            with self._changed:
                self._viewers -= 1


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that closing it waits for them

    def __init__(self, page: LivePage, host: str, port: int) -> None:
        self.page = page
        self.address_family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        super().__init__(address[:2], _Handler)  # type: ignore[arg-type]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of browsers that are gone or silent."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def _reachable(host: str, server: _Server) -> str:
    """Return where others find a server: for 0.0.0.0 and ::, which stand for all addresses, this machine's own one."""
    bound = str(server.server_address[0])
    if not ipaddress.ip_address(bound).is_unspecified:
        return host
    elsewhere = "2001:db8::1" if ":" in bound else "192.0.2.1"  # of nobody (RFC 3849, RFC 5737), and nothing is sent
    with socket.socket(server.address_family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((elsewhere, 9))
        except OSError:  # no network
            return socket.gethostname()
        return str(probe.getsockname()[0])


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _SILENCE

    def do_GET(self) -> None:
        self.server.page.answer(self)

    def begin(self, kind: str) -> None:
        """Send the headers of an answer of this MIME type."""
        self.send_response(200)
        self.send_header("Content-Type", kind)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()

    def send_event(self, text: str) -> None:
        """Send an event, or an empty line of comment, which shows whether somebody is there."""
        self.wfile.write(f"data: {text}\n\n".encode() if text else b":\n\n")

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing: the address may hold the token."""
