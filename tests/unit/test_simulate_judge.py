"""The judge: the best fixed limit is found by trying all, and a policy is told by what it did, at rest and on the way."""

import json
import math
import re
import sys

import numpy as np
import pytest
from dspy_supervisor.cli import main
from dspy_supervisor.limit import Input, Policy, Reason, step
from dspy_supervisor.simulate import judge, plant, replay, report
from dspy_supervisor.simulate.scenario import Scenario
from dspy_supervisor.simulate.scenarios import SCENARIOS

SMALL = Scenario(
    name="small",
    says="a small world",
    arrivals=((0, 11.0),),
    work_s=0.5,
    horizon_s=200.0,
    highest=12,
    rests=((0, 200),),
)


@pytest.fixture(scope="module")
def advance():
    return plant.compiled()


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A place of its own for what a command compiles."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "numba"))
    monkeypatch.chdir(tmp_path)


def trajectory(limits) -> judge.Trajectory:
    """Return a run of windows of 2 s with these limits, in which nothing else is known."""
    many = len(limits)
    windows = np.full((many, len(Input)), math.nan)
    windows[:, Input.LIMIT] = limits
    windows[:, [Input.DONE, Input.OOMS]] = 1.0
    nothing = np.zeros(many)
    return judge.Trajectory(2.0 * np.arange(1, many + 1), windows, nothing, nothing, (0,) * many)


def test_the_best_is_sought_among_all_fixed_limits(advance):
    done = judge.sweep(SMALL, (1, 2), advance)
    assert done.shape == (SMALL.highest, 2)
    again = [judge.fixed(SMALL, SMALL.run(seed), 5, advance) for seed in (1, 2)]
    assert list(done[4]) == again


def test_a_policy_that_changes_nothing_does_what_its_fixed_limit_does(advance):
    run = judge.play(SMALL, 1, Policy.FIXED, step, advance)
    assert run.done == judge.fixed(SMALL, SMALL.run(1), SMALL.begins, advance)
    assert set(run.limit) == {SMALL.begins}


def test_an_outcome_tells_the_best_the_good_and_the_highest_limit(advance):
    outcome = judge.try_out(SMALL, [Policy.PLAN], (1,), step, advance)
    assert outcome.best_done == max(outcome.by_limit)
    low, high = outcome.good
    assert low <= outcome.best <= high
    (plan,) = outcome.verdicts
    assert plan.share == pytest.approx(plan.done / outcome.best_done)
    assert sum(plan.reasons.values()) == 100


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ([8] * 100, (0, 0, 0)),
        ([4] * 10 + [8] * 90, (20, 0, 0)),
        ([4] * 5 + [16] * 5 + [8] * 90, (20, 0, 8)),
        ([8] * 60 + [9] * 15 + [8] * 25, (0, 1, 0)),  # a step up on trial is no swing
        ([8] * 60 + [4] * 10 + [8] * 30, (140, 4, 0)),
        ([8, 11] * 50, (200, 3, 0)),
    ],
)
def test_a_limit_has_settled_when_it_leaves_its_band_no_more(limits, expected):
    assert judge.at_rest(trajectory(limits), (0.0, 200.0)) == expected


def test_a_verdict_takes_the_worst_of_all_seeds():
    runs = [trajectory([8] * 100), trajectory([4] * 10 + [8] * 90)]
    verdict = judge.judge(SMALL, "plan", runs, best=np.array([200.0, 125.0]))
    assert (verdict.settling_s, verdict.swing, verdict.worst, verdict.ooms) == (20, 0, 0.5, 100)
    assert verdict.share == 200 / 325


def test_what_falls_short_is_said(advance):
    outcome = judge.try_out(SMALL, [Policy.PLAN, Policy.ADAPTIVE], (1,), step, advance)
    plan, ours = outcome.verdicts
    bad = judge.Outcome(
        SMALL,
        outcome.by_limit,
        (plan, judge.Verdict("small", "adaptive", 1.0, plan.share / 2, 0.1, 99.0, 4.0, 0.0, 0.0, 9.0, {})),
        {},
    )
    said = "\n".join(report.misses([bad]))
    for word in ("of the best fixed limit", "plan does more", "settles after 99 s", "swings by 4"):
        assert word in said
    assert report.misses([outcome]) is not None
    assert ours.policy == "adaptive"


def recorded(path, run: judge.Trajectory, workload: str = "gpu") -> None:
    """Write a run as a supervisor with record_windows would."""
    with path.open("a") as file:
        for at_s, window in zip(run.at_s, run.windows, strict=True):
            values = {name.name.lower(): None if math.isnan(window[name]) else window[name] for name in Input}
            line = {"at": 1.7e9 + at_s, "class": workload, "lowest": 1, "highest": SMALL.highest, **values}
            file.write(json.dumps(line) + "\n")


