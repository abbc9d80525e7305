"""Runs in the guest: does what the host asks for on a virtio port, one JSON object a line each way."""

import json
import os
import subprocess

port = os.open("/dev/virtio-ports/rig", os.O_RDWR)
os.write(port, b'{"ready": true}\n')
with os.fdopen(port, "rb", 0) as stream:
    while line := stream.readline():
        asked = json.loads(line)
        try:
            done = subprocess.run(
                ["/bin/bash", "-c", asked["run"]],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=asked["timeout_s"],
            )
            code, out, err = done.returncode, done.stdout, done.stderr
        except subprocess.TimeoutExpired as late:
            code, out, err = 124, late.stdout or b"", late.stderr or b""
        answer = {"code": code, "out": out.decode(errors="replace"), "err": err.decode(errors="replace")}
        os.write(port, json.dumps(answer).encode() + b"\n")
