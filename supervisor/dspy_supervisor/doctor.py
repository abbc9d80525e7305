"""Whether this machine and this folder can serve a queue: each answer is proved by trying, here and now.

What a filesystem does is tried in a hidden folder of the queue's own folder, which is removed again (trials.py).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import resource
import socket
import stat
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from .config import Config
from .errors import QueueUnsafe
from .filesystem import Filesystem, existing, filesystem
from .trials import Finding, Level, scratch_folder, try_all

COMPILED = ("claim", "counters", "envelope", "ids", "inotify")
_LEAST_FREE_BYTES = 64 << 20  # the reserve that submitting leaves to results
_CONNECT_S = 2.0
_SANE_SINCE = 1735689600  # 2025-01-01: a clock before that was never set


def examine(config: Config) -> Iterator[Finding]:
    """Yield the findings about this machine and the configured queue's folder, which need not exist yet."""
    yield from _machine()
    folder = existing(config.queue_dir)
    try:
        kind = filesystem(folder)
    except OSError as error:
        yield Finding(
            "filesystem", Level.FAIL, f"{folder}: {error.strerror}", "choose a folder you may use: --queue-dir"
        )
        return
    yield _kind(folder, kind)
    yield _space(folder)
    yield _permissions(config)
    yield from _http(config)
    yield _traces(config)
    yield from _embedding(config)
    yield _runtime(config.runtime_dir)
    try:
        with scratch_folder(folder) as scratch:
            yield from try_all(scratch, kind)
    except OSError as error:
        remedy = f"make {config.queue_dir} and own it, or name another folder: --queue-dir"
        yield Finding("folder", Level.FAIL, f"nothing can be written to {folder}: {error.strerror}", remedy)


def _machine() -> Iterator[Finding]:
    yield _python()
    yield _compiled()
    yield _nvml_shim()
    yield _clock()
    yield from _limits()


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.platform != "linux":
        return Finding("python", Level.FAIL, f"Python {version} on {sys.platform}", "only Linux has inotify and pidfd")
    return Finding("python", Level.OK, f"Python {version}, Linux {os.uname().release}")


def _compiled() -> Finding:
    remedy = "install dspy-supervisor again, for this Python: pip install --force-reinstall dspy-supervisor"
    files = []
    for name in COMPILED:
        try:
            files.append(str(importlib.import_module(f"dspy_fastpath.{name}").__file__))
        except ImportError as error:
            return Finding("compiled parts", Level.FAIL, f"dspy_fastpath.{name}: {error}", remedy)
    scan = importlib.import_module("dspy_fastpath.envelope").scan
    if scan(b'{"id":"a","payload":[1]}').payload != (20, 23):
        return Finding("compiled parts", Level.FAIL, "the scanner of this build gives wrong answers", remedy)
    abi = "abi3" if all(".abi3." in file for file in files) else "for this Python only"
    return Finding("compiled parts", Level.OK, f"{len(files)} modules import and work ({abi})")


def _nvml_shim() -> Finding:
    try:
        version = metadata.version("pynvml")
    except metadata.PackageNotFoundError:
        return Finding("pynvml", Level.OK, "the module comes from nvidia-ml-py, without the shim that slows each start")
    message = f"the deprecated package pynvml {version} is installed: its .pth file runs at every start of Python"
    return Finding("pynvml", Level.WARN, message, "pip uninstall pynvml; pip install --force-reinstall nvidia-ml-py")


def _clock() -> Finding:
    wall, steady = time.time(), time.monotonic()
    if wall < _SANE_SINCE:
        message = f"the clock says {time.strftime('%Y-%m-%d', time.gmtime(wall))}"
        return Finding(
            "clock", Level.FAIL, message, "set it: delays and records are by the clock (timedatectl set-ntp true)"
        )
    time.sleep(0.02)
    drift = abs((time.time() - wall) - (time.monotonic() - steady))
    if drift > 0.5:
        return Finding("clock", Level.WARN, f"the clock just jumped by {drift:.1f} s", "look at its time service")
    return Finding("clock", Level.OK, f"{time.strftime('%Y-%m-%d %H:%M:%S %z')}, in step with the monotonic clock")


