"""An OpenAI-compatible endpoint on a real socket: it answers questions about capitals, and refuses what comes too fast."""

from __future__ import annotations

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from .capitals import CAPITALS


class Bucket:
    """A token bucket as a provider has one: it holds what may come in a second, and fills evenly."""

    def __init__(self, per_minute: float) -> None:
        self.rate, self.size = per_minute / 60, max(1.0, per_minute / 60)
        self.level, self.at = self.size, time.monotonic()

    def take(self, number: float) -> float:
        """Take so many and return 0, or return in how many seconds they will be there."""
        now = time.monotonic()
        self.level, self.at = min(self.size, self.level + (now - self.at) * self.rate), now
        if self.level >= number:
            self.level -= number
            return 0.0
        return (number - self.level) / self.rate


class Provider(ThreadingHTTPServer):
    """The endpoint; ``url`` is its address."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, requests_per_minute: float = 0, delay_s: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        self.bucket = Bucket(requests_per_minute) if requests_per_minute else None
        self.delay_s = delay_s
        self.lock = threading.Lock()
        self.asked: list[str] = []  #: the questions that were answered
        self.answered_at: list[float] = []
        self.prompts: list[str] = []
        self.refused = 0
        self.refuse_next = 0  #: so many are refused whatever the bucket says
        self.retry_after_s = 0.05
        self.keys: set[str] = set()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> Provider:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Provider

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        text = " ".join(str(message["content"]) for message in body["messages"])
        with server.lock:
            server.keys.add(self.headers.get("Authorization", ""))
            wait_s = server.bucket.take(1) if server.bucket else 0.0
            if server.refuse_next:
                server.refuse_next -= 1
                wait_s = server.retry_after_s
            if wait_s:
                server.refused += 1
        if wait_s:
            error = {"error": {"message": "too fast", "type": "rate_limit", "code": "rate_limit_exceeded"}}
            self._send(429, error, {"Retry-After": f"{wait_s:.3f}"})
            return
        time.sleep(server.delay_s)
        question = re.findall(r"capital of (\w+)", text)[-1] if "capital of" in text else ""
        with server.lock:
            server.asked.append(question)
            server.answered_at.append(time.monotonic())
            server.prompts.append(text)
        if question == "Narnia":
            self._send(400, {"error": {"message": "no such country", "type": "invalid_request_error"}}, {})
            return
        content = f"[[ ## answer ## ]]\n{CAPITALS.get(question, 'unknown')}\n\n[[ ## completed ## ]]"
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
        usage = {"prompt_tokens": 40, "completion_tokens": 10, "total_tokens": 50}
        whole = {"id": "a", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice]}
        self._send(200, {**whole, "usage": usage}, {})

    def _send(self, status: int, answer: Any, headers: dict[str, str]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass
