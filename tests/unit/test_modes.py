"""The .env files that come along: each says what its mode means, and nothing else."""

from pathlib import Path

import dspy_supervisor
import pytest
from dotenv import dotenv_values
from dspy_supervisor.cli import main
from dspy_supervisor.config import MODES, flat, load
from dspy_supervisor.config_sources import strangers
from dspy_supervisor.config_table import SETTINGS, variable

MODES_FOLDER = Path(dspy_supervisor.__file__).parent / "modes"
#: of COMPAT: what older tools have for each mode; the laptop's queue is private here
OLDER = {
    "laptop": {"DSPY_MAX_CONCURRENCY": "1", "DSPY_ENABLE_DEMO": "false", "DSPY_LOG_LEVEL": "debug"},
    "workstation": {
        "DSPY_MAX_CONCURRENCY": "4",
        "DSPY_ENABLE_DEMO": "false",
        "DSPY_ENABLE_GPU": "true",
        "DSPY_GPU_MEMORY_LIMIT": "20G",
        "ENV_QUEUE_DIR": "logs/env_queue",
        "DSPY_LOG_LEVEL": "info",
    },
    "cluster": {
        "DSPY_MAX_CONCURRENCY": "16",
        "DSPY_ENABLE_DEMO": "false",
        "DSPY_ENABLE_GPU": "true",
        "ENV_QUEUE_DIR": "/shared/dspy_queue",
        "DSPY_ENABLE_SLURM": "true",
        "DSPY_SLURM_PARTITION": "gpu",
        "DSPY_LOG_LEVEL": "info",
    },
    "cloud": {
        "DSPY_MAX_CONCURRENCY": "16",
        "DSPY_ENABLE_DEMO": "false",
        "DSPY_ENABLE_GPU": "true",
        "ENV_QUEUE_DIR": "/shared/dspy_queue",
        "DSPY_LOG_LEVEL": "info",
    },
}


@pytest.mark.parametrize("mode", MODES)
def test_the_file_of_a_mode_says_what_the_mode_means_and_nothing_else(mode, tmp_path):
    environ = {"HOME": str(tmp_path)}
    by_file = load({"env_file": str(MODES_FOLDER / f"{mode}.env")}, environ, tmp_path)
    assert by_file.config.mode == mode
    assert flat(by_file.config) == flat(load({"mode": mode}, environ, tmp_path).config)
    said = dotenv_values(MODES_FOLDER / f"{mode}.env")
    assert strangers(said) == []
    assert said.items() >= OLDER[mode].items()
    differing = {variable(name) for name, row in SETTINGS.items() if mode in row.modes}
    assert said.keys() - {"DSPY_MODE", "DSPY_ENABLE_DEMO", "DSPY_POLICY", "DSPY_LOG_LEVEL"} <= differing
    assert differing <= said.keys()


@pytest.mark.parametrize("mode", MODES)
def test_the_file_of_a_mode_is_printed(mode, capsys):
    assert main(["config", "env", mode]) == 0
    assert capsys.readouterr().out == (MODES_FOLDER / f"{mode}.env").read_text()


@pytest.mark.parametrize("mode", MODES)
def test_the_repository_has_the_files_at_its_root(mode):
    at_root = Path(__file__).parents[2] / f".env.{mode}"
    assert at_root.read_text() == (MODES_FOLDER / f"{mode}.env").read_text()