@pytest.mark.parametrize("policy", [Policy.PLAN, Policy.WATERMARK, Policy.GRADIENT, Policy.ADAPTIVE])
def test_a_policy_answers_a_recording_of_itself_as_it_did(advance, tmp_path, policy):
    run = judge.play(SMALL, 1, policy, step, advance)
    recorded(tmp_path / "windows.jsonl", run)
    (recording,) = replay.read(tmp_path / "windows.jsonl")
    answers = replay.answer(recording, policy, step)
    assert list(answers.limits[:-1]) == list(run.limit[1:])
    assert answers.reasons == run.reasons


def test_a_torn_last_line_is_left_out_and_any_other_is_an_error(advance, tmp_path):
    path = tmp_path / "windows.jsonl"
    recorded(path, judge.play(SMALL, 1, Policy.PLAN, step, advance))
    whole = path.read_text()
    path.write_text(whole + '{"at": 17000')
    assert len(replay.read(path)[0].at_s) == 100
    path.write_text('{"at": 1}\n' + whole)
    with pytest.raises(replay.RecordUnreadable, match="line 1"):
        replay.read(path)
    path.write_text("")
    with pytest.raises(replay.RecordUnreadable, match="record_windows"):
        replay.read(path)


def test_the_command_tries_scenarios_out_and_draws_them(tmp_path, capsys):
    picture = tmp_path / "steady.png"
    arguments = ["simulate", "--scenario", "steady", "--scenario", "light", "--policy", "plan", "--png", str(picture)]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["scenario"] for one in found["scenarios"]] == ["steady", "light"]
    assert found["scenarios"][0]["policies"][0]["share"] < 1.0
    assert found["ticks_per_s"] > 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_history_of_a_queue_is_replayed_too(tmp_path, capsys):
    (tmp_path / "history").mkdir()
    with (tmp_path / "history" / "2026-01-01T0000.host.main.jsonl").open("w") as file:
        for minute in range(30):
            gpu = {"pending": 20, "inflight": 3.9, "limit": 4, "done": 60, "failed": 1, "run": [240.0, 40, 60]}
            classes = {"gpu": gpu, "cpu_short": {"limit": 2}}
            devices = {"host": {"memory_free": 5e9, "memory_limit": 1e10, "psi_memory": 0.1}}
            devices["gpus"] = {"GPU-1": {"utilization": 0.3, "memory_free": 6e9, "memory_total": 8e9}}
            file.write(json.dumps({"at": 1767225600 + 60 * minute, "s": 60, "classes": classes, **devices}) + "\n")
    (recording,) = replay.read(tmp_path)
    assert recording.workload == "gpu" and len(recording.at_s) == 30
    window = dict(zip(Input, recording.windows[-1], strict=True))
    assert (window[Input.LIMIT], window[Input.BACKLOG], window[Input.DONE_RATE]) == (4, 20, 1)
    assert (window[Input.RUN_S], window[Input.GPU_BUSY], window[Input.MEM_FREE_SHARE]) == (4, 0.3, 0.5)
    assert main(["simulate", "--replay", str(tmp_path), "--policy", "plan"]) == 0
    assert re.search(r"^gpu +plan +30 ", capsys.readouterr().out, re.MULTILINE)
    (tmp_path / "empty").mkdir()
    with pytest.raises(replay.RecordUnreadable, match="no task ran"):
        replay.read(tmp_path / "empty")


def test_the_command_replays_a_recording(advance, tmp_path, capsys):
    path = tmp_path / "windows.jsonl"
    recorded(path, judge.play(SMALL, 1, Policy.PLAN, step, advance))
    recorded(path, judge.play(SMALL, 2, Policy.PLAN, step, advance), "cpu_long")
    assert main(["simulate", "--replay", str(path), "--png", str(tmp_path / "r.png"), "--policy", "plan"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:4] for line in lines[1:]] == [
        ["gpu", "plan", "100", "100"],
        ["cpu_long", "plan", "100", "100"],
    ]
    assert main(["simulate", "--replay", str(path), "--json"]) == 0
    gpu = json.loads(capsys.readouterr().out)["classes"]["gpu"]
    assert gpu["windows"] == len(gpu["policies"]["adaptive"]["limits"]) == 100
    assert Reason.BUSY.name.lower() in gpu["policies"]["plan"]["reasons"]


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["--scenario", "nonsense"], 2, "steady, light"),
        (["--replay", "x", "--scenario", "steady"], 2, "--replay takes its windows from a file"),
        (["--replay", "/nonexistent/windows"], 1, "No such file"),
    ],
)
def test_what_cannot_be_simulated_is_said(capsys, arguments, code, word):
    assert main(["simulate", *arguments]) == code
    assert word in capsys.readouterr().err


def test_a_picture_without_matplotlib_is_refused_in_words(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["simulate", "--scenario", "steady", "--png", "x.png"]) == 69
    assert "dspy-supervisor[plot]" in capsys.readouterr().err


def test_the_list_says_what_each_world_stands_for(capsys):
    assert main(["simulate", "--list"]) == 0
    output = capsys.readouterr().out
    assert all(name in output for name in SCENARIOS)
