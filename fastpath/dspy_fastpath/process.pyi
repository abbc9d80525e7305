def become_subreaper() -> None: ...
def die_with_parent(expected_parent: int) -> None: ...
def spawn(
    argv: list[bytes],
    env: list[bytes],
    cwd: int | bytes | None,
    stdin: int,
    stdout: int,
    stderr: int,
    *,
    program: bytes | None = None,
) -> int: ...
