"""C sources to shared libraries, compiled on first use with the system's compiler, for the CPU.

A library lies in `$LIPCERT_CACHE` (or `$XDG_CACHE_HOME/lipcert`, `~/.cache/lipcert`), named by a hash of the sources,
the flags, the compiler and the processor: a change of any compiles anew, and machines that share a home folder do not
share code. Compiling takes seconds, once.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from lipcert.paths import cache_dir

HERE = Path(__file__).parent  # headers that all sources may include
FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC", "-pthread", f"-I{HERE}")
TUNED = (("-march=native",), ("-mcpu=native",), ())
"""Tried in turn: what the compiler calls "for this processor" differs."""


@functools.cache
def build(source: Path, *flags: str) -> ctypes.CDLL | str:
    """The library of a C file, or what is wrong; remembered, so that a failure is met once a process.

    Args:
        source: the file; headers beside it and in this folder belong to it. flags: of the compiler, such as -DNAME=1.
    """
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "cc", "gcc", "clang"))), None)
    if compiler is None:
        return "no C compiler: none of $CC, cc, gcc, clang is in PATH"
    complaint = ""
    for tuned in TUNED:
        command = [compiler, *FLAGS, *tuned, *flags]
        path = cache_folder() / f"{source.stem}-{_key(command, source)}.so"
        try:
            if not path.exists():
                _compile(command, source, path)
            return ctypes.CDLL(str(path))
        except (OSError, subprocess.CalledProcessError) as error:
            complaint = getattr(error, "stderr", None) or str(error)
    return f"{compiler} failed: {(complaint.strip() or 'no message').splitlines()[0]}"


def library(source: Path, *flags: str) -> ctypes.CDLL:
    """As `build`.

    Raises:
        OSError: no compiler, or it fails.
    """
    built = build(source, *flags)
    if isinstance(built, str):
        raise OSError(built)
    return built


def _compile(command: list[str], source: Path, path: Path) -> None:
    """Compile beside the final name, then rename: several processes may do so at once."""
    handle, partial = tempfile.mkstemp(suffix=".so", dir=path.parent)
    os.close(handle)
    try:
        subprocess.run([*command, str(source), "-o", partial, "-lm"], check=True, capture_output=True, text=True)
        os.replace(partial, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)


def _key(command: list[str], source: Path) -> str:
    """Hash of all that decides the machine code, but not of where the sources lie."""
    version = subprocess.run([command[0], "--version"], capture_output=True, text=True, check=False).stdout
    parts = [" ".join(part for part in command if not part.startswith("-I")), version, platform.machine(), _processor()]
    headers = sorted({*source.parent.glob("*.h"), *HERE.glob("*.h")}, key=lambda path: path.name)
    parts += [path.read_text() for path in (source, *headers)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """Model and instruction sets, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    telling = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(telling)}))


@functools.cache
def cache_folder() -> Path:
    """A folder of our own that can be written; a temporary one where there is none."""
    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(folder)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="lipcert-"))
    return folder
