"""What a failure says of the GPU: out of its memory, or a context that can't be used any more.

Known by names of types and by text, so that no library has to be imported to ask: torch, cupy, jax, TensorFlow, numba,
ONNX Runtime, and what CUDA, HIP, cuBLAS and cuDNN call it themselves.
"""

from __future__ import annotations

import re

_MAX_CHAIN = 10  # exceptions behind one another that are looked at
_MAX_TEXT = 8192  # of one message

#: module and name of the type; a prefix of the module is enough
_TYPES = {
    ("torch", "OutOfMemoryError"),  # since 2.5; torch.cuda before
    ("cupy", "OutOfMemoryError"),
}
_MEMORY = re.compile(
    r"(?:CUDA|HIP|XPU|GPU) out of memory"
    r"|CUDA (?:driver )?error: out of memory|HIP error: out of memory"
    r"|cudaErrorMemoryAllocation|hipErrorOutOfMemory|CUDA_ERROR_OUT_OF_MEMORY"
    r"|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|CUFFT_ALLOC_FAILED|CUSOLVER_STATUS_ALLOC_FAILED"
    r"|RESOURCE_EXHAUSTED: (?:Out of memory|Failed to allocate|OOM)|OOM when allocating tensor"
    r"|torch(?:\.cuda)?\.OutOfMemoryError|cupy\S*\.OutOfMemoryError"
    r"|(?:BFCArena|CUDA)[^\n]{0,80}Failed to allocate memory"
    r"|cuMemAlloc(?:Async)? failed: out of memory",
)
# After these every later call of the process fails too (CUDA Runtime API, "cudaError"): only a new process helps.
_SPOILT = re.compile(
    r"(?:CUDA|HIP) (?:driver )?error|cudaError[A-Z]|CUDA_ERROR_|hipError[A-Z]|CUDNN_STATUS_|CUBLAS_STATUS_"
    r"|NCCL error|device-side assert"
)
_UNITS = {
    "": 1,
    "bytes": 1,
    "b": 1,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
}
_AMOUNT = r"([0-9][0-9,]*(?:\.[0-9]+)?)\s*(bytes|[KMG]i?B)?"
_TRIED = re.compile(r"(?:tried to allocate|trying to allocate|failed to allocate|out of memory allocating|buffer of size)"
                    rf"[^0-9\n]{{0,40}}{_AMOUNT}", re.IGNORECASE)  # fmt: skip
_IN_USE = (
    re.compile(rf"this process has {_AMOUNT} memory in use", re.IGNORECASE),  # torch since 2.1
    re.compile(rf"{_AMOUNT} reserved in total", re.IGNORECASE),  # torch before
    re.compile(rf"allocated so far: {_AMOUNT}", re.IGNORECASE),  # cupy
)


def is_out_of_memory(text: str) -> bool:
    """Whether a message, or the end of what a program printed, tells of GPU memory that ran out."""
    return _MEMORY.search(text) is not None


def is_spoilt(text: str) -> bool:
    """Whether it tells of an error after which a process can't use its GPU any more, memory that ran out included."""
    return is_out_of_memory(text) or _SPOILT.search(text) is not None


def raised_out_of_memory(exc: BaseException) -> bool:
    """Whether an exception, or one behind it, tells of GPU memory that ran out."""
    seen = 0
    found: BaseException | None = exc
    while found is not None and seen < _MAX_CHAIN:
        if any(_is_known(kind) for kind in type(found).__mro__) or is_out_of_memory(_text(found)):
            return True
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
        seen += 1
    return False


def needed_bytes(text: str) -> int:
    """Return the memory that would have been enough, as far as the message tells: in use and asked for; 0: it doesn't."""
    if (tried := _TRIED.search(text)) is None:
        return 0
    in_use = next((match for pattern in _IN_USE if (match := pattern.search(text))), None)
    return _bytes(tried) + _bytes(in_use) if in_use else 0


def _is_known(kind: type) -> bool:
    module = str(getattr(kind, "__module__", "")).partition(".")[0]
    return (module, kind.__name__) in _TYPES


def _text(exc: BaseException) -> str:
    try:
        return str(exc)[:_MAX_TEXT]
    except BaseException:  # the handler's code
        return ""


def _bytes(match: re.Match[str]) -> int:
    return int(float(match[1].replace(",", "")) * _UNITS[(match[2] or "").lower()])
