"""GPU memory that ran out is known by what each library says, whichever way it comes."""

import subprocess
import sys

import orjson
import pytest
from dspy_fastpath.envelope import scan
from dspy_supervisor.attempt import run
from dspy_supervisor.cuda_errors import is_out_of_memory, is_spoilt, needed_bytes, raised_out_of_memory
from dspy_supervisor.handlers import make
from dspy_supervisor.parts import HandlerFailure, Task
from dspy_supervisor.task import Cause

GIB = 1 << 30
TORCH = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.64 GiB of which 18.81 MiB is free. "
    "Process 4711 has 2.50 GiB memory in use. Including non-PyTorch memory, this process has 21.00 GiB memory in use. Of "
    "the allocated memory 20.51 GiB is allocated by PyTorch, and 130.11 MiB is reserved by PyTorch but unallocated."
)
OLD_TORCH = (
    "CUDA out of memory. Tried to allocate 512.00 MiB (GPU 0; 23.65 GiB total capacity; 20.11 GiB already allocated; "
    "300.00 MiB free; 21.00 GiB reserved in total by PyTorch)"
)
CUPY = "Out of memory allocating 8,000,000,000 bytes (allocated so far: 1,000,000,000 bytes)."
JAX = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 2147483648 bytes."
TEXTS = [
    TORCH,
    OLD_TORCH,
    JAX,
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
    "HIP out of memory. Tried to allocate 2.00 GiB",
    "cudaErrorMemoryAllocation: out of memory",
    "[2] Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "OOM when allocating tensor with shape[64,1024] and type float on /job:localhost/replica:0/task:0/device:GPU:0",
    "onnxruntime: BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 1024",
    f'Traceback (most recent call last):\n  File "train.py", line 3\ntorch.OutOfMemoryError: {TORCH}\n',
]
OTHERS = ["out of memory", "Cannot allocate memory", "the shop is out of memory cards", "CUDA is not available", ""]


def library(module, name, base):
    """Return a type as a library has it: nothing of the library has to be there."""
    return type(name, (base,), {"__module__": module})


@pytest.mark.parametrize("text", TEXTS)
def test_each_library_is_understood_by_its_text(text):
    assert is_out_of_memory(text) and is_spoilt(text)
    assert raised_out_of_memory(RuntimeError(text))


@pytest.mark.parametrize("text", OTHERS)
def test_other_shortages_are_not_the_gpus(text):
    assert not is_out_of_memory(text)
    assert not raised_out_of_memory(MemoryError(text))


@pytest.mark.parametrize(
    ("module", "name", "base"),
    [
        ("torch", "OutOfMemoryError", RuntimeError),
        ("torch.cuda", "OutOfMemoryError", RuntimeError),
        ("cupy.cuda.memory", "OutOfMemoryError", MemoryError),
    ],
)
def test_types_are_known_by_name_also_below_and_behind_others(module, name, base):
    kind = library(module, name, base)
    assert raised_out_of_memory(kind("said otherwise"))
    assert raised_out_of_memory(type("Mine", (kind,), {})("mine"))
    behind = ValueError("this batch failed")
    behind.__cause__ = kind("x")
    assert raised_out_of_memory(behind)
    hidden = ValueError("handled")
    hidden.__context__, hidden.__suppress_context__ = kind("x"), True
    assert not raised_out_of_memory(hidden)
    assert not raised_out_of_memory(library("mine", name, base)("a name alone says nothing"))


def test_a_chain_that_bites_its_tail_ends():
    one, two = ValueError("1"), ValueError("2")
    one.__cause__, two.__cause__ = two, one
    assert not raised_out_of_memory(one)


@pytest.mark.parametrize(
    ("text", "enough"),
    [
        (TORCH, 23 * GIB),
        (OLD_TORCH, 21 * GIB + 512 * (1 << 20)),
        (CUPY, 9_000_000_000),
        (JAX, 0),  # it doesn't say what was in use
        ("CUDA error: out of memory", 0),
    ],
)
def test_what_would_have_been_enough_is_read_from_the_message(text, enough):
    assert needed_bytes(text) == enough


def test_other_errors_of_cuda_spoil_the_process_too():
    assert is_spoilt("CUDA error: an illegal memory access was encountered")
    assert is_spoilt("CUDA error: device-side assert triggered")
    assert not is_spoilt("ValueError: shapes do not match")


def task(payload, tmp_path):
    envelope = orjson.dumps({"id": "a1", "payload": payload})
    fields = scan(envelope)
    raw = envelope[slice(*fields.payload)]
    return Task("a1", "gpu", None, 0, 0, None, raw, fields, envelope, tmp_path / "a1", None)


def test_an_attempt_that_raises_it_is_out_of_memory_and_may_try_again(tmp_path):
    def handler(_):
        raise library("torch", "OutOfMemoryError", RuntimeError)(TORCH)

    outcome = run(handler, task({}, tmp_path), max_result_bytes=1000)
    assert (outcome.cause, outcome.retry, outcome.details) == (Cause.OUT_OF_MEMORY, True, {"memory": "gpu"})

    def short_of_memory(_):
        raise MemoryError

    outcome = run(short_of_memory, task({}, tmp_path), max_result_bytes=1000)
    assert (outcome.cause, outcome.details) == (Cause.OUT_OF_MEMORY, {})


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_command_that_prints_it_and_fails_is_out_of_memory(tmp_path, stream):
    code = f"import sys; print({TORCH!r}, file=sys.{stream}); sys.exit(1)"
    with pytest.raises(HandlerFailure) as failure:
        make("command")(task({"argv": [sys.executable, "-c", code]}, tmp_path))
    assert failure.value.cause is Cause.OUT_OF_MEMORY
    assert failure.value.details["memory"] == "gpu" and failure.value.details["exit_code"] == 1


def test_a_command_that_prints_it_and_succeeds_has_dealt_with_it(tmp_path):
    result = make("command")(task({"argv": ["printf", "%s", TORCH]}, tmp_path))
    assert result["exit_code"] == 0


def test_no_library_is_imported_to_ask():
    code = "import sys, dspy_supervisor.cuda_errors; print(sorted({'torch', 'cupy', 'jax'} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"
