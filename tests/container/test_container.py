"""The Containerfile and the manifests: linters are content with them, and their commands and probes are what the program has."""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml
from dspy_supervisor import Queue

from tests.conftest import END_S, START_S, until

ROOT = Path(__file__).parents[2]
CONTAINERFILE = ROOT / "Containerfile"
MANIFESTS = sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml"))
BIN = Path(yaml.__file__).parents[4] / "bin"  # of the environment that the linters are in
TOKEN = "a-token-that-is-long-enough"


def linted(program, *arguments):
    found = shutil.which(program, path=f"{BIN}{os.pathsep}{os.environ['PATH']}")
    assert found, f"no {program}: pip install -e .[dev]"
    return subprocess.run([found, *arguments], capture_output=True, text=True, timeout=60, check=False)


def template(name):
    """The pod of a manifest's first document, and its one container."""
    pod = next(yaml.safe_load_all((ROOT / "deploy" / "kubernetes" / name).read_text()))["spec"]["template"]["spec"]
    return pod, pod["containers"][0]


def image():
    """Entry point, variables and user that the Containerfile's last stage gives."""
    last = CONTAINERFILE.read_text().rpartition("\nFROM ")[2].replace("\\\n", " ")
    variables = dict(word.split("=", 1) for word in re.search(r"(?m)^ENV (.*)$", last)[1].split())
    return json.loads(re.search(r"(?m)^ENTRYPOINT (.*)$", last)[1]), variables, re.search(r"(?m)^USER (\S+)$", last)[1]


def test_hadolint_finds_nothing_in_the_containerfile_and_something_in_a_careless_one(tmp_path):
    done = linted("hadolint", CONTAINERFILE)
    assert done.returncode == 0, done.stdout
    careless = tmp_path / "Containerfile"
    careless.write_text("FROM debian:latest\nRUN cd /tmp && curl http://localhost/x | sh\n")
    assert linted("hadolint", careless).returncode != 0


def test_the_manifests_fit_the_schemas_of_kubernetes_and_a_misspelt_field_does_not(tmp_path):
    done = linted("kubernetes-validate", "--strict", *MANIFESTS)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = tmp_path / "wrong.yaml"
    text = (ROOT / "deploy/kubernetes/deployment.yaml").read_text()
    wrong.write_text(text.replace("livenessProbe:", "livelinessProbe:"))
    assert linted("kubernetes-validate", "--strict", wrong).returncode != 0


@pytest.mark.parametrize("name", ["deployment.yaml", "job.yaml"])
def test_a_pod_has_no_rights_it_does_not_need(name):
    pod, container = template(name)
    user, group = map(int, image()[2].split(":"))
    bounds = pod["securityContext"]
    assert bounds["runAsNonRoot"] and (bounds["runAsUser"], bounds["runAsGroup"]) == (user, group)
    assert pod["automountServiceAccountToken"] is False and bounds["seccompProfile"] == {"type": "RuntimeDefault"}
    own = container["securityContext"]
    assert own["readOnlyRootFilesystem"] and own["allowPrivilegeEscalation"] is False
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert pod["terminationGracePeriodSeconds"] > 30  # drain_s


def command_of(name, folder):
    """A pod's command and variables, with folders below `folder`, and on the loopback alone."""
    _, container = template(name)
    entry, variables, _ = image()
    moved = {"http_host=0.0.0.0": "http_host=127.0.0.1"}
    arguments = [moved.get(word, word) for word in container["args"]]
    program = [sys.executable, "-m", "dspy_supervisor"] if entry == ["dspy-supervisor"] else entry
    given = variables | {row["name"]: row["value"] for row in container.get("env", [])}
    del given["PATH"]
    for variable, value in given.items():
        given[variable] = f"{folder}{value}"
    for place in ("queue", "tmp", "run/secrets/dspy-supervisor"):
        (folder / place).mkdir(parents=True)
    (folder / "queue").chmod(0o2775)  # as a volume's fsGroup makes it
    (folder / "run/secrets/dspy-supervisor/http-token").write_text(TOKEN)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DSPY_", "ENV_"))}
    return [*program, *arguments], kept | given


def test_the_deployments_command_answers_its_probes_and_takes_no_task_without_the_token(tmp_path):
    command, environment = command_of("deployment.yaml", tmp_path)
    _, container = template("deployment.yaml")
    assert container["ports"][0]["containerPort"] == 9097
    said = tmp_path / "said"
    with said.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--set", "http_port=0"], env=environment, cwd=tmp_path, stdout=file, stderr=file
        )
    try:

        def address():
            assert process.poll() is None, said.read_text()
            found = re.search(r"http://127\.0\.0\.1:\d+", said.read_text())
            return found and found[0]

        base = until(address, "the gateway says its address", START_S)

        def answered(path, data=None, **headers):
            request = urllib.request.Request(base + path, data, {"Content-Type": "application/json", **headers})
            try:
                with urllib.request.urlopen(request, timeout=END_S) as answer:
                    return answer.status
            except urllib.error.HTTPError as error:
                with error:
                    return error.code

        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            path = container[probe]["httpGet"]["path"]
            until(lambda path=path: answered(path) == 200, f"{probe} is content", START_S)
        task = b'{"class": "cpu_short", "payload": {}}'
        assert answered("/v1/tasks", task) == 401
        assert answered("/v1/tasks", task, Authorization=f"Bearer {TOKEN}", Host="dspy-supervisor") in (200, 201, 202)
        done = tmp_path / "queue/main/done"
        until(lambda: list(done.glob("*.json")), "the task is done", START_S)
        process.terminate()
        assert process.wait(END_S) == 0
    finally:
        process.kill()
        process.wait(END_S)


def test_the_jobs_command_ends_as_soon_as_its_queue_is_empty(tmp_path):
    command, environment = command_of("job.yaml", tmp_path)
    with Queue(environment["ENV_QUEUE_DIR"], create=True) as queue:
        queue.submit({"n": 1}, id="one")
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "queue/main/done/one.json").exists()
