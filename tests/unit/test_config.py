"""Settings: which source wins, what is refused and in which words, and what each mode means."""

import dataclasses
import os
from pathlib import Path

import pytest
from dspy_supervisor.config import CLASSES, MODES, Config, differences, flat, load
from dspy_supervisor.config_class import CLASS_SETTINGS
from dspy_supervisor.config_gpu import workstation_limit
from dspy_supervisor.config_table import SETTINGS, variable
from dspy_supervisor.environment import notify_environment
from dspy_supervisor.errors import ConfigError
from dspy_supervisor.services.cloud.pod import start_options


@pytest.fixture
def home(tmp_path):
    """An empty place: its own home, and a folder to stand in."""
    (tmp_path / "here").mkdir()
    return tmp_path


@pytest.fixture
def get(home):
    """Load with an environment of just a home folder and what the test adds."""

    def get(flags=None, **environ):
        return load(flags, {"HOME": str(home), **environ}, home / "here")

    return get


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_every_field_but_the_classes_is_a_row_of_the_table():
    assert {f.name for f in dataclasses.fields(Config)} == {*SETTINGS, "classes"}
    assert all(row.help for row in (SETTINGS | CLASS_SETTINGS).values())
    names = [variable(name) for name in flat(load({}, {"HOME": "/h"}, Path("/")).config)]
    names += [older for row in SETTINGS.values() for older in row.also]
    assert len(names) == len(set(names))


def test_every_default_is_a_value_that_could_be_written(get):
    for mode in MODES:
        config = get({"mode": mode}).config
        for name, value in flat(config).items():
            if value is not None:
                row = (CLASS_SETTINGS if name.startswith("class.") else SETTINGS)[name.rpartition(".")[2]]
                assert row.kind.read(value) == value, name


def test_flags_win_over_environment_over_env_files_over_toml_over_mode_over_built_in(get, home):
    here = home / "here"
    assert get().config.max_concurrency == 1
    write(here / "dspy-supervisor.toml", 'mode = "cluster"\n')
    assert get().origins["max_concurrency"] == "mode cluster"
    write(here / "dspy-supervisor.toml", 'mode = "cluster"\nmax_concurrency = 2\n')
    assert get().origins["max_concurrency"] == str(here / "dspy-supervisor.toml")
    write(here / ".env", "DSPY_MAX_CONCURRENCY=3\n")
    assert get().config.max_concurrency == 3
    write(here / ".env.cluster", "export DSPY_MAX_CONCURRENCY='4'  # of this host\n")
    loaded = get()
    assert (loaded.config.max_concurrency, loaded.config.classes["cpu_long"].workers) == (4, 4)
    assert loaded.origins["max_concurrency"] == f"{here}/.env.cluster DSPY_MAX_CONCURRENCY"
    assert [path.name for path in loaded.files] == [".env.cluster", ".env", "dspy-supervisor.toml"]
    loaded = get(DSPY_MAX_CONCURRENCY="5")
    assert (loaded.config.max_concurrency, loaded.origins["max_concurrency"]) == (5, "environment DSPY_MAX_CONCURRENCY")
    loaded = get({"max_concurrency": "6"}, DSPY_MAX_CONCURRENCY="5")
    assert (loaded.config.max_concurrency, loaded.origins["max_concurrency"]) == (6, "flag --set max_concurrency")


def test_the_modes_differ_as_the_table_says(get):
    facts = {
        mode: (
            c.max_concurrency,
            c.enable_gpu,
            c.enable_slurm,
            c.slurm_partition,
            c.policy,
            c.log_level,
            *(one.workers for one in c.classes.values()),
        )
        for mode in MODES
        for c in [get({"mode": mode}).config]
    }
    assert facts == {
        "laptop": (1, False, False, None, "fixed", "debug", 1, 1, 1, 0),
        "workstation": (4, True, False, None, "adaptive", "info", 4, 4, 4, 0),
        "cluster": (16, True, True, "gpu", "adaptive", "info", 16, 16, 16, 0),
        "cloud": (16, True, False, None, "adaptive", "info", 16, 16, 16, 0),
    }


@pytest.mark.parametrize(
    ("written", "mode"),
    [("dev", "laptop"), ("DEVELOPMENT", "laptop"), ("prod", "cluster"), ("Production", "cluster"), ("Cloud", "cloud")],
)
def test_a_mode_may_be_written_by_an_alias_and_in_any_case(get, written, mode):
    assert get(DSPY_MODE=written).config.mode == mode


