"""Envelopes that grow with what they reach in the scanner: ``python -m tests.fastpath.fuzz_guided --help``.

libFuzzer, by way of atheris, keeps each input that takes a new way through the compiled scanner, and mutates it further.
The scanner is a copy, built by clang with AddressSanitizer and UBSan; every input is judged as in fuzz_envelope.py. What
is found is printed, its input kept in build/fuzz/, and the exit code 1. Needs clang, and atheris (the extra ``fuzz``).
"""

import argparse
import importlib.util
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.fastpath import fuzz_planted
from tests.fastpath.fuzz_envelope import SEEDS, TOKENS
from tests.fastpath.json_cases import CASES
from tests.reference.envelope import ALIASES, KEYS
from tests.sanitize.extensions import ROOT, build, check_the_path, sanitized

KEPT = ROOT / "build" / "fuzz"
STARTS = (*SEEDS, *(case for case in CASES.values() if len(case) < 200), *(b'{"payload":%b}' % word for word in TOKENS))
WORDS = (*TOKENS, *(b'"%b":' % key.encode() for key in (*KEYS, *ALIASES)))

CLANG = {
    # Not where the linker sees it: what it would add comes with atheris.
    "CC": "clang -fsanitize=fuzzer-no-link,address,undefined",
    # Python's own flags have -fwrapv, with which clang lets each overflow pass.
    "CFLAGS": "-g -fno-omit-frame-pointer -fno-wrapv -fno-sanitize-recover=undefined",
    "LDSHARED": "clang -shared",
}
FUZZ = """
import sys, atheris
from tests.fastpath.fuzz_envelope import judge
atheris.Setup(sys.argv, judge)
atheris.Fuzz()
"""
STATE = re.compile(r"^#\d+\s+\w+\s+cov: (\d+) ft: \d+ corp: (\d+)/", re.MULTILINE)
EXECUTED = re.compile(r"^stat::number_of_executed_units: (\d+)", re.MULTILINE)
WRITTEN = re.compile(r"Test unit written to (.+)")
WRONG = (  # the first that is there says it best
    re.compile(r"(?<=Uncaught Python exception: ===\n).*"),
    re.compile(r"ERROR: AddressSanitizer: .*"),
    re.compile(r"runtime error: .*"),
    re.compile(r"ERROR: libFuzzer: .*"),
)

