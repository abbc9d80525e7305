"""What the API is, for programs: /v1/openapi.json, in OpenAPI 3.1. The routes of the older programs are not in it."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ... import __version__
from ...history import DAYS
from ...task import ID_PATTERN, State
from . import asking
from .answers import json
from .context import Context
from .incoming import LONGEST_TEXT
from .outputs import MOST_LINES, STREAMS
from .schemas import SCHEMAS, Schema, ref
from .views import MOST_ROWS

_WRONG = {
    400: "the request is malformed",
    401: "the token is missing",
    404: "there is no such task, class or page",
    409: "not in the state that it is in",
    413: "the body is too long",
    422: "a value is out of its bounds; the detail names it",
    429: "the queue is full: try again after Retry-After seconds",
    503: "there is no supervisor, or no queue",
    504: "the supervisor does not answer",
    507: "the disk is full",
}
_OF_TASK = ("task", "result", "story", "explain", "logs", "cancel", "retry")
_ID: Schema = {
    "name": "task_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": f"^{ID_PATTERN}$"},
}


def routes(_: Context) -> list[BaseRoute]:
    """Return the route of the document."""

    async def show(_: Request) -> Response:
        return json(document())

    return [Route("/v1/openapi.json", show)]


def document() -> dict[str, Any]:
    """Return the document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "dspy-supervisor",
            "version": __version__,
            "description": "Put tasks into a queue, wait for their results, and look after the supervisor that runs them.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": _paths(),
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "needed to change anything, where one is set",
                }
            },
        },
        "security": [{}, {"token": []}],
    }


def _paths() -> dict[str, Any]:
    since = _query("since_s", {"type": "number", "minimum": 0, "maximum": 366 * 86400}, "only of so many seconds")
    return {
        "/v1/status": {"get": _operation("status", "The supervisor, its classes, GPUs, host and latency", "Status")},
        "/v1/live": {"get": _stream("live", "The status once a second, as events")},
        "/v1/events": {
            "get": _stream(
                "events",
                "What happens to tasks, as events; after a gap `event: reset` comes first",
                _query("last_event_id", {"type": "string", "maxLength": 64}, "go on after this one"),
                {"name": "Last-Event-ID", "in": "header", "schema": {"type": "string", "maxLength": 64}},
            )
        },
        "/v1/tasks": {
            "post": _submit(),
            "get": _operation(
                "list_tasks",
                "Tasks, newest first",
                "Tasks",
                _query("state", {"type": "string", "enum": [str(state) for state in State]}),
                _query("class", {"type": "string", "enum": list(asking.CLASSES)}),
                _query("q", {"type": "string", "maxLength": 200}, "that id, kind, cause or message must hold"),
                _query("limit", {"type": "integer", "minimum": 1, "maximum": MOST_ROWS, "default": 100}),
                _query("cursor", {"type": "string", "maxLength": 200}, "`next` of the page before"),
                wrong=(404, 422),
            ),
        },
        "/v1/tasks/batch": {"post": _batch()},
        "/v1/tasks/{task_id}": {"get": _task("task", "All that is known of a task", "TaskDetails")},
        "/v1/tasks/{task_id}/result": {"get": _result()},
        "/v1/tasks/{task_id}/story": {"get": _task("story", "What happened to a task, in plain words", "Story")},
        "/v1/tasks/{task_id}/explain": {"get": _task("explain", "Why a task does not run", "Explanation")},
        "/v1/tasks/{task_id}/logs": {"get": _logs()},
        "/v1/tasks/{task_id}/cancel": {"post": _task("cancel", "Cancel a task", "Cancelled", wrong=(409,))},
        "/v1/tasks/{task_id}/retry": {"post": _task("retry", "Try a failed task again", "Accepted", wrong=(409,))},
        "/v1/failures": {"get": _operation("failures", "Failures by what went wrong", "Failures", since, wrong=(422,))},
        "/v1/history": {
            "get": _operation(
                "history",
                "What was, in steps: the tasks of each class, host and GPUs",
                "History",
                _query("since_s", {"type": "number", "minimum": 0, "maximum": DAYS * 86400, "default": 3600}),
                _query("step_s", {"type": "number", "minimum": 0, "maximum": 86400, "default": 60}, "60 at least"),
                wrong=(422,),
            )
        },
        "/v1/gpus": {"get": _operation("gpus", "What telemetry last saw of the GPUs", "Gpus")},
        "/v1/slurm/jobs": {"get": _operation("slurm_jobs", "Slurm jobs that are not over", "Jobs")},
        "/v1/queue/pause": {"post": _order("pause", "Start nothing new", "Paused", "Pause")},
        "/v1/queue/resume": {"post": _order("resume", "Start tasks again", "Resumed", "Resume")},
        "/v1/queue/drain": {
            "post": _operation("drain", "Let what runs end, and then the supervisor", "Draining", status=202)
        },
        "/v1/classes/{workload}/limit": {
            "put": _order(
                "limit",
                "Let so many tasks of a class run at once, until a reload",
                "ClassLimit",
                "Limit",
                {
                    "name": "workload",
                    "in": "path",
                    "required": True,
                    "schema": {"type": "string", "enum": list(asking.CLASSES)},
                },
                required=True,
            )
        },
        "/v1/openapi.json": {
            "get": {
                "operationId": "openapi",
                "summary": "This document",
                "responses": {
                    "200": {"description": "it", "content": {"application/json": {"schema": {"type": "object"}}}}
                },
            }
        },
    }


