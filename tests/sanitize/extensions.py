"""Extensions built from a copy, and the environment they run in: those in use stay as they are."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def build(
    folder: Path, *modules: str, plants: Mapping[str, str] | None = None, environ: Mapping[str, str] | None = None
) -> Path:
    """Build the extensions (all, or only those named) from a copy in folder; return what goes on the module path.

    plants: what stands in the scanner once, and the bug in its place. environ: what the compiler is told.
    """
    shutil.copytree(ROOT / "fastpath", folder / "fastpath", ignore=shutil.ignore_patterns("*.so", "*.c", "__pycache__"))
    shutil.copy(ROOT / "setup.py", folder)
    (folder / "pyproject.toml").write_text(
        '[project]\nname = "copy"\nversion = "0"\n[tool.setuptools]\npackages = []\n'
    )
    for source in (folder / "fastpath/dspy_fastpath").glob("*.pyx"):
        if modules and source.stem not in modules:
            source.unlink()
    scanner = folder / "fastpath/dspy_fastpath/envelope.pyx"
    text = scanner.read_text()
    for sound, bug in (plants or {}).items():
        if text.count(sound) != 1:
            raise SystemExit(f"{sound!r} stands {text.count(sound)} times in the scanner: plant another bug")
        text = text.replace(sound, bug)
    scanner.write_text(text)
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", "fastpath", "--build-temp", "objects"],
        cwd=folder,
        env=os.environ | (environ or {}),
        check=True,
        stdout=subprocess.DEVNULL,  # Cython names each file
    )
    return folder / "fastpath"


def check_the_path(modules: Path, environ: Mapping[str, str]) -> None:
    """Make sure that what runs in environ will not meet the extensions of another build."""
    where = "import dspy_fastpath.envelope as e; print(e.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", where], env=environ, cwd=ROOT, capture_output=True, text=True, check=True
    )
    if not done.stdout.startswith(str(modules)):
        raise SystemExit(f"the run would meet {done.stdout.strip()}, not what was built in {modules}")


def sanitized(modules: Path, runtime: str) -> dict[str, str]:
    """Return the environment of programs that run under sanitizers; runtime: the library that brings them."""
    return os.environ | {
        "LD_PRELOAD": runtime,
        "PYTHONMALLOC": "malloc",  # or the bounds of small objects are not seen
        "PYTHONPATH": os.pathsep.join([str(modules), str(ROOT / "supervisor"), os.environ.get("PYTHONPATH", "")]),
        "PYTHONDONTWRITEBYTECODE": "1",
        # CPython itself frees not everything at exit; a leak of ours is found by the tests of memory.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