def _limits() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    remedy = "ulimit -n 1024, or LimitNOFILE= in the unit"
    shown = "unlimited" if hard == resource.RLIM_INFINITY else hard
    yield Finding(
        "open files", *_at_least(soft, 256, 1024), f"{soft} at once (hard limit {shown})", remedy if soft < 1024 else ""
    )
    base = Path("/proc/sys/fs/inotify")
    for name, least, good in (
        ("max_user_instances", 2, 128),
        ("max_user_watches", 16, 8192),
        ("max_queued_events", 64, 16384),
    ):
        try:
            value = int((base / name).read_text())
        except (OSError, ValueError):
            yield Finding(f"inotify {name}", Level.WARN, "can't be read", "mount /proc")
            continue
        remedy = f"sysctl fs.inotify.{name}={good}" if value < good else ""
        yield Finding(f"inotify {name}", *_at_least(value, least, good), str(value), remedy)


def _at_least(value: int, least: int, good: int) -> tuple[Level]:
    return (Level.FAIL if value < least else Level.WARN if value < good else Level.OK,)


def _kind(folder: Path, kind: Filesystem) -> Finding:
    where = f"{kind.name} at {kind.mount_point or '?'}"
    if kind.read_only:
        return Finding(
            "filesystem", Level.FAIL, f"{where} is read-only", "mount it for writing, or name another folder"
        )
    if kind.network:
        message = f"{where} is shared with other hosts: events may not arrive, the folder is looked at each second"
        return Finding("filesystem", Level.WARN, message, "producers must write a temporary file and rename it")
    if kind.volatile:
        return Finding(
            "filesystem",
            Level.WARN,
            f"{where}: nothing on it survives a reboot",
            "name a folder on a disk: --queue-dir",
        )
    if not kind.events:
        message = f"{where}: events can't be relied on, the folder is looked at each second"
        return Finding("filesystem", Level.WARN, message, "a folder on ext4, xfs or btrfs wakes workers at once")
    return Finding("filesystem", Level.OK, f"{where} ({folder})")


