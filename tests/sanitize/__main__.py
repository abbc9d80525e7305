"""Run tests/fastpath against extensions built with AddressSanitizer and UndefinedBehaviorSanitizer.

The sources are copied to a folder of its own and built there, so the extensions in use stay as they are. First a copy
of the scanner with two planted bugs must be caught: a run that can't find those proves nothing. Arguments are passed on
to pytest. Needs gcc with libasan and libubsan.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.sanitize.extensions import ROOT, build, check_the_path, sanitized

SANITIZERS = "address,undefined"
GCC = {"DSPY_FASTPATH_SANITIZE": SANITIZERS, "CFLAGS": "-fno-sanitize-recover=undefined"}

# Tests that measure memory or time: the sanitizers take much of both.
MEASURING = "leak or memory_behind or allocates_nothing or 50_ms"

PLANTED = {  # in envelope.pyx: what is there, and the bug in its place
    "while end - at >= 8:": "while True:",  # reads beyond the end
    "if exponent < HOPELESS:": "if True:",  # an overflow of a signed integer
}
CAUGHT = {  # a program that runs into the bug, and what the sanitizer must say
    """scan(b'{"a":"' + b"x" * 1000)""": "AddressSanitizer: heap-buffer-overflow",
    """scan(b'{"a":1e' + b"9" * 1000 + b"}")""": "runtime error: signed integer overflow",
}


def library(name: str) -> str:
    found = subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = Path(found.stdout.strip())
    if not path.is_absolute():
        raise SystemExit(f"gcc has no {name}: install libasan and libubsan of its version")
    return str(path.resolve())


def environment(modules: Path) -> dict[str, str]:
    return sanitized(modules, library("libasan.so")) | {"DSPY_FASTPATH_SANITIZE": SANITIZERS}  # tests may ask for it


def check_the_planted_bugs(modules: Path) -> None:
    for program, complaint in CAUGHT.items():
        done = subprocess.run(
            [sys.executable, "-c", f"from dspy_fastpath.envelope import scan\n{program}"],
            env=environment(modules),
            capture_output=True,
            text=True,
            timeout=60,
        )
        if complaint not in done.stderr:
            raise SystemExit(f"a planted bug was not caught: no {complaint!r} in\n{done.stderr[-2000:]}")
        print(f"planted bug caught: {complaint}", flush=True)


def main(arguments: Sequence[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="dspy-sanitize-") as name:
        (planted := Path(name, "planted")).mkdir()
        (sound := Path(name, "sound")).mkdir()
        check_the_planted_bugs(build(planted, "envelope", plants=PLANTED, environ=GCC))
        modules = build(sound, environ=GCC)
        check_the_path(modules, environment(modules))
        # --capture=sys: the sanitizers write to descriptor 2 and then abort, and pytest would take the report with it.
        tests = ["-q", "--capture=sys", "--timeout=600", "-k", f"not ({MEASURING})", "tests/fastpath", *arguments]
        return subprocess.run([sys.executable, "-m", "pytest", *tests], env=environment(modules), cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
