"""The kernels in C, for the CPU: `distance.c`, compiled on first use, one library a dtype (`lipcert.kernels.native`).

Shape letters: B batch, I inputs, O outputs, T terms.
"""

import ctypes
import math
from pathlib import Path

import torch
from torch import Tensor

from lipcert.kernels.native import library
from lipcert.linf.kernels import reference

SOURCE = Path(__file__).with_name("distance.c")
WAYS = {"choose": 0, "direct": 1, "stable": 2, "sparse": 3}
"""How a power sum is taken: as it is, relative to the largest term, or the same over the terms that matter only. The
kernels choose by what a few pairs of rows show."""
NEGLIGIBLE = {torch.float32: (1e-7, 2.0**-40), torch.float64: (1e-16, 2.0**-80)}
"""Relative error that "sparse" may cost a distance; size of dy/dx_i below which it gives an entry no gradient."""
WHOLE_TO = 128
"""Integers up to here are powers by squaring."""
SMALL = 1 << 20
"""Below so many differences, one thread."""


def problem() -> str | None:
    """Why the kernels cannot run here; None where they can."""
    try:
        _library(torch.float32)
    except OSError as error:
        return f"no native kernels ({error})"
    return None


def distance_forward(x_BI: Tensor, w_OI: Tensor, p: float, way: str = "choose") -> Tensor:
    """As `reference.distance_forward`."""
    y_BO = x_BI.new_empty(len(x_BI), len(w_OI))
    if p == math.inf:
        _call("distance_max", x_BI, w_OI, y_BO, None, sizes=(x_BI, w_OI))
        return y_BO
    ratio = min(0.999, (NEGLIGIBLE[x_BI.dtype][0] * p / x_BI.shape[1]) ** (1 / p))
    settings = (ctypes.c_double(p), _whole(p), ctypes.c_double(ratio), WAYS[way])
    _call("distance_power", x_BI, w_OI, y_BO, sizes=(x_BI, w_OI), settings=settings)
    return y_BO


def distance_backward(
    grad_BO: Tensor, x_BI: Tensor, w_OI: Tensor, y_BO: Tensor, p: float, way: str = "choose"
) -> tuple[Tensor, Tensor]:
    """As `reference.distance_backward`; the same whatever the number of threads."""
    if p == math.inf:
        return farthest_backward(grad_BO, x_BI, w_OI, *farthest(x_BI, w_OI))
    ratio = NEGLIGIBLE[x_BI.dtype][1] ** (1 / (p - 1)) if p > 2 else 0.0
    settings = (ctypes.c_double(p), _whole(p) - 1, ctypes.c_double(ratio), WAYS[way])
    return _gradients("slope_power", grad_BO, x_BI, w_OI, y_BO, settings=settings)