def _space(folder: Path) -> Finding:
    disk = os.statvfs(folder)
    free, size = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
    share = disk.f_favail / disk.f_files if disk.f_files else 1.0  # 0 files: as many as there is room for
    message = f"{free / (1 << 30):.1f} GiB free, " + (f"{disk.f_favail} inodes" if disk.f_files else "inodes as needed")
    if free < min(_LEAST_FREE_BYTES, size // 20) or disk.f_favail < min(1000, disk.f_files // 20):
        return Finding("space", Level.FAIL, message, "make room: submit refuses tasks below its reserve for results")
    if free < (1 << 30) or share < 0.02:
        return Finding("space", Level.WARN, message, "make room, or remove old records: dspy-supervisor queue gc")
    return Finding("space", Level.OK, message)


def _permissions(config: Config) -> Finding:
    from .layout import check_safe

    folder = config.queue_dir
    parent = existing(folder)
    if not os.access(parent, os.W_OK | os.X_OK):
        return Finding(
            "permissions", Level.FAIL, f"you may not write {parent}", "own it, or name another folder: --queue-dir"
        )
    missing = "" if folder.exists() else " (not made yet; it will be private)"
    try:
        check_safe(folder if not missing else parent)
    except QueueUnsafe as error:
        if missing and stat.S_IMODE(parent.stat().st_mode) & stat.S_ISVTX:  # a private folder in /tmp can't be replaced
            return Finding("permissions", Level.OK, f"{folder}{missing}")
        level = Level.WARN if config.insecure else Level.FAIL
        message, _, remedy = str(error).rpartition("; ")
        return Finding("permissions", level, message, remedy)
    if not missing and folder.stat().st_mode & stat.S_IWGRP:
        message = f"group {folder.stat().st_gid} may write {folder}, and so run programs as you"
        return Finding("permissions", Level.WARN, message, f"chmod g-w {folder}, unless that is meant")
    return Finding("permissions", Level.OK, f"nobody else may write {folder}{missing}")


def _traces(config: Config) -> Finding:
    missing = importlib.util.find_spec("opentelemetry") is None
    if config.otel_endpoint is None:
        return Finding("traces", Level.OK, "off: OTEL_EXPORTER_OTLP_ENDPOINT names where spans go")
    if missing:
        message = "there is no opentelemetry: the supervisor works, and sends no spans"
        return Finding("traces", Level.WARN, message, "pip install 'dspy-supervisor[otel]'")
    return Finding("traces", Level.OK, f"sent to {config.otel_endpoint}")


def _embedding(config: Config) -> Iterator[Finding]:
    """Look for the configured embedding servers; nothing is said where there are none."""
    missing = [name for name in ("httpx2", "stamina") if importlib.util.find_spec(name) is None]
    if missing and config.embed_urls:
        yield Finding("embedding", Level.WARN, f"there is no {missing[0]}", "pip install 'dspy-supervisor[embed]'")
    for url in config.embed_urls:
        parts = urlsplit(url)
        place = f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")  # without a password
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
            socket.create_connection((parts.hostname or "", port), _CONNECT_S).close()
        except OSError as error:
            remedy = "start it, or name another in embed_urls (INFERMESH_URL)"
            message = f"{place} takes no connection: {error.strerror or error}; tasks that embed wait for it"
            yield Finding("embedding", Level.WARN, message, remedy)
        else:
            yield Finding("embedding", Level.OK, f"{place} takes connections")


def _http(config: Config) -> Iterator[Finding]:
    missing = [name for name in ("httptools", "starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    remedy = "pip install 'dspy-supervisor[api]'"
    if not config.http and config.metrics_port is None:
        message = "off" + (f", and could not be on: there is no {missing[0]}" if missing else ": --http serves it")
        yield Finding("HTTP", Level.OK, message, remedy if missing else "")
        return
    if missing:
        message = f"there is no {missing[0]}: the supervisor works, without its API, metrics and dashboard"
        yield Finding("HTTP", Level.WARN, message, remedy)
        return
    ports = [port for port in ((config.http_port if config.http else None), config.metrics_port) if port is not None]
    places = [f"{config.http_host}, port {port}" for port in ports]
    if config.http and config.http_socket is not None:
        places.append(str(config.http_socket))
    token = "with a token" if config.http_token else "without a token"
    yield Finding("HTTP", Level.OK, f"{' and '.join(places) or 'served nowhere'}, {token}")
    if not ports:
        return
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(config.http_host.strip("[]"), None)}
    except OSError as error:
        remedy = 'name an address of this host: http_host = "127.0.0.1"'
        yield Finding("HTTP address", Level.FAIL, f"{config.http_host} has none: {error.strerror}", remedy)
        return
    reached = sorted(str(one) for one in found if not str(one).startswith("127.") and one != "::1")
    if reached and config.http_token is None:
        remedy = 'give one (http_token_file = "FILE"), or listen on 127.0.0.1'
        message = f"other hosts reach {reached[0]}, and there is no http_token: it is not served"
        yield Finding("HTTP address", Level.FAIL, message, remedy)


def _runtime(folder: Path) -> Finding:
    parent = existing(folder)
    if parent == folder:
        status = folder.stat()
        if status.st_uid not in (os.geteuid(), 0) or status.st_mode & (stat.S_IWOTH | stat.S_IWGRP):
            message = f"{folder}: owner {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}"
            return Finding("runtime folder", Level.FAIL, message, "it must be yours alone: another with --runtime-dir")
    if not os.access(parent, os.W_OK | os.X_OK):
        return Finding("runtime folder", Level.FAIL, f"you may not write {parent}", "name another: --runtime-dir")
    if filesystem(parent).network:
        message = f"{parent} is shared with other hosts, whose locks can't be told from ours"
        return Finding("runtime folder", Level.FAIL, message, "a folder of this host: --runtime-dir /run/user/UID")
    return Finding("runtime folder", Level.OK, str(folder))
