"""The Triton programs of l_inf-distance layers; what they do together is said in `triton_kernels`.

Shapes: RM, RN outputs of a thread along the batch and along the outputs, TM, TN threads along them (lane dimensions
come last, so that the compiler's default layout keeps maxima and sums over the others inside one thread); in the
backward pass RO weight rows of a thread, T threads along the inputs. Loops take four inputs (images) an iteration.
"""

import triton
import triton.language as tl


@triton.jit
def _largest(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _quarters(a):
    """Four (R, T) tiles from one (4, R, T); no value moves between threads."""
    even, odd = tl.split(tl.permute(tl.reshape(a, [2, 2, a.shape[1], a.shape[2]]), [2, 3, 0, 1]))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def _term(lower, upper, w, KIND: tl.constexpr):
    """One distance of each output: lower, upper (RM, TM) and w (RN, TN) to (RM, RN, TM, TN)."""
    over = upper[:, None, :, None] - w[None, :, None, :]
    if KIND == 0:
        return tl.abs(over)
    else:
        under = w[None, :, None, :] - lower[:, None, :, None]
        if KIND == 1:
            return _largest(over, under)
        elif KIND == 2:
            return _largest(-over, -under)
        else:
            return _largest(_largest(-over, -under), 0.0)


@triton.jit
def _terms(lower, upper, w, KIND: tl.constexpr):
    """Four steps of each output, from (4, RM, TM), (4, RM, TM) and (4, RN, TN)."""
    a, b, c, d = _quarters(upper)
    e, f, g, h = _quarters(w)
    i, j, k, m = (a, b, c, d) if KIND == 0 else _quarters(lower)
    return _term(i, a, e, KIND), _term(j, b, f, KIND), _term(k, c, g, KIND), _term(m, d, h, KIND)


@triton.jit
def _indices(first, R: tl.constexpr, T: tl.constexpr):
    return first * R * T + tl.arange(0, R)[:, None] * T + tl.arange(0, T)[None, :]


@triton.jit
def _rows(matrix, index, count, inputs):
    """Pointers (4, R, T) to the first inputs of each row; rows beyond the last repeat it, their results go nowhere."""
    row = tl.minimum(index, count - 1).to(tl.int64)
    return matrix + row[None, :, :] * inputs + tl.arange(0, 4)[:, None, None]


@triton.jit
def _repeated(rows, start, inputs, EVEN: tl.constexpr):
    """Four inputs of each row; beyond the last one it comes again, which changes no maximum."""
    if EVEN:
        return tl.load(rows + start)
    else:
        k = tl.arange(0, 4)[:, None, None]
        return tl.load(rows + (tl.minimum(start + k, inputs - 1) - k))


@triton.jit
def _padded(rows, start, inputs, EVEN: tl.constexpr):
    """Four inputs of each row; zeros beyond the last one, whose distance from each other adds nothing."""
    if EVEN:
        return tl.load(rows + start)
    else:
        return tl.load(rows + start, mask=start + tl.arange(0, 4)[:, None, None] < inputs, other=0.0)


@triton.jit
def _pow(r, p, FAST: tl.constexpr):
    """|r|^p. FAST: by the special function unit, good to p * 2^-22; the interpreter and float64 have no such thing."""
    if FAST:
        log = tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [tl.abs(r)], tl.float32, True, 1)
        return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [p * log], tl.float32, True, 1)
    else:
        return tl.exp2(p * tl.log2(tl.abs(r)))


@triton.jit
def _power(r, p, SQUARINGS: tl.constexpr, FAST: tl.constexpr):
    """|r|^p of r in [-1, 1]; p = 2^SQUARINGS, or any p > 0 where that is negative."""
    if SQUARINGS < 0:
        return _pow(r, p, FAST)
    else:
        for _ in tl.static_range(SQUARINGS):
            r = r * r
        return tl.abs(r)


@triton.jit
def _slope(r, p, SQUARINGS: tl.constexpr, FAST: tl.constexpr):
    """sign(r) |r|^(p - 1) of r in [-1, 1]; SQUARINGS is -1 where p > 2, -2 where 1 < p < 2."""
    if SQUARINGS == 0:
        return tl.where(r > 0, 1.0, tl.where(r < 0, -1.0, r))  # NaN stays what it is
    elif SQUARINGS == -1:
        return r * _pow(r, p - 2.0, FAST)
    elif SQUARINGS == -2:
        size = _pow(r, p - 1.0, FAST)
        return tl.where(r < 0, -size, size)
    else:
        square = r
        for _ in tl.static_range(SQUARINGS - 1):  # r^(1 + 2 + 4 + ...), odd, so that the sign is right
            square = square * square
            r = r * square
        return r


