import json

import pytest
from dspy_fastpath.counters import Counter, Global, Page
from dspy_supervisor.channel import Kind
from dspy_supervisor.config import load
from dspy_supervisor.jobbook import JobBook, JobFacts
from dspy_supervisor.jobfolder import take_start
from dspy_supervisor.lookup import find_one
from dspy_supervisor.services.slurm.adopt import Adopter
from dspy_supervisor.services.slurm.listing import JobRow
from dspy_supervisor.services.slurm.plan import JobPlan
from dspy_supervisor.services.slurm.roster import Roster
from dspy_supervisor.services.slurm.settle import Ended, Settler
from dspy_supervisor.services.slurm.submit import Planned, grouped, prepare, sbatch_argv
from dspy_supervisor.services.slurm.verdict import Accounting, Do, Verdict, judge
from dspy_supervisor.task import Cause, State

from tests.queues import Rig

OWNER = "n1.1.slurm"


@pytest.fixture
def rig(tmp_path):
    made = Rig(tmp_path / "queue")
    JobBook(made.layout).prepare()
    yield made
    made.close()


@pytest.fixture
def config(tmp_path):
    return load({"queue_dir": str(tmp_path / "queue"), "mode": "cluster"}, environ={}, cwd=tmp_path).config


@pytest.fixture
def page(tmp_path, rig, config):
    with Page.create(tmp_path / "page", rig.layout.queue_id, tuple(config.classes), 4) as made:
        yield made


@pytest.fixture
def settler(rig, config, page):
    return Settler(rig.queue, JobBook(rig.layout), OWNER, rig.owner(OWNER), config, page)


def put(rig, *ids, plan=None, **options):
    plan = plan or JobPlan("task", ("--time=1",))
    for task_id in ids:
        rig.put(task_id, {"n": task_id}, **{"class": "gpu_slurm"}, **options)
    return [Planned(rig.claim(f"{task_id}.json", OWNER), plan) for task_id in ids]


def write(rig, planned):
    return prepare(
        JobBook(rig.layout),
        planned,
        owner=OWNER,
        python="/usr/bin/python3",
        cwd="/work dir",
        settings={"handler": "echo"},
        render=lambda plan, facts: b"#!/bin/sh\n",
        task_files=lambda plan, held, facts, index: {"environment": b"TASK_ID=" + held.name.id.encode()},
    )


def test_like_tasks_become_arrays_of_what_the_cluster_takes(rig):
    planned = put(rig, *(f"t{number}" for number in range(7)))
    other = put(rig, "u1", plan=JobPlan("task", ("--time=2",)))
    alone = put(rig, "v1", "v2", plan=JobPlan("task", (), array=False))
    groups = grouped([*planned, *other, *alone], max_array_size=4)
    assert [[one.held.name.id for one in group] for group in groups] == [
        ["t0", "t1", "t2"],
        ["t3", "t4", "t5"],
        ["t6"],
        ["u1"],
        ["v1"],
        ["v2"],
    ]


def test_a_thousand_like_tasks_are_one_submission(rig):
    one = put(rig, "t")[0]
    assert [len(group) for group in grouped([one] * 1000, max_array_size=1001)] == [1000]
    assert [len(group) for group in grouped([one] * 1001, max_array_size=10001)] == [1000, 1]


def test_every_option_is_one_argument_and_the_name_and_output_are_ours(tmp_path):
    folder = tmp_path / "100%j q"
    facts = JobFacts("dspy.x", folder, 5, True, "python")
    argv = sbatch_argv(JobPlan("task", ("--time=1", "--comment=a\n#SBATCH -p x"), throttle=2), facts, "/here")
    assert argv[:4] == ("sbatch", "--parsable", "--time=1", "--comment=a\n#SBATCH -p x")
    assert f"--output={tmp_path}/100%%j q/%a/out" in argv and "--array=0-4%2" in argv and "--job-name=dspy.x" in argv
    assert all(word.startswith("--") for word in argv[1:])
    single = sbatch_argv(JobPlan("task"), JobFacts("dspy.x", folder, 1, False, "python"), "/here")
    assert f"--output={tmp_path}/100%%j q/0/out" in single and not any("array" in word for word in single)


