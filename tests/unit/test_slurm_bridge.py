"""The bridge as a whole, in this process, with programs on PATH that play the cluster from a file."""

import json
import sys
import time

import pytest
from dspy_fastpath.counters import Global, Page
from dspy_supervisor.channel import Kind
from dspy_supervisor.config import load
from dspy_supervisor.jobbook import JobBook
from dspy_supervisor.jobfolder import take_start, write_exit, write_result
from dspy_supervisor.parts import ServicePost
from dspy_supervisor.services.slurm.bridge import Bridge
from dspy_supervisor.services.slurm.commands import ClusterConfig

from tests.conftest import until
from tests.queues import Rig

HEAD = "JOBID|JOBID|STATE|SUBMIT_TIME|START_TIME|TIME|NODELIST|NAME|REASON|."
ACCOUNT = "JobID|JobIDRaw|State|ExitCode|DerivedExitCode|Submit|Start|End|ElapsedRaw|MaxRSS|AllocTRES|NodeList|JobName|"
CONFIG = "ClusterName = test\nSLURM_VERSION = 22.05.8\nAccountingStorageType = accounting_storage/slurmdbd\n"
PROGRAM = f"""#!{sys.executable} -SE
import json, os, sys
folder, name, words = os.path.dirname(os.path.abspath(__file__)), os.path.basename(__file__), sys.argv[1:]
with open(folder + "/calls", "a") as calls:
    calls.write(json.dumps([name, *words]) + "\\n")
with open(folder + "/cluster.json") as file:
    cluster = json.load(file)
def say(text):
    sys.stdout.write(text)
    sys.exit(0)
if name == "scontrol":
    say({CONFIG!r})
if name == "sbatch":
    job = next(word.partition("=")[2] for word in words if word.startswith("--job-name="))
    size = next((int(word.partition("-0-")[2] or word.partition("=0-")[2]) + 1 for word in words if "--array=" in word), 0)
    said = cluster["sbatch"].pop(0) if cluster["sbatch"] else "accept"
    if said in ("accept", "lose"):
        cluster["jobs"].append([str(len(cluster["jobs"]) + 1), job, size, "PENDING"])
    with open(folder + "/.new", "w") as file:
        json.dump(cluster, file)
    os.rename(folder + "/.new", folder + "/cluster.json")
    if said == "accept":
        say(cluster["jobs"][-1][0] + "\\n")
    sys.exit("sbatch: error: " + (said if said != "lose" else "Socket timed out on send/recv operation"))
if name == "squeue":
    rows = []
    for job, title, size, state in cluster["jobs"]:
        for key in [f"{{job}}_{{n}}" for n in range(size)] or [job]:
            rows.append(f"{{key}}|{{job}}|{{state}}|1|1|1|n1|{{title}}|None|.")
    say("\\n".join([{HEAD!r}, *rows]) + "\\n")
if name == "sacct":
    rows = []
    for job, title, size, state in cluster["jobs"]:
        for key in [f"{{job}}_{{n}}" for n in range(size)] or [job]:
            rows += [f"{{key}}|{{job}}|{{state}}|0:0|0:0|1|2|3|1|7M||n1|{{title}}|"] * (state != "PENDING")
    say("\\n".join([{ACCOUNT!r}, *rows]) + "\\n")
"""


class Link:
    """The supervisor's end, here a list."""

    def __init__(self):
        self.sent, self.waiting = [], []

    def fileno(self):
        return 0

    def alive(self):
        pass

    def send(self, message):
        self.sent.append(json.loads(json.dumps(message)))

    def receive(self, timeout_s):
        found, self.waiting = self.waiting, []
        return found


