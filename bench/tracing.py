"""What traces cost the tasks: latency of single calls, and rate of a backlog, with a collector beside the same without one.

::

    python -m bench.tracing [--rounds 3] [--calls 300] [--tasks 3000]

Rounds with and without alternate. The collector is a process of its own that reads and forgets.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

from bench import script
from bench.ours import Ours

_COLLECTOR = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


def once(folder: Path, options: argparse.Namespace, endpoint: str) -> tuple[float, float]:
    """Return the median latency of a call in ms, and the tasks per second of a backlog."""
    folder.mkdir()
    with Ours(folder, sync=False) as ours:
        ours.options = ("--set", f"otel_endpoint={endpoint}") if endpoint else ()
        ours.start(2)
        for _ in range(20):
            ours.call()
        calls = [ours.call() for _ in range(options.calls)]
    folder = folder / "drain"
    folder.mkdir()
    with Ours(folder, sync=False) as ours:
        ours.options = ("--set", f"otel_endpoint={endpoint}") if endpoint else ()
        ours.fill(options.tasks)
        ours.start(2)
        starts = ours.finish()
    latency_ms = statistics.median(call.seen - call.begun for call in calls) / 1e6
    return latency_ms, len(starts) / (max(starts) - min(starts)) * 1e9


def measure(folder: Path, options: argparse.Namespace) -> script.Facts:
    """Return both, and the ratios."""
    collector = subprocess.Popen([sys.executable, "-c", _COLLECTOR], stdout=subprocess.PIPE, text=True)
    try:
        assert collector.stdout is not None
        endpoint = f"http://127.0.0.1:{int(collector.stdout.readline())}"
        plain, traced = [], []
        for number in range(options.rounds):
            plain.append(once(folder / f"plain{number}", options, ""))
            traced.append(once(folder / f"traced{number}", options, endpoint))
    finally:
        collector.kill()
        collector.wait()
    latency = [statistics.median(one[0] for one in each) for each in (plain, traced)]
    rate = [statistics.median(one[1] for one in each) for each in (plain, traced)]
    return {
        "call_ms": latency[0],
        "call_traced_ms": latency[1],
        "call_ratio": latency[1] / latency[0],
        "tasks_per_s": rate[0],
        "tasks_traced_per_s": rate[1],
        "rate_ratio": rate[1] / rate[0],
    }


if __name__ == "__main__":
    script.main(__doc__, measure, rounds=3, calls=300, tasks=3000)