@triton.jit
def largest_kernel(
    lower, upper, w, y, starts, batch, outputs, inputs,
    KIND: tl.constexpr, SAVE: tl.constexpr, EVEN: tl.constexpr,
    RM: tl.constexpr, RN: tl.constexpr, TM: tl.constexpr, TN: tl.constexpr,
):  # fmt: skip
    """y = max_i of the terms; `starts`: at which of the steps of four it was found first."""
    b, o = _indices(tl.program_id(0), RM, TM), _indices(tl.program_id(1), RN, TN)
    lower_rows, upper_rows = _rows(lower, b, batch, inputs), _rows(upper, b, batch, inputs)
    w_rows = _rows(w, o, outputs, inputs)
    best = tl.zeros((RM, RN, TM, TN), w.dtype.element_ty)
    if KIND == 1:
        best -= float("inf")
    found = tl.zeros((RM, RN, TM, TN), tl.int32)
    for start in tl.range(0, inputs, 4, num_stages=3):
        upper_tile = _repeated(upper_rows, start, inputs, EVEN)
        lower_tile = upper_tile if KIND == 0 else _repeated(lower_rows, start, inputs, EVEN)
        first, second, third, fourth = _terms(lower_tile, upper_tile, _repeated(w_rows, start, inputs, EVEN), KIND)
        largest = _largest(_largest(first, second), _largest(third, fourth))
        if SAVE:
            found = tl.where(largest > best, start, found)
        best = _largest(best, largest)
    b, o = b[:, None, :, None], o[None, :, None, :]
    place, inside = b.to(tl.int64) * outputs + o, (b < batch) & (o < outputs)
    tl.store(y + place, best, mask=inside)
    if SAVE:
        tl.store(starts + place, found, mask=inside)


@triton.jit
def power_kernel(
    lower, upper, w, y, batch, outputs, inputs, p_high, p_low,
    KIND: tl.constexpr, SQUARINGS: tl.constexpr, FAST: tl.constexpr, TINY: tl.constexpr, EVEN: tl.constexpr,
    RM: tl.constexpr, RN: tl.constexpr, TM: tl.constexpr, TN: tl.constexpr,
):  # fmt: skip
    """y = (sum_i term_i^p)^(1/p), where y held the largest |term|."""
    dtype: tl.constexpr = w.dtype.element_ty
    p = tl.full((), 0.0, dtype) + p_high + p_low
    b, o = _indices(tl.program_id(0), RM, TM), _indices(tl.program_id(1), RN, TN)
    lower_rows, upper_rows = _rows(lower, b, batch, inputs), _rows(upper, b, batch, inputs)
    w_rows = _rows(w, o, outputs, inputs)
    b, o = b[:, None, :, None], o[None, :, None, :]
    place, inside = b.to(tl.int64) * outputs + o, (b < batch) & (o < outputs)
    largest = tl.load(y + place, mask=inside, other=1.0)
    unit = tl.maximum(largest, TINY)
    inverse = 1.0 / unit
    total = tl.zeros((RM, RN, TM, TN), dtype)
    for start in tl.range(0, inputs, 4, num_stages=3):
        upper_tile = _padded(upper_rows, start, inputs, EVEN)
        lower_tile = upper_tile if KIND == 0 else _padded(lower_rows, start, inputs, EVEN)
        first, second, third, fourth = _terms(lower_tile, upper_tile, _padded(w_rows, start, inputs, EVEN), KIND)
        total += _power(first * inverse, p, SQUARINGS, FAST)
        total += _power(second * inverse, p, SQUARINGS, FAST)
        total += _power(third * inverse, p, SQUARINGS, FAST)
        total += _power(fourth * inverse, p, SQUARINGS, FAST)
    root = total if SQUARINGS == 0 else tl.exp2(tl.log2(total) / p)
    # the root of a sum that holds a 1; infinite and NaN distances stay as they are
    tl.store(y + place, tl.where(largest < float("inf"), _largest(unit * root, largest), largest), mask=inside)


