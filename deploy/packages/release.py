"""Builds what is published, looks into it, and says what was found.

::

    python deploy/packages/release.py [--out dist]       sdist, manylinux wheel, SBOM, notes; each check; a report
    python deploy/packages/release.py --planted          the same checks on packages with planted faults: each must be found
    python deploy/packages/release.py --notes VERSION    the notes of a version, from CHANGELOG.md

Needs the extra `release`. The wheel is compiled by zig against glibc 2.28, so that it runs wherever manylinux_2_28 does.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PLATFORM = "manylinux_2_28"
_GLIBC = "2.28"
#: tests of the lowest versions
_QUICK = (
    "attempt",
    "cli_main",
    "client_queue",
    "config",
    "limit",
    "parts",
    "queue_model",
    "taskqueue",
)


class Found(Exception):
    """A check found something."""


def run(*command: str | Path, cwd: Path = ROOT, **variables: str) -> str:
    """Return what a program printed. Raises Found with it where the program failed."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, "PATH": path, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Found(f"{Path(str(command[0])).name} ended with {done.returncode}:\n{done.stdout[-3000:]}")
    return done.stdout


def build(source: Path, out: Path, epoch: str) -> tuple[Path, Path]:
    """Build an sdist, and from that a wheel; returns both."""
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", out, source, SOURCE_DATE_EPOCH=epoch)
    sdist = next(out.glob("*.tar.gz"))
    normalise(sdist, int(epoch))
    unpacked = source / "from-sdist"
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    tree = next(unpacked.iterdir())
    compiler = source / "cc"
    target = f"{os.uname().machine}-linux-gnu.{_GLIBC}"
    compiler.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ziglang cc -target {target} "$@"\n')
    compiler.chmod(0o755)
    run(
        *(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, tree),
        SOURCE_DATE_EPOCH=epoch,
        CC=str(compiler),
        LDSHARED=f"{compiler} -shared",
        CFLAGS=f"-g0 -ffile-prefix-map={tree}=.",
        LDFLAGS="-Wl,-s",
    )
    return sdist, next(out.glob("*.whl"))


def normalise(sdist: Path, epoch: int) -> None:
    """Write an sdist again without what differs from build to build: times, owners, the order of files."""
    plain = io.BytesIO()
    with tarfile.open(sdist) as old, tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as new:
        for member in sorted(old.getmembers(), key=lambda one: one.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = epoch, 0, 0, "", ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            member.pax_headers = {}
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    with sdist.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=epoch) as packed:
        packed.write(plain.getvalue())


def checkout(folder: Path, commit: str, plant: str) -> Path:
    """Return a fresh copy of a commit, with a planted fault if one is named."""
    folder.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tree:
        tree.extractall(folder, filter="data")
    if plant == "unlike":
        (folder / "supervisor/dspy_supervisor/built.py").write_text(f"WHERE = {str(folder)!r}\n")
    elif plant == "private-api":  # compiled for one Python, and said to be for all
        setup = folder / "setup.py"
        setup.write_text(setup.read_text().replace('("Py_LIMITED_API", "0x030B0000"), ', ""))
    elif plant == "rubbish":
        (folder / "supervisor/dspy_supervisor/left.pyc").write_bytes(b"left")
        project = folder / "pyproject.toml"
        project.write_text(
            project.read_text().replace('["py.typed", "modes/*.env"', '["py.typed", "*.pyc", "modes/*.env"')
        )
    elif plant == "read-me":
        (folder / "pyproject.toml").write_text(
            (folder / "pyproject.toml")
            .read_text()
            .replace('readme = "README.md"', 'readme = {text = "a *b", content-type = "text/x-rst"}')
        )
    elif plant == "no-license":
        cited = folder / "CITATION.cff"
        cited.write_text(cited.read_text().replace("license: MIT", "license: none"))
    elif plant == "every-python":
        project = folder / "pyproject.toml"
        project.write_text(project.read_text().replace('build = "cp311-*"', 'build = "cp3*"'))
    return folder


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def same_bytes(first: tuple[Path, Path], second: tuple[Path, Path]) -> str:
    """Two builds in two folders have the same bytes."""
    for one, other in zip(first, second, strict=True):
        if digest(one) != digest(other):
            raise Found(f"{one.name}: {digest(one)} and {digest(other)}")
    return "sdist and wheel, each built twice in folders of different names"


def manylinux(wheel: Path, out: Path) -> str:
    """The wheel runs on every glibc from 2.28 on; it gets the name that says so."""
    plat = f"{PLATFORM}_{os.uname().machine}"
    run("auditwheel", "repair", "--only-plat", "--plat", plat, "--wheel-dir", out, wheel)
    return plat


def citation(tree: Path) -> str:
    """CITATION.cff is as its schema says."""
    return run("uv", "tool", "run", "-q", "cffconvert", "--validate", "-i", tree / "CITATION.cff").strip()


def elsewhere(tree: Path) -> str:
    """cibuildwheel, which builds on hosts with containers, takes its configuration, and would build one wheel."""
    said = run("uv", "tool", "run", "-q", "cibuildwheel", "--platform", "linux", "--print-build-identifiers", tree)
    if (found := said.split()) != [f"cp311-manylinux_{os.uname().machine}"]:
        raise Found(f"cibuildwheel would build {found}")
    return found[0]