def test_what_a_job_needs_is_on_disk_before_sbatch_is_asked(rig):
    prepared = write(rig, put(rig, "a", "b", kind="command", timeout_s=9.0))
    book = JobBook(rig.layout)
    assert list(book.submissions()) == [prepared.submission] and prepared.submission.tasks == ("a.json", "b.json")
    task = json.loads((book.folder(prepared.submission.name, 1) / "task.json").read_bytes())
    assert (task["id"], task["attempt"], task["index"], task["kind"], task["timeout_s"]) == ("b", 0, 1, "command", 9.0)
    assert task["envelope"]["payload"] == {"n": "b"} and task["settings"] == {"handler": "echo"}
    assert task["home"] == str(rig.path / "logs" / "b")


def test_a_success_is_published_with_what_the_job_used(rig, settler, page):
    put(rig, "a")
    used = {"slurm_state": "COMPLETED", "nodes": "n1", "max_rss_bytes": 7, "elapsed_s": 3.0, "exit_code": 0}
    end = Ended(Verdict(Do.SUCCEED, "COMPLETED", used=used), "132", "devel", 10.0, 13.0, 3.0, 2, b'{"loss": 0.5}')
    assert settler.settle("a.json", end).kind is Kind.DONE
    record = json.loads((rig.path / "done/a.json").read_bytes())
    assert record["runner_result"] == {"loss": 0.5} and record["slurm"] == {"job": "132", "cluster": "devel", **used}
    klass = page.classes.index("gpu_slurm")
    assert page.counter(klass, Counter.DONE) == page.get_global(Global.SLURM_COMPLETED) == 1
    assert page.get_global(Global.SLURM_GPU_SECONDS) == 6
    assert settler.settle("a.json", end).kind is Kind.GONE


@pytest.mark.parametrize("result", [None, b"{", b"[NaN]"])
def test_a_success_without_a_result_is_a_failure(rig, settler, result):
    put(rig, "a")
    told = settler.settle("a.json", Ended(Verdict(Do.SUCCEED, "COMPLETED"), "7", result=result))
    assert told.kind is Kind.FAILED
    assert json.loads((rig.path / "failed/a.json").read_bytes())["error"]["cause"] == "invalid_result"


def test_a_fault_is_tried_again_to_the_tasks_bound_and_a_lost_job_beyond_it(rig, settler):
    put(rig, "a", max_attempts=2)
    lost = Ended(Verdict(Do.AGAIN, "NODE_FAIL", Cause.LOST, "a node failed"), "7")
    assert settler.settle("a.json", lost).kind is Kind.RETRIED
    rig.claim("a~1x0.json", OWNER)
    fault = Ended(Verdict(Do.FAIL, "FAILED", Cause.EXIT, "code 3", {"exit_code": 3}), "8")
    assert settler.settle("a~1x0.json", fault).kind is Kind.RETRIED
    found = find_one(rig.layout, "a")
    assert found.state is State.DELAYED
    rig.queue.promote(found.file)
    rig.claim("a~2x0.json", OWNER)
    assert settler.settle("a~2x0.json", fault).kind is Kind.FAILED
    record = json.loads((rig.path / "failed/a.json").read_bytes())
    assert [note["cause"] for note in record["history"]] == ["lost", "exit"]
    assert record["error"]["cause"] == "exit" and record["slurm"]["exit_code"] == 3
    assert record["history"][0]["slurm"]["job"] == "7"


@pytest.mark.parametrize("cause", [Cause.CANCELLED, Cause.REFUSED])
def test_what_was_cancelled_or_refused_is_over(rig, settler, cause):
    put(rig, "a")
    assert settler.settle("a.json", Ended(Verdict(Do.FAIL, "", cause, "no"))).kind is Kind.FAILED


