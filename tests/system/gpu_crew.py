"""A supervisor whose telemetry is a file: ``python -m tests.system.gpu_crew start ...``.

FOLDER/gpus.json, beside the queue, says what there is; it is written to the shared page again and again, as of now::

    {"state": "WATCHING", "gpus": [{"uuid": "GPU-a", "total": 24, "free": 23.5, "processes": [[4711, 2.0]]}]}

Memory is in GiB. ``age_s`` makes a sample older than it is; ``say`` is a message to the supervisor, sent once.
"""

import contextlib
import json
import math
import sys
import time

from dspy_fastpath.counters import Global, GpuStatus, GpuValue, Page, Telemetry
from dspy_supervisor import crew
from dspy_supervisor.__main__ import main
from dspy_supervisor.parts import ServicePost

GIB = 1 << 30


def watch(post: ServicePost) -> int:
    """Be the telemetry."""
    path, said = post.queue_dir.parent / "gpus.json", None
    with Page.attach(post.page, writable=True) as page:
        while True:
            with contextlib.suppress(FileNotFoundError):
                wanted = json.loads(path.read_text())
                write(page, wanted)
                if (word := wanted.get("say")) is not None and word != said:
                    said = word
                    post.link.send(word)
            post.link.send({"op": "alive"})
            if any(message["op"] == "stop" for message in post.link.receive(0.05)):
                return 0


def write(page: Page, wanted: dict) -> None:
    """Write to the page what the file says."""
    gpus = wanted.get("gpus", [])
    places = {gpu["uuid"]: number for number, gpu in enumerate(gpus)}
    for number, gpu in enumerate(gpus):
        values = dict.fromkeys(GpuValue, math.nan)
        values[GpuValue.MIG] = gpu.get("mig", math.nan)
        for value, name in ((GpuValue.MEMORY_TOTAL, "total"), (GpuValue.MEMORY_FREE, "free")):
            if name in gpu:
                values[value] = gpu[name] * GIB
        page.gpu_write(
            number,
            gpu["uuid"].encode(),
            values,
            time.monotonic() - gpu.get("age_s", 0.0),
            GpuStatus[gpu.get("status", "HEALTHY")],
            places.get(gpu.get("parent"), -1),
            b"Stand-in",
            b"0000:%02x:00.0" % places.get(gpu.get("parent"), number),
            [(pid, int(used * GIB)) for pid, used in gpu.get("processes", [])],
        )
    page.set_global(Global.TELEMETRY, Telemetry[wanted.get("state", "WATCHING")])


if __name__ == "__main__":
    crew.KINDS = (crew.Kind("telemetry", "tests.system.gpu_crew:watch", lambda config: config.enable_gpu),)
    sys.exit(main())
