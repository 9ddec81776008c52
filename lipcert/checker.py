"""Check a certificate bundle (book/bundle.md) without trusting its author: this file and numpy, nothing else.

Assumed: IEEE arithmetic, products that add up conventionally. With unit roundoff u and gamma_k = k u / (1 - k u), a sum
of k products in any order, fused or not, is off by at most gamma_k times the sum of their magnitudes.
Upper ends. A is the matrix of one group of a layer (a dense layer is a convolution of one pixel). Its unknowns, pixel
by pixel, are cut into blocks; A^T A has blocks (i, j), |i - j| <= m, only. For c2 >= 0 and *any* R_ij, i <= j <= i + m,
compute G = A^T A (t products an entry), S = c2 - G and, for i <= j, E_ij = S_ij - sum_k R_ki^T R_kj (K products). Then
    ||A||^2 <= c2 + (1 + gamma_K) ||E||_F + gamma_K ||R||_1 ||R||_inf + u max|S_ii| + gamma_t || |A| ||^2 + 2**-450,
the last for underflow. Proof: c2 I - A^T A = R^T R + F and R^T R is positive semidefinite, so ||A||^2 <= c2 + ||F||. By
entries, F - E is at most gamma_K (|E| + |R|^T |R|) (Higham, Accuracy and Stability, 2nd ed., lemma 8.4: c - sum a_l b_l
in any order) plus gamma_t |A|^T |A| plus u |S| on the diagonal. A matrix has at most the norm of one that dominates its
magnitudes, and || |R| ||^2 <= ||R||_1 ||R||_inf. The same holds for A^T. For effort "exact", in integers, u is 0.
Magnitudes. || |A| || <= ||S||, S_oc the sum of |weights| from input channel and phase c of the stride to output channel
o: a tap repeats no pixel, so output channel o is at most sum_c S_oc ||x_c||. For z > 0, ||S||^2 <= max (S^T S z)_i/z_i.
Forward pass, per image: e bounds the distance of the computed activations x from the exact ones, d that of deployed
ones at any x' in the ball from the exact ones at x', g = d + P r + e that of x from any deployed ones; c, m, P bound
||W||, || |W| ||, the product of c so far; U, V: unit roundoff and smallest normal number where the network is run.
    image:   e = u ||x||,  d = U (||x|| + e + r)
    affine:  e -> c e + gamma_{k+2}(u) s,  d -> c d + gamma_{k+2}(U) (s + m g)  with s >= || |W||x| + |b| ||
    shift:   e -> e + u (||x|| + |a| sqrt n),  d -> d + U (1 + 2U) (||x|| + g + |a| sqrt n)  with the new x
Underflow in n outputs adds V sqrt n (4 (k + 2) + k max|W| + sqrt k ||input||), in all else at most 4 V sqrt n.
Residual blocks x + f(x) stand between Fork and Join. Lip(f) <= c proves 1 - c <= Lip(x + f) <= 1 + c. A Fork remembers
x, e, d, g, P as x', e', d', g', P'; a Join adds x' to x and, by the triangle inequality, the rest to the rest:
    join:    P -> P' + P,  e -> e' + e + u ||x||,  d -> d' + d + U (1 + 2U) (||x|| + g' + g)  with the new x
as the deployed sum, of which an addition may lose the share U, is within g' + g of the sum computed here.
Norm l_inf. A box is pushed through the layers: all images within r of the one named (method "margin"), or those of them
with pixels in [0, 1] ("interval"). Its ends enclose whatever reaches the next layer from anywhere in it, in exact
arithmetic (real) or as deployed (executed; its ends are then numbers of that arithmetic, and take in 0 if closer to it
than V). Comparing, copying, negating: ends go to ends. A sum or difference of two is monotone, and so is rounding: if
executed, its values at the ends, rounded as deployed, enclose all others without any error term; if real, one step
outward undoes the rounding. For l <= x <= h, |x - w| is from max(0, l - w, w - h) to max(h - w, w - l), differences as
above, and the k-th largest is monotone in all of them. A sum W x + b of k products is within |W| s of W c + b, for c in
the middle and s >= |x - c|; this pass, in float64, and a deployed one err by gamma_{k+3} (|W| max|x| + |b|): k+1 for
the sum, the rest for differences of rows and for moving ends. Underflow adds V (4 (k+3) + k (max|W| + max|x|)). tanh is
monotone, and taken to be within 16 roundoffs of the true value in both runs. Prediction p holds if the low end of z_p
is above all other high ends or, of a last dense layer, if that of (w_p - w_j) x + b_p - b_j is above the errors of
both. Of 1-Lipschitz layers the box is z_j - r to z_j + r but for roundings, which is the margin rule.
Shapes: G groups, O outputs, I inputs of one, K terms, T taps, C channels, B images, H W pixels, P places, N classes.
"""

import argparse
import contextlib
import gzip
import hashlib
import importlib.util
import itertools
import json
import math
import os
import pickle
import re
import time
from collections import defaultdict
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np

