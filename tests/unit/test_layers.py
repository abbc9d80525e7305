"""Imports run downhill: what a module imports lies in its own layer or below, and nothing goes round in a circle.

Imports for type checkers only don't count: they never happen.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import dspy_fastpath
import dspy_supervisor
import pytest

#: from the bottom to the top; the compiled package lies below all of it
LAYERS = {
    "words": {"current", "errors", "task", "traceparent"},
    "rules": {
        *(
            "setting",
            "config_slurm",
            "config_gpu",
            "config_env",
            "config_http",
            "config_embed",
            "config_cloud",
            "config_llm",
            "config_otel",
            "config_class",
            "config_sandbox",
            "config_table",
            "config_sources",
            "config",
            "environment",
        ),
        *("filesystem", "unitfile", "log", "proctree", "runtime"),
        *("layout", "record", "taskqueue", "jobfolder", "jobbook", "walltime", "lookup", "producer", "pause", "census"),
        *(
            "nodes",
            "undertaker",
            "migration",
            "tears",
            "recovery",
            "retry",
            "backlog",
            "lanes",
            "environments",
            "control_client",
            "trials",
            "doctor",
            "gc",
            "fsck",
        ),
        "sandbox",
        *("devices", "cuda_errors", "cuda_process", "vram"),
        *("limit", "limit_terms", "adaptive", "gpu", "host", "metrics", "budget", "schedule", "limit_headers"),
        *("times", "history", "recorder"),
    },
    "sockets": {"checkpoint", "parts", "link", "channel", "traces"},
    "actors": {
        "reactor",
        "guard",
        "notify",
        "compat",
        "attempt",
        "bounds",
        "cgroup",
        "worker",
        "intake",
        "pool",
        "pool_worker",
        "hosts",
        "hedges",
        "kept",
        "gpu_needs",
        "gpu_pool",
        "gpu_worker",
        "fleet",
        "feeder",
        "control",
        "birth",
        "breaker",
        "handover",
        "sidecar",
        "crew",
        "carrier",
        "jobchild",
        "cell",
        "warden",
        "rehearsal",
        "proof",
        "job",
    },
    "loop": {"upgrade", "allocation", "settle", "sweeper", "requests", "orders", "dispatch", "burst", "loop"},
    "cli": {"cli", "__main__"},
}
#: packages and modules that stand beside the tower: what they see of it (and the actors may see handlers)
BESIDE = {
    "handlers": {"words", "rules", "sockets"},
    "services": {"words", "rules", "sockets"},
    "client": {"words", "rules", "sockets"},
    "dspy": {"words", "rules", "sockets"},
    "simulate": {"words", "rules"},
    "embedding": {"words", "rules"},
    "top": {"words", "rules"},
}
SEES_BESIDE = {
    "handlers": {"actors"},
    "services": {"cli"},
    "client": {"cli"},
    "dspy": set(),
    "simulate": {"cli"},
    "embedding": {"cli", "actors"},
    "top": {"cli"},
}
#: which of these sees which other: gateway and evaluations are producers as any program is, a handler has its other end
NEIGHBOURS = {
    ("services", "client"),
    ("services", "embedding"),
    ("handlers", "embedding"),
    ("dspy", "client"),
    ("handlers", "dspy"),
    ("top", "services"),  # what the gateway tells of tasks, told in a terminal
}


ROOT = Path(dspy_supervisor.__file__).parent
ORDER = list(LAYERS)


def parts() -> dict[str, list[Path]]:
    """Return every top-level module and package of the supervisor with its files."""
    found = {path.stem: [path] for path in ROOT.glob("*.py") if path.stem != "__init__"}
    packages = [path for path in ROOT.iterdir() if path.is_dir() and any(path.glob("*.py"))]
    return found | {path.name: sorted(path.rglob("*.py")) for path in packages}


def imported(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield what a file imports of the supervisor: the name of the part, and whether that happens at import."""
    package = ("dspy_supervisor", *path.relative_to(ROOT).parts[:-1])
    tree = ast.parse(path.read_text())
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) + 1 - node.level]] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "dspy_supervisor" else [module]
        else:
            continue
        for name in names:
            if name.startswith("dspy_supervisor."):
                yield name.split(".")[1], id(node) in top


def layer_of(part: str) -> str:
    return next(layer for layer, names in LAYERS.items() if part in names)


def test_every_module_has_its_layer():
    placed = set().union(*LAYERS.values(), BESIDE)
    assert set(parts()) - placed == set(), "give these a layer in LAYERS"


@pytest.mark.parametrize("part", sorted(parts()))
def test_imports_run_downhill(part):
    for path in parts()[part]:
        for target, _ in imported(path):
            if target == part or target in ("__version__", "__init__"):
                continue
            place = f"{path.relative_to(ROOT)} imports {target}"
            if part in BESIDE:
                if (part, target) not in NEIGHBOURS:
                    assert target not in BESIDE, place
                    assert layer_of(target) in BESIDE[part], place
            elif target in BESIDE:
                assert layer_of(part) in SEES_BESIDE[target], place
            else:
                assert ORDER.index(layer_of(target)) <= ORDER.index(layer_of(part)), place


def test_nothing_is_imported_in_a_circle():
    edges = {
        part: {target for path in files for target, at_import in imported(path) if at_import and target != part}
        for part, files in parts().items()
    }
    done: set[str] = set()

    def visit(part: str, trail: tuple[str, ...]) -> None:
        assert part not in trail, " -> ".join([*trail, part])
        if part not in done:
            for target in edges.get(part, ()):
                visit(target, (*trail, part))
            done.add(part)

    for part in edges:
        visit(part, ())


def test_the_compiled_package_knows_nothing_of_the_supervisor():
    folder = Path(dspy_fastpath.__file__).parent
    for path in [*folder.glob("*.py"), *folder.glob("*.pyx"), *folder.glob("*.pyi"), *folder.glob("*.pxd")]:
        assert "import dspy_supervisor" not in path.read_text(), path
        assert "from dspy_supervisor" not in path.read_text(), path


def test_the_environment_is_read_in_config_and_environment_alone():
    # Beside them: attempt puts back what a handler changed, command hands on what its allow-list names.
    allowed = {"config.py", "environment.py", "attempt.py", "command.py"}
    for path in (path for files in parts().values() for path in files if path.name not in allowed):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute | ast.Name):
                assert ast.unparse(node) not in ("os.environ", "os.environb", "os.getenv"), path
            if isinstance(node, ast.ImportFrom) and node.module == "os":
                assert {alias.name for alias in node.names}.isdisjoint({"environ", "environb", "getenv"}), path