def _query(name: str, schema: Schema, description: str = "") -> Schema:
    return {"name": name, "in": "query", "schema": schema, **({"description": description} if description else {})}


def _json(name: str) -> Schema:
    return {"application/json": {"schema": ref(name)}}


def _problems(*statuses: int) -> dict[str, Schema]:
    content = {"application/problem+json": {"schema": ref("Problem")}}
    return {
        str(status): {"description": _WRONG[status], "content": content}
        for status in sorted({401, 503, 504, *statuses})
    }


def _operation(
    name: str, summary: str, shape: str, *parameters: Schema, wrong: tuple[int, ...] = (), status: int = 200
) -> dict[str, Any]:
    return {
        "operationId": name,
        "summary": summary,
        "parameters": list(parameters),
        "responses": {str(status): {"description": summary, "content": _json(shape)}, **_problems(*wrong)},
    }


def _task(name: str, summary: str, shape: str, *parameters: Schema, wrong: tuple[int, ...] = ()) -> dict[str, Any]:
    return _operation(name, summary, shape, _ID, *parameters, wrong=(404, *wrong))


def _order(
    name: str, summary: str, shape: str, body: str, *parameters: Schema, required: bool = False
) -> dict[str, Any]:
    found = _operation(name, summary, shape, *parameters, wrong=(400, 404, 413, 422) if parameters else (400, 413, 422))
    return found | {"requestBody": {"required": required, "content": _json(body)}}


def _stream(name: str, summary: str, *parameters: Schema) -> dict[str, Any]:
    found = _operation(name, summary, "Status", *parameters, wrong=(422,) if parameters else ())
    found["responses"]["200"]["content"] = {"text/event-stream": {"schema": {"type": "string"}}}
    return found


def _submit() -> dict[str, Any]:
    key: Schema = {
        "name": "Idempotency-Key",
        "in": "header",
        "schema": {"type": "string", "minLength": 1, "maxLength": LONGEST_TEXT},
    }
    found = _operation("submit", "Put a task", "Accepted", key, wrong=(400, 409, 413, 422, 429, 507), status=201)
    found["responses"]["201"]["headers"] = {"Location": {"schema": {"type": "string"}}}
    found["responses"]["200"] = {"description": "this very task was put before", "content": _json("Accepted")}
    for status in ("200", "201"):
        found["responses"][status]["links"] = {
            name: {"operationId": name, "parameters": {"task_id": "$response.body#/id"}} for name in _OF_TASK
        }
    found["responses"]["429"]["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
    return found | {"requestBody": {"required": True, "content": _json("Envelope")}}


def _batch() -> dict[str, Any]:
    lines = {"application/x-ndjson": {"schema": {"type": "string"}}}
    description = "A line for each line of the request: {id}, or {error, status}. Both ways are streamed."
    return {
        "operationId": "submit_many",
        "summary": "Put many tasks, one a line",
        "requestBody": {"required": False, "content": lines},
        "responses": {"200": {"description": description, "content": lines}, **_problems()},
    }


def _result() -> dict[str, Any]:
    wait = _query("wait_s", {"type": "number", "minimum": 0, "maximum": 300, "default": 0}, "wait so long for it")
    found = _task("result", "What came of a task", "Result", wait, wrong=(422,))
    found["responses"]["202"] = {"description": "it has not ended", "content": _json("Waiting")}
    return found


def _logs() -> dict[str, Any]:
    parameters = (
        _query("stream", {"type": "string", "enum": list(STREAMS), "default": STREAMS[0]}),
        _query("tail", {"type": "integer", "minimum": 0, "maximum": MOST_LINES}, "only so many lines"),
        _query("attempt", {"type": "integer", "minimum": 0, "maximum": 10**9}, "the last one by default"),
        _query("follow", {"type": "string", "enum": ["1", "true", "0", "false"]}, "go on until the task has ended"),
    )
    found = _task("logs", "What a task wrote", "Task", *parameters, wrong=(422,))
    found["responses"]["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    return found