def test_each_mode_has_its_queue_and_the_laptops_is_private_to_the_user(get, home):
    assert get().config.queue_dir == home / ".local/state/dspy-supervisor/queue"
    assert get(XDG_STATE_HOME="/state").config.queue_dir == Path("/state/dspy-supervisor/queue")
    assert get(XDG_STATE_HOME="relative").config.queue_dir == home / ".local/state/dspy-supervisor/queue"
    assert get({"mode": "workstation"}).config.queue_dir == home / "here/logs/env_queue"
    assert get({"mode": "cluster"}).config.queue_dir == Path("/shared/dspy_queue")


def test_a_relative_path_is_relative_to_here_and_in_toml_to_its_file(get, home):
    assert get({"queue_dir": "q"}).config.queue_dir == home / "here/q"
    assert get(ENV_QUEUE_DIR="../q").config.queue_dir == home / "here/../q"
    there = write(home / "etc/x.toml", 'queue_dir = "q"\nlog_file = "log"\n')
    config = get({"config": str(there)}).config
    assert (config.queue_dir, config.log_file) == (home / "etc/q", home / "etc/log")


def test_the_runtime_folder_is_the_users_own(get, monkeypatch):
    assert get(XDG_RUNTIME_DIR="/run/user/7").config.runtime_dir == Path("/run/user/7/dspy-supervisor")
    monkeypatch.setattr("os.geteuid", lambda: 7)
    assert get().config.runtime_dir == Path("/tmp/dspy-supervisor-7")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert get().config.runtime_dir == Path("/run/dspy-supervisor")


def test_a_class_is_set_by_toml_variable_and_flag(get, home):
    write(
        home / "here/dspy-supervisor.toml",
        '[class.cpu_short]\nhandler = "a.b:c"\nworkers = 9\ntimeout_s = "none"\nmax_rss_bytes = "1.5G"\n'
        "[class.cpu_long]\ntimeout_s = 0\n",
    )
    loaded = get({"class.cpu_short.workers": "3"}, DSPY_GPU_HANDLER="echo")
    short = loaded.config.classes["cpu_short"]
    assert (short.handler, short.workers, short.timeout_s, short.max_rss_bytes) == ("a.b:c", 3, None, 3 << 29)
    assert loaded.config.classes["cpu_long"].timeout_s is None
    assert loaded.config.classes["gpu"].handler == "echo"
    assert loaded.origins["class.cpu_short.workers"] == "flag --workers"
    assert loaded.origins["class.gpu.handler"] == "environment DSPY_GPU_HANDLER"


def test_a_kind_of_ones_own_is_named_with_its_handler_and_accepted(get, home):
    config = get(DSPY_KIND_HANDLERS="count=tools:count, sum=tools:sum").config
    assert dict(config.kind_handlers) == {"count": "tools:count", "sum": "tools:sum"}
    assert config.kinds == ("echo", "call")
    write(home / "here/dspy-supervisor.toml", 'kinds = []\n[kind_handlers]\ncount = "tools:count"\n')
    assert get().config.kinds == ()
    assert get(DSPY_KINDS="echo,count").config.kinds == ("echo",)  # said twice
    with pytest.raises(ConfigError, match="kinds among echo, call, command"):
        get(DSPY_KINDS="echo,sum")
    with pytest.raises(ConfigError, match="expected KIND=module:function"):
        get(DSPY_KIND_HANDLERS="count")


