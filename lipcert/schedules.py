"""Schedules: pure functions of progress in [0, 1), and the small language of the GloRo recipes for them.

A schedule is a row of sections "[time:value]" joined by transitions: `-` linear, `-exp-` geometric, `-log-` linear in
e^value, `-cos-` half a cosine, nothing: the value is held until the next section begins. Times are epochs ("20") or
shares of the run ("50%"); the first defaults to the start, the last to the end. Values are factors of a base value:
`[0.01]-log-[50%:1]-[1]` grows from a hundredth to the whole over the first half and stays (library of arXiv
2102.08452). A bare number is constant; a number and `*` in front scale a whole schedule: `1.1*[0.01]-log-[50%:1]-[1]`.
"""

import functools
import itertools
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from lipcert.radius import Radius

if TYPE_CHECKING:
    from lipcert.config import TrainConfig

_SECTION = r"\[(?:(?P<time>\d+(?:\.\d+)?)(?P<percent>%)?:)?(?P<value>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)\]"
_LARGEST_EXPONENT = 700
_NUMBER = re.compile(r"\d+(\.\d*)?([eE][+-]?\d+)?")
_PART = re.compile(rf"(?P<join>-(?:exp-|log-|cos-)?)?{_SECTION}")

_SHAPES: dict[str, Callable[[float, float, float], float]] = {
    "": lambda start, end, t: start,
    "-": lambda start, end, t: start + (end - start) * t,
    "-exp-": lambda start, end, t: math.exp(math.log(start) + (math.log(end) - math.log(start)) * t),
    "-log-": lambda start, end, t: math.log(math.exp(start) + (math.exp(end) - math.exp(start)) * t),
    "-cos-": lambda start, end, t: end + (start - end) * ((math.cos(math.pi * t) + 1) / 2),
}


@functools.lru_cache
def schedule(text: str, epochs: float | None) -> Callable[[float], float]:
    """The function of progress behind a schedule.

    Args:
        text: see the top of this file.
        epochs: length of the run; None where it is not given in epochs, and then no time may be.

    Raises:
        ValueError: not in the language; times that do not ascend or lie outside the run.
    """
    if _NUMBER.fullmatch(text):
        constant = _finite(text, text)
        return lambda progress: constant
    factor, star, sections = text.rpartition("*")
    parts = list(_PART.finditer(sections))
    whole = "".join(part[0] for part in parts) == sections and bool(_NUMBER.fullmatch(factor)) == bool(star)
    if not parts or not whole or parts[0]["join"]:
        raise ValueError(
            f"schedule {text!r}: must read like '[0.01]-log-[50%:1]-[1]', joined by nothing, -, -exp-, -log- or -cos-"
        )
    scale, knots = _finite(factor, text) if star else 1.0, []
    for number, part in enumerate(parts):
        time = _time(part, number == 0, number == len(parts) - 1, epochs, text)
        if knots and time < knots[-1][0]:
            raise ValueError(f"schedule {text!r}: its times must ascend and lie within the run")
        value = _finite(part["value"], text)
        if not math.isfinite(scale * value):
            raise ValueError(f"schedule {text!r}: {factor} * {part['value']} is too large")
        knots.append((time, value, part["join"] or ""))
    for (_, start, _), (_, end, join) in itertools.pairwise(knots):
        if join == "-exp-" and not min(start, end) > 0:
            raise ValueError(f"schedule {text!r}: -exp- needs values above 0")
        if join == "-log-" and max(start, end) > _LARGEST_EXPONENT:
            raise ValueError(
                f"schedule {text!r}: -log- needs values up to {_LARGEST_EXPONENT}, e^value must be a number"
            )
    return functools.partial(_value, tuple(knots), scale)


def _finite(number: str, text: str) -> float:
    if not math.isfinite(value := float(number)):
        raise ValueError(f"schedule {text!r}: {number} is too large")
    return value


def _time(part: re.Match, first: bool, last: bool, epochs: float | None, text: str) -> float:
    if part["time"] is None:
        if not (first or last):
            raise ValueError(f"schedule {text!r}: sections between the first and the last need a time")
        return 0.0 if first else 1.0
    number = float(part["time"])
    if not part["percent"] and epochs is None:
        raise ValueError(f"schedule {text!r}: times in epochs need a run whose length is given in epochs; write 50%")
    time = number / 100 if part["percent"] else number / epochs
    if time > 1:
        raise ValueError(f"schedule {text!r}: its times must ascend and lie within the run")
    return time


def _value(knots: tuple[tuple[float, float, str], ...], factor: float, progress: float) -> float:
    if progress < knots[0][0]:
        return factor * knots[0][1]
    for (begin, start, _), (end, value, join) in itertools.pairwise(knots):
        if progress < end:
            return factor * _SHAPES[join](start, value, (progress - begin) / (end - begin))
    return factor * knots[-1][1]


def learning_rate(config: "TrainConfig", progress: float) -> float:
    """Linear warm-up from 0 to `lr`, then half a cosine, or half constant and half exponential, to `lr * lr_end`, or a
    schedule of factors of `lr` over the whole run."""
    if progress < config.warmup:
        return config.lr * progress / config.warmup
    after = (progress - config.warmup) / (1 - config.warmup)
    if config.lr_schedule == "cosine":
        return config.lr * (config.lr_end + (1 - config.lr_end) * (1 + math.cos(math.pi * after)) / 2)
    if config.lr_schedule == "constant_exp":
        end = max(config.lr_end, 1e-12)
        return config.lr * (1.0 if after < 0.5 else end ** (2 * after - 1))
    return config.lr * schedule(config.lr_schedule, config.epochs)(progress)


def training_radius(config: "TrainConfig", progress: float) -> float:
    """`radius` times the schedule, else linear from `radius_start` to `radius_end` over the first `radius_ramp`."""
    radius = float(Radius(config.radius))
    if config.radius_schedule is not None:
        return radius * schedule(config.radius_schedule, config.epochs)(progress)
    share = 1.0 if config.radius_ramp == 0 else min(progress / config.radius_ramp, 1.0)
    return radius * (config.radius_start + (config.radius_end - config.radius_start) * share)


def loss_weight(config: "TrainConfig", progress: float) -> float:
    """Weight of the loss's second term: the robust one of TRADES, cross-entropy in the l_inf mixture and in IBP."""
    text = config.robust_weight if config.loss.startswith("trades") else config.plain_weight
    return schedule(text, config.epochs)(progress)


def exponent(config: "TrainConfig", progress: float) -> float:
    """p of the l_p distances: the schedule, and infinite from its last section on."""
    p = schedule(config.exponent, config.epochs)
    return math.inf if progress >= schedule_end(config.exponent, config.epochs) else p(progress)


@functools.lru_cache
def schedule_end(text: str, epochs: float | None) -> float:
    """Progress at which the last section of a schedule begins; 1 for a constant.

    Raises: as `schedule`.
    """
    schedule(text, epochs)
    parts = list(_PART.finditer(text.rpartition("*")[2]))
    return _time(parts[-1], len(parts) == 1, True, epochs, text) if parts and len(parts) > 1 else 1.0