FILES = ["certificate.json", "evidence.safetensors", "network.safetensors"]
CONVOLUTION = "in_channels out_channels kernel_size stride padding dilation groups padding_mode bias"
ARGUMENTS = {"Conv2d": CONVOLUTION, "Linear": "in_features out_features bias", "Shift": "amount", "MinMax": ""}
ARGUMENTS |= {"ZeroPad2d": "padding", "Flatten": "start_dim end_dim", "ReLU": "", "Identity": ""}
ARGUMENTS |= {"Fork": "", "Join": ""}  # ends of a residual block
ARGUMENTS |= {"Distance": "in_features out_features", "SortedDistance": "in_features out_features keep terms"}
ARGUMENTS |= {"DistanceConv": "in_channels out_channels kernel_size stride padding", "Negate": "", "Tanh": ""}
DISTANCES = ("Distance", "SortedDistance", "DistanceConv")
REFUSED = {("l2", "margin"): (*DISTANCES, "Negate", "Tanh"), ("linf", "interval"): ()}  # by norm and method
REFUSED["linf", "margin"] = "Conv2d", "Linear", "Tanh", "Fork", "Join"  # what may stretch
FORM = {"name": '".+"', "kind": '".+"', "bias": "true|false", "amount": r"-?\d+(\.\d+(e[+-]\d+)?|e[+-]\d+)"}
FORM |= {"padding_mode": '"zeros"|"circular"', "padding": r'"same"|"valid"|\[\d+(, \d+){1,3}\]', "start_dim": "1"}
FORM |= {"end_dim": "-1"} | dict.fromkeys(("kernel_size", "stride", "dilation"), r"\[[1-9]\d*, [1-9]\d*\]")
FORM |= {"keep": r"1(\.0)?|0\.\d+|[1-9](\.\d+)?e-\d+"}
SQUARE = {"kernel_size": r"[1-9]\d*", "stride": r"[1-9]\d*", "padding": r"\d+"}  # of a DistanceConv
PIXEL = dict.fromkeys(("kernel_size", "stride", "dilation"), (1, 1))  # a dense layer is a convolution of one pixel
PIXEL |= {"padding": (0, 0), "padding_mode": "zeros", "groups": 1, "amount": 0.0, "bias": True, "terms": 1}
KNOWN = rb'"(real",\n"arithmetic": "float64|executed",\n"arithmetic": "float(32|64))",\n"effort": "(fast|tight|exact)"'
DATA = {"digits": ("all", 16), "mnist": ("test", 255), "cifar10": ("test", 255), "cifar100": ("test", 255)}
FORMATS = {"float64": (2.0**-53, 2.0**-1022), "float32": (2.0**-24, 2.0**-126)}  # unit roundoff, smallest normal number
UP, TINY = 1 + 2.0**-40, 2.0**-450  # above what a layer's sums and products of non-negative floats lose
SPAN = 2**17  # distances held at a time
BLOCK, WIDEST, COLUMNS = 320, 12288, 2**20  # unknowns in a block and in a row of blocks; entries of a batch's matrix
whole = np.vectorize(int, [object])  # arrays of Python's integers


def require(condition: object, message: str) -> None:
    if not condition:
        raise ValueError(message)


def read_tensors(blob: bytes, file: str) -> tuple[dict, dict[str, np.ndarray]]:
    """Metadata and tensors; the header must read as the safetensors library writes it, so it holds nothing else."""
    body = end = 8 + int.from_bytes(blob[:8], "little")
    header, found = json.loads(blob[8:body]), {}
    again = {"__metadata__": header.pop("__metadata__")} if "__metadata__" in header else {}
    for name, entry in header.items():
        dtype, shape, start = {"F32": "<f4", "F64": "<f8"}[entry["dtype"]], [int(n) for n in entry["shape"]], end
        end += math.prod(shape) * int(dtype[-1])
        found[name] = np.frombuffer(blob[start:end], dtype).reshape(shape)
        again[name] = {"dtype": entry["dtype"], "shape": shape, "data_offsets": [start - body, end - body]}
    right = json.dumps(again, separators=(",", ":"), ensure_ascii=False) == blob[8:body].decode().rstrip(" ")
    right = right and end == len(blob) and all(np.isfinite(array).all() for array in found.values())
    require(right, f"{file}: its header must describe its bytes, all finite numbers, and nothing else")
    return again.get("__metadata__", {}), found


def read_layer(entry: dict, shape: tuple[int, ...], stored: dict[str, np.ndarray]) -> SimpleNamespace:
    """The layer's arguments, its shapes before and after, and what it does; for weights see `read_weights`."""
    kind, what = entry["kind"], f"{entry['kind']} {entry['name']!r}"
    require(list(entry) == ["name", "kind", *ARGUMENTS[kind].split()], f"{what}: takes '{ARGUMENTS[kind]}', in order")
    form = FORM | (SQUARE if kind == "DistanceConv" else {})
    wrong = [key for key in entry if not re.fullmatch(form.get(key, r"[1-9]\d*"), json.dumps(entry[key]))]
    require(not wrong, f"{what}: {', '.join(wrong)} of {entry} not admissible")
    layer = SimpleNamespace(**PIXEL | entry, what=what, shape=shape, after=shape, lower=1.0, upper=1.0)
    layer.affine, layer.shares = kind in ("Conv2d", "Linear"), [1.0]
    layer.apply = lambda x: x - layer.amount  # 0 but for a Shift
    if layer.affine or kind in DISTANCES:
        read_weights(layer, *list(entry.values())[2:4], stored)
    elif kind == "ReLU":
        layer.apply = lambda x: np.maximum(x, 0)
    elif kind == "MinMax":
        require(shape[0] % 2 == 0, f"{what}: input {shape} must have an even number of channels")
        layer.apply = lambda x: np.concatenate([choose(*np.split(x, 2)) for choose in (np.maximum, np.minimum)])
    elif kind == "Flatten":
        layer.after, layer.apply = (math.prod(shape),), lambda x: x.transpose(0, 2, 3, 1).reshape(-1, x.shape[1], 1, 1)
    elif kind == "ZeroPad2d":
        (channels, height, width), (left, right, top, bottom) = shape, layer.padding
        layer.after = (channels, height + top + bottom, width + left + right)
        layer.apply = lambda x: np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    return layer


