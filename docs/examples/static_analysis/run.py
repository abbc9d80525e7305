"""Analyse every Python file of a git repository over a queue, and print what was found.

In one shell, and in another:

    dspy-supervisor start --queue-dir queue --handler cpu_short=analysis:analyse --workers cpu_short=4
    python run.py path/to/repository --queue-dir queue

A task's key is the content of its file, so a second run analyses what has changed since, and nothing else.
"""

import argparse
import subprocess
from pathlib import Path

from dspy_supervisor import Queue

VERSION = 1  # of the analysis: another one makes all results new


def files(repository):
    """Return the name, path and hash of content of every Python file that git knows."""
    root = Path(repository).resolve()
    names = git(root, "ls-files", "-z", "*.py").split("\0")
    names = [name for name in names if name and (root / name).is_file() and not (root / name).is_symlink()]
    hashes = git(root, "hash-object", "--stdin-paths", told="\n".join(names)).split()
    return [(name, root / name, content) for name, content in zip(names, hashes, strict=True)]


def git(root, *arguments, told=""):
    """Return what git prints."""
    return subprocess.run(
        ["git", "-C", root, *arguments], input=told, check=True, capture_output=True, text=True
    ).stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository")
    parser.add_argument("--queue-dir", required=True)
    given = parser.parse_args()
    with Queue(given.queue_dir) as queue:
        found = files(given.repository)
        ids = queue.submit_many(
            ({"path": str(path)}, {"idempotency_key": f"analysis-{VERSION}:{content}"}) for _, path, content in found
        )
        lines = functions = findings = 0
        for (name, _, _), task_id in zip(found, ids, strict=True):
            result = queue.result(task_id, timeout=600)
            lines, functions = lines + result["lines"], functions + result["functions"]
            for line, text in result["findings"]:
                findings += 1
                print(f"{name}:{line}: {text}")
    print(f"{len(found)} files, {lines} lines, {functions} functions, {findings} findings")


if __name__ == "__main__":
    main()
