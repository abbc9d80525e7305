"""The main job on real input: a supervisor in laptop mode, a producer that knows nothing of it, and a table of what came out.

Every module of the Python standard library on this machine is one task; some dozen commands run beside them.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
WORK = Path.cwd() / ".demo"
QUEUE = WORK / "queue"
DEADLINE_S = 120
LONGEST_BAR = 30


def main():
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir()
    began = time.monotonic()
    log = WORK / "supervisor.log"
    # fmt: off
    command = [
        sys.executable, "-m", "dspy_supervisor", "start", "--mode", "laptop", "--queue-dir", str(QUEUE),
        "--handler", "cpu_short=analysis:analyse", "--workers", f"cpu_short={os.cpu_count()}",
        "--kinds", "echo,call,command", "--log-file", str(log), "--log-level", "info",
        "--runtime-dir", str(WORK / "run"),
    ]
    # fmt: on
    environment = os.environ | {"PYTHONPATH": str(HERE)}
    supervisor = subprocess.Popen(command, env=environment)
    try:
        wait_for(lambda: (QUEUE / "pending").is_dir() or supervisor.poll() is not None, "the supervisor to start")
        if supervisor.poll() is not None:
            sys.exit(f"the supervisor ended with {supervisor.returncode}: see {log}")
        print(f"supervisor {supervisor.pid} serves {QUEUE}; a producer drops its files into pending/")
        producer = subprocess.Popen([sys.executable, str(HERE / "producer.py"), str(QUEUE)])
        watch(producer)
        elapsed = time.monotonic() - began
    finally:
        supervisor.terminate()
        supervisor.wait(30)
    report(elapsed)


def watch(producer):
    """Show progress until the producer has ended and nothing waits or runs any more."""
    began = time.monotonic()
    while True:
        ended = producer.poll() is not None
        counts = {state: sum(1 for _ in (QUEUE / state).glob("*.json")) for state in ("pending", "done", "failed")}
        left = counts["pending"] + sum(1 for _ in (QUEUE / "claimed").glob("*/*.json"))
        over = counts["done"] + counts["failed"]
        bar = "#" * (LONGEST_BAR * over // max(1, over + left))
        line = f"[{bar:<{LONGEST_BAR}}] done {counts['done']}, failed {counts['failed']}, waiting {counts['pending']}"
        print(f"\r{line} ", end="" if sys.stdout.isatty() else "\n", flush=True)
        if ended and not left:
            if sys.stdout.isatty():
                print()
            return
        if time.monotonic() - began > DEADLINE_S:
            sys.exit(f"\nnot done after {DEADLINE_S} s: see {WORK / 'supervisor.log'}")
        time.sleep(0.1 if sys.stdout.isatty() else 1.0)


def wait_for(fact, what):
    """Wait until something is so, at most ten seconds."""
    deadline = time.monotonic() + 10
    while not fact():
        if time.monotonic() > deadline:
            sys.exit(f"waited 10 s for {what}")
        time.sleep(0.01)


def report(elapsed):
    """Print what came out, and where it lies."""
    records = [json.loads(path.read_text()) for path in sorted((QUEUE / "done").glob("*.json"))]
    modules = [record for record in records if record["task_id"].startswith("module-")]
    commands = [record for record in records if record.get("kind") == "command"]
    sums = {key: sum(record["runner_result"][key] for record in modules) for key in ("lines", "classes", "functions")}
    functions = [
        (entry["complexity"], entry["name"], f"{record['payload']['path']}:{entry['line']}")
        for record in modules
        for entry in record["runner_result"]["most_complex"]
    ]
    waits = sorted(record["wait_ms"] for record in records)
    print(
        f"\n{len(modules)} modules, {sums['lines']} lines, {sums['classes']} classes, {sums['functions']} functions\n"
    )
    print("complexity  function                        where")
    for score, name, where in sorted(functions, reverse=True)[:10]:
        print(f"{score:>10}  {name:<30}  {where}")
    print(f"\n{len(commands)} commands, the first: {commands[0]['runner_result'].get('stdout_tail', '').strip()[:90]}")
    print(f"\n{len(records)} tasks done in {elapsed:.1f} s, each with one record in {QUEUE / 'done'}")
    print(f"a task waited {waits[len(waits) // 2]:.1f} ms at the median for its turn")
    failed = sorted((QUEUE / "failed").glob("*.json"))
    if failed:
        print(f"{len(failed)} tasks failed, with their reasons in {QUEUE / 'failed'}:")
        for path in failed[:5]:
            print(f"  {path.stem}: {json.loads(path.read_text())['error']['message'][:100]}")
        sys.exit(1)


if __name__ == "__main__":
    main()