class Stage:
    """A queue, a bridge, and a cluster of paper."""

    def __init__(self, tmp_path, monkeypatch):
        self.bin = tmp_path / "bin"
        self.bin.mkdir()
        for name in ("sbatch", "squeue", "sacct", "scancel", "scontrol"):
            (self.bin / name).write_text(PROGRAM)
            (self.bin / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(self.bin))
        self.play(jobs=[], sbatch=[])
        self.rig = Rig(tmp_path / "queue")
        flags = {"queue_dir": str(tmp_path / "queue"), "mode": "cluster", "class.gpu_slurm.handler": "echo"}
        flags |= {"runtime_dir": str(tmp_path / "run"), "slurm_poll_s": "0.2", "retry_base_s": "0"}
        self.config = load(flags, environ={}, cwd=tmp_path).config
        self.page = Page.create(tmp_path / "page", self.rig.layout.queue_id, tuple(self.config.classes), 4)
        self._made = 0
        self.bridge = self.new_bridge()

    def new_bridge(self):
        self._made += 1
        self.link = Link()
        layout, owner = self.rig.layout, f"me.{self._made}.slurm"
        post = ServicePost("slurm", self.config, layout.path, layout.queue_id, "me", owner, self.page, self.link)
        bridge = Bridge(post, layout, self.page)
        bridge._watch.cluster = ClusterConfig(message_timeout_s=-4.9)  # so that a reply takes 0.2 s
        bridge._unknown = ""
        return bridge

    def play(self, **changes):
        path = self.bin / "cluster.json"
        found = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(found | changes))

    @property
    def jobs(self):
        return json.loads((self.bin / "cluster.json").read_text())["jobs"]

    def put(self, *ids):
        for task_id in ids:
            self.rig.put(task_id, {"n": task_id}, **{"class": "gpu_slurm"})
        self.link.waiting.append({"op": "feed", "files": [f"{task_id}.json" for task_id in ids]})

    def until(self, look, what):
        def turn():
            for message in self.link.receive(0.0):
                self.bridge._hear(message)
            self.bridge._try_to_turn()
            return look()

        return until(turn, what)

    def told(self, file):
        return [Kind(one["kind"]) for one in self.link.sent if one["op"] == "report" and one["file"] == file]

    def calls(self, name):
        lines = [json.loads(line) for line in (self.bin / "calls").read_text().splitlines()]
        return [line for line in lines if line[0] == name]

    def run_job(self, number=0, *, ok=True):
        """Do what the job of every task of a submission does, and let the cluster say that it is over."""
        job, name, _, _ = self.jobs[number]
        book = JobBook(self.rig.layout)
        for index in range(len(book.read(name).tasks)):
            folder = book.folder(name, index)
            if take_start(folder, 0, {"job_id": job, "at": time.time()}):
                write_result(folder, 0, b'"ok"')
                write_exit(folder, 0, {"ok": ok, "exit_code": 0 if ok else 3, "message": "no"})
        changed = self.jobs
        changed[number][3] = "COMPLETED" if ok else "FAILED"
        self.play(jobs=changed)

    def close(self):
        self.bridge.close()
        self.page.close()
        self.rig.close()


@pytest.fixture
def stage(tmp_path, monkeypatch):
    made = Stage(tmp_path, monkeypatch)
    yield made
    made.close()


def test_tasks_that_come_together_are_one_sbatch_and_each_comes_back(stage):
    stage.put("a", "b", "c")
    stage.until(lambda: stage.jobs, "they are submitted")
    assert [job[2] for job in stage.jobs] == [3]
    stage.run_job()
    stage.until(lambda: len(stage.rig.names("done")) == 3, "they are done")
    assert stage.told("a.json") == [Kind.DONE] and stage.rig.names("slurm") == []
    assert stage.page.get_global(Global.SLURM_SUBMITTED) == stage.page.get_global(Global.SLURM_COMPLETED) == 3


def test_a_lost_answer_is_looked_for_by_name_and_not_submitted_again(stage):
    stage.play(sbatch=["lose"])
    stage.put("a")
    stage.until(lambda: any(job.submission.job_id for job in stage.bridge._hold.roster.jobs.values()), "it is found")
    stage.run_job()
    stage.until(lambda: stage.told("a.json"), "it is done")
    assert len(stage.calls("sbatch")) == len(stage.jobs) == 1


def test_a_submission_that_is_nowhere_is_made_again_under_another_name_and_the_first_can_not_run(stage):
    stage.play(sbatch=["Unable to contact slurm controller (connect failure)"])
    stage.put("a")
    stage.until(lambda: stage.jobs, "it is submitted again")
    names = [word for call in stage.calls("sbatch") for word in call if word.startswith("--job-name=")]
    assert len(names) == len(set(names)) == 2
    assert not take_start(JobBook(stage.rig.layout).folder(names[0].partition("=")[2], 0), 0, {})
    assert [call for call in stage.calls("sacct") if any("--name=" in word for word in call)]


