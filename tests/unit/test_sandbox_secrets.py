"""What is hidden in folders of code: secrets by their names, at every depth, and not what belongs to published packages."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from dspy_supervisor.errors import ConfigError
from dspy_supervisor.sandbox import secrets, walls
from dspy_supervisor.sandbox.view import View, look


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("as it is")


def found(folder: Path, *passed: Path) -> list[str]:
    paths = secrets.find([str(folder)], set(map(str, passed)))
    return sorted(os.path.relpath(path, folder) for path in paths)


def test_secrets_are_found_at_every_depth_by_their_names_alone(tmp_path: Path) -> None:
    hidden = [".env", "a/.env.prod", "a/b/c/d/e/tls.key", "a/b/tls.pem", "c/.tls.key", "c/dspy-supervisor.toml"]
    put(tmp_path, *hidden, ".git/config", "a/sub/.git", "a/env", "a/key.py", "a/x.pem.py", "c/.environ", "c/keys/k.txt")
    assert found(tmp_path) == sorted([*hidden, ".git", "a/sub/.git"])


def test_links_are_neither_hidden_nor_followed(tmp_path: Path) -> None:
    put(tmp_path, "code/a.py", "elsewhere/tls.key")
    (tmp_path / "code" / "way").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "code" / "tls.key").symlink_to("../elsewhere/tls.key")
    (tmp_path / "code" / "round").symlink_to(".")
    assert found(tmp_path / "code") == []


def test_a_folder_of_code_behind_a_link_is_looked_into(tmp_path: Path) -> None:
    put(tmp_path, "code/sub/tls.key")
    (tmp_path / "link").symlink_to("code")
    assert secrets.find([str(tmp_path / "link")], ()) == [str(tmp_path / "code/sub/tls.key")]


def test_certificates_of_published_packages_are_none(tmp_path: Path) -> None:
    put(
        tmp_path,
        "env/pyvenv.cfg",
        "env/.env",
        "env/src/mine/tls.key",
        "env/lib/python3/site-packages/certifi/cacert.pem",
    )
    put(tmp_path, "conda/conda-meta/history", "conda/ssl/cacert.pem", "web/node_modules/tls/test.pem")
    put(tmp_path, "env/lib/python3/site-packages/top.key")
    assert found(tmp_path) == ["env/.env", "env/lib/python3/site-packages/top.key", "env/src/mine/tls.key"]


@pytest.mark.parametrize("folder", [sys.base_prefix, os.path.dirname(os.__file__), os.path.dirname(pytest.__path__[0])])
def test_of_python_and_its_packages_only_the_first_level_is_looked_at(
    monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.setattr(secrets, "MOST_FILES", len(os.listdir(folder)))
    secrets.find([folder], ())


def test_what_is_named_by_itself_is_passed(tmp_path: Path) -> None:
    put(tmp_path, "certs/ca.pem", "data/x.key", "other/x.key")
    assert found(tmp_path, tmp_path / "certs", tmp_path / "data/x.key") == ["other/x.key"]


@pytest.mark.parametrize("bound", ["MOST_FILES", "MOST_SECRETS"])
def test_what_is_too_much_to_look_at_is_refused_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    put(tmp_path, *(f"a/{number}.key" for number in range(10)))
    monkeypatch.setattr(secrets, bound, 9)
    with pytest.raises(ConfigError, match=f"folder of code='{tmp_path}': expected no more than .* sandbox_read"):
        found(tmp_path)
    assert found(tmp_path, tmp_path / "a") == []


def view(code: Path, queue: Path) -> View:
    return look(code=[str(code)], private=[str(queue)], home="/nonexistent")


def test_a_folder_may_be_listed_beside_its_secrets_and_not_where_the_queue_is(tmp_path: Path) -> None:
    put(tmp_path, "code/a/b/tls.key", "code/c/tls.key", "code/c/queue/pending/x.json")
    code = tmp_path / "code"
    seen = view(code, code / "c" / "queue")
    assert {str(code / name) for name in ("a/b/tls.key", "c/tls.key", "c/queue")} <= set(seen.hidden)
    assert set(seen.listed) == {str(code / "a")}
    assert view(code, tmp_path / "queue").listed == (str(code),)


def test_a_queue_in_a_folder_of_code_is_not_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "queue/a.json", *(f"queue/done/{number}.json" for number in range(100)))
    monkeypatch.setattr(secrets, "MOST_FILES", 50)
    assert str(tmp_path / "queue") in view(tmp_path, tmp_path / "queue").hidden
    look(code=[str(tmp_path / "queue" / "done")], private=[str(tmp_path / "queue")], home="/nonexistent")


def test_landlock_is_told_of_all_but_the_secrets(tmp_path: Path) -> None:
    put(tmp_path, "code/a/b/tls.key", "code/a/b/mine.py", "code/a/other.py")
    try:
        told = walls.rules(view(tmp_path / "code", tmp_path / "queue"))
    except OSError as error:
        pytest.skip(str(error))
    below = {os.path.relpath(path, tmp_path / "code") for path, _ in told if path.startswith(str(tmp_path))}
    assert below == {".", "a/b/mine.py", "a/other.py"}
