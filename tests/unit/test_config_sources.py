"""Where settings come from: secrets in files of their own, that nothing shows, and names that were meant to be settings."""

import json
from pathlib import Path

import pytest
from dspy_supervisor.cli import main
from dspy_supervisor.config import load
from dspy_supervisor.config_sources import nearest
from dspy_supervisor.errors import ConfigError

SECRET = "s3cr3t"


@pytest.fixture
def get(tmp_path):
    """Load with an environment of just a home folder and what the test adds."""

    def get(flags=None, **environ):
        return load(flags, {"HOME": str(tmp_path), **environ}, tmp_path)

    return get


@pytest.fixture
def file(tmp_path):
    """A file that holds a secret."""
    path = tmp_path / "token"
    path.write_text(f"TOKEN={SECRET}\n")
    return path


def variables(loaded):
    return dict(loaded.config.classes["gpu"].environment)


def test_a_secret_is_read_from_the_file_that_a_variable_a_flag_or_toml_names(get, file, tmp_path):
    loaded = get(DSPY_GPU_ENVIRONMENT_FILE="token")
    assert variables(loaded) == {"TOKEN": SECRET}
    assert loaded.origins["class.gpu.environment"] == "environment DSPY_GPU_ENVIRONMENT_FILE"
    assert variables(get({"class.gpu.environment_file": str(file)})) == {"TOKEN": SECRET}
    (tmp_path / "below").mkdir()
    toml = tmp_path / "below/x.toml"
    toml.write_text('[class.gpu]\nenvironment_file = "../token"\n')
    loaded = get({"config": "below/x.toml"})
    assert (variables(loaded), loaded.origins["class.gpu.environment"]) == ({"TOKEN": SECRET}, str(toml))
    (tmp_path / ".env").write_text("DSPY_GPU_ENVIRONMENT_FILE=token\n")
    assert variables(get()) == {"TOKEN": SECRET}
    assert variables(get(DSPY_GPU_ENVIRONMENT="A=1,B=x=y")) == {
        "A": "1",
        "B": "x=y",
    }  # which wins over the file of .env


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("environment = {THREADS = 4, SHARE = 0.5, NAME = 'a,b'}", {"THREADS": "4", "SHARE": "0.5", "NAME": "a,b"}),
        ("environment = 'A=1, B=x y'", {"A": "1", "B": "x y"}),
        ('environment = """\n# of two lines\nA=1,2\n\n B=3=4\n"""', {"A": "1,2", "B": "3=4"}),
        ("environment = ''", {}),
        ("environment = {A = true}", None),
        ("environment = {'A B' = '1'}", None),
        ("environment = ['A=1']", None),
        ("environment = 'A'", None),
    ],
)
def test_variables_are_written_as_a_table_with_commas_or_on_lines(get, tmp_path, written, read):
    (tmp_path / "dspy-supervisor.toml").write_text(f"[class.gpu]\n{written}\n")
    if read is None:
        with pytest.raises(ConfigError, match=r"environment='\(secret\)': expected variables as NAME=VALUE"):
            get()
    else:
        assert variables(get()) == read


def test_a_secret_that_changed_is_read_anew_at_a_reload(monkeypatch, file, tmp_path):
    monkeypatch.setenv("DSPY_GPU_ENVIRONMENT_FILE", str(file))
    loaded = load({}, cwd=tmp_path)
    file.write_text("TOKEN=other")
    assert variables(loaded.reload()) == {"TOKEN": "other"}


def test_a_secret_that_cannot_be_read_or_is_said_twice_is_refused(get, tmp_path):
    with pytest.raises(ConfigError, match=r"DSPY_GPU_ENVIRONMENT_FILE='gone': .* \(No such file or directory\)"):
        get(DSPY_GPU_ENVIRONMENT_FILE="gone")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="a file of text"):
        get(DSPY_GPU_ENVIRONMENT_FILE="binary")
    with pytest.raises(ConfigError, match="not both") as caught:
        get(DSPY_GPU_ENVIRONMENT=f"TOKEN={SECRET}", DSPY_GPU_ENVIRONMENT_FILE="token")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("token", f"not a variable: {SECRET}"),
        ("dspy-supervisor.toml", f"[class.gpu]\nenvironment = 'x {SECRET}'"),
        ("dspy-supervisor.toml", f"[class.gpu]\nenvironment = {{TOKEN = ['{SECRET}']}}"),
        ("dspy-supervisor.toml", f"[class.gpu]\nenvironmnt = {{TOKEN = '{SECRET}'}}"),
        (".env", f'DSPY_GPU_ENVIRONMENT="TOKEN={SECRET}\n'),
        (".env", f"DSPY_GPU_ENVIRONMENT='x {SECRET}'\n"),
    ],
)
def test_no_refusal_shows_a_secret(get, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as caught:
        get(**({"DSPY_GPU_ENVIRONMENT_FILE": name} if name == "token" else {}))
    assert SECRET not in str(caught.value)
    assert "environm" in str(caught.value).lower()


@pytest.mark.parametrize("options", [[], ["--origin"], ["--json"], ["--origin", "--json"]])
def test_a_secret_is_not_shown(monkeypatch, capsys, file, tmp_path, options):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DSPY_GPU_ENVIRONMENT_FILE", str(file))
    assert main(["config", "show", *options]) == 0
    output = capsys.readouterr().out
    assert SECRET not in output
    assert "(secret)" in output
    assert SECRET not in repr(load(cwd=tmp_path).config)


def test_check_names_variables_that_were_meant_to_be_settings(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DSPY_MAX_CONCURENCY", "3")
    Path(".env").write_text("DSPY_SLURM_PARTITON=gpu\nDSPY_CACHEDIR=/x\nDSPY_ENABLE_DEMO=false\nMETRICS_PORT=8083\n")
    assert main(["config", "check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["slips"] == {
        "DSPY_MAX_CONCURENCY": "DSPY_MAX_CONCURRENCY",
        "DSPY_SLURM_PARTITON": "DSPY_SLURM_PARTITION",
    }
    assert main(["config", "check"]) == 0
    assert "DSPY_MAX_CONCURENCY is no setting and changes nothing; is DSPY_MAX_CONCURRENCY meant?" in (
        capsys.readouterr().out
    )
    assert nearest("DSPY_ASSERTIONS") == ""
