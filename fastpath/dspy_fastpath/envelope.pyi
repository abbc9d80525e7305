from typing import Final, NoReturn, final

__pyx_capi__: dict[str, object]  # what other compiled modules call

class EnvelopeError(ValueError):
    reason: str
    line: int
    column: int
    offset: int
    def __init__(self, reason: str, line: int, column: int, offset: int) -> None: ...

@final
class Fields:
    id: Final[str | None]
    task_class: Final[str | None]
    kind: Final[str | None]
    priority: Final[int]
    not_before: Final[float | None]
    timeout_s: Final[float | None]
    max_attempts: Final[int | None]
    idempotency_key: Final[str | None]
    affinity: Final[str | None]
    traceparent: Final[str | None]
    resources: Final[tuple[int, int] | None]
    payload: Final[tuple[int, int]]
    has_payload: Final[bool]
    extras: Final[tuple[tuple[str, int, int], ...]]
    def __init__(self, *args: object, **kwargs: object) -> NoReturn: ...

def scan(data: bytes, max_depth: int = 128, max_extras: int = 256) -> Fields: ...
