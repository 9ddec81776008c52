"""How the process keeps memory between training steps."""

import ctypes
import functools

_MMAP_MAX, _TRIM_THRESHOLD, _TOP_PAD = -4, -1, -2  # options of glibc's mallopt
_NEVER, _AHEAD = 2**31 - 1, 1 << 26  # bytes


@functools.cache
def keep_freed_memory() -> bool:
    """Make the C library keep what is freed instead of giving it back to the system; whether it can (glibc only).

    By default glibc maps every large block anew, and a step allocates the same activations again and again: tens of
    thousands of page faults a step, up to a fifth of its time on a CPU. The process's peak is the same, but what it
    has had it keeps.
    """
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 (raises where the library is another)
        options = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _AHEAD))
        return all([library.mallopt(*option) == 1 for option in options])
    except (AttributeError, OSError, TypeError):
        return False
