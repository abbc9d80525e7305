"""The shapes of the API's documents, as JSON Schema: what /v1/openapi.json refers to by name."""

from __future__ import annotations

from typing import Any

from ...task import ID_PATTERN, MAX_ATTEMPTS_RANGE, MAX_TIMEOUT_S, PRIORITY_RANGE, State, WorkloadClass
from .incoming import KIND, LONGEST_TEXT

Schema = dict[str, Any]

_ID: Schema = {"type": "string", "pattern": f"^{ID_PATTERN}$", "maxLength": 100}
_CLASS: Schema = {"type": "string", "enum": [str(name) for name in WorkloadClass]}
_STATES = [str(state) for state in State]
_MOMENT: Schema = {"type": ["string", "null"], "format": "date-time"}
_EPOCH: Schema = {"type": ["number", "null"], "description": "seconds since 1970"}
_TEXT: Schema = {"type": ["string", "null"]}
_NUMBER: Schema = {"type": ["number", "null"]}
_NAME: Schema = {"type": "string", "minLength": 1, "maxLength": LONGEST_TEXT}
_COUNT: Schema = {"type": "integer", "minimum": 0}


def _object(required: dict[str, Schema], optional: dict[str, Schema] | None = None, **more: Any) -> Schema:
    return {"type": "object", "properties": required | (optional or {}), "required": list(required), **more}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _or_nothing(schema: Schema) -> Schema:
    """Return a shape that may be null, which says nothing."""
    more = {"enum": [*schema["enum"], None]} if "enum" in schema else {}
    return schema | {"type": [schema["type"], "null"]} | more


def ref(name: str) -> Schema:
    """Return what refers to a shape."""
    return {"$ref": f"#/components/schemas/{name}"}


_TASK: dict[str, Schema] = {
    "id": _ID,
    "state": {"type": "string", "enum": [*_STATES, "quarantined"]},
    "class": {"anyOf": [_CLASS, {"type": "null"}]},
    "kind": _TEXT,
    "attempt": {**_COUNT, "description": "0 for the first"},
    "submitted_at": _MOMENT,
    "started_at": _MOMENT,
    "completed_at": _MOMENT,
    "duration_ms": _NUMBER,
    "wait_ms": _NUMBER,
    "cause": {**_TEXT, "description": "why it failed, one word"},
    "message": _TEXT,
    "owner": {**_TEXT, "description": "who runs or ran it"},
}

