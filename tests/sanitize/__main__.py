"""Run tests/fastpath against extensions built with AddressSanitizer and UndefinedBehaviorSanitizer.

The sources are copied to a folder of its own and built there, so the extensions in use stay as they are. First a copy
of the scanner with two planted bugs must be caught: a run that can't find those proves nothing. Arguments are passed on
to pytest. Needs gcc with libasan and libubsan.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SANITIZERS = "address,undefined"

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


def build(folder: Path, *modules: str) -> Path:
    """Build the extensions (all, or only those named) from a copy in folder; return what goes on the module path."""
    shutil.copytree(ROOT / "fastpath", folder / "fastpath", ignore=shutil.ignore_patterns("*.so", "*.c", "__pycache__"))
    shutil.copy(ROOT / "setup.py", folder)
    (folder / "pyproject.toml").write_text(
        '[project]\nname = "sanitized"\nversion = "0"\n[tool.setuptools]\npackages = []\n'
    )
    for source in (folder / "fastpath/dspy_fastpath").glob("*.pyx"):
        if modules and source.stem not in modules:
            source.unlink()
    if modules:
        source = folder / "fastpath/dspy_fastpath/envelope.pyx"
        text = source.read_text()
        for sound, bug in PLANTED.items():
            if sound not in text:
                raise SystemExit(f"nowhere to plant a bug: {source.name} has no {sound!r}")
            text = text.replace(sound, bug)
        source.write_text(text)
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", "fastpath", "--build-temp", "objects"],
        cwd=folder,
        env=os.environ | {"DSPY_FASTPATH_SANITIZE": SANITIZERS, "CFLAGS": "-fno-sanitize-recover=undefined"},
        check=True,
    )
    return folder / "fastpath"


def library(name: str) -> str:
    found = subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = Path(found.stdout.strip())
    if not path.is_absolute():
        raise SystemExit(f"gcc has no {name}: install libasan and libubsan of its version")
    return str(path.resolve())


def environment(modules: Path) -> dict[str, str]:
    return os.environ | {
        "LD_PRELOAD": library("libasan.so"),
        "PYTHONMALLOC": "malloc",  # or the bounds of small objects are not seen
        "PYTHONPATH": os.pathsep.join([str(modules), str(ROOT / "supervisor"), os.environ.get("PYTHONPATH", "")]),
        "PYTHONDONTWRITEBYTECODE": "1",
        # CPython itself frees not everything at exit; a leak of ours is found by the tests of memory.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "DSPY_FASTPATH_SANITIZE": SANITIZERS,  # tests may ask whether they run here
    }


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


def check_the_path(modules: Path) -> None:
    """Make sure that the tests will not meet the extensions of another build."""
    done = subprocess.run(
        [sys.executable, "-c", "import dspy_fastpath.envelope as e; print(e.__file__)"],
        env=environment(modules),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    if not done.stdout.startswith(str(modules)):
        raise SystemExit(f"the tests would run against {done.stdout.strip()}, not against {modules}")


def main(arguments: Sequence[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="dspy-sanitize-") as name:
        (planted := Path(name, "planted")).mkdir()
        (sound := Path(name, "sound")).mkdir()
        check_the_planted_bugs(build(planted, "envelope"))
        modules = build(sound)
        check_the_path(modules)
        # --capture=sys: the sanitizers write to descriptor 2 and then abort, and pytest would take the report with it.
        tests = ["-q", "--capture=sys", "--timeout=600", "-k", f"not ({MEASURING})", "tests/fastpath", *arguments]
        return subprocess.run([sys.executable, "-m", "pytest", *tests], env=environment(modules), cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
