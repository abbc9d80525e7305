"""What a task in a sandbox is to see, from settings and what is there."""

from __future__ import annotations

from pathlib import Path

import pytest
from dspy_supervisor.errors import ConfigError
from dspy_supervisor.sandbox.view import look


@pytest.mark.parametrize("setting", ["read", "write"])
def test_a_path_that_is_not_there_is_refused_by_its_name(tmp_path: Path, setting: str) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "broken").symlink_to("nowhere")
    look(code=[], private=[], home="/nonexistent", **{setting: [str(tmp_path / "there")]})
    for name in ("modles", "broken"):
        path = str(tmp_path / name)
        with pytest.raises(ConfigError, match=f"sandbox_{setting}='{path}': expected files and folders that are there"):
            look(code=[], private=[], home="/nonexistent", **{setting: [str(tmp_path / "there"), path]})
