"""Where the vectors of a task are: in its record, or in a .npy file beside its other output.

The file is numpy's format, version 1.0: a magic, the length of a header, the header (a Python literal) padded so that the
numbers begin at a multiple of 64, and the numbers. It is written without numpy, which a worker does not have to load.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .dialect import Vectors

DTYPE = "float32"
_MAGIC = b"\x93NUMPY\x01\x00"


def write_npy(folder: Path, name: str, shape: tuple[int, int], numbers: bytes | memoryview) -> None:
    """Write little-endian float32 numbers as folder/name, synced. What was there under that name is replaced."""
    header = str({"descr": "<f4", "fortran_order": False, "shape": shape}).encode()
    length = -(len(_MAGIC) + 2 + len(header) + 1) % 64 + len(header) + 1
    header = header.ljust(length - 1) + b"\n"
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    temporary = f".{name}.tmp"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(temporary, flags, 0o640, dir_fd=directory), "wb", 0) as file:
            left = memoryview(b"".join((_MAGIC, length.to_bytes(2, "little"), header, numbers)))
            while left:
                left = left[file.write(left) or 0 :]
            os.fsync(file.fileno())  # the record that names it may be synced: then the file must be there, too
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        os.fsync(directory)
    finally:
        os.close(directory)


def read_vectors(result: Mapping[str, Any], queue_dir: str | Path) -> Vectors:
    """Return the vectors of an embed task's result, wherever they are: float32, one row a text.

    Raises ValueError for the result of another task, and where the file is not what the record says.
    """
    import numpy as np

    if "embeddings" in result:
        return np.array(result["embeddings"], np.float32)
    known = result.get("embeddings_file")
    if not isinstance(known, Mapping):
        raise ValueError("no result of an embed task: it has neither 'embeddings' nor 'embeddings_file'")
    path = Path(queue_dir) / str(known["path"])
    vectors: Vectors = np.load(path, allow_pickle=False)
    if list(vectors.shape) != known["shape"] or str(vectors.dtype) != known["dtype"]:
        raise ValueError(
            f"{path} has {vectors.dtype} {vectors.shape}, the record says {known['dtype']} {known['shape']}"
        )
    return vectors