#: Bugs for the sanitizers, beside those of fuzz_planted: what stands in the scanner once, and what is built in its place.
PLANTS = {
    "a character of three bytes is read beyond the end": ("end - at < 3 or ", ""),
    "an exponent of any length is added up": ("if exponent < HOPELESS:", "if True:"),
    "room for eight unknown keys is taken for more": ("(parts.extras_room + 16)", "(parts.extras_room + 8)"),
    "room for 32 levels is taken for more": ("closing[DEEPEST]", "closing[32]"),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    inputs: int
    edges: tuple[int, int]  #: of the scanner: those the seeds reach, and those reached in the end
    corpus: tuple[int, int]  #: inputs, each with a way of its own
    seconds: float
    found: str  #: what went wrong and the input it went wrong with, "" for nothing

    def __str__(self) -> str:
        return (
            f"{self.inputs} inputs in {self.seconds:.0f} s ({self.inputs / self.seconds:.0f}/s), "
            f"edges {self.edges[0]} -> {self.edges[1]}, corpus {self.corpus[0]} -> {self.corpus[1]}, "
            f"{'1 crash: ' + self.found if self.found else 'no crash'}"
        )


def prepare(folder: Path, plants: Mapping[str, str]) -> dict[str, str]:
    """Build the scanner in folder, with plants; return the environment to fuzz it in."""
    atheris = importlib.util.find_spec("atheris")
    if atheris is None or atheris.origin is None:
        raise SystemExit("no atheris here: pip install -e '.[fuzz]'")
    runtime = Path(atheris.origin).parents[1] / "asan_with_fuzzer.so"
    modules = build(folder, "envelope", plants=plants, environ=CLANG)
    environ = sanitized(modules, str(runtime))
    check_the_path(modules, environ)
    return environ


def fuzz(folder: Path, environ: Mapping[str, str], kept: Path, count: int, seconds: int, seed: int) -> Outcome:
    """Fuzz until something is found, or count inputs or seconds (0: no limit) are over."""
    (corpus := folder / "corpus").mkdir()
    for place, text in enumerate(STARTS):
        (corpus / str(place)).write_bytes(text)
    words = ("".join(f"\\x{byte:02x}" for byte in word) for word in WORDS)
    (folder / "words").write_text("".join(f'"{word}"\n' for word in words))  # libFuzzer leaves out the longest
    limits = [f"-runs={count}", f"-max_total_time={seconds}", f"-seed={seed}", "-timeout=20", "-print_final_stats=1"]
    places = [f"-dict={folder / 'words'}", f"-artifact_prefix={kept}/", str(corpus)]
    begun = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-c", FUZZ, *limits, *places],
        cwd=ROOT,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="backslashreplace",
    )
    took = time.monotonic() - begun
    executed = EXECUTED.search(run.stdout)
    wrong = next((match[0] for pattern in WRONG if (match := pattern.search(run.stdout))), "")
    if executed is None or (run.returncode != 0) != bool(wrong):
        raise SystemExit(f"the fuzzer itself failed:\n{run.stdout[-3000:]}")
    states = [(int(edges), int(corpus)) for edges, corpus in STATE.findall(run.stdout)] or [(0, 0)]  # a seed was bad
    inputs = "".join(f"\n{path}: {Path(path).read_bytes()!r}" for path in WRITTEN.findall(run.stdout))
    edges, corpora = zip(states[0], states[-1], strict=True)
    return Outcome(int(executed[1]), edges, corpora, took, wrong + inputs if wrong else "")


def plant_all(count: int, seconds: int, seed: int) -> int:
    """Fuzz a scanner with each bug; return 1 where one is not found. Say of PLANTS whether fuzz_envelope finds them too."""
    bad = 0
    for name, (old, new) in (fuzz_planted.PLANTS | PLANTS).items():
        if not old:  # nothing planted: that is the fuzzing itself
            continue
        with tempfile.TemporaryDirectory(prefix="guided.") as place:
            folder = Path(place)
            environ = prepare(folder, {old: new})
            (kept := folder / "kept").mkdir()
            outcome = fuzz(folder, environ, kept, count, seconds, seed)
            said = outcome.found.partition("\n")[0][:80] or "NOT FOUND"
            print(f"planted: {name}: {said} ({outcome.inputs} inputs, {outcome.seconds:.0f} s)", flush=True)
            bad += not outcome.found
            if name in PLANTS:
                bad += "AddressSanitizer" not in said and "runtime error" not in said
                blind = [sys.executable, "-m", "tests.fastpath.fuzz_envelope", "--count", str(fuzz_planted.COUNT)]
                run = subprocess.run(blind, cwd=ROOT, env=environ, capture_output=True)
                print(
                    f"  {fuzz_planted.COUNT} without feedback {'find it' if run.returncode else 'miss it'}", flush=True
                )
    return 1 if bad else 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Judge inputs guided by coverage until one is judged wrong.")
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=int, default=0, help="stop after so long; 0, as by default: after --count")
    parser.add_argument("--seed", type=int, default=1, help="0 for another one each time")
    parser.add_argument(
        "--planted", action="store_true", help="plant bugs in the scanner, one at a time: each must be found"
    )
    options = parser.parse_args(arguments)
    if options.planted:
        return plant_all(options.count, options.seconds, options.seed)
    KEPT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="guided.") as place:
        environ = prepare(Path(place), {})
        outcome = fuzz(Path(place), environ, KEPT, options.count, options.seconds, options.seed)
    print(outcome)
    return 1 if outcome.found else 0


if __name__ == "__main__":
    sys.exit(main())
