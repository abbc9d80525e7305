"""The units of systemd: what is shipped, how exposed it is, and what `service install` writes beside it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from dspy_supervisor import unitfile
from dspy_supervisor.cli import main
from dspy_supervisor.config import load

SYSTEM, INSTANCE, USER = (
    unitfile.unit(name, user=user, root=Path("/"), config_home=Path("/home/a/.config"))
    for name, user in (("main", False), ("emb", False), ("main", True))
)


@pytest.fixture
def analyze():
    program = shutil.which("systemd-analyze")
    if program is None:
        assert "CI" not in os.environ, "CI must have systemd-analyze"
        pytest.skip("no systemd-analyze here")
    return program


@pytest.mark.parametrize("one", [SYSTEM, INSTANCE, USER], ids=["system", "instance", "user"])
def test_systemd_understands_each_line_of_a_unit(analyze, one, tmp_path):
    name = one.file.name.replace("@", "@x")
    path = tmp_path / name
    path.write_text(unitfile.shipped(one))
    folder = tmp_path / f"{name}.d"
    folder.mkdir()
    odd = Path("/srv/a b/100%")
    text = unitfile.drop_in(one, "/bin/true", run_as="root", writable=odd, work=odd, token_file=odd, stop_s=99)
    (folder / "10-install.conf").write_text(text)
    done = subprocess.run(
        [analyze, "verify", "--man=no", *(["--user"] if one is USER else []), str(path)], capture_output=True, text=True
    )
    complaints = [line for line in done.stderr.splitlines() if name in line]
    assert complaints == []


@pytest.mark.parametrize("one", [SYSTEM, INSTANCE], ids=["system", "instance"])
def test_a_system_unit_is_not_exposed_beyond_three(analyze, one, tmp_path):
    path = tmp_path / one.file.name.replace("@", "@x")
    path.write_text(unitfile.shipped(one))
    done = subprocess.run(
        [analyze, "security", "--offline=true", "--threshold=30", "--no-pager", str(path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout.splitlines()[-1]


def test_the_unit_of_an_instance_is_that_of_the_machine_with_another_name():
    def settings(one, name):
        lines = unitfile.shipped(one).replace("%i", name).replace(f"{name}.toml", "config.toml").splitlines()
        return [line for line in lines if not line.startswith("#")]

    assert settings(INSTANCE, "main") == settings(SYSTEM, "main")


def test_the_settings_of_a_new_service_can_be_loaded(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(unitfile.settings_text("emb", Path('/srv/a "b"/q'), "workstation", user=False))
    config = load({"config": str(path)}).config
    assert (config.mode, config.queue_dir) == ("workstation", Path('/srv/a "b"/q'))
    assert config.runtime_dir == Path("/run/dspy-supervisor/emb")


@pytest.mark.parametrize("name", ["../x", "", "a b", "x" * 33])
def test_a_name_that_can_be_no_service_is_refused(name, capsys):
    assert main(["service", "status", "--", name]) == 2
    assert "1 to 32 letters" in capsys.readouterr().err


def test_a_machine_without_systemd_is_told_so(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert main(["service", "status"]) == 69
    assert "no systemctl here" in capsys.readouterr().err


@pytest.fixture
def install(tmp_path, monkeypatch, capsys):
    """Call `service` on a machine of its own below tmp_path, as root; returns (exit code, standard output, error)."""
    for name in [name for name in os.environ if name.startswith(("DSPY_", "ENV_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("os.chown", lambda *_: None)

    def placed(name, *, user, root, config_home):
        return unit(name, user=user, root=tmp_path, config_home=config_home)

    unit = unitfile.unit
    monkeypatch.setattr(unitfile, "unit", placed)

    def install(*arguments):
        code = main(["service", *arguments])
        return code, *capsys.readouterr()

    return install


@pytest.mark.parametrize(
    "arguments", [["--user"], ["--run-as", "nobody"], ["emb", "--run-as", "nobody"]], ids=["user", "system", "instance"]
)
def test_a_service_of_each_kind_is_written_and_its_queue_made(install, tmp_path, arguments, monkeypatch):
    monkeypatch.setenv("DSPY_RUNTIME_DIR", str(tmp_path / "mine"))  # of the caller, not of the service
    own = [] if "--user" in arguments else ["--queue-dir", str(tmp_path / "queue")]
    code, output, error = install("install", *arguments, *own, "--no-start")
    assert (code, error) == (0, "")
    wrote = [Path(line.removeprefix("wrote ")) for line in output.splitlines() if line.startswith("wrote ")]
    assert [path.suffix for path in wrote] == [".toml", ".service", ".conf"]
    assert all(path.is_file() and path.is_relative_to(tmp_path) for path in wrote)
    queue = tmp_path / ("queue" if own else "home/.local/state/dspy-supervisor/queue")
    assert load({"config": str(wrote[0])}).config.queue_dir == queue
    assert queue.is_dir()
    assert install("install", *arguments, "--no-start")[0] == 0


@pytest.mark.parametrize("arguments", [["--user"], ["--run-as", "nobody"], ["emb", "--run-as", "nobody"]])
def test_what_was_installed_without_systemd_is_removed_without_it(install, tmp_path, arguments, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")  # no systemctl
    monkeypatch.setattr("dspy_supervisor.cli.systemd._is_managed", lambda user: False)
    own = [] if "--user" in arguments else ["--queue-dir", str(tmp_path / "queue")]
    wrote = install("install", *arguments, *own, "--no-start")[1].splitlines()
    _, unit, drop_in = (Path(line.removeprefix("wrote ")) for line in wrote[:3])
    link = unit.parent / "multi-user.target.wants" / drop_in.parent.name.removesuffix(".d")
    link.parent.mkdir()
    link.symlink_to(unit)
    code, output, error = install("uninstall", *arguments[: 1 if arguments[0] != "--run-as" else 0])
    assert (code, error, "is removed" in output) == (0, "", True)
    assert [path for path in unit.parent.rglob("*") if not path.is_dir()] == []


def test_an_install_that_systemd_refuses_says_that_files_are_written_and_what_removes_them(
    install, monkeypatch, tmp_path
):
    (tmp_path / "bin").mkdir()
    systemctl = tmp_path / "bin/systemctl"
    systemctl.write_text("#!/bin/sh\necho 'Failed to connect to bus: No medium found' >&2\nexit 1\n")
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    code, output, error = install("install", "--user")
    assert (code, output.count("wrote ")) == (69, 3)
    assert "No medium found; its files are written: 'systemctl --user enable --now dspy-supervisor.service'" in error
    assert "'dspy-supervisor service uninstall --user' removes them" in error


def test_a_file_is_written_whole_and_only_where_it_changes(tmp_path):
    path = tmp_path / "a" / "x.service"
    assert unitfile.write(path, "1\n", 0o644)
    assert not unitfile.write(path, "1\n", 0o644)
    assert unitfile.write(path, "2\n", 0o600)
    assert [file.name for file in path.parent.iterdir()] == ["x.service"]
    assert path.stat().st_mode & 0o777 == 0o600