def test_variables_that_are_unknown_or_empty_are_let_be(get):
    assert get(DSPY_CACHEDIR="/x", DSPY_NONSENSE="1", DSPY_MAX_CONCURRENCY="", DSPY_MODE="").config.mode == "laptop"


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"DSPY_MAX_CONCURRENCY": "many"}, "DSPY_MAX_CONCURRENCY='many': expected a whole number from 1 to 1024"),
        ({"DSPY_MAX_CONCURRENCY": "0"}, "DSPY_MAX_CONCURRENCY='0': expected a whole number from 1 to 1024"),
        ({"DSPY_MODE": "moon"}, "DSPY_MODE='moon': expected one of laptop, workstation, cluster, cloud, dev, "),
        ({"DSPY_INSECURE": "perhaps"}, "DSPY_INSECURE='perhaps': expected true or false"),
        ({"DSPY_DRAIN_S": "nan"}, "DSPY_DRAIN_S='nan': expected seconds from 0 to "),
        ({"DSPY_SANDBOX_WRITE": "x"}, "DSPY_SANDBOX_WRITE='x': expected absolute paths, with commas between them"),
        ({"DSPY_SWEEP_S": "inf"}, "DSPY_SWEEP_S='inf': expected seconds from 0.05 to 3600"),
        ({"DSPY_MAX_TASK_BYTES": "64 parsec"}, "DSPY_MAX_TASK_BYTES='64 parsec': expected bytes from 64 to "),
        ({"DSPY_KINDS": "echo,../x"}, "DSPY_KINDS='echo,../x': expected names of task kinds, with commas"),
        ({"DSPY_INSTANCE": "a b"}, "DSPY_INSTANCE='a b': expected 1 to 32 letters"),
        ({"DSPY_GPU_HANDLER": "x y"}, "DSPY_GPU_HANDLER='x y': expected module:function"),
        ({"DSPY_GPU_HANDLER": "ehco"}, "DSPY_GPU_HANDLER='ehco': expected module:function"),
    ],
)
def test_a_bad_value_is_refused_with_its_name_and_what_was_expected(get, environ, message):
    with pytest.raises(ConfigError) as caught:
        get(**environ)
    assert str(caught.value).startswith(message)
    assert caught.value.exit_code == 78


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_concurency = 3", "max_concurency=3: expected a known setting; did you mean 'max_concurrency'?"),
        (
            "[class.cpu_shrot]\nworkers = 2",
            "class.cpu_shrot.workers=2: expected a known setting; did you mean 'class.cpu_sh",
        ),
        ("[class]\ngpu = 3", "class.gpu=3: expected a known setting"),
        ("[zzzz]\nx = 3", "zzzz={'x': 3}: expected a known setting: see"),
        ("max_concurrency = true", "max_concurrency=True: expected a whole number"),
        ("max_concurrency = 2.5", "max_concurrency=2.5: expected a whole number"),
        ("kinds = [1]", "kinds=[1]: expected names of task kinds"),
        ("insecure = 1", "insecure=1: expected true or false"),
        ("queue_dir = 7", "queue_dir=7: expected a path"),
        ("drain_s = false", "drain_s=False: expected seconds"),
    ],
)
def test_a_toml_file_is_refused_with_its_path_the_value_and_what_was_expected(get, home, text, message):
    path = write(home / "here/dspy-supervisor.toml", text)
    with pytest.raises(ConfigError) as caught:
        get()
    assert str(caught.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(("text", "place"), [("a = \n", "at line 1"), (b'x = "\xff"'.decode("latin-1"), "UTF-8")])
def test_a_file_that_is_no_toml_is_refused_with_the_place(get, home, text, place):
    path = home / "x.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=place):
        get({"config": str(path)})


def test_a_line_of_an_env_file_that_means_nothing_is_refused_and_nothing_is_expanded(get, home):
    path = write(home / "x.env", "A=1\nthis is no setting\n")
    with pytest.raises(ConfigError, match=r"x.env, line 2='this is no setting'"):
        get({"env_file": str(path)})
    write(path, "DSPY_LOG_FILE='${HOME}/log'\n")
    assert get({"env_file": str(path)}).config.log_file == home / "here/${HOME}/log"
    with pytest.raises(ConfigError, match=r"x.env: DSPY_MODE='moon'"):
        get({"env_file": str(write(path, "DSPY_MODE=moon"))})


def test_an_explicit_env_file_stands_for_the_found_ones(get, home):
    write(home / "here/.env", "DSPY_MAX_CONCURRENCY=3")
    other = write(home / "other.env", "DSPY_TOTAL_LIMIT=8")
    config = get({"env_file": "../other.env"}).config
    assert (config.max_concurrency, config.total_limit) == (1, 8)
    with pytest.raises(ConfigError, match="--env-file"):
        get({"env_file": str(other) + "x"})


def test_the_toml_file_is_the_named_one_else_the_first_that_is_found(get, home):
    assert get().files == ()
    own = write(home / ".config/dspy-supervisor/config.toml", "total_limit = 1")
    assert get().files == (own,)
    here = write(home / "here/dspy-supervisor.toml", "total_limit = 2")
    assert get().files == (here,)
    named = write(home / "x.toml", "total_limit = 3")
    assert get(DSPY_CONFIG=str(named)).config.total_limit == 3
    with pytest.raises(ConfigError, match=r"--config=.*missing.: expected a TOML file, and there is nothing"):
        get({"config": "missing"})


def test_a_found_file_that_others_may_write_is_refused_and_a_named_one_is_not(get, home):
    path = write(home / "here/dspy-supervisor.toml", "total_limit = 2")
    path.chmod(0o666)
    with pytest.raises(ConfigError, match="others can't write"):
        get()
    assert get({"config": "dspy-supervisor.toml"}).config.total_limit == 2


def test_a_flag_that_is_no_setting_is_refused_with_the_nearest(get):
    with pytest.raises(ConfigError, match=r"--set sweeps_s='1': .*did you mean 'sweep_s'"):
        get({"sweeps_s": "1"})


def test_a_configuration_cannot_be_changed(get):
    config = get().config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.mode = "cloud"
    with pytest.raises(TypeError):
        config.classes["gpu"] = None
    assert tuple(config.classes) == CLASSES


def test_a_reload_says_what_it_applies_and_what_needs_a_restart(get):
    old = get().config
    new = get({"class.gpu.workers": 5, "max_depth": 64, "drain_s": 9.5}).config
    assert differences(old, new) == (("drain_s", "class.gpu.workers"), ("max_depth",))
    assert differences(old, old) == ((), ())


def test_the_service_manager_is_heard_once_and_not_by_children(monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert notify_environment() == ("/run/notify", "30000000")
    assert notify_environment() == ("", "")
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert notify_environment() == ("", "")


def test_reloading_keeps_the_flags_and_reads_the_files_anew(home, monkeypatch):
    monkeypatch.setenv("DSPY_TOTAL_LIMIT", "5")
    monkeypatch.setenv("HOME", str(home))
    path = write(home / "x.toml", "max_concurrency = 2")
    loaded = load({"config": str(path), "queue_dir": "q"}, cwd=home)
    write(path, "max_concurrency = 3")
    again = loaded.reload()
    assert (again.config.max_concurrency, again.config.total_limit, again.config.queue_dir) == (3, 5, home / "q")


def test_every_class_has_the_retry_policy_of_all_but_where_it_says_otherwise(get):
    loaded = get({"class.gpu.retry_cap_s": 9}, DSPY_RETRY_BASE_S="2.5")
    found = {name: (one.retry_base_s, one.retry_cap_s) for name, one in loaded.config.classes.items()}
    assert (found["cpu_short"], found["gpu"]) == ((2.5, 300.0), (2.5, 9.0))
    assert loaded.origins["class.gpu.retry_base_s"] == "retry_base_s (environment DSPY_RETRY_BASE_S)"


def test_a_class_asks_slurm_for_what_the_settings_name(get, home):
    write(
        home / "here/dspy-supervisor.toml",
        'slurm_partition = "a,b"\nslurm_gpus = 2\nslurm_time = 30\nslurm_mail_type = ["END", "FAIL"]\n'
        "[class.gpu_slurm.slurm_options]\n"
        'partition = "none"\nmemory = "64G"\ngpus = "a100:2"\nexclusive = true\ntime = "1-12:00"\n',
    )
    config = get().config
    assert (config.slurm_partition, config.slurm_gpus, config.slurm_time) == ("a,b", "2", "30")
    assert dict(config.classes["gpu_slurm"].slurm_options) == {
        "partition": None,
        "memory": 64 << 30,
        "gpus": "a100:2",
        "exclusive": True,
        "time": "1-12:00",
    }
    flat_text = get(DSPY_GPU_SLURM_SLURM_OPTIONS="nodes=2, qos=high").config.classes["gpu_slurm"].slurm_options
    assert dict(flat_text) == {"nodes": 2, "qos": "high"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("slurm_partition", "gpu --wrap=x"),
        ("slurm_partition", "gpu\nb"),
        ("slurm_account", "-x"),
        ("slurm_comment", "a|b"),
        ("slurm_comment", "a\x00b"),
        ("slurm_time", "soon"),
        ("slurm_gpus", "two"),
        ("slurm_signal", "USR1 60"),
        ("slurm_extra", "x=1"),
        ("slurm_extra", "--wrap=a\nb"),
        ("slurm_memory", "1"),
        ("slurm_mail_user", "a@b c"),
        ("slurm_max_jobs", "0"),
        ("class.gpu_slurm.slurm_options", "partition=a b"),
        ("class.gpu_slurm.slurm_options", "max_jobs=3"),
        ("class.gpu_slurm.slurm_options", "partition"),
        ("class.gpu.cpus", "3-1"),
        ("class.gpu.cpus", "a"),
        ("class.gpu.nice", "-1"),
        ("policy", "magic"),
    ],
)
def test_a_value_that_could_not_work_is_refused_before_anyone_uses_it(get, name, value):
    with pytest.raises(ConfigError, match="expected") as caught:
        get({name: value})
    assert name in str(caught.value) or "--policy" in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"class.gpu.limit_min": 3, "class.gpu.limit_max": 2}, r"limit_max \(flag --set .*\)=2: .* limit_min=3"),
        ({"slurm_pilots_min": 2, "slurm_pilots_max": 1}, r"slurm_pilots_max .*=1: .* slurm_pilots_min=2"),
        ({"slurm_pilots_min": 2}, r"slurm_pilots_max \(built-in\)=0"),
    ],
)
def test_two_settings_that_contradict_each_other_are_refused(get, flags, message):
    with pytest.raises(ConfigError, match=message):
        get(flags)
    assert get({"class.gpu.limit_min": 3}).config.classes["gpu"].most == 1  # no more than there are workers


