"""The compiled extensions and the abi3 switch; all other metadata is in pyproject.toml."""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

SOURCE = Path("fastpath/dspy_fastpath")
SANITIZE = os.environ.get("DSPY_FASTPATH_SANITIZE", "")  # "address,undefined" for `make sanitize`

compile_args = ["-O2", "-fno-strict-aliasing", "-Wall", "-Wno-unused-function"]
link_args: list[str] = []
if SANITIZE:
    compile_args += ["-O1", "-g", "-fno-omit-frame-pointer", f"-fsanitize={SANITIZE}"]
    link_args += [f"-fsanitize={SANITIZE}"]

extensions = [
    Extension(
        f"dspy_fastpath.{path.stem}",
        [str(path)],
        define_macros=[("Py_LIMITED_API", "0x030B0000"), ("_GNU_SOURCE", "1")],
        extra_compile_args=compile_args,
        extra_link_args=link_args,
        py_limited_api=True,
    )
    for path in sorted(SOURCE.glob("*.pyx"))
]

setup(
    ext_modules=cythonize(
        extensions,
        include_path=["fastpath"],
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "embedsignature": False,
        },
    ),
    options={"bdist_wheel": {"py_limited_api": "cp311"}, "build_ext": {"parallel": os.cpu_count() or 1}},
)
