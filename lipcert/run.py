"""A training run's state and its single step: what `train.fit` drives, checkpoints hold and benchmarks time.

Every random draw is a function of (seed, step), so a run resumed from any checkpoint goes on bit for bit as if it had
never stopped; on CUDA as far as its kernels repeat themselves. Nothing in `train_step` waits for the device, but for
SortNet's masks; `report` does.

Shape letters: B batch, C H W image, F features, K classes.
"""

import contextlib
import copy
import csv
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lipcert import kernels
from lipcert.arithmetic import tensor_float
from lipcert.config import TrainConfig, steps_of
from lipcert.data import Dataset
from lipcert.device import Diverged, TrainingError, check_machine, pick_device
from lipcert.linf.ibp import worst_logits
from lipcert.linf.maps import calibrate, lp_decay
from lipcert.losses import bottom_logit, ibp_loss, training_loss
from lipcert.memory import keep_freed_memory
from lipcert.models import Network, build_model
from lipcert.optimizers import make_optimizer
from lipcert.power import lanczos
from lipcert.provenance import git_state, hardware
from lipcert.schedules import exponent, learning_rate, loss_weight, training_radius
from lipcert.stream import LAYERS, Stream, stream_seed
from lipcert.threats import Threats

_CALIBRATION = 50  # batches
_PINNING_SECONDS = 8.0  # of timing, at most, to turn minutes into steps
_WARM_START_STEPS = 100  # power-method rounds before the first step, so that training starts from converged norms
CURVE_FIELDS = (
    "step", "images", "seconds", "learning_rate", "radius_train", "loss", "train_accuracy", "train_vra_estimated",
    "lipschitz_estimate", "gradient_norm",
)  # fmt: skip