def test_what_compatibility_names_is_read_or_let_be(get):
    config = get(
        DSPY_MODE="cluster",
        ENV_QUEUE_DIR="/q",
        DSPY_MAX_CONCURRENCY="3",
        DSPY_ENABLE_DEMO="maybe",
        DSPY_ENABLE_GPU="False",
        DSPY_GPU_MEMORY_LIMIT="20G",
        DSPY_ENABLE_SLURM="no",
        DSPY_SLURM_PARTITION="long",
        DSPY_LOG_LEVEL="WARN",
        ENV_RUNNER_URL="x",
        METRICS_PORT="8083",
        INFERMESH_API_KEY="x",
        BATCH_SIZE="x",
    ).config
    assert (config.queue_dir, config.max_concurrency, config.enable_gpu) == (Path("/q"), 3, False)
    assert (config.gpu_memory_limit, config.enable_slurm, config.slurm_partition) == (20 << 30, False, "long")
    assert (config.log_level, config.metrics_port) == ("warning", 8083)


@pytest.mark.parametrize(
    ("gpus", "limit"),
    [([24564 << 20], 3), ([24564 << 20] * 2, 4), ([81559 << 20], 4), ([16 << 30], 2), ([6 << 30], 1), ([], 1)],
)
def test_a_workstation_runs_a_task_for_each_8_gb_of_its_gpus_four_at_most(gpus, limit):
    assert workstation_limit(gpus) == limit


