"""The example of docs/examples/embeddings, as its text says to run it, on a real model."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT, Start, clean_environ
from tests.embed.minilm import MiniLm

pytestmark = pytest.mark.xdist_group("embed")
PROGRAM = ROOT / "docs" / "examples" / "embeddings" / "corpus.py"
CORPUS = {
    "animals.md": "Cats sleep for most of the day, and hunt small animals at dusk.\n\nA dog wants to be walked, twice each day.",
    "deep/money.txt": "The bank raised its rates, and shares fell all over the world.\n\nshort",
    "code.py": "nothing that is read here, although it is long enough to be a paragraph",
}


def test_a_corpus_is_embedded_by_tasks_and_searched_by_meaning(supervisor: Start, serve, minilm: MiniLm, tmp_path):
    server = serve("tei", model=minilm)
    for name, text in CORPUS.items():
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    environ = clean_environ(tmp_path) | {"INFERMESH_URL": server.url, "INFERMESH_MODEL": minilm.name}
    one = supervisor("--workers", "cpu_long=2", handlers={"cpu_long": "embed"}, environ=environ)

    def run(*arguments: object) -> str:
        command = [sys.executable, str(PROGRAM), *map(str, arguments)]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr + one.log
        return done.stdout

    index = tmp_path / "index"
    assert run("embed", one.queue, tmp_path / "corpus", index) == "3 paragraphs\n"
    assert (
        run("search", index, "Which pet needs exercise?")
        .splitlines()[0]
        .split("  ", 1)[1]
        .startswith("animals.md: A dog")
    )
    assert "deep/money.txt" in run("search", index, "finance news").splitlines()[0]
    asked = sum(server.batches)
    assert run("embed", one.queue, tmp_path / "corpus", index) == "3 paragraphs\n"
    assert sum(server.batches) == asked  # the same corpus again costs nothing
