"""A training run's state and its single step: what `train.fit` drives, checkpoints hold and benchmarks time.

Every random draw is a function of (seed, step), so a run resumed from any checkpoint goes on bit for bit as if it had
never stopped. Nothing in `train_step` waits for the device; `report` does.

Shape letters: B batch, C H W image, F features, K classes.
"""

import contextlib
import copy
import csv
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lipcert import kernels
from lipcert.arithmetic import tensor_float
from lipcert.config import TrainConfig, steps_of
from lipcert.data import Dataset
from lipcert.families import FAMILIES
from lipcert.linf.ibp import worst_logits
from lipcert.linf.maps import calibrate, lp_decay
from lipcert.losses import bottom_logit, ibp_loss, training_loss
from lipcert.memory import keep_freed_memory
from lipcert.models import Network, build_model
from lipcert.optimizers import make_optimizer
from lipcert.power import lanczos
from lipcert.provenance import git_state
from lipcert.schedules import exponent, learning_rate, loss_weight, training_radius
from lipcert.stream import LAYERS, Stream, step_images, stream_seed

_SHARED_FLOPS = 5e9  # a step below this stays on one thread
_CALIBRATION = 50  # batches
_PINNING_SECONDS = 8.0  # of timing, at most, to turn minutes into steps
_WARM_START_STEPS = 100  # power-method rounds before the first step, so that training starts from converged norms
CURVE_FIELDS = (
    "step", "images", "seconds", "learning_rate", "radius_train", "loss", "train_accuracy", "train_vra_estimated",
    "lipschitz_estimate",
)  # fmt: skip


class TrainingError(RuntimeError):
    """A run that cannot go on; says what is kept and how to continue."""


class Run:
    """Everything a run carries from step to step. `fit` drives it; benchmarks time its `train_step`."""

    def __init__(self, config: TrainConfig, data: Dataset):
        self.config, self.data = config, data
        self.device = pick_device(config.device)
        check_precision(config, self.device)
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
        self.step, self.seconds = 0, 0.0
        self.curve: list[list[float]] = []
        self.snapshots: list[dict[str, float | None]] = []
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
        logits_BK = self.network.head(features_BF.float())
        with tensor_float(False, self.device), lanczos(config.norm_method == "lanczos"):
            lipschitz = self.network.lipschitz_estimate(config.power_steps)
        if config.loss == "ibp" and progress >= config.plain_share:
            worst_BK = worst_logits(self.network, images_BCHW, labels_B, radius)
            loss, robust_B = ibp_loss(logits_BK, worst_BK, labels_B, weight), worst_BK.detach().argmax(1) == labels_B
        else:
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
            TrainingError: one of them is not finite. The gradient spoils the weights a step before the loss shows it.
        """
        means = (self.totals / max(self.since, 1)).tolist()
        *_, loss, lipschitz, gradient_norm = means
        if not np.isfinite([loss, lipschitz, gradient_norm]).all():
            raise TrainingError(
                f"loss={loss}, Lipschitz estimate={lipschitz}, gradient norm={gradient_norm} before step {self.step}: "
                f"training diverged and the last good checkpoint, if any, is kept; "
                f"lower lr ({self.config.lr}) or clip ({self.config.clip})"
            )
        return means

    def report(self, seconds: float) -> dict[str, float]:
        """Close an interval: one row of the curve. Waits for the device.

        Raises:
            TrainingError: the loss, the Lipschitz estimate or the gradient is not finite.
        """
        accuracy, robust, loss, lipschitz, _ = self.check_finite()
        self.seconds += seconds
        progress = (self.step - 1) / self.steps
        row = [
            self.step, self.step * self.batch, round(self.seconds, 3), learning_rate(self.config, progress),
            training_radius(self.config, progress), loss, accuracy, robust, lipschitz,
        ]  # fmt: skip
        self.curve.append(row)
        self.totals.zero_()
        self.since = 0
        return dict(zip(CURVE_FIELDS, row, strict=True))

    def snapshot_due(self) -> bool:
        """Whether the network is to be certified after this step; the last of the snapshots is the run's own end."""
        count = self.config.snapshots
        return (
            count > 0
            and self.step < self.steps
            and self.step * count // self.steps > (self.step - 1) * count // self.steps
        )

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
            "snapshots": self.snapshots,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint of the same settings.

        Raises:
            TrainingError: the data set is not the one the checkpoint was trained on.
        """
        if state["data"] != self.data.sha256:
            raise TrainingError(
                f"checkpoint was trained on other data (sha256 {state['data']}, here {self.data.sha256})"
            )
        if state.get("generated") != self.stream.generated_sha256:
            raise TrainingError(
                f"checkpoint was trained on another file of generated images than {self.config.generated}"
            )
        self.config = TrainConfig(**state["config"])
        self.network.load_state_dict(state["network"], strict=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps, self.step, self.seconds = state["steps"], state["step"], state["seconds"]
        self.curve, self.since, self.measured = state["curve"], state["since"], state.get("measured")
        self.snapshots = state.get("snapshots", [])
        self.totals.copy_(state["totals"])
        # Trained in parts by different code: no commit holds what made these numbers.
        if state["dirty"] or state["commit"] != self.commit:
            self.commit, self.dirty = state["commit"], True


def check_precision(config: TrainConfig, device: torch.device) -> None:
    """Raises TrainingError for a precision that the device does not have."""
    if config.precision == "tfloat32" and device.type != "cuda":
        raise TrainingError(f"precision='tfloat32' on {device.type}: only CUDA has it; use float32, bfloat16 or auto")


def _forward(config: TrainConfig, network: Network) -> Callable[[Tensor], Tensor]:
    if not config.compiled:
        return network.backbone
    # What was compiled for another run of this process would make torch take its sizes for dynamic, which is slower,
    # and soon give up compiling.
    torch.compiler.reset()
    return torch.compile(network.backbone)


@contextlib.contextmanager
def own_threads(config: TrainConfig, data: Dataset) -> Iterator[None]:
    """One CPU thread while a run whose steps are too small to share goes on; torch's own number for the others.

    Two threads do not speed such steps up, wait for each other tenfold when another program takes a core, and sum in
    an order that depends on how many cores a machine has.
    """
    before = torch.get_num_threads()
    if pick_device(config.device).type == "cpu" and step_flops(config, data) < _SHARED_FLOPS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def step_flops(config: TrainConfig, data: Dataset) -> int:
    """Floating-point operations of one step, counted on one image's forward pass: backward costs twice as much.

    Distances are no operations that torch counts; each weight of theirs takes two.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.no_grad():
        network = build_model(config.model(*data.shape[:2], data.classes))
        if FAMILIES[config.family].norm == "linf":
            flops = 2 * network.parameter_count()
        else:
            with FlopCounterMode(display=False) as counter:
                network(torch.zeros(1, *network.input_shape))
            flops = counter.get_total_flops()
    return 3 * sum(step_images(config, len(data.train.labels_N))) * flops


def pick_device(name: str) -> torch.device:
    """The device behind `auto`, `cpu`, `cuda`, `mps`.

    Raises:
        TrainingError: asked for an accelerator that is not there.
    """
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if present[kind])
    if not present[name]:
        here = ", ".join(kind for kind, there in present.items() if there)
        raise TrainingError(f"device={name!r}: not available on this machine; it has {here}")
    return torch.device(name)


def write_curve(path: Path, curve: list[list[float]]) -> None:
    """The training curve as CSV, columns `CURVE_FIELDS`; accuracies are fractions over the interval's batches."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CURVE_FIELDS)
        writer.writerows([[value if isinstance(value, int) else f"{value:.8g}" for value in row] for row in curve])