SCHEMAS: dict[str, Schema] = {
    "Envelope": _object(
        {"payload": {"description": "what the handler gets: any JSON"}},
        {
            name: _or_nothing(schema)
            for name, schema in {
                "id": {
                    "type": "string",
                    "pattern": f"^({ID_PATTERN})?$",
                    "description": "of your choice; without one a new one is made",
                },
                "class": {**_CLASS, "default": "cpu_short"},
                "kind": {
                    "type": "string",
                    "pattern": f"^{KIND}$",
                    "description": "what runs it, if not its class's handler",
                },
                "priority": {
                    "type": "integer",
                    "minimum": PRIORITY_RANGE[0],
                    "maximum": PRIORITY_RANGE[1],
                    "default": 0,
                    "description": "more comes first",
                },
                "not_before": {"type": "number", "minimum": 0, "description": "seconds since 1970"},
                "timeout_s": {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_TIMEOUT_S},
                "max_attempts": {
                    "type": "integer",
                    "minimum": MAX_ATTEMPTS_RANGE[0],
                    "maximum": MAX_ATTEMPTS_RANGE[1],
                },
                "idempotency_key": {**_NAME, "description": "tasks of one key are one task"},
                "affinity": _NAME,
                "resources": {"type": "object", "description": "gpus, gpu_share, gpu_memory, and for Slurm more"},
                "traceparent": _NAME,
            }.items()
        },
        description="A task. Members that are not known are kept in its record.",
    ),
    "Accepted": _object({"id": _ID, "state": {"type": "string", "const": "pending"}}),
    "Line": {
        "description": "one line of the answer to a batch",
        "oneOf": [_object({"id": _ID}), _object({"error": {"type": "string"}, "status": {"type": "integer"}})],
    },
    "Task": _object(_TASK),
    "TaskDetails": _object(
        _TASK,
        {
            "payload": {
                "description": "as it was put; null where it is too long, and then payload_head is its beginning"
            },
            "payload_head": {"type": "string"},
            "payload_bytes": _COUNT,
            "due": _MOMENT,
            "job": {"type": "string", "description": "what its job at a cluster does"},
            "record": {"type": "object", "description": "of an ended task, all that is kept beside the payload"},
            "truncated": {**_list({"type": "string"}), "description": "parts that were too long and left out"},
        },
    ),
    "Tasks": _object({"tasks": _list(ref("Task")), "next": {**_TEXT, "description": "cursor of the next page"}}),
    "Result": {
        "oneOf": [
            _object({"id": _ID, "status": {"const": "done"}, "result": {}}),
            _object({"id": _ID, "status": {"const": "failed"}, "error": ref("Failure")}),
        ]
    },
    "Failure": {
        "type": ["object", "null"],
        "properties": {"cause": {"type": "string"}, "message": {"type": "string"}},
        "description": "why, and what is known of it: type, traceback, stacks, exit_code, signal",
    },
    "Waiting": _object({"id": _ID, "state": {"type": "string", "enum": _STATES}}),
    "Story": _object(
        {
            "id": _ID,
            "story": _list(
                _object(
                    {
                        "at": _EPOCH,
                        "what": {"type": "string"},
                        "text": {"type": "string", "description": "plain words"},
                    },
                    {"attempt": _COUNT, "cause": _TEXT, "type": {"type": "string"}, "traceback": {"type": "string"}},
                )
            ),
        }
    ),
    "Explanation": _object({"id": _ID, "explanation": {"type": "string"}}),
    "Cancelled": _object({"id": _ID, "was": {"type": "string", "enum": ["waiting", "running"]}}),
    "Failures": _object(
        {
            "groups": _list(
                _object(
                    {
                        "cause": {"type": "string"},
                        "class": _CLASS,
                        "type": _TEXT,
                        "message": {"type": "string"},
                        "count": _COUNT,
                        "last_at": _EPOCH,
                        "example_id": _ID,
                        "traceback": _TEXT,
                    }
                )
            ),
            "looked_at": _COUNT,
            "complete": {"type": "boolean", "description": "false: only the newest records were looked at"},
        }
    ),
    "Gpus": _object({"gpus": _list(ref("Gpu"))}),
    "Gpu": _object(
        {
            "uuid": {"type": "string"},
            "name": {"type": "string"},
            "utilization": {**_NUMBER, "description": "0 to 1; null is what a GPU does not tell"},
            "memory_total": {**_NUMBER, "description": "bytes"},
            "memory_free": {**_NUMBER, "description": "bytes"},
            "power_w": _NUMBER,
            "power_cap_w": _NUMBER,
            "temperature_c": _NUMBER,
            "usable": {"type": "boolean"},
            "processes": _NUMBER,
        }
    ),
    "Jobs": _object(
        {
            "jobs": _list(
                _object(
                    {
                        "id": {**_TEXT, "description": "Slurm's, null while it is not known"},
                        "name": {"type": "string"},
                        "task_id": _TEXT,
                        "cluster": _TEXT,
                        "state": _TEXT,
                        "nodes": _TEXT,
                        "reason": _TEXT,
                        "submitted_at": _MOMENT,
                        "options": _list({"type": "string"}),
                    }
                )
            )
        }
    ),
    "Status": _object(
        {
            "schema_version": {"type": "integer"},
            "pid": {"type": "integer"},
            "mode": {"type": "string"},
            "uptime_s": {"type": "number"},
            "stopping": {"type": "boolean"},
            "problem": _TEXT,
            "services": {"type": "object"},
            "classes": {"type": "object", "additionalProperties": {"type": "object"}},
            "gateway": _object(
                {"version": {"type": "string"}, "uptime_s": {"type": "number"}, "writable": {"type": "boolean"}}
            ),
            "gpus": _list(ref("Gpu")),
            "host": {"type": ["object", "null"]},
            "latency": {
                "type": "object",
                "additionalProperties": _object(
                    {f"{name}_{share}_s": _NUMBER for name in ("wait", "run", "total") for share in ("p50", "p99")}
                ),
            },
        }
    ),
    "History": _object(
        {
            "rows": _list(_object({"at": _EPOCH, "seconds": {"type": "number"}, "classes": {"type": "object"}})),
            "step_s": {"type": "number", "description": "longer than asked for, where that would be too many rows"},
        }
    ),
    "Pause": {
        "type": "object",
        "properties": {
            "classes": {**_list(_CLASS), "minItems": 1, "description": "all where it is not there"},
            "reason": {"type": "string", "maxLength": 500},
        },
    },
    "Resume": {"type": "object", "properties": {"classes": {**_list(_CLASS), "minItems": 1}}},
    "Paused": _object({"paused": _list(_CLASS)}),
    "Resumed": _object({"resumed": _list(_CLASS)}),
    "Draining": _object({"draining": {"const": True}}),
    "Limit": _object({"limit": {"type": "integer", "minimum": 0, "maximum": 1024}}),
    "ClassLimit": _object({"class": _CLASS, "limit": {"type": "integer"}}),
    "Problem": _object(
        {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string", "description": "what is wrong, and what to do"},
        },
        description="An error (RFC 9457).",
    ),
}