class Run:
    """Everything a run carries from step to step. `fit` drives it; benchmarks time its `train_step`.

    trains: False for one whose steps are all done, which may be certified where it could not be trained.
    """

    def __init__(self, config: TrainConfig, data: Dataset, trains: bool = True):
        self.config, self.data = config, data
        self.device = pick_device(config.device)
        if trains:
            check_machine(config, self.device)
        if left_open := config.left_open():
            raise TrainingError(f"{left_open[0]}='auto': measure first; lipcert.train.fit does")
        if self.device.type == "cpu":
            keep_freed_memory()
        elif self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # shapes do not change: let it look for the fastest convolution
        self.stream = Stream(config, data, self.device)
        self.batch = self.stream.size
        self.model_config = config.model(*data.shape[:2], data.classes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            network = build_model(self.model_config)
        self.network: Network = network.to(self.device)
        self.forward = _forward(config, self.network)
        self.measured: dict[str, float] | None = None  # seconds per step of what `lipcert.machine` chose from
        with torch.no_grad(), tensor_float(False, self.device):
            self.network.lipschitz_estimate(_WARM_START_STEPS)
        self.optimizer = make_optimizer(config, self.network)
        self.plain_loss = training_loss("cross_entropy")
        self.loss = None if config.loss == "ibp" else training_loss(config.loss)
        # Now, not when the record is written: what is committed while the run goes on did not train it.
        self.commit, self.dirty = git_state()
        self.hardware, self.peak_bytes = hardware(self.device), None  # of what trains; certifying may be elsewhere
        self.step, self.seconds = 0, 0.0
        self.curve: list[list[float]] = []
        self.snapshots: list[dict[str, float | None]] = []
        self.threats = Threats(config, data, self.device) if config.threats else None
        self.totals = torch.zeros(5, dtype=torch.float64 if self.device.type != "mps" else None, device=self.device)
        self.since = 0  # steps behind the totals
        self.steps = 0 if config.minutes is not None else steps_of(config, len(data.train.labels_N))

    def train_step(self) -> None:
        """One optimiser step; adds to `totals` on the device."""
        config, progress = self.config, self.step / self.steps
        radius, weight = training_radius(config, progress), loss_weight(config, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, progress) * group["factor"]
        self.network.set_exponent(p := exponent(config, progress))
        images_BCHW, labels_B = self.stream(self.step)
        features_BF = self._features(images_BCHW)
        with tensor_float(False, self.device), lanczos(config.norm_method == "lanczos"):
            logits_BK = self.network.head(features_BF.float())
            lipschitz = self.network.lipschitz_estimate(config.power_steps)
        if config.loss == "ibp" and progress >= config.plain_share:
            with tensor_float(config.precision == "tfloat32", self.device):
                worst_BK = worst_logits(self.network, images_BCHW, labels_B, radius)
            loss, robust_B = ibp_loss(logits_BK, worst_BK, labels_B, weight), worst_BK.detach().argmax(1) == labels_B
        else:
            with tensor_float(False, self.device):
                margin_KK = self.network.margin_lipschitz(lipschitz)
            loss = self.plain_loss if progress < config.plain_share else self.loss
            loss = loss(logits_BK, labels_B, margin_KK, radius, weight, self.network.head.logit_scale())
            bottom_B = bottom_logit(logits_BK.detach(), margin_KK.detach(), radius)
            robust_B = logits_BK.detach().amax(1) > bottom_B
        with tensor_float(config.precision == "tfloat32", self.device):
            loss.backward()
        gradient_norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if config.lp_decay:
            lp_decay(self.network, learning_rate(config, progress) * config.lp_decay, p)
        self._count(logits_BK.detach(), labels_B, robust_B, (loss, lipschitz, gradient_norm))
        self.step += 1

    def _features(self, images_BCHW: Tensor) -> Tensor:
        """What the head sees, (B, F)."""
        config = self.config
        with contextlib.ExitStack() as stack:
            stack.enter_context(tensor_float(config.precision == "tfloat32", self.device))
            stack.enter_context(torch.autocast(self.device.type, torch.bfloat16, config.precision == "bfloat16"))
            stack.enter_context(kernels.fast(config.kernels == "native"))
            if config.keep < 1:  # SortNet's layers draw; what, depends on seed and step alone
                devices = [self.device] if self.device.type == "cuda" else []
                stack.enter_context(torch.random.fork_rng(devices))
                torch.manual_seed(stream_seed(config.seed, LAYERS, self.step))
            return self.forward(images_BCHW)

    def _count(self, logits_BK: Tensor, labels_B: Tensor, robust_B: Tensor, scalars: tuple) -> None:
        right_B = logits_BK.argmax(1) == labels_B
        shares = (right_B.float().mean(), (right_B & robust_B).float().mean())
        self.totals += torch.stack([*shares, *(torch.as_tensor(x).detach() for x in scalars)]).to(self.totals)
        self.since += 1

    def calibrate(self) -> None:
        """Before certifying: the running means of distance layers as the trained network has them, at p = inf."""
        with torch.no_grad():
            calibrate(self.network, (self.stream(step)[0] for step in range(min(self.stream.per_epoch, _CALIBRATION))))

    def check_finite(self) -> list[float]:
        """Means since the last report: accuracy, certified share, loss, Lipschitz estimate, gradient norm.

        Raises:
            Diverged: one of them is not finite. The gradient spoils the weights a step before the loss shows it.
        """
        means = (self.totals / max(self.since, 1)).tolist()
        *_, loss, lipschitz, gradient_norm = means
        if not np.isfinite([loss, lipschitz, gradient_norm]).all():
            raise Diverged(
                f"loss={loss}, Lipschitz estimate={lipschitz}, gradient norm={gradient_norm} before step {self.step}: "
                f"training diverged and the last good checkpoint, if any, is kept; "
                f"lower lr ({self.config.lr}) or clip ({self.config.clip})"
            )
        return means

    def report(self, seconds: float) -> dict[str, float]:
        """Close an interval: one row of the curve. Waits for the device.

        Raises:
            Diverged: the loss, the Lipschitz estimate or the gradient is not finite.
        """
        self.seconds += seconds  # first: the steps of a run that diverged took their time, too
        accuracy, robust, loss, lipschitz, gradient_norm = self.check_finite()
        if self.device.type == "cuda":
            self.peak_bytes = max(self.peak_bytes or 0, torch.cuda.max_memory_allocated(self.device))
        progress = (self.step - 1) / self.steps
        row = [
            self.step, self.step * self.batch, round(self.seconds, 3), learning_rate(self.config, progress),
            training_radius(self.config, progress), loss, accuracy, robust, lipschitz,
            gradient_norm,
        ]  # fmt: skip
        self.curve.append(row)
        self.totals.zero_()
        self.since = 0
        return dict(zip(CURVE_FIELDS, row, strict=True))

    def snapshot_due(self) -> bool:
        """Whether the network is to be certified after this step; the last of the snapshots is the run's own end."""
        return self.step < self.steps and self._due(self.config.snapshots)

    def threats_due(self) -> bool:
        """Whether to note after this step which classes threaten; the last note is of the run's end."""
        return self._due(self.config.threats)

    def _due(self, times: int) -> bool:
        """Whether this step is one of so many, evenly spaced, that end with the last."""
        return self.step * times // self.steps > (self.step - 1) * times // self.steps

    def pin_minutes(self) -> None:
        """Turn `minutes` into steps by timing a throw-away copy of the run."""
        trial, seconds = self.trial(), 60 * self.config.minutes
        trial.time_steps(3)
        turns = [trial.time_steps(5), trial.time_steps(5)]
        # A GPU begins fast and slows down as it warms up; a busy machine does so now and then.
        while 5 * sum(turns) < min(_PINNING_SECONDS, seconds / 20):
            turns.append(trial.time_steps(5))
        self.steps = max(1, int(seconds / statistics.median(turns)))
        self.config = self.config.with_steps(self.steps)

    def trial(self, **changes: Any) -> "Run":
        """A throw-away copy of the run with some settings of `MEASURED` changed, to be timed.

        On the loss itself: the steps on plain cross-entropy that may come first cost less.
        """
        trial = copy.copy(self)
        trial.config = config = self.config.model_copy(update={"plain_share": 0.0, **changes})
        trial.stream, trial.network = copy.copy(self.stream), copy.deepcopy(self.network)
        trial.stream.layout = config.layout
        trial.forward, trial.optimizer = _forward(config, trial.network), make_optimizer(config, trial.network)
        trial.totals, trial.steps = self.totals.clone(), 10**6
        return trial

    def time_steps(self, steps: int) -> float:
        """Take that many steps; wall time of one, s."""
        self.synchronise()
        start = time.perf_counter()
        for _ in range(steps):
            self.train_step()
        self.synchronise()
        return (time.perf_counter() - start) / steps

    def forget_peak(self) -> None:
        """Count memory anew: what was measured, certified or trained before in this process is not this run's."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def synchronise(self) -> None:
        """Wait for the device, so that a clock read next tells the truth."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "config": self.config.model_dump(mode="json"), "data": self.data.sha256,
            "generated": self.stream.generated_sha256, "steps": self.steps,
            "step": self.step, "seconds": self.seconds, "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(), "curve": self.curve, "totals": self.totals, "since": self.since,
            "commit": self.commit, "dirty": self.dirty, "measured": self.measured,
            "hardware": self.hardware, "peak_bytes": self.peak_bytes,
            "snapshots": self.snapshots, "threats": self.threats and self.threats.state(),
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint of the same settings; one whose steps are all done keeps the hardware it was
        trained on.

        Raises:
            TrainingError: the data set is not the one the checkpoint was trained on.
        """
        way_out = "bring them back, or discard the checkpoint with fresh=True (--fresh)"
        if state["data"] != self.data.sha256:
            raise TrainingError(
                f"checkpoint was trained on other data (sha256 {state['data']}, here {self.data.sha256}): {way_out}"
            )
        if state.get("generated") != self.stream.generated_sha256:
            raise TrainingError(
                f"checkpoint was trained on other generated images than those of {self.config.generated}: {way_out}"
            )
        if state["step"] < state["steps"]:
            self.config = TrainConfig(**state["config"] | {"device": self.config.device})
        else:
            self.config, self.hardware = TrainConfig(**state["config"]), state.get("hardware", self.hardware)
        self.peak_bytes = state.get("peak_bytes")
        self.network.load_state_dict(state["network"], strict=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps, self.step, self.seconds = state["steps"], state["step"], state["seconds"]
        self.since, self.measured = state["since"], state.get("measured")
        # Rows of an older version lack what was added to the curve since.
        self.curve = [row + [math.nan] * (len(CURVE_FIELDS) - len(row)) for row in state["curve"]]
        self.snapshots = state.get("snapshots", [])
        if self.threats is not None:
            self.threats.restore(state["threats"])
        self.totals.copy_(state["totals"])
        # Trained in parts by different code: no commit holds what made these numbers.
        if state["dirty"] or state["commit"] != self.commit:
            self.commit, self.dirty = state["commit"], True


def _forward(config: TrainConfig, network: Network) -> Callable[[Tensor], Tensor]:
    if not config.compiled:
        return network.backbone
    # What was compiled for another run of this process would make torch take its sizes for dynamic, which is slower,
    # and soon give up compiling.
    torch.compiler.reset()
    return torch.compile(network.backbone)


def write_curve(path: Path, curve: list[list[float]]) -> None:
    """The training curve as CSV, columns `CURVE_FIELDS`; accuracies are fractions over the interval's batches."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CURVE_FIELDS)
        writer.writerows([[value if isinstance(value, int) else f"{value:.8g}" for value in row] for row in curve])