def row(key: str, state: str, name: str) -> JobRow:
    job_id, _, index = key.partition("_")
    return JobRow(key, job_id, int(index) if index else None, state, name)


def test_time_counts_from_the_first_listing_without_a_job(rig):
    prepared, roster = write(rig, put(rig, "a")), Roster()
    element = roster.add("a.json")
    job = roster.attach(prepared.submission, {0: element}, calling=False, now=0.0)
    job.identified("7")
    name, nothing = prepared.submission.name, JobBook(rig.layout).sentinel(prepared.submission.name, 0)

    def state(now):
        return judge(element.evidence(nothing, Accounting.ON, now, 5.0)).do

    assert element.see(row("7", "RUNNING", name), 1.0) and not element.see(row("7", "RUNNING", name), 2.0)
    for second in range(3, 62):
        element.see(None, float(second))
        assert state(float(second)) is Do.WAIT
    element.see(row("7", "RUNNING", name), 62.0)  # it was only left out
    assert state(62.0) is Do.WAIT and not element.is_over
    element.see(None, 63.0)
    assert state(200.0) is Do.WAIT  # one absence, however long ago
    element.see(None, 201.0)
    element.see(None, 202.0)
    assert state(202.0) is Do.AGAIN
    assert roster.counts()["unknown"] == 1


def test_a_listing_that_began_before_sbatch_ended_proves_nothing(rig):
    prepared, roster = write(rig, put(rig, "a")), Roster()
    job = roster.attach(prepared.submission, {0: roster.add("a.json")}, calling=True, now=100.0)
    job.calling = False
    job.miss(99.0)
    assert job.absences == 0
    job.miss(101.0)
    assert job.absences == 1 and job.first_absent == 101.0


class Post:
    """What an adopter asks of the post of its bridge."""

    def __init__(self, config, node, owner):
        self.config, self.node, self.owner = config, node, owner


def adopter(rig, config, owner="n2.1.slurm"):
    post = Post(config, owner.partition(".")[0], owner)
    return Adopter(post, rig.layout, rig.queue, rig.owner(owner))


def test_the_claims_of_a_bridge_that_left_are_taken_over_with_their_jobs(rig, config):
    prepared = write(rig, put(rig, "a", "b"))
    put(rig, "c")
    two = adopter(rig, config)
    assert sorted(two.turn(10.0)) == ["a.json", "b.json", "c.json"]
    assert rig.names("claimed") == ["n2.1.slurm/a.json", "n2.1.slurm/b.json", "n2.1.slurm/c.json"]
    book = JobBook(rig.layout)
    assert two.find(book, "b.json") == (prepared.submission, 1) and two.find(book, "c.json") is None
    assert book.void(prepared.submission.name, 1, "not found")
    assert two.find(book, "b.json") is None


def test_the_claims_of_a_bridge_that_lives_stay(rig, config):
    put(rig, "a")
    (rig.path / "nodes/n1.hb").write_text('{"node": "n1", "counter": 1}')
    assert list(adopter(rig, config).turn(10.0)) == []
    again = adopter(rig, config, "n1.2.slurm")  # of the same supervisor, which has only one
    assert list(again.turn(10.0)) == ["a.json"]


def test_recovery_leaves_to_the_cluster_what_is_there(rig):
    put(rig, "a")
    assert not rig.recover("n1")
    assert rig.names("claimed") == ["n1.1.slurm/a.json"]


def test_a_late_copy_of_a_job_finds_its_attempt_taken(rig):
    prepared = write(rig, put(rig, "a"))
    book, folder = JobBook(rig.layout), JobBook(rig.layout).folder(prepared.submission.name, 0)
    assert book.void(prepared.submission.name, 0, "it was not found in the cluster")
    assert not take_start(folder, 0, {"job_id": "7"})