def farthest(x_BI: Tensor, w_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Distance at p = inf and the entry that attains it: its number + 1, negative where x < w there, 0 where y is 0."""
    y_BO = x_BI.new_empty(len(x_BI), len(w_OI))
    where_BO = torch.empty(y_BO.shape, dtype=torch.int32)
    _call("distance_max", x_BI, w_OI, y_BO, where_BO, sizes=(x_BI, w_OI))
    return y_BO, where_BO


def farthest_backward(
    grad_BO: Tensor, x_BI: Tensor, w_OI: Tensor, y_BO: Tensor, where_BO: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients at p = inf from what `farthest` found."""
    return _gradients("slope_max", grad_BO, x_BI, w_OI, y_BO, where_BO)


def interval_forward(lower_BI: Tensor, upper_BI: Tensor, w_OI: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """As `reference.interval_forward`, which also computes finite p: nothing is certified there."""
    if p != math.inf:
        return reference.interval_forward(lower_BI, upper_BI, w_OI, p)
    low_BO = lower_BI.new_empty(len(lower_BI), len(w_OI))
    high_BO = torch.empty_like(low_BO)
    _call("interval_max", lower_BI, upper_BI, w_OI, low_BO, high_BO, sizes=(lower_BI, w_OI))
    return low_BO, high_BO


def top_distances(x_BI: Tensor, w_OI: Tensor, count: int) -> Tensor:
    """As `reference.top_distances`."""
    top_BOT = x_BI.new_empty(len(x_BI), len(w_OI), count)
    settings = (ctypes.c_long(count),)
    _call("sorted_max", x_BI, None, w_OI, top_BOT, None, sizes=(x_BI, w_OI), settings=settings)
    return top_BOT


def top_interval(lower_BI: Tensor, upper_BI: Tensor, w_OI: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As `reference.top_interval`, which also takes boxes with a NaN or an infinity: they would be lost in the sort."""
    if not all(bool(t.isfinite().all()) for t in (lower_BI, upper_BI, w_OI)):
        return reference.top_interval(lower_BI, upper_BI, w_OI, count)
    low_BOT = lower_BI.new_empty(len(lower_BI), len(w_OI), count)
    high_BOT = torch.empty_like(low_BOT)
    settings = (ctypes.c_long(count),)
    _call("sorted_max", lower_BI, upper_BI, w_OI, low_BOT, high_BOT, sizes=(lower_BI, w_OI), settings=settings)
    return low_BOT, high_BOT


ARITHMETIC = ("subtraction", "bitwise", "multiply-add")


def arithmetic(kind: str, steps: int, dtype: torch.dtype = torch.float32) -> int:
    """Run one kind of instruction in registers alone, one of `ARITHMETIC`; how many numbers it was applied to.

    What benchmarks count limits from: one thread, vectors, no memory.
    """
    seed, library = torch.linspace(0.5, 0.9, 64, dtype=dtype), _library(dtype)
    library.arithmetic(ARITHMETIC.index(kind), ctypes.c_void_p(seed.data_ptr()), ctypes.c_long(steps))
    return steps * library.lanes_of_a_tile()


def _whole(p: float) -> int:
    """p where it is a small integer, else 0."""
    return int(p) if p == int(p) and p <= WHOLE_TO else 0


def _gradients(name: str, *inputs: Tensor, settings: tuple = ()) -> tuple[Tensor, Tensor]:
    _, x_BI, w_OI, *_ = inputs
    dx_BI, dw_OI = torch.empty_like(x_BI), torch.zeros_like(w_OI) if len(x_BI) == 0 else torch.empty_like(w_OI)
    _call(name, *inputs, dx_BI, dw_OI, sizes=(x_BI, w_OI), settings=settings)
    return dx_BI, dw_OI


def _call(name: str, *tensors: Tensor | None, sizes: tuple[Tensor, Tensor], settings: tuple = ()) -> None:
    """Run one C function: pointers, sizes, settings, number of threads."""
    (batch, inputs), outputs = sizes[0].shape, len(sizes[1])
    if batch == 0:
        return
    for tensor in tensors:  # what C reads as one block must be one
        assert tensor is None or (tensor.is_contiguous() and tensor.device.type == "cpu")
    threads = torch.get_num_threads() if batch * inputs * outputs > SMALL else 1
    pointers = [None if t is None else ctypes.c_void_p(t.data_ptr()) for t in tensors]
    shape = (ctypes.c_long(batch), ctypes.c_long(outputs), ctypes.c_long(inputs))
    if getattr(_library(sizes[0].dtype), name)(*pointers, *shape, *settings, threads):
        raise MemoryError(f"{name}: no memory for a {batch} x {inputs} batch against {outputs} x {inputs} weights")


def _library(dtype: torch.dtype) -> ctypes.CDLL:
    """The compiled kernels of a dtype.

    Raises:
        OSError: no compiler, or it fails.
    """
    return library(SOURCE, f"-DREAL_BITS={torch.finfo(dtype).bits}")