def test_a_workstations_limit_follows_its_gpus_where_nobody_says_another(get):
    gpus = (24564 << 20,)
    loaded = get({"mode": "workstation", "class.cpu_long.workers": 7}).fitted(gpus)
    workers = {name: one.workers for name, one in loaded.config.classes.items()}
    assert (loaded.config.max_concurrency, workers) == (3, {"cpu_short": 3, "cpu_long": 7, "gpu": 3, "gpu_slurm": 0})
    assert loaded.origins["max_concurrency"] == "mode workstation with 26 GB of GPU memory"
    assert loaded.origins["class.gpu.workers"] == "max_concurrency (mode workstation with 26 GB of GPU memory)"
    assert loaded.fitted((12 << 30,)).config.max_concurrency == 1  # one that was exchanged
    assert get({"mode": "workstation"}).fitted(()).config.max_concurrency == 4
    assert get({"mode": "cluster"}).fitted(gpus).config.max_concurrency == 16
    assert get({"mode": "workstation"}, DSPY_MAX_CONCURRENCY="4").fitted(gpus).config.max_concurrency == 4


def test_a_reload_keeps_what_was_found_of_gpus(home, monkeypatch):
    monkeypatch.setenv("HOME", str(home))
    loaded = load({"mode": "workstation"}, cwd=home).fitted((16 << 30,))
    assert loaded.reload().config.max_concurrency == 2
    write(home / ".env", "DSPY_MAX_CONCURRENCY=4")
    assert loaded.reload().config.max_concurrency == 4


def test_a_sandbox_for_all_is_each_classs_and_a_class_may_say_otherwise(get):
    config = get({"sandbox": "on", "class.cpu_long.sandbox": "off", "sandbox_env": "A,B*"}).config
    found = {name: one.sandbox for name, one in config.classes.items()}
    assert found == {"cpu_short": "on", "cpu_long": "off", "gpu": "on", "gpu_slurm": "on"}
    assert config.classes["cpu_short"].sandbox_env == ("A", "B*")


def test_jobs_of_a_cluster_have_no_sandbox_and_must_be_said_to(get):
    with pytest.raises(ConfigError, match=r"class.gpu_slurm.sandbox \(sandbox .*'on': expected off"):
        get({"sandbox": "on", "enable_slurm": "true"})
    get({"sandbox": "on", "enable_slurm": "true", "class.gpu_slurm.sandbox": "off"})


def test_a_rented_machine_gets_the_sandbox_of_the_class_it_serves(get):
    chosen = {"class.gpu.sandbox": "landlock", "class.gpu.sandbox_env": "A,B", "class.gpu.sandbox_network": "true"}
    options = start_options(get(chosen).config)
    for wanted in ("sandbox=landlock", "sandbox_env=A,B", "sandbox_network=True"):
        assert f"class.gpu.{wanted}" in options
    assert not any("sandbox" in option for option in start_options(get().config))
