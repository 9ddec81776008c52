"""The right settings for the machine: precision, layout, kernels, compilation, chosen by timing whole training steps.

bfloat16 doubles the speed of one processor and takes three times as long on another. So a run may leave `precision`,
`layout`, `kernels` and `compiled` open ("auto"): `choose` times throw-away copies of it, once for every kind of step,
and returns the run with literals in their place, which is what record and checkpoint hold. Runs of less than five
minutes are not worth a choice and take float32, eager.
"""

import importlib.util
import itertools
import os
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lipcert import kernels
from lipcert.config import TrainConfig, steps_of
from lipcert.data import Dataset
from lipcert.device import check_machine, pick_device
from lipcert.provenance import now
from lipcert.run import Run
from lipcert.stream import LAYOUTS
from lipcert.timings import Candidate, Timings, blank_timings, cached_timings, keep_timings

SHORT_SECONDS = 300.0  # a run below this takes the plainest candidate
_SLOW = 2.0  # a candidate that takes that many times the fastest one's time is not timed any further
_ROUNDS, _ROUNDS_SECONDS, _TURN_SECONDS = 5, 20.0, 0.1
_COMPILE_SECONDS, _COMPILE_GAIN = 40.0, 0.3  # what compiling may cost, and which share of a run it may save
_PRECISIONS = {"cuda": ("float32", "tfloat32", "bfloat16")}


@dataclass(frozen=True)
class Choice:
    """A run whose open settings are chosen; `measured` has the seconds per step behind it, None where none were."""

    config: TrainConfig
    measured: dict[str, float] | None = None


def choose(config: TrainConfig, data: Dataset, progress: bool = True) -> Choice:
    """The run with a literal for every "auto" of `lipcert.config.MEASURED`; `minutes` stay what they are.

    Times come from the cache, or from a measurement: some ten seconds, and up to a minute more where compiling may pay
    for itself. Choose with the threads that the run will have (`lipcert.device.own_threads`): times depend on them.

    Args:
        progress: say on standard error what is measured.

    Raises:
        lipcert.run.TrainingError: a device or precision that this machine does not have.
    """
    device = pick_device(config.device)
    check_machine(config, device)
    if not config.left_open():
        return Choice(config)
    given = {k: v for k, v in Candidate.of(config)._asdict().items() if k not in ("compiled", *config.left_open())}
    candidates = list(dict.fromkeys(c._replace(**given) for c in eager_candidates(device)))
    if config.compiled is True and "kernels" not in given:  # nothing traces kernels in C
        candidates = [c for c in candidates if c.kernels == "torch"]
    best, seconds = candidates[0], 60 * (config.minutes or 0)
    if config.minutes is not None and seconds < SHORT_SECONDS:
        return Choice(_settled(config, best))
    watch = Stopwatch(config, data, progress)
    watch.time(candidates[:1])
    if config.minutes is None:
        seconds = steps_of(config, len(data.train.labels_N)) * watch.timings.of(best)
    if seconds >= SHORT_SECONDS:
        watch.time(candidates)
        plain, best = best, watch.timings.fastest(candidates)
        if config.minutes is None:
            seconds *= watch.timings.of(best) / watch.timings.of(plain)
        if config.compiled == "auto":
            # Nothing traces kernels in C.
            compiled = best._replace(compiled=True, kernels=given.get("kernels", "torch"))
            best = watch.faster_of(best, compiled, seconds)
    watch.keep()
    return Choice(_settled(config, best), dict(watch.timings.seconds))


def measure(config: TrainConfig, data: Dataset, progress: bool = True) -> Timings:
    """Time every candidate of a run's step anew, whatever its length, and keep the times."""
    device = pick_device(config.device)
    candidates = eager_candidates(device)
    watch = Stopwatch(config, data, progress, again=True)
    watch.time(candidates)
    if has_compiler(device):
        best = watch.timings.fastest(candidates)
        watch.time([best, best._replace(compiled=True, kernels="torch")])
    watch.keep()
    return watch.timings


def eager_candidates(device: torch.device) -> list[Candidate]:
    """Every combination worth a trial on such a device, the plainest first."""
    precisions = _PRECISIONS.get(device.type, ("float32", "bfloat16"))
    ways = [(layout, "torch") for layout in LAYOUTS]
    if device.type == "cpu" and kernels.problem() is None:
        ways.append(("channels_last", "native"))
    return [Candidate(precision, *way) for precision, way in itertools.product(precisions, ways)]


