"""An independent producer: it knows a folder and JSON, and nothing of the program that reads them.

Half of its files are written in place, as simple programs do; the others under another name, and renamed.
"""

import json
import os
import sys
import sysconfig
from pathlib import Path

LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
COMMANDS = (["sha256sum", "{}"], ["wc", "-lwc", "{}"])


def modules():
    """Return the source files of the standard library of this Python, without its tests."""
    library = Path(sysconfig.get_paths()["stdlib"])
    return [path for path in sorted(library.rglob("*.py")) if not LEFT_OUT & set(path.relative_to(library).parts)]


def drop(folder, name, task, renamed):
    """Put one task into the folder."""
    if renamed:
        temporary = folder / f".{name}.tmp"
        temporary.write_text(json.dumps(task))
        os.rename(temporary, folder / f"{name}.json")
    else:
        with (folder / f"{name}.json").open("w") as file:
            json.dump(task, file)


def main():
    folder = Path(sys.argv[1]) / "pending"
    found = modules()
    for number, path in enumerate(found):
        task = {"id": f"module-{number:04d}", "class": "cpu_short", "payload": {"path": str(path)}}
        drop(folder, task["id"], task, renamed=number % 2)
    for number, path in enumerate(found[:: max(1, len(found) // 20)]):
        for command in COMMANDS:
            argv = [part.format(path) for part in command]
            task = {"id": f"{argv[0]}-{number:02d}", "class": "cpu_short", "kind": "command", "payload": {"argv": argv}}
            drop(folder, task["id"], task, renamed=True)


if __name__ == "__main__":
    main()
