"""Streams over the loopback address and through a pipe, and a clock that nobody waits for."""

import contextlib
import io
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import av
import numpy as np
from av.video.stream import VideoStream
from PIL import Image

from alt_fast.data.capture import Picture

PADDING = (b"\x47\x1f\xff\x10" + b"\xff" * 184) * 1100
"""Packets of MPEG-TS without content, as broadcasts have them: enough for a reader to know what it reads."""


def mpegts(frames: int = 20, start: int = 0, width: int = 64, height: int = 48, rate: int = 10) -> bytes:
    """MPEG-TS with H.264. Frame i has grey level 20 + 6 * i, modulo 256, and i goes on from `start`.

    That is its mean: the left half is lighter, so that there is something to see. A reader gives the last two frames
    when more follows, or at the end.
    """
    file = io.BytesIO()
    with av.open(file, "w", format="mpegts") as container:
        stream = container.add_stream("libx264", rate=rate, options={"tune": "zerolatency", "preset": "ultrafast"})
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = 5
        for number in range(start, start + frames):
            row = (20 + 6 * number) % 256 + np.where(np.arange(width) < width // 2, 5, -5)
            pixels = np.broadcast_to(row.clip(0, 255).astype(np.uint8)[:, None], (height, width, 3))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue() + PADDING


def jpegs(count: int) -> list[bytes]:
    """Pictures 64 pixels wide and 48 high, of the grey levels of `mpegts`."""
    made = []
    for number in range(count):
        file = io.BytesIO()
        Image.new("RGB", (64, 48), (20 + 6 * number,) * 3).save(file, "JPEG")
        made.append(file.getvalue())
    return made


def shows(picture: Picture | None, number: int) -> bool:
    """Whether this is frame `number` of `mpegts`, by its grey level."""
    assert picture is not None
    return abs(float(picture.rgb().mean()) - (20 + 6 * number) % 256) < 2.5


@contextlib.contextmanager
def serve_tcp(connections: Sequence[Iterable[bytes]], hold_last: bool = False) -> Iterator[str]:
    """Give the address of a server that sends one sequence of bytes to each connection, and closes it.

    hold_last: after its last one, stay silent, until the block ends, rather than close. More connections get nothing.
    """
    over = threading.Event()

    def serve(server: socket.socket) -> None:
        sequences = iter(connections)
        left = len(connections)
        while not over.is_set():
            with contextlib.suppress(OSError), server.accept()[0] as client:
                for chunk in next(sequences, ()):
                    client.sendall(chunk)
                left -= 1
                if hold_last and left == 0:
                    over.wait()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{server.getsockname()[1]}"
        finally:
            over.set()
            server.shutdown(socket.SHUT_RDWR)  # wakes it
            thread.join()


@contextlib.contextmanager
def serve_rtsp(sent: bytes) -> Iterator[str]:
    """Give the address of a camera that sends MPEG-TS as RTP between its answers, and then stays silent."""
    description = b"v=0\r\nm=video 0 RTP/AVP 33\r\na=control:video\r\n"
    answers = {
        "OPTIONS": "Public: DESCRIBE, SETUP, PLAY, TEARDOWN\r\n",
        "DESCRIBE": f"Content-Type: application/sdp\r\nContent-Length: {len(description)}\r\n",
        "SETUP": "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n",
        "PLAY": "Session: 1\r\n",
    }

    def serve(server: socket.socket) -> None:
        with contextlib.suppress(OSError), server.accept()[0] as client, client.makefile("rb") as asked:
            for line in asked:
                method = line.split()[0].decode()
                headers = list(iter(asked.readline, b"\r\n"))
                number = next(header for header in headers if header.startswith(b"CSeq")).decode()
                answer = f"RTSP/1.0 200 OK\r\n{number}{answers.get(method, '')}\r\n"
                client.sendall(answer.encode() + description * (method == "DESCRIBE"))
                if method == "PLAY":
                    for count, place in enumerate(range(0, len(sent), 1316)):
                        packet = struct.pack("!BBHII", 0x80, 33, count, 0, 1) + sent[place : place + 1316]
                        client.sendall(struct.pack("!cBH", b"$", 0, len(packet)) + packet)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        try:
            yield f"rtsp://127.0.0.1:{server.getsockname()[1]}/video"
        finally:
            server.shutdown(socket.SHUT_RDWR)  # wakes it
            thread.join()


@contextlib.contextmanager
def serve_http(kind: str, body: Iterable[bytes], status: int = 200) -> Iterator[str]:
    """Give the address of a server that answers everything with this body of this MIME type."""
    with _serve(lambda path: (kind, body), status) as address:
        yield f"{address}/video"


@contextlib.contextmanager
def serve_hls(segments: Sequence[bytes], seconds: int) -> Iterator[str]:
    """Give the address of a playlist that goes on, of segments of so many seconds; there are never any more."""
    lines = ["#EXTM3U", "#EXT-X-VERSION:3", f"#EXT-X-TARGETDURATION:{seconds}", "#EXT-X-MEDIA-SEQUENCE:0"]
    for number in range(len(segments)):
        lines += [f"#EXTINF:{seconds},", f"{number}.ts"]

    def answer(path: str) -> tuple[str, Iterable[bytes]]:
        if path.endswith(".ts"):
            return "video/mp2t", [segments[int(path.strip("/").removesuffix(".ts"))]]
        return "application/vnd.apple.mpegurl", ["\n".join(lines).encode()]

    with _serve(answer) as address:
        yield f"{address}/live.m3u8"


@contextlib.contextmanager
def _serve(answer: Callable[[str], tuple[str, Iterable[bytes]]], status: int = 200) -> Iterator[str]:
    """Give the address of a server. answer: from a path to the MIME type and the body."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, body = answer(self.path)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.end_headers()
            with contextlib.suppress(OSError):
                for chunk in body:
                    self.wfile.write(chunk)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def parts(pictures: Sequence[bytes]) -> list[bytes]:
    """MJPEG as cameras send it: parts of multipart/x-mixed-replace; boundary=frame."""
    head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
    return [head % len(picture) + picture + b"\r\n" for picture in pictures]


class HurriedClock:
    """Waits for nothing: time jumps to where a wait would have ended. waits: what was asked for, in seconds."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self._ahead = 0.0

    def now(self) -> float:
        return time.monotonic() + self._ahead

    def wait(self, event: threading.Event, seconds: float) -> None:
        self.waits.append(seconds)
        self._ahead += max(0.0, seconds)


class StoppedClock(HurriedClock):
    """Time passes by waits alone."""

    def now(self) -> float:
        return self._ahead
