"""Embeddings of a corpus: the paragraphs of text files become vectors, by tasks of a queue, and are searched by meaning.

::

    export INFERMESH_URL=http://127.0.0.1:8080 INFERMESH_MODEL=sentence-transformers/all-MiniLM-L6-v2
    dspy-supervisor start --queue-dir queue --handler cpu_long=embed --workers cpu_long=4
    python docs/examples/embeddings/corpus.py embed queue docs index      # index/vectors.npy and index/paragraphs.json
    python docs/examples/embeddings/corpus.py search index "what happens when a worker is killed?"

A task holds the paragraphs of one piece of the corpus under an id that is made of them. So the same corpus again costs nothing
but a look at what is there, and after a crash only what was not embedded yet is.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from dspy_supervisor import Queue
from dspy_supervisor.embedding import EmbeddingClient, read_vectors

TEXTS_A_TASK = 64
SHORTEST = 40  # characters of a paragraph that says something
LONGEST = 1000  # about what a small model reads
SUFFIXES = {".md", ".txt", ".rst"}


def paragraphs(folder: Path) -> Iterator[dict[str, str]]:
    """Yield the paragraphs below a folder with the files they are from, in the order of the files' names."""
    for path in sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES):
        for block in path.read_text(encoding="utf-8", errors="replace").split("\n\n"):
            text = " ".join(block.split())[:LONGEST]
            if len(text) >= SHORTEST:
                yield {"file": str(path.relative_to(folder)), "text": text}


def embed(queue_dir: Path, corpus: Path, index: Path) -> int:
    """Embed a corpus, and return how many paragraphs it has."""
    found = list(paragraphs(corpus))
    pieces = [found[start : start + TEXTS_A_TASK] for start in range(0, len(found), TEXTS_A_TASK)]
    with Queue(queue_dir) as queue:
        tasks = []
        for piece in pieces:
            inputs = [one["text"] for one in piece]
            name = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:32]
            tasks.append(queue.submit({"inputs": inputs, "output": "npy"}, "cpu_long", id=f"embed-{name}"))
        vectors = [read_vectors(queue.result(task), queue_dir) for task in tasks]
    index.mkdir(parents=True, exist_ok=True)
    np.save(index / "vectors.npy", np.concatenate(vectors))
    (index / "paragraphs.json").write_text(json.dumps(found))
    return len(found)


def search(index: Path, question: str, most: int = 3) -> list[tuple[float, dict[str, str]]]:
    """Return the paragraphs that are nearest to a question in meaning, each with the cosine of the two."""
    vectors = np.load(index / "vectors.npy")
    with EmbeddingClient() as client:  # the server that the configuration names, as the workers do
        (asked,) = client.embed([question])
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(asked)
    likeness = vectors @ asked / lengths
    known = json.loads((index / "paragraphs.json").read_text())
    return [(float(likeness[at]), known[at]) for at in np.argsort(-likeness)[:most]]


def main() -> None:
    """Do what the arguments say."""
    match sys.argv[1:]:
        case ["embed", queue, corpus, index]:
            print(f"{embed(Path(queue), Path(corpus), Path(index))} paragraphs")
        case ["search", index, question]:
            for likeness, one in search(Path(index), question):
                print(f"{likeness:.2f}  {one['file']}: {one['text'][:160]}")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