def read_weights(layer: SimpleNamespace, ins: int, outs: int, stored: dict[str, np.ndarray]) -> None:
    """Make it a convolution, weight_GOIT and bias_O; arrays of two numbers are vertical and horizontal."""
    dense, groups, layer.circular = "in_features" in vars(layer), layer.groups, layer.padding_mode == "circular"
    keys, pair = (layer.kernel_size, layer.stride, layer.dilation, (*layer.shape, 1, 1)[1:3]), np.ones(2, int)
    layer.taps, layer.stride, layer.gap, layer.sizes = (pair * key for key in keys)
    layer.extent = layer.gap * (layer.taps - 1) + 1
    named = {"same": [(layer.extent - 1) // 2, layer.extent // 2], "valid": [[0, 0], [0, 0]]}
    layer.ends = np.array(named[layer.padding] if type(layer.padding) is str else [pair * layer.padding] * 2)
    layer.outputs = (layer.sizes + layer.ends.sum(0) - layer.extent) // layer.stride + 1
    fits = len(layer.shape) == (1 if dense else 3) and layer.shape[0] == ins and ins % groups == outs % groups == 0
    fits = fits and (layer.outputs > 0).all() and (layer.padding != "same" or (layer.stride == 1).all())
    once = (layer.ends <= layer.sizes).all() and (layer.outputs * layer.stride <= layer.sizes).all()
    fits = fits and (once or not layer.circular)  # round a circle twice, a tap would repeat pixels
    layer.after = (outs,) if dense else (outs, *layer.outputs.tolist())
    weight = stored.pop(f"{layer.name}.weight")
    constant = f"{layer.name}.bias" if layer.affine else f"{layer.name}.shift"
    bias = stored.pop(constant) if layer.bias else np.zeros(outs, np.float32)
    fits = fits and weight.shape == (outs, ins // groups, *layer.taps)[: 2 if dense else 4]
    fits = fits and layer.terms <= ins and bias.shape == (outs,) and weight.dtype == bias.dtype == np.float32
    require(fits, f"{layer.what}: it, its float32 tensors and its input {layer.shape} must fit each other")
    form = float if layer.affine else np.float32
    layer.weight_GOIT = weight.astype(form).reshape(groups, outs // groups, ins // groups, -1)
    layer.bias_O, layer.magnitude = bias.astype(form), magnitude(layer) if layer.affine else 0.0
    if layer.kind == "SortedDistance":
        q = layer.keep
        exact = [q * (1 - q) ** t / (1 - (1 - q) ** layer.terms) for t in reversed(range(layer.terms))]
        layer.shares = [float(np.float32(share * (1 - 2.0**-22))) for share in exact]


def gamma(terms: int, unit: float = 2.0**-53) -> Fraction:
    require(3 * terms * unit < 1, f"sums of {terms} products: too long for this arithmetic")
    return terms * Fraction(unit) / (1 - terms * Fraction(unit))


def norm(values: np.ndarray, axis: int | tuple[int, ...] | None) -> np.ndarray:
    norms = np.sqrt((values * values).sum(axis))  # raised above the exact ones by what follows
    return norms * (1 + (values.size / norms.size + 8) * 2.0**-52) + math.sqrt(values.size / norms.size) * 2.0**-500


def product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    if left.dtype != object:
        return left @ right
    matrix = importlib.import_module("flint").fmpz_mat
    return whole(np.array((matrix(whole(left).tolist()) * matrix(whole(right).tolist())).tolist(), object))


def columns(layer: SimpleNamespace, x_CBHW: np.ndarray, groups: int) -> np.ndarray:
    """What every output reads: (G, I * T, B * outputs)."""
    padded = np.pad(x_CBHW, ((0, 0), (0, 0), *layer.ends.T), "wrap" if layer.circular else "constant")
    windows = np.lib.stride_tricks.sliding_window_view(padded, layer.extent, (2, 3))
    windows = windows[:, :, :: layer.stride[0], :: layer.stride[1], :: layer.gap[0], :: layer.gap[1]]
    return windows.transpose(0, 4, 5, 1, 2, 3).reshape(groups, -1, x_CBHW.shape[1] * math.prod(layer.outputs))


def magnitude(layer: SimpleNamespace) -> float:
    """Upper bound on || |A| ||. Where a circle's length is no multiple of the stride, phases mix and count as one."""
    weight_GOIT = abs(layer.weight_GOIT)
    phases = np.where(layer.circular & (layer.sizes % layer.stride > 0), 1, layer.stride)
    sums_GOIP = np.zeros((*weight_GOIT.shape[:3], math.prod(phases)))
    for tap, place in enumerate(np.ndindex(*layer.taps)):
        row, column = place * layer.gap % phases
        sums_GOIP[..., row * phases[1] + column] += weight_GOIT[..., tap]
    sums_GOC = sums_GOIP.reshape(*weight_GOIT.shape[:2], -1)
    image_GC1 = np.ones_like(sums_GOC[:, :1]).swapaxes(1, 2)
    for _ in range(31):
        vector_GC1 = image_GC1 / image_GC1.max(1, keepdims=True).clip(2.0**-400) + 2.0**-20
        image_GC1 = sums_GOC.swapaxes(1, 2) @ (sums_GOC @ vector_GC1)
    return math.sqrt((image_GC1 / vector_GC1).max()) * (1 + (weight_GOIT.size + 9) * 2.0**-51) * UP


def neighbours(layer: SimpleNamespace, of_inputs: bool) -> tuple[dict, int, int]:
    """For every input pixel, those that an output reads with it and by which taps; how many, how far. Or of outputs."""
    meetings, readers = defaultdict(lambda: defaultdict(tuple)), defaultdict(list)
    numbers_11HW = np.arange(1, math.prod(layer.sizes) + 1).reshape(1, 1, *layer.sizes)
    places_TP = columns(layer, numbers_11HW, 1)[0] - 1  # padding reads as -1
    for tap, output in np.argwhere(places_TP >= 0).tolist():
        pixels = output, int(places_TP[tap, output])
        readers[pixels[1 - of_inputs]].append((pixels[of_inputs], tap))
    for group in readers.values():
        for (one, tap), (two, other) in itertools.product(group, group):
            meetings[one][two] += ((tap, other),)
    reach = max((max(others) - one for one, others in meetings.items()), default=0)
    return meetings, numbers_11HW.size if of_inputs else places_TP.shape[1], reach


def bound(layer: SimpleNamespace, weight_OIT: np.ndarray, square: Fraction, magnitude: Fraction) -> Fraction:
    """The right side of the theorem for a c2 next to `square`. LinAlgError: c2 is below the largest eigenvalue."""
    options = [(*neighbours(layer, bool(side)), weight_OIT.transpose(2, 1 - side, side)) for side in (1, 0)]
    meetings, cells, reach, kernel_TDC = min(options, key=lambda o: o[1] * (o[2] + 1) ** 2 * o[3].shape[2] ** 3)
    exact, channels, grams, terms = kernel_TDC.dtype == object, kernel_TDC.shape[2], {}, 1
    pixels = min(max(1, BLOCK // channels), cells)
    b, blocks = pixels * channels, -(-cells // pixels)
    m = min(-(-reach // pixels), blocks - 1)
    require(b * (m + 1) <= WIDEST, f"{layer.what}: {b * (m + 1)} unknowns hang together, too many for a proof")
    c2, u, diagonal = math.floor(square) if exact else float(square), 0.0 if exact else 2.0**-53, np.diag_indices(b)
    rows, sums, energy, row_sum, peak = {}, np.zeros(blocks * b, kernel_TDC.dtype), Fraction(0), 0, 0
    for i in range(blocks):
        start, stop = i * pixels, min(i + m + 1, blocks) * pixels  # the last block is filled up with pixels of weight 0
        panel = np.zeros((pixels, channels, stop - start, channels), kernel_TDC.dtype)
        for one, two in [(x, y) for x in range(start, start + pixels) for y in meetings[x] if y >= start]:
            if (taps := meetings[one][two]) not in grams:
                left, right = (kernel_TDC[list(side)].reshape(-1, channels) for side in zip(*taps, strict=True))
                grams[taps], terms = product(left.T, right), max(terms, len(left))
            panel[one - start, :, two - start] = -grams[taps]
        panel = panel.reshape(b, -1)
        panel[diagonal] += c2
        peak = max(peak, abs(panel[diagonal]).max())
        for k in range(max(0, i - m), i):
            known = rows[k][:, (i - k) * b :]
            panel[:, : known.shape[1]] -= product(known[:, :b].T, known)
        corner = np.linalg.cholesky(panel[:, :b].astype(float), upper=True)  # any R would do, this one makes E small
        row = np.hstack((corner, np.linalg.inv(corner).T @ panel[:, b:].astype(float)))
        rows[i] = row = whole(np.rint(row)) if exact else row
        rows.pop(i - m, None)
        panel -= product(row[:, :b].T, row)
        energy += 2 * Fraction((panel * panel).sum())  # the blocks below the diagonal are transposed
        sums[i * b : i * b + row.shape[1]] += abs(row).sum(0)
        row_sum = max(row_sum, abs(row).sum(1).max())
    residual, growth = Fraction(math.isqrt(math.ceil(energy * 4**600)) + 1, 2**600), gamma(b * (m + 1), u)
    rounding = growth * Fraction(row_sum) * Fraction(sums.max()) + Fraction(u * peak) + gamma(terms, u) * magnitude**2
    inflated = 1 + 3 * gamma(2 * b * b * (m + 1) + blocks, u)  # of the sums of squares and magnitudes computed here
    return Fraction(c2) + inflated * ((1 + growth) * residual + rounding) + Fraction(TINY)


def prove_layer(layer: SimpleNamespace, vector: np.ndarray, exact: bool) -> None:
    """Both ends of the norm. A v is off by gamma_k || |A| || ||v||; if `exact`, weights times `unit` are integers."""
    require(vector.dtype == np.float32 and vector.shape == layer.shape, f"{layer.what}: its vector must be an input")
    u, unit, weight_GOIT = 0.0 if exact else 2.0**-53, Fraction(1), layer.weight_GOIT
    x_CBHW = vector.astype(float).reshape(-1, 1, *layer.sizes)
    if exact:
        grids = itertools.count(48 - math.frexp(abs(weight_GOIT).max())[1])
        digits = next(grid for grid in grids if not (np.ldexp(weight_GOIT, grid) % 1).any())
        unit, weight_GOIT = Fraction(2) ** digits, whole(np.ldexp(weight_GOIT, digits))
        x_CBHW = whole(np.rint(x_CBHW / max(abs(vector).max(), 1e-45) * 2.0**48))
    lower, upper, magnitude = (unit * Fraction(end) for end in (layer.lower, layer.upper, layer.magnitude))
    reads = zip(weight_GOIT, columns(layer, x_CBHW, layer.groups), strict=True)
    y = np.array([product(weight_OIT.reshape(len(weight_OIT), -1), read_KP) for weight_OIT, read_KP in reads])
    energy, length = Fraction((y * y).sum()), Fraction((x_CBHW * x_CBHW).sum())
    error, slack = magnitude * gamma(weight_GOIT[0, 0].size, u), 4 * gamma(x_CBHW.size + y.size, u)
    shown = lower == 0 or (length > 0 and energy * (1 - slack) >= (lower + error) ** 2 * length)
    require(shown, f"lower={layer.lower!r} of {layer.what}: its vector is not stretched so much")
    for weight_OIT in weight_GOIT if weight_GOIT.any() else []:
        proven = math.inf
        with contextlib.suppress(np.linalg.LinAlgError):  # there is no factor: the claim is too low
            proven = bound(layer, weight_OIT, upper**2 * (1 - Fraction(1, 2**29)), magnitude)  # the rest is for errors
        require(proven <= upper**2, f"upper={layer.upper!r} of {layer.what}: not proven")


def forward(layers: list, x: np.ndarray, p_B: np.ndarray, r_B: np.ndarray, arithmetic: str, executed: bool) -> tuple:
    """Logits z_NB, bounds on their errors, and which images are proven to keep prediction p on the ball of radius r."""
    u, w, U, V = (*FORMATS["float64"], *FORMATS[arithmetic if executed else "float64"])
    entries, P, top, all_but_B, held = x[:, 0].size, 1.0, 0.0, (0, 2, 3), []
    e = (norm(x, all_but_B) * u + w * math.sqrt(entries)) * UP
    d = ((norm(x, all_but_B) + e + r_B) * U + V * math.sqrt(entries)) * UP
    for layer in layers:
        g, size, n = (d + P * r_B + e) * UP, norm(x, all_but_B), math.prod(layer.after)
        if layer.affine:
            read_GKP, bias, m = columns(layer, x, layer.groups), layer.bias_O[:, None, None, None], layer.magnitude
            k, shape = read_GKP.shape[1], (-1, x.shape[1], *layer.outputs)
            weight_GOK, b = layer.weight_GOIT.reshape(layer.groups, -1, k), norm(bias, None) * math.sqrt(n / len(bias))
            if head := layer is layers[-1]:  # each logit by itself
                m, b, n = norm(weight_GOK[0], 1)[:, None], abs(layer.bias_O)[:, None], 1
            s = m * size + b
            flushed = math.sqrt(n) * (4 * (k + 2) + k * abs(weight_GOK).max() + math.sqrt(k) * size)
            if arithmetic == "float32":  # worth another pass: this is smaller
                s = (abs(weight_GOK) @ abs(read_GKP)).reshape(shape) + abs(bias)
                s = ((s[:, :, 0, 0] if head else norm(s, all_but_B)) + w * flushed) * (1 + 3 * float(gamma(k + 2)))
            x, reach = (weight_GOK @ read_GKP).reshape(shape) + bias, s + m * g
            own = float(gamma(k + 2)) * s + w * flushed
            own_ball = float(gamma(k + 2, U)) * reach + V * (flushed + math.sqrt(n * k) * g)
            top = np.maximum(top, reach.max(0) if head else reach)
            if not head:
                e, d, P = e * layer.upper + own, d * layer.upper + own_ball, P * layer.upper * UP
        else:
            if layer.kind == "Fork":
                held.append((x, e, d, g, P * UP))
            if layer.kind == "Join":
                x, e, d, g, P = map(sum, zip(held.pop(), (x, e, d, g, P * UP), strict=True))
            x, adds, flushed = layer.apply(x), layer.kind in ("Shift", "Join"), 4 * math.sqrt(n)
            moved = (norm(x, all_but_B) + abs(layer.amount) * math.sqrt(n)) * adds
            top = np.maximum(top, moved + g)
            e, d = e + u * moved + w * flushed, d + U * (1 + 2 * U) * (moved + g * adds) + V * flushed
        e, d = e * UP + TINY, d * UP + TINY
    z_NB, rows_NK, at = x[:, :, 0, 0], weight_GOK[0], (p_B, np.arange(len(p_B)))
    apart_NB = norm(rows_NK[:, None] - rows_NK[p_B], 2)
    lost_NB = apart_NB * (e + P * r_B) + own + own[at] + (apart_NB * d + own_ball + own_ball[at] if executed else 0.0)
    held_NB = ((z_NB[at] - z_NB) * (1 - 2.0**-50) > lost_NB * UP + TINY) & (top * V * UP < 1)  # the last: no overflow
    held_NB[at] = True
    return z_NB, (m * e + own) * UP + TINY, held_NB.all(0)


def distances(layer: SimpleNamespace, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Low and high ends of the largest |x - w|, ascending, as numbers of this format: (2, P, O, K)."""
    low_PI, high_PI = (np.ascontiguousarray(columns(layer, end, 1)[0].T) for end in (low, high))
    weight_OI, terms = layer.weight_GOIT.reshape(-1, low_PI.shape[1]).astype(low.dtype), layer.terms
    ends_2POK = np.empty((2, len(low_PI), len(weight_OI), terms), low.dtype)
    rows, outs = (max(1, SPAN // entries) for entries in (weight_OI.size, weight_OI.shape[1]))
    for row, out in itertools.product(range(0, len(low_PI), rows), range(0, len(weight_OI), outs)):
        some, here = weight_OI[out : out + outs], np.s_[row : row + rows, out : out + outs]
        over, under = high_PI[row : row + rows, None] - some, some - low_PI[row : row + rows, None]
        for end_POK, values in zip(ends_2POK, (-np.minimum(over, under), np.maximum(over, under)), strict=True):
            most = values.max(2, keepdims=True) if terms == 1 else np.partition(values, -terms, 2)[..., -terms:]
            end_POK[here] = np.sort(most, 2)
    return ends_2POK


def room(spread: np.ndarray, size: np.ndarray, terms: int, largest: np.ndarray, forms: list) -> tuple:
    """How far from the middle computed here sums of products can be, if exact ones can by `spread`; and their size."""
    lost = sum(smallest for _, smallest in forms) * UP * (4 * (terms + 3) + terms * largest)
    grown, units = 1 + 3 * float(gamma(terms + 3)), sum(float(gamma(terms + 3, unit)) for unit, _ in forms)
    size = (size + lost) * grown
    return ((spread + lost) * grown + units * size + 2 * lost) * UP + TINY, size


def affine(layer: SimpleNamespace, low: np.ndarray, high: np.ndarray, forms: list, ahead: int | None = None) -> list:
    """Ends of W x + b and bounds on its partial sums; if `ahead` is a class, of its logit minus every logit."""
    low_GKP, high_GKP = (columns(layer, end.astype(float), layer.groups) for end in (low, high))
    centre, most, terms = (low_GKP + high_GKP) / 2, np.maximum(-low_GKP, high_GKP), low_GKP.shape[1]
    reach = np.maximum(high_GKP - centre, centre - low_GKP) * (1 + 2.0**-51)
    weight, bias = layer.weight_GOIT.reshape(layer.groups, -1, terms), layer.bias_O.reshape(layer.groups, -1, 1)
    size, constant = abs(weight), abs(bias)
    if ahead is not None:
        weight, bias = weight[:, [ahead]] - weight, bias[:, [ahead]] - bias
        size, constant = size[:, [ahead]] + size, constant[:, [ahead]] + constant
    largest = size.max() + most.max((0, 1))
    gap, size = room(abs(weight) @ reach, size @ most + constant, terms, largest, forms)
    middle = weight @ centre + bias
    return [values.reshape(-1, low.shape[1], *layer.outputs) for values in (middle - gap, middle + gap, size)]


def through(layer: SimpleNamespace, low: np.ndarray, high: np.ndarray, run: SimpleNamespace) -> tuple:
    """The box behind a layer, and bounds on its partial sums."""
    kind, size, images = layer.kind, np.zeros_like(low), low.shape[1]
    if layer.affine:
        low, high, size = affine(layer, low, high, run.forms)
    elif kind in DISTANCES:
        shift, sizes = layer.bias_O.astype(run.form), abs(np.append(layer.weight_GOIT, layer.bias_O))
        lost = run.executed and ((sizes > 0) & (sizes < run.smallest)).any()
        require(not lost, f"{layer.what}: holds numbers below {run.smallest}, which may be read as 0")
        low, high = run.step(*distances(layer, low, high))
        low, most, size = low.clip(0), 1 + high.max(2), np.zeros_like(high[..., 0])
        if kind == "SortedDistance":
            low, high = (end.astype(float) @ layer.shares for end in (low, high))
            gap, size = room(0.0, high + abs(shift), layer.terms, most, run.forms)
            low, high = low + shift - gap, high + shift + gap
        else:
            low, high = low[..., 0] + shift, high[..., 0] + shift
        low, high, size = (end.T.reshape(-1, images, *layer.outputs) for end in (low, high, size))
    elif kind == "Negate":
        return -high, -low, size
    elif kind == "Shift":
        near = run.form.type(layer.amount)  # it may be rounded first, or be read as 0
        far = np.nextafter(near, run.form.type(np.copysign(np.inf, layer.amount - float(near))))
        read = np.array([near, near if float(near) == layer.amount else far, near * (abs(near) >= run.smallest)])
        low, high = low - read.max(), high - read.min()
    elif kind == "Tanh":
        ends = [np.tanh(end.astype(float)) for end in (low, high)]
        gaps = [abs(end) * (16 * UP * sum(unit for unit, _ in run.forms)) + 8 * run.smallest for end in ends]
        low, high = np.nextafter(ends[0] - gaps[0], -2), np.nextafter(ends[1] + gaps[1], 2)
    elif kind == "Join":
        low, high = (before + end for before, end in zip(run.held.pop(), (low, high), strict=True))
    else:
        run.held += [(low, high)] if kind == "Fork" else []
        return layer.apply(low), layer.apply(high), size
    return *run.step(low, high), size


@np.errstate(all="ignore")
def boxes(layers: list, x: np.ndarray, p_B: np.ndarray, r_B: np.ndarray, arithmetic: str, executed: bool, clip: bool):
    """Which images are proven to keep prediction p in the l_inf ball of radius r, or where it has pixels in [0, 1]."""
    form, V, all_but_B, many = np.dtype(arithmetic), FORMATS[arithmetic][1], (0, 2, 3), np.arange(len(p_B))
    forms = [FORMATS["float64"], *[FORMATS[arithmetic]] * executed]

    def step(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        low, high = low.astype(form), high.astype(form)  # to nearest: monotone, and keeps what the deployed run can be
        if executed:
            return np.where((low > 0) & (low < V), 0, low), np.where((high < 0) & (high > -V), 0, high)
        return np.nextafter(low, -np.inf), np.nextafter(high, np.inf)

    run = SimpleNamespace(form=form, forms=forms, smallest=V, executed=executed, step=step, held=[])
    low = np.nextafter(np.nextafter(x, -1) - r_B[:, None, None], -np.inf)  # x is within a step of the exact pixel
    high = np.nextafter(np.nextafter(x, 2) + r_B[:, None, None], np.inf)
    low, high = step(low.clip(0), high.clip(None, 1)) if clip else step(low, high)
    fine_B, head = np.ones(len(p_B), bool), layers[-1] if layers[-1].kind == "Linear" else None
    for layer in layers[:-1] if head else layers:
        low, high, size = through(layer, low, high, run)
        fine_B &= (np.isfinite(low) & np.isfinite(high)).all(all_but_B) & (size * V * UP < 1).all(all_but_B)
    if head:
        above_NB = np.zeros((head.out_features, len(p_B)), bool)
        for p in np.unique(p_B):
            mine = p_B == p
            apart, _, size = affine(head, low[:, mine], high[:, mine], forms, p)
            above_NB[:, mine] = ((apart > 0) & (size * V * UP < 1))[:, :, 0, 0]
    else:
        above_NB = high[:, :, 0, 0] < low[p_B, many, 0, 0]
    above_NB[p_B, many] = True
    return above_NB.all(0) & fine_B


def read_images(name: str, root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (images, C, H, W) uint8, labels int64. FileNotFoundError: they are not here."""
    if name == "digits":
        package = importlib.util.find_spec("sklearn")  # found, not imported
        folder = Path(package.submodule_search_locations[0]) if package else root
        table = np.loadtxt(folder / "datasets/data/digits.csv.gz", delimiter=",").astype(np.uint8)
        return table[:, :-1].reshape(-1, 1, 8, 8), table[:, -1].astype("<i8")
    if name == "mnist":
        files = [root / f"MNIST/raw/t10k-{part}-ubyte" for part in ("images-idx3", "labels-idx1")]
        found = [f.read_bytes() if f.exists() else gzip.decompress(Path(f"{f}.gz").read_bytes()) for f in files]
        pixels, labels = np.frombuffer(found[0][16:], np.uint8), np.frombuffer(found[1][8:], np.uint8)
        return pixels.reshape(-1, 1, 28, 28), labels.astype("<i8")
    known = {"numpy.core.multiarray._reconstruct": np.zeros(0).__reduce__()[0], "numpy.dtype": np.dtype}
    only = {"find_class": lambda self, *names: (known | {"numpy.ndarray": np.ndarray})[".".join(names)]}
    fine = name == "cifar100"
    with open(root / ("cifar-100-python/test" if fine else "cifar-10-batches-py/test_batch"), "rb") as stream:
        content = type("Unpickler", (pickle.Unpickler,), only)(stream, encoding="latin1").load()
    return content["data"].reshape(-1, 3, 32, 32), np.array(content["fine_labels" if fine else "labels"], "<i8")


def read_bundle(folder: Path, root: Path, bounds_only: bool) -> SimpleNamespace:
    """All there is, with images if they are here; the text of the claims must be the one that follows from the rest."""
    claims = json.loads((folder / FILES[0]).read_bytes())
    norm, method, files = claims["norm"], claims["method"], FILES if claims["norm"] == "l2" else FILES[::2]
    known = (norm, method) in REFUSED and sorted(os.listdir(folder)) == files
    require(known, f"{folder}: must hold exactly {', '.join(files)}; norm={norm!r}, method={method!r}: must be known")
    text, *evidence, network = ((folder / file).read_bytes() for file in files)
    none, vectors = read_tensors(*evidence, FILES[1]) if evidence else ({}, {})
    (metadata, stored), layers, forks, x_BCHW = read_tensors(network, FILES[2]), [], [], None
    entries = json.loads(metadata["geometry"])
    shape = tuple(int(size) for size in claims["input_shape"])
    for entry in entries:
        layers.append(layer := read_layer(entry, layers[-1].after if layers else shape, stored))
        require(layer.kind not in REFUSED[norm, method], f"{layer.what}: has no place in norm {norm!r} by {method!r}")
        if layer.kind == "Fork":
            forks.append(len(layers))
        if layer.kind == "Join":
            fits = forks and forks[-1] + 1 < len(layers) and layers[forks.pop() - 1].shape == layer.shape
            require(fits, f"{layer.what}: needs its Fork, a branch and their shape, which is {layer.shape} here")
    alone = metadata == {"geometry": json.dumps(entries)} and not stored and not none and not forks
    alone = alone and (layers[-1].kind == "Linear" if norm == "l2" else len(layers[-1].after) == 1)
    require(alone and len({x.name for x in layers}) == len(layers), f"{FILES[2]}: must hold layers, each once, only")
    rest, data, ends = layers[:-1] if norm == "l2" else layers, claims["data"], [0.0, math.inf]
    program = [{"kind": layer.kind, "name": layer.name} for layer in rest]
    if method == "margin":
        ends = [float.fromhex(claims["lipschitz"][end]) for end in ("lower", "upper")]
        for layer, claim, line in zip(rest, claims["layers"], program, strict=True):
            layer.lower, layer.upper = float.fromhex(claim["lower"]), float.fromhex(claim["upper"])
            line |= {"lower": layer.lower.hex(), "upper": layer.upper.hex()}
    index, label, prediction = (np.array(claims["images"][key], int) for key in ("index", "label", "prediction"))
    radius, name = np.array([float.fromhex(r) for r in claims["images"]["radius"]]), data["name"]
    classes, digest, (part, scale) = [int(i) for i in data["classes"]], data["sha256"], DATA[name]
    with contextlib.suppress(FileNotFoundError):
        if not bounds_only:
            pixels_BCHW, labels_B = read_images(name, root)
            digest = hashlib.sha256(pixels_BCHW.tobytes() + labels_B.tobytes()).hexdigest()
            shape = pixels_BCHW.shape[1:]
            label, x_BCHW = np.array([classes.index(i) for i in labels_B[index]]), pixels_BCHW[index] / float(scale)
    right = radius[prediction == label].tolist()
    counts = [[r, sum(Fraction(r) <= Fraction(x) for x in right)] for r, _ in claims["counts"]["certified"]]
    again = {"format": "lipcert certificate 1", "norm": norm, "method": method, "guarantee": claims["guarantee"]}
    again |= {"arithmetic": claims["arithmetic"], "effort": claims["effort"] if norm == "l2" else "fast"}
    again |= {"input_shape": list(shape), "layers": program}
    again |= {"lipschitz": {"lower": ends[0].hex(), "upper": ends[1].hex()}} if method == "margin" else {}
    again["data"] = {"classes": classes, "name": name, "part": part, "scale": scale, "sha256": digest}
    again["images"] = {"index": index.tolist(), "label": label.tolist(), "prediction": prediction.tolist()}
    again["images"]["radius"] = [value.hex() for value in radius.tolist()]
    again["counts"] = {"certified": counts, "clean": len(right), "images": len(index)}
    again["network_sha256"] = hashlib.sha256(network).hexdigest()
    again |= {f"{FILES[1][:8]}_sha256": hashlib.sha256(blob).hexdigest() for blob in evidence}
    lines = [f'"{key}": {json.dumps(value, separators=(",", ":"), sort_keys=True)}' for key, value in again.items()]
    digest = hashlib.sha256(("{\n" + ",\n".join(lines) + "\n}\n").encode("ascii")).hexdigest()
    lines = ["{", *(f"{line}," for line in lines), f'"sha256": "{digest}"', "}", ""]
    for said, must in itertools.zip_longest(text.decode("ascii").split("\n"), lines):
        require(said == must, f"{FILES[0]}: says {said!s:.100} and must say {must!s:.100}")
    require(re.search(KNOWN, text), "guarantee, arithmetic, effort: not known, or not together")
    require(not re.search(rb'"(-|inf"|nan")', text), f"{FILES[0]}: bounds and radii must be finite, from 0 on")
    return SimpleNamespace(**locals())


def check(folder: Path, root: Path, bounds_only: bool = False) -> tuple[int, str]:
    """Exit code 0 or 3 and what was proven; any error at all means that it was not."""
    start, it = time.perf_counter(), read_bundle(folder, root, bounds_only)
    p_B, r_B, kinds = it.prediction, it.radius, len(it.classes)
    guarantee, arithmetic, effort = (it.claims[key] for key in ("guarantee", "arithmetic", "effort"))
    fits = (np.diff(it.index) > 0).all() and it.index[0] >= 0 and (np.diff(it.classes) > 0).all()
    fits = fits and it.layers[-1].after == (kinds,) and ((p_B < kinds) & (p_B >= np.where(r_B == 0, -1, 0))).all()
    require(fits, "index, classes: must ascend, one class a logit; prediction: must be a class, or -1 with radius 0")
    if it.norm == "l2":
        logits_BN = it.vectors.pop("logits")
        fits = logits_BN.dtype == float and logits_BN.shape == (len(p_B), kinds)
        fits = fits and set(it.vectors) == {f"vector.{layer.name}" for layer in it.rest if layer.affine}
        require(fits, f"{FILES[1]}: must hold float64 logits of every image, a vector of affine layers but the last")
    lower, upper, held = Fraction(1), Fraction(1), []
    for layer in it.rest if it.method == "margin" else ():
        low = high = sum(map(Fraction, layer.shares))
        if layer.kind == "Join":
            low, high, (lower, upper) = max(1 - upper, Fraction(0)), 1 + upper, held.pop()
        if layer.affine:
            prove_layer(layer, it.vectors[f"vector.{layer.name}"], effort == "exact")
        else:
            encloses = Fraction(layer.lower) <= low and high <= Fraction(layer.upper)
            require(encloses, f"{layer.what}: its ends must enclose {float(low)!r} and {float(high)!r}")
        if layer.kind == "Fork":
            held.append((lower, upper))
            lower = upper = Fraction(1)
        lower, upper = lower * Fraction(layer.lower), upper * Fraction(layer.upper)
    require(it.ends[0] <= lower and upper <= it.ends[1], f"lipschitz={it.ends}: must enclose the layers' products")
    said = f"network {it.again['network_sha256'][:16]}, Lipschitz constant from {it.ends[0]:.6g} to {it.ends[1]:.6g}"
    said, middle = f"{said}, {it.norm} {it.method}, {effort} ({time.perf_counter() - start:.1f} s)", time.perf_counter()
    if it.x_BCHW is None:
        return 3, f"{said}; images not checked, {'as asked' if bounds_only else f'not found in {root}'}"
    work = max(x.weight_GOIT[:, 0].size * math.prod(x.outputs) for x in it.layers if "weight_GOIT" in vars(x))
    for some in np.array_split(np.arange(len(p_B)), -(-len(p_B) * work // COLUMNS)):
        x_CBHW, executed = it.x_BCHW[some].transpose(1, 0, 2, 3), guarantee == "executed"
        asked = it.layers, x_CBHW, p_B[some], r_B[some], arithmetic, executed
        if it.norm == "l2":
            z_NB, off_NB, held_B = forward(*asked)
            close_B = (abs(z_NB.T - logits_BN[some]) <= 2 * off_NB.T).all(1)
        else:
            held_B, close_B = boxes(*asked, it.method == "interval"), p_B[some] == p_B[some]
        for what, fine_B in (("logits", close_B), ("radius", held_B | (p_B[some] == -1))):
            place = some[fine_B.argmin()]
            require(fine_B.all(), f"{what} of image {it.index[place]} (radius {float(r_B[place])!r}): not covered")
    said += f"; {len(p_B)} images of {it.name}, {len(it.right)} correct, certified {dict(it.counts)}, {guarantee}"
    return 0, f"{said}, {arithmetic} ({time.perf_counter() - middle:.1f} s)"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Prove the claims of a certificate bundle again.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, default=os.environ.get("LIPCERT_DATA", "data"), help="folder of images")
    parser.add_argument("--bounds-only", action="store_true", help="leave images alone")
    folder, data, bounds_only = vars(parser.parse_args(arguments)).values()
    try:
        code, said = check(folder, data, bounds_only) if folder.is_dir() else (2, f"no folder {folder}")
    except Exception as error:  # whatever it is, something was not proven
        code, said = 1, str(error) if type(error) is ValueError else repr(error)
    print(("accepted: ", "rejected: ", "nothing to check: ", "bounds hold: ")[code] + said)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