def lowest(wheel: Path, folder: Path) -> str:
    """The quick tests pass with the lowest versions that pyproject.toml allows."""
    python = sysconfig.get_config_var("BINDIR") + "/python3.11"
    run("uv", "venv", "-q", "--python", python if Path(python).exists() else "3.11", folder)
    into = ("--python", folder / "bin/python")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["plot"]]
    run("uv", "pip", "install", "-q", *into, "--resolution", "lowest-direct", *wanted)
    run("uv", "pip", "install", "-q", *into, "--no-deps", wheel)
    listed = run("uv", "pip", "freeze", *into)
    run(
        "uv",
        "pip",
        "install",
        "-q",
        *into,
        "pytest",
        "pytest-timeout",
        "pytest-xdist",
        "hypothesis",
        "inotify-simple",
        "pyinotify",
    )
    tests = [f"tests/unit/test_{name}.py" for name in _QUICK]
    said = run(
        folder / "bin/python",
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-n",
        "2",
        "-m",
        "not slow",
        "tests/fastpath",
        *tests,
    )
    ours = re.findall(r"(?m)^(?:click|msgspec|numba|orjson|psutil|jinja2|nvidia-ml-py|prometheus-client)==\S+", listed)
    return f"{said.strip().splitlines()[-1]} ({', '.join(ours)})"


def bill(wheel: Path, folder: Path, out: Path) -> str:
    """The software bill of materials (CycloneDX) of an environment that holds the wheel and nothing else."""
    run("uv", "venv", "-q", folder)
    run("uv", "pip", "install", "-q", "--python", folder / "bin/python", wheel)
    run(
        "cyclonedx-py",
        "environment",
        "--output-reproducible",
        "--pyproject",
        ROOT / "pyproject.toml",
        "-o",
        out,
        folder / "bin/python",
    )
    return f"{out.name}, {out.read_text().count('purl')} packages"


def notes(version: str) -> str:
    """Return what CHANGELOG.md says of a version. Raises Found where it says nothing."""
    text = (ROOT / "CHANGELOG.md").read_text()
    found = re.search(rf"(?ms)^## {re.escape(version)}(?= |$)[^\n]*\n(.*?)(?=^## |\Z)", text)
    if not found or not found[1].strip():
        raise Found(f"CHANGELOG.md has no notes of {version}")
    return found[1].strip() + "\n"


def version() -> str:
    """Return the version of pyproject.toml; the package says the same."""
    here = re.search(r'(?m)^version = "(.+)"', (ROOT / "pyproject.toml").read_text())
    there = re.search(r'(?m)^__version__ = "(.+)"', (ROOT / "supervisor/dspy_supervisor/__init__.py").read_text())
    if not here or not there or here[1] != there[1]:
        raise Found("pyproject.toml and __init__.py say different versions")
    return here[1]


def report(steps: dict[str, Callable[[], str]]) -> dict[str, str]:
    """Run each step, print what it found, and return what is wrong by step."""
    wrong = {}
    for name, step in steps.items():
        try:
            print(f"ok    {name:16} {step()}", flush=True)
        except Found as found:
            wrong[name] = str(found)
            print(f"WRONG {name:16} {found}", flush=True)
    return wrong


def examine(work: Path, plant: str = "") -> tuple[dict[str, Callable[[], str]], Path, Path]:
    """Build twice, and return the checks of what was built, with sdist and wheel."""
    commit, epoch = run("git", "log", "-1", "--format=%H %ct").split()
    first = build(checkout(work / "a", commit, plant), work / "dist", epoch)
    checks: dict[str, Callable[[], str]] = {}
    if plant in ("", "unlike"):
        second = build(checkout(work / "another", commit, plant), work / "again", epoch)
        checks["same bytes"] = lambda: same_bytes(first, second)
    sdist, wheel = first
    checks |= {
        "manylinux": lambda: manylinux(wheel, work / "repaired"),
        "abi3": lambda: run("abi3audit", "--strict", "--summary", wheel).strip() or "only the stable ABI of 3.11",
        "wheel contents": lambda: run("check-wheel-contents", "--config", ROOT / "pyproject.toml", wheel).strip(),
        "citation": lambda: citation(work / "a"),
        "cibuildwheel": lambda: elsewhere(work / "a"),
        "descriptions": lambda: run("twine", "--no-color", "check", "--strict", sdist, wheel).strip().splitlines()[-1],
    }
    return checks, sdist, wheel


PLANTED = {
    "unlike": "same bytes",
    "private-api": "abi3",
    "rubbish": "wheel contents",
    "read-me": "descriptions",
    "no-license": "citation",
    "every-python": "cibuildwheel",
}


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--planted", action="store_true")
    parser.add_argument("--notes", metavar="VERSION")
    chosen = parser.parse_args()
    if chosen.notes:
        try:
            print(notes(chosen.notes), end="")
        except Found as found:
            print(found, file=sys.stderr)
            return 1
        return 0
    with tempfile.TemporaryDirectory(prefix="release-") as made:
        work = Path(made)
        if chosen.planted:
            missed = []
            for plant, check in PLANTED.items():
                checks, _, _ = examine(work / plant, plant)
                wrong = report({check: checks[check]})
                print(f"planted {plant}: {'found' if wrong else 'MISSED'} by {check}", flush=True)
                missed += [] if wrong else [plant]
            return bool(missed)
        checks, sdist, _ = examine(work)
        wrong = report({"version": version, "notes": lambda: f"{len(notes(version()).splitlines())} lines"} | checks)
        if wrong:
            return 1
        chosen.out.mkdir(exist_ok=True)
        published = next((work / "repaired").glob("*.whl"))
        wrong = report(
            {
                "lowest versions": lambda: lowest(published, work / "lowest"),
                "SBOM": lambda: bill(published, work / "plain", chosen.out / "sbom.cdx.json"),
            }
        )
        for path in (sdist, published):
            shutil.copy2(path, chosen.out)
            print(f"{digest(path)}  {path.name}")
        (chosen.out / "NOTES.md").write_text(notes(version()))
        return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