def test_a_bridge_that_is_gone_is_followed_by_one_that_goes_on(stage):
    stage.play(sbatch=["lose"])
    stage.put("a")
    stage.until(lambda: stage.jobs, "the cluster has it")
    stage.bridge.close()  # killed before it learned anything
    stage.bridge = stage.new_bridge()
    stage.until(lambda: any(job.submission.job_id for job in stage.bridge._hold.roster.jobs.values()), "it is found")
    stage.run_job()
    stage.until(lambda: stage.told("a.json") == [Kind.DONE], "it is done")
    assert len(stage.jobs) == 1 and stage.rig.names("claimed") == []


def test_what_the_cluster_will_never_take_fails_with_its_words(stage):
    stage.play(sbatch=["invalid partition specified: x"])
    stage.put("a")
    stage.until(lambda: stage.told("a.json"), "it is refused")
    record = json.loads((stage.rig.path / "failed/a.json").read_text())
    assert record["error"]["cause"] == "refused" and "invalid partition" in record["error"]["message"]
    assert stage.rig.names("slurm") == []


def test_a_limit_of_the_cluster_is_a_problem_that_is_shown_and_no_failure(stage):
    stage.play(sbatch=["Job violates accounting/QOS policy (job submit limit)"])
    stage.put("a")
    stage.until(lambda: any("QOS" in str(one.get("problem")) for one in stage.link.sent), "it is said")
    assert stage.rig.names("claimed") == ["me.1.slurm/a.json"] and not stage.told("a.json")


def test_a_task_that_is_cancelled_before_its_submission_never_becomes_a_job(stage):
    stage.put("a")
    for message in stage.link.receive(0.0):
        stage.bridge._hear(message)
    stage.bridge._hear({"op": "cancel", "file": "a.json"})
    assert stage.told("a.json") == [Kind.FAILED]
    stage.put("b")
    stage.until(lambda: stage.jobs, "the next is submitted")
    assert [job[2] for job in stage.jobs] == [0]


def test_a_cancel_reaches_the_cluster_and_is_remembered(stage):
    stage.put("a")
    stage.until(lambda: any(one.get("jobs", {}).get("pending") for one in stage.link.sent), "it is submitted")
    stage.bridge._hear({"op": "cancel", "file": "a.json"})
    assert JobBook(stage.rig.layout).cancelled(stage.jobs[0][1], 0)["cause"] == "cancelled"
    stage.until(lambda: (stage.bin / "calls").read_text().count('"scancel", "1"'), "it is told")
    stage.bridge.close()
    stage.bridge = stage.new_bridge()
    jobs = stage.jobs
    jobs[0][3] = "CANCELLED"
    stage.play(jobs=jobs)
    stage.until(lambda: stage.bridge._hold.roster.elements, "it is taken over")
    element = stage.bridge._hold.roster.elements["a.json"]
    assert element.ended is not None and element.ended[0] == "cancelled"


def test_a_second_job_of_one_name_is_ended(stage):
    stage.put("a")
    stage.until(lambda: any(one.get("jobs", {}).get("pending") for one in stage.link.sent), "it is submitted")
    stage.play(jobs=[*stage.jobs, ["2", stage.jobs[0][1], 0, "PENDING"]])
    stage.until(lambda: (stage.bin / "calls").read_text().count('"scancel", "2"'), "the copy is ended")
    assert "scancel 1" not in (stage.bin / "calls").read_text()


def test_a_stop_leaves_jobs_and_gives_back_what_is_none_yet(stage):
    stage.put("a")
    stage.until(lambda: stage.jobs, "it is submitted")
    stage.put("b")
    for message in stage.link.receive(0.0):
        stage.bridge._hear(message)
    stage.bridge._hear({"op": "stop"})
    assert stage.bridge.run() == 0
    assert stage.rig.names("pending") == ["b.json"] and stage.rig.names("claimed") == ["me.1.slurm/a.json"]
    assert stage.told("b.json") == [Kind.RETURNED] and stage.jobs[0][3] == "PENDING"


def test_sixty_jobs_cost_no_more_calls_than_one(stage):
    stage.put(*(f"t{number}" for number in range(60)))
    stage.until(lambda: sum(job[2] for job in stage.jobs) == 60, "they are submitted")
    before = len(stage.calls("squeue"))
    stage.until(lambda: len(stage.calls("squeue")) >= before + 3, "it looks")
    assert len(stage.calls("sbatch")) == 1
    assert not [call for call in (stage.bin / "calls").read_text().splitlines() if "sacct" in call]
