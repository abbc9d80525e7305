"""Whether the fuzzing finds bugs: ``python -m tests.fastpath.fuzz_planted`` builds scanners with one each, and fuzzes them.

Exit code 1 where a planted bug is not found, or where the scanner as it is does not pass in the same place.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
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


def build(folder: Path, old: str, new: str) -> None:
    """Build the scanner alone in a folder, with something else in place of what stands there once."""
    shutil.copytree(ROOT / "fastpath", folder / "fastpath", ignore=shutil.ignore_patterns("*.so", "*.c", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    (folder / "supervisor" / "dspy_supervisor").mkdir(parents=True)
    shutil.copy(ROOT / "supervisor/dspy_supervisor/__init__.py", folder / "supervisor/dspy_supervisor")
    package = folder / "fastpath" / "dspy_fastpath"
    for path in package.glob("*.pyx"):
        if path.stem != "envelope":
            path.unlink()
    scanner = package / "envelope.pyx"
    source = scanner.read_text()
    if old:
        assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times in the scanner: plant another bug"
        scanner.write_text(source.replace(old, new))
    subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=folder, check=True)


def finds(folder: Path) -> str:
    """Fuzz the scanner of a folder; return what was found, "" for nothing."""
    environ = {**os.environ, "PYTHONPATH": str(folder / "fastpath")}
    where = "import dspy_fastpath.envelope as built; print(built.__file__)"
    place = subprocess.run(
        [sys.executable, "-c", where], env=environ, cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert place.stdout.startswith(str(folder)), f"{place.stdout} is not what was built"
    command = [sys.executable, "-m", "tests.fastpath.fuzz_envelope", "--count", str(COUNT)]
    run = subprocess.run(command, env=environ, cwd=ROOT, check=False, capture_output=True, text=True)
    assert run.returncode == 0 or "AssertionError" in run.stderr, run.stderr
    return run.stderr.partition("AssertionError: ")[2]


def main() -> int:
    """Plant each bug; return 1 where one is not found."""
    bad = 0
    for name, (old, new) in PLANTS.items():
        with tempfile.TemporaryDirectory(prefix="planted.") as folder:
            build(Path(folder), old, new)
            begun = time.monotonic()
            found = finds(Path(folder))
            bad += bool(found) == (not old)
            said = f"found: {found.splitlines()[0][:90]}" if found else "nothing found"
            print(f"planted: {name}: {said} ({time.monotonic() - begun:.0f} s)", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
