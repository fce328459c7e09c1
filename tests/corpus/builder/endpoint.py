"""A language model's endpoint on this machine that speaks OpenAI's chat completions, and fails as it is told to."""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = str | int | None
"""An HTTP status, "slow" (no answer within a second), "drop" (the connection closes), "html" or "shape" (other
protocols); None for an answer."""


@dataclass
class Endpoint:
    """answer: from prompt to text. faults: one for each request in turn, then none."""

    answer: Callable[[str], str | None]
    faults: list[Fault] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)

    def __enter__(self) -> "Endpoint":
        endpoint = self
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                prompt = request["messages"][0]["content"]
                with lock:
                    endpoint.prompts.append(prompt)
                    endpoint.requests.append(request)
                    endpoint.keys.add(self.headers["Authorization"])
                    fault = endpoint.faults.pop(0) if endpoint.faults else None
                if fault == "drop":
                    return
                if fault == "slow":
                    time.sleep(1)
                if isinstance(fault, int):
                    self.reply(fault, {"error": {"message": f"fault {fault}"}}, {"retry-after-ms": "1"})
                elif fault == "html":
                    self.reply(200, "<html>log in</html>", {"Content-Type": "text/html"})
                elif fault == "shape":
                    self.reply(200, {"text": "hello"})
                else:
                    message = {"role": "assistant", "content": endpoint.answer(prompt)}
                    choice = {"index": 0, "message": message, "finish_reason": "stop"}
                    body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
                    self.reply(200, body)

            def reply(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
                content = (body if isinstance(body, str) else json.dumps(body)).encode()
                try:
                    self.send_response(status)
                    for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # who asked did not wait

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
