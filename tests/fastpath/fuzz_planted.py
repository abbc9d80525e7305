"""Whether the fuzzing finds bugs: ``python -m tests.fastpath.fuzz_planted`` builds scanners with one each, and fuzzes them.

Exit code 1 where a planted bug is not found, or where the scanner as it is does not pass in the same place.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.sanitize.extensions import ROOT, build, check_the_path

COUNT = 300_000
#: name: what stands in the scanner once, and what is built in its place
PLANTS = {
    "nothing": ("", ""),
    "the second byte of a character is not looked at": ("return 2 if is_tail(at[1]) else 0", "return 2"),
    "the second half of a pair may be anything": ("if unit < 0xDC00 or unit > 0xDFFF:", "if unit < 0:"),
    "controls within eight bytes are plain": ("(word - EVERY_BYTE * 0x20) | ", ""),
    "integers of the longest length all fit": (
        "memcmp(digits, largest, at - digits) > 0",
        "memcmp(digits, largest, 0) > 0",
    ),
    "large exponents are not looked at": ("elif exponent > 0 or", "elif exponent > 400 or"),
    "a literal may end early": ('at[3] == c"s" and at[4] == c"e"', 'at[3] == c"s"'),
}


def finds(modules: Path) -> str:
    """Fuzz the scanner that was built; return what was found, "" for nothing."""
    environ = {**os.environ, "PYTHONPATH": str(modules)}
    check_the_path(modules, environ)
    command = [sys.executable, "-m", "tests.fastpath.fuzz_envelope", "--count", str(COUNT)]
    run = subprocess.run(command, env=environ, cwd=ROOT, check=False, capture_output=True, text=True)
    assert run.returncode == 0 or "AssertionError" in run.stderr, run.stderr
    return run.stderr.partition("AssertionError: ")[2]


def main() -> int:
    """Plant each bug; return 1 where one is not found."""
    bad = 0
    for name, (old, new) in PLANTS.items():
        with tempfile.TemporaryDirectory(prefix="planted.") as folder:
            modules = build(Path(folder), "envelope", plants={old: new} if old else {})
            begun = time.monotonic()
            found = finds(modules)
            bad += bool(found) == (not old)
            said = f"found: {found.splitlines()[0][:90]}" if found else "nothing found"
            print(f"planted: {name}: {said} ({time.monotonic() - begun:.0f} s)", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