def has_compiler(device: torch.device) -> bool:
    """Whether torch.compile finds what it needs: a C++ compiler for a CPU, Triton for CUDA."""
    if device.type == "cuda":
        return importlib.util.find_spec("triton") is not None
    default = "clang++" if sys.platform == "darwin" else "g++"
    return device.type == "cpu" and shutil.which(os.environ.get("CXX", default)) is not None


class Stopwatch:
    """Times candidates for the step of one run, as far as the cache does not know them.

    Attributes:
        timings: all that is known.
    """

    def __init__(self, config: TrainConfig, data: Dataset, progress: bool, again: bool = False):
        self.data, self.progress, self.used = data, progress, False
        self.config = config.model_copy(update=eager_candidates(pick_device(config.device))[0]._asdict())
        blank = blank_timings(config, data)
        kept = [] if again else [entry for entry in cached_timings() if entry.same_step(blank)]
        self.timings = kept[-1] if kept else blank

    def time(self, candidates: Sequence[Candidate]) -> None:
        """All of them in one race, unless all are known. The first one must not fail."""
        if self.timings.knows(candidates) and candidates[0].label in self.timings.seconds:
            return
        seconds, first = self._race(candidates)
        # On the clock of the first race: the machine may have become busier since.
        leader = candidates[0]
        clock = self.timings.seconds.get(leader.label, seconds[leader]) / seconds[leader]
        self.timings.seconds.update({c.label: clock * value for c, value in seconds.items()})
        self.timings.compiling.update({c.label: first[c] for c in seconds if c.compiled})

    def faster_of(self, eager: Candidate, compiled: Candidate, seconds: float) -> Candidate:
        """One of two, for a run that takes so many seconds by the first: compiling must earn what it takes."""
        if seconds * _COMPILE_GAIN > _COMPILE_SECONDS and has_compiler(pick_device(self.config.device)):
            self.time([eager, compiled])
        if self.timings.fastest([eager, compiled]) == eager:
            return eager
        saved = seconds * (1 - self.timings.of(compiled) / self.timings.of(eager))
        return compiled if saved > self.timings.compiling.get(compiled.label, _COMPILE_SECONDS) else eager

    def keep(self) -> None:
        """Into the cache, if anything was measured. A cache that cannot be written costs a measurement, no run."""
        if self.used and (problem := keep_timings(self.timings)):
            self._say(f"the measurement cannot be kept: {problem}")

    def _race(self, candidates: Sequence[Candidate]) -> tuple[dict[Candidate, float], dict[Candidate, float]]:
        """Median seconds of a step, all candidates taking turns; and seconds of their first step."""
        if not self.used:
            self._say("choosing precision, layout, kernels, compilation ...")
            self.used, self.timings.measured = True, now()
            self._run = Run(self.config, self.data)
        trials, first, samples = {}, {}, {}
        for candidate in candidates:
            try:
                trial = self._run.trial(**candidate._asdict())
                first[candidate] = trial.time_steps(1)
                samples[candidate] = [trial.time_steps(1)]
                trials[candidate] = trial
            except Exception as error:  # compilers fail in many ways, and what fails here would fail in the run
                if candidate == candidates[0]:
                    raise
                reason = f"{type(error).__name__}: {error}".split("\n")[0][:300]
                if "out of memory" not in reason:  # another time there may be enough
                    self.timings.failed[candidate.label] = reason
                self._say(f"warning: {candidate.label} left out: {reason}")
        fastest = min(rough for (rough,) in samples.values())
        steps = max(1, min(20, round(_TURN_SECONDS / fastest)))
        going = [c for c, (rough,) in samples.items() if rough <= _SLOW * fastest]
        start = time.monotonic()
        for _ in range(_ROUNDS):
            for candidate in going:
                samples[candidate].append(trials[candidate].time_steps(steps))
            if time.monotonic() - start > _ROUNDS_SECONDS:
                break
        seconds = {c: statistics.median(values[1:] or values) for c, values in samples.items()}
        for candidate, value in seconds.items():
            self._say(f"  {candidate.label}: {1 / value:.3g} steps a second")
        return seconds, first

    def _say(self, text: str) -> None:
        if self.progress:
            print(text, file=sys.stderr, flush=True)


def _settled(config: TrainConfig, candidate: Candidate) -> TrainConfig:
    return config.model_copy(update={key: getattr(candidate, key) for key in config.left_open()})
