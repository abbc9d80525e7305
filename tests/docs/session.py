"""One page as one shell session: its blocks in their order, in an empty folder, with a supervisor where it starts one."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from . import launch
from .blocks import ROOT, Block
from .notrun import reason

PAGE_S = 110.0
_FAILED = re.compile(r"^@@ (\S+)$", re.MULTILINE)
_PRELUDE = """\
set -eE -o pipefail
shopt -s expand_aliases
dspy-supervisor() {
    if [ "${1-}" = start ]; then python "$LAUNCH" "$SESSION" "$@"; else python -m dspy_supervisor "$@"; fi
}
"""


class PageFailed(AssertionError):
    """A block of a page does not do what the page says."""


def run(page: str, found: list[Block], folder: Path, replace: Mapping[str, str]) -> None:
    """Run the blocks of a page. Raises PageFailed with the block that failed, and what it said."""
    work, session = folder / "work", folder / "session"
    for one in (work, session, folder / "home", folder / "run"):
        one.mkdir(mode=0o700)
    (session / "page.sh").write_text(_PRELUDE + "".join(_script(found, session, replace)))
    port = _free_port()
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(folder / "home"),
        "XDG_RUNTIME_DIR": str(folder / "run"),
        "DSPY_HTTP_PORT": port,
        "DSPY_LOG_LEVEL": "info",
        "LAUNCH": str(ROOT / "tests/docs/launch.py"),
        "SESSION": str(session),
        "ROOT": str(ROOT),
        "LANG": "C.UTF-8",
    }
    script = (session / "page.sh").read_text().replace("localhost:9097", f"localhost:{port}")
    (session / "page.sh").write_text(script.replace("127.0.0.1:9097", f"127.0.0.1:{port}"))
    try:
        with (session / "output").open("wb") as output:
            done = subprocess.run(
                ["bash", str(session / "page.sh")],
                cwd=work,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=PAGE_S,
                check=False,
            )
    finally:
        launch.end(session)
    _served(session / "supervisor.log")
    parts = _FAILED.split((session / "output").read_text(errors="replace"))
    said = dict(zip(parts[1::2], parts[2::2], strict=True))
    if done.returncode:
        log = session / "supervisor.log"
        more = f"\nthe supervisor:\n{log.read_text()[-2000:]}" if log.exists() else ""
        raise PageFailed(f"{parts[-2]}: ended with {done.returncode}:\n{parts[-1][-2000:]}{more}")
    _compare(found, said)


def _served(log: Path) -> None:
    """Raise PageFailed where a worker could not start: its handler is not there."""
    broken = [line for line in log.read_text().splitlines() if '"worker_broken"' in line] if log.exists() else []
    if broken:
        raise PageFailed(f"a handler of the page can't be imported: {broken[0]}")


def _script(found: list[Block], session: Path, replace: Mapping[str, str]) -> Iterator[str]:
    for number, block in enumerate(found):
        text = block.text
        for old, new in replace.items():
            text = text.replace(old, new)
        kept = session / f"block{number}"
        kept.write_text(text)
        yield f"echo; echo '@@ {block}'\n"
        if block.file:
            yield f"cp {kept} {block.file}\n"
        if block.language == "toml":
            checked = f"block{number}.toml"
            yield f"cp {kept} {checked}; python -m dspy_supervisor config check --no-import --config {checked}\n"
        if block.language == "json":
            yield from _put(text)
        elif block.language == "python" and not reason(text):
            yield f"python -m py_compile {block.file}\n" if block.file else f"PYTHONPATH=. python {kept}\n"
        elif block.language in ("sh", "bash") and not text.startswith("#!") and not block.file:
            yield from (f"{line}\n" for line in _commands(text))


def _commands(text: str) -> Iterator[str]:
    """Yield the lines of a shell block without those that are not run."""
    for line in text.replace("\\\n", " ").splitlines():
        yield ":" if reason(line.strip()) else line


def _put(text: str) -> Iterator[str]:
    """Yield the command that lets the queue take a task file; other JSON only has to be JSON."""
    document = json.loads(text)
    if isinstance(document, dict) and "payload" in document:
        wanted = json.dumps(document).replace("'", "'\\''")
        yield (
            "python -m dspy_supervisor start --queue-dir json --burst --workers cpu_short=0 --no-http >/dev/null\n"
            f"printf '%s\\n' '{wanted}' > json.jsonl; python -m dspy_supervisor submit --queue-dir json --jsonl json.jsonl\n"
        )


def _compare(found: list[Block], said: Mapping[str, str]) -> None:
    """Each line of a console block is in what the block before it said; ... stands for anything."""
    for block, before in zip(found[1:], found, strict=False):
        if block.language != "console":
            continue
        for line in filter(str.strip, block.text.splitlines()):
            wanted = re.escape(" ".join(line.split())).replace(re.escape("..."), ".*")
            heard = [" ".join(one.split()) for one in said[str(before)].splitlines()]
            if not any(re.fullmatch(wanted, one) for one in heard):
                raise PageFailed(f"{block}: {before} did not say {line!r}, but:\n{said[str(before)]}")


def _free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])