@triton.jit(do_not_specialize_on_alignment=["inputs"])  # known alignment would spread weight rows over threads
def slopes_kernel(
    x, w, grad, inverse, dx, dw, first, span, batch, outputs, inputs, p_high, p_low,
    SQUARINGS: tl.constexpr, FAST: tl.constexpr, RO: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """dw of RO weight rows over `span` images, and what these rows add to dx: each power is taken once for both."""
    dtype: tl.constexpr = w.dtype.element_ty
    p = tl.full((), 0.0, dtype) + p_high + p_low
    i, o = tl.program_id(0) * T + tl.arange(0, T)[None, :], (first + tl.program_id(1)) * RO + tl.arange(0, RO)[:, None]
    i_inside, o_inside = i < inputs, o < outputs
    i_read, o_read = tl.minimum(i, inputs - 1), tl.minimum(o, outputs - 1).to(tl.int64)
    w_tile = tl.load(w + o_read * inputs + i_read)
    total = tl.zeros((RO, T), dtype)
    step = tl.arange(0, 4)[:, None, None]
    begin = tl.program_id(2) * span
    dx += tl.program_id(1).to(tl.int64) * batch * inputs + i
    for b in tl.range(begin, tl.minimum(begin + span, batch), 4, num_stages=3):
        row = tl.minimum(b + step, batch - 1).to(tl.int64)
        known = (b + step < batch) & o_inside[None, :, :]
        x_tiles = _quarters(tl.load(x + row * inputs + i_read[None, :, :]))
        inverses = _quarters(tl.load(inverse + row * outputs + o_read[None, :, :], mask=known, other=0.0))
        grads = _quarters(tl.load(grad + row * outputs + o_read[None, :, :], mask=known, other=0.0))
        for k in tl.static_range(4):
            slope = grads[k] * _slope((x_tiles[k] - w_tile) * inverses[k], p, SQUARINGS, FAST)
            total -= slope
            image = b + k
            tl.store(dx + image.to(tl.int64) * inputs, tl.sum(slope, 0)[None, :], mask=i_inside & (image < batch))
    tl.store(dw + (tl.program_id(2).to(tl.int64) * outputs + o) * inputs + i, total, mask=i_inside & o_inside)


@triton.jit
def scatter_kernel(
    x, w, y, grad, starts, scale, dx, dw, total, outputs, inputs, REST: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Gradients at p = inf go to one input each: finite ones as whole multiples of 1 / scale, the REST as they are."""
    place = tl.program_id(0).to(tl.int64) * T + tl.arange(0, T)
    inside = place < total
    b, o = place // outputs, place % outputs
    distance = tl.load(y + place, mask=inside, other=0.0)
    start = tl.load(starts + place, mask=inside, other=0)
    step = tl.arange(0, 4)[None, :]
    i = start[:, None] + step
    known = inside[:, None] & (i < inputs)
    difference = tl.load(x + b[:, None] * inputs + i, mask=known, other=0.0)
    difference -= tl.load(w + o[:, None] * inputs + i, mask=known, other=0.0)
    at = tl.min(tl.where(known & (tl.abs(difference) == distance[:, None]), step, 4), 1)  # the first of ties
    sign = tl.sum(tl.where(step == at[:, None], (difference > 0).to(tl.int32) - (difference < 0).to(tl.int32), 0), 1)
    i = b * 0 + start + tl.where(at < 4, at, 0)
    slope = tl.load(grad + place, mask=inside, other=0.0)
    slope = tl.where(distance == distance, tl.where(sign == 0, 0.0, slope * sign.to(slope.dtype)), float("nan"))
    finite = tl.abs(slope) < float("inf")
    if REST:
        tl.atomic_add(dx + b * inputs + i, slope, mask=inside & (finite == 0), sem="relaxed")
        tl.atomic_add(dw + o * inputs + i, -slope, mask=inside & (finite == 0), sem="relaxed")
    else:
        units = (tl.where(finite, slope, 0.0).to(tl.float64) * tl.load(scale)).to(tl.int64)
        tl.atomic_add(dx + b * inputs + i, units, mask=inside & (units != 0), sem="relaxed")
        tl.atomic_add(dw + o * inputs + i, -units, mask=inside & (units != 0), sem="relaxed")
