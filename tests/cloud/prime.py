"""A server that speaks the documented API of Prime Intellect, on loopback, with machines that it can make, lose and refuse.

docs.primeintellect.ai/api-reference: availability/gpus, pods, pods/status. Every answer can be a fault: `fail` says which
requests get which status; `lose_answers` carries an order out and drops the connection.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

KEY = "pit_test"
OFFER: dict[str, Any] = {
    "cloudId": "n3-RTX4090x1",
    "gpuType": "RTX4090_24GB",
    "socket": "PCIe",
    "provider": "hyperstack",
    "dataCenter": "CANADA-1",
    "country": "CA",
    "gpuCount": 1,
    "gpuMemory": 24,
    "disk": {"minCount": 80, "defaultCount": 100, "maxCount": 1000, "pricePerUnit": 0.0001, "step": 1},
    "vcpu": {"defaultCount": 16},
    "memory": {"defaultCount": 64},
    "stockStatus": "Available",
    "security": "secure_cloud",
    "prices": {"onDemand": 0.4, "communityPrice": None, "isVariable": None, "currency": "USD"},
    "images": ["ubuntu_22_cuda_12", "cuda_12_1_pytorch_2_2"],
    "isSpot": None,
    "prepaidTime": None,
}


@dataclass
class Fault:
    """A number of requests that are refused."""

    method: str
    path: str  # its beginning
    status: int
    times: int
    headers: dict[str, str] = field(default_factory=dict)
    detail: object = "planned"


class FakePrime:
    """The account behind the server."""

    def __init__(self) -> None:
        self.offers = [dict(OFFER)]
        self.pods: dict[str, dict[str, Any]] = {}
        self.orders: list[dict[str, Any]] = []  # bodies of POST, those refused included
        self.requests: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.lose_answers = 0  # orders that are carried out, and not answered
        self.lose_orders = 0  # orders that are neither
        self.boots_to: Callable[[dict[str, Any]], str | None] = lambda pod: None  # its sshConnection, None: not yet
        self.on_delete: Callable[[dict[str, Any]], None] = lambda pod: None
        self.price: float | None = None  # of a machine, where it is not the offer's
        self.strange: list[dict[str, Any]] = []  # machines of other people in the account
        self.url = ""
        self._lock = threading.Lock()

    @property
    def live(self) -> list[dict[str, Any]]:
        """The machines that cost."""
        return [pod for pod in self.pods.values() if pod["status"] != "TERMINATED"]

    def fail(self, method: str, path: str, status: int, times: int = 1, **more: Any) -> None:
        """Let the next requests of a kind be refused."""
        self.faults.append(Fault(method, path, status, times, **more))

    def die(self, name: str = "") -> None:
        """Let a machine be ended by its provider."""
        for pod in self.live:
            if not name or pod["name"] == name:
                pod["status"] = "TERMINATED"

    def answer(self, method: str, target: str, body: Any) -> tuple[int, dict[str, str], Any]:
        """Return status, headers and document; status 0: hang up."""
        url = urlsplit(target)
        path, query = url.path.rstrip("/"), parse_qs(url.query)
        with self._lock:
            self.requests.append((method, path))
            if method == "POST":
                self.orders.append(body)
            for fault in self.faults:
                if fault.times and fault.method == method and path.startswith(fault.path):
                    fault.times -= 1
                    return fault.status, fault.headers, {"detail": fault.detail}
            return self._answer(method, path, query, body)

    def _answer(self, method: str, path: str, query: Any, body: Any) -> tuple[int, dict[str, str], Any]:
        if (method, path) == ("GET", "/api/v1/availability/gpus"):
            kind, count = query.get("gpu_type", [""])[0], int(query.get("gpu_count", ["0"])[0])
            rows = [one for one in self.offers if one["gpuType"] == kind and one["gpuCount"] == count]
            return 200, {}, {"items": rows, "totalCount": len(rows)}
        if (method, path) == ("POST", "/api/v1/pods"):
            return self._create(body)
        every = [*self.strange, *self.live]
        if (method, path) == ("GET", "/api/v1/pods"):
            start, number = int(query["offset"][0]), int(query["limit"][0])
            page = [{k: v for k, v in pod.items() if k != "sshConnection"} for pod in every[start : start + number]]
            return 200, {}, {"data": page, "total_count": len(every), "offset": start, "limit": number}
        if (method, path) == ("GET", "/api/v1/pods/status"):
            asked = [pod for pod in every if pod["id"] in query.get("pod_ids", [])]
            return 200, {}, {"data": [self._status(pod) for pod in asked]}
        pod = self.pods.get(path.removeprefix("/api/v1/pods/"))
        if pod is None or pod["status"] == "TERMINATED":
            return 404, {}, {"detail": "Pod not found"}
        if method == "DELETE":
            pod["status"] = "TERMINATED"
            self.on_delete(pod)
            return 200, {}, {"status": "deleted"}
        return 405, {}, {"detail": "Method not allowed"}

    def _create(self, body: Any) -> tuple[int, dict[str, str], Any]:
        pod = body.get("pod") if isinstance(body, dict) else None
        needed = ("name", "cloudId", "gpuType", "socket", "gpuCount", "maxPrice")
        lacking = [key for key in needed if not isinstance(pod, dict) or pod.get(key) is None]
        if lacking or not body.get("provider", {}).get("type"):
            return 422, {}, {"detail": [{"loc": ["body", "pod", key], "msg": "Field required"} for key in lacking]}
        offer = next((one for one in self.offers if one["cloudId"] == pod["cloudId"]), None)
        if offer is None:
            return 400, {}, {"detail": "no stock"}
        price = self.price if self.price is not None else offer["prices"]["onDemand"]
        if self.lose_orders:
            self.lose_orders -= 1
            return 0, {}, None
        made = {
            "id": f"pod{len(self.pods) + 1}",
            "name": pod["name"],
            "providerType": body["provider"]["type"],
            "status": "PROVISIONING",
            "installationStatus": "PENDING",
            "gpuName": pod["gpuType"],
            "gpuCount": pod["gpuCount"],
            "priceHr": price,
            "sshConnection": None,
            "ip": None,
        }
        self.pods[made["id"]] = made
        if self.lose_answers:
            self.lose_answers -= 1
            return 0, {}, None
        return 200, {}, made

    def _status(self, pod: dict[str, Any]) -> dict[str, Any]:
        if pod["status"] == "PROVISIONING" and (ssh := self.boots_to(pod)):
            pod |= {"status": "ACTIVE", "sshConnection": ssh, "ip": "127.0.0.1"}
        keys = ("providerType", "status", "sshConnection", "ip")
        told = {"podId": pod["id"], "installationFailure": pod.get("installationFailure"), "installationProgress": 100}
        return told | {key: pod.get(key) for key in keys}


@contextmanager
def prime() -> Iterator[FakePrime]:
    """Serve an account on loopback until the end of the block."""
    fake = FakePrime()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Authorization") != f"Bearer {KEY}":
                status, headers, document = 401, {}, {"detail": "Invalid API key"}
            else:
                status, headers, document = fake.answer(self.command, self.path, json.loads(raw) if raw else None)
            if not status:
                self.close_connection = True
                return
            content = json.dumps(document).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_DELETE = _serve

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
