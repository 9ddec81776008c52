"""Training: `fit(config)` trains, certifies and writes the run record.

Every random draw is a function of (seed, step), so a run resumed from any checkpoint goes on bit for bit as if it had
never stopped. Between two progress reports nothing waits for the device.
"""

import contextlib
import copy
import csv
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lipcert.checkpoint import load_checkpoint, remove_checkpoint, save_checkpoint
from lipcert.config import ModelConfig, TrainConfig, steps_of
from lipcert.data import DATASETS, Dataset, augment, load_dataset, to_unit
from lipcert.evaluate import write_results
from lipcert.losses import bottom_logit, training_loss
from lipcert.models import Network, build_model
from lipcert.paths import local_dir
from lipcert.progress import Progress
from lipcert.provenance import git_state
from lipcert.schedules import learning_rate, training_radius

_ORDER, _AUGMENT = 1, 2  # random streams
_WARM_START_STEPS = 100  # power-method rounds before the first step, so that training starts from converged norms
_REPORTS = 200  # rows of the curve in a full run
CURVE_FIELDS = (
    "step", "images", "seconds", "learning_rate", "radius_train", "loss", "train_accuracy", "train_vra_estimated",
    "lipschitz_estimate",
)  # fmt: skip


class TrainingError(RuntimeError):
    """A run that cannot go on; says what is kept and how to continue."""


def fit(
    config: TrainConfig,
    resume: bool = False,
    fresh: bool = False,
    progress: bool = True,
    download: bool = False,
    checkpoint_seconds: float = 60.0,
) -> Path:
    """Train a network, certify its test images, write record, curve, per-image radii and network to `results/local`.

    Args:
        config: the whole run. `minutes` is measured here and becomes steps.
        resume: continue from the checkpoint of the same settings, if there is one.
        fresh: discard that checkpoint. With neither, an unfinished run is an error rather than lost work.
        progress: draw a progress bar on standard error.
        download: let torchvision download a missing data set.
        checkpoint_seconds: least wall time between two checkpoints.

    Returns:
        Path of the run record.

    Raises:
        lipcert.config.ConfigError, FileNotFoundError, ValueError: unusable settings or data; nothing written.
        TrainingError: an unfinished run is in the way, or the loss is not finite; the last good checkpoint stays.
        KeyboardInterrupt: stopped by Ctrl-C or SIGTERM, after writing a checkpoint and a record with status "stopped".
    """
    path = local_dir() / "checkpoints" / f"{config.run_id()}.safetensors"
    state = None if fresh else load_checkpoint(path)
    if state is not None and not resume:
        raise TrainingError(
            f"run {config.run_id()} was stopped at step {state['step']} of {state['steps']}: continue it with "
            "resume=True (--resume) or discard it with fresh=True (--fresh)"
        )
    data = load_dataset(config.dataset, config.classes, config.class_seed, config.validation, download)
    run = Run(config, data)
    if state is not None:
        run.restore(state)
    elif config.minutes is not None:
        run.pin_minutes()
    say = _say if progress else lambda *_: None
    say(f"run {run.config.run_id()}: {run.steps} steps of {run.batch} images on {run.device}")
    try:
        with _sigterm_as_interrupt():
            _train(run, path, progress, checkpoint_seconds)
    except KeyboardInterrupt:
        save_checkpoint(path, run.state())
        record = write_results(run, status="stopped")
        _say(f"stopped at step {run.step} of {run.steps}; the work is kept, --resume goes on ({record})")
        raise
    say("certifying ...")
    record = write_results(run, status="finished")
    remove_checkpoint(path)
    return record


class Run:
    """Everything a run carries from step to step. `fit` drives it; benchmarks time its `train_step`."""

    def __init__(self, config: TrainConfig, data: Dataset):
        self.config, self.data = config, data
        self.device = pick_device(config.device)
        self.batch = min(config.batch, len(data.train.labels_N))
        self.per_epoch = len(data.train.labels_N) // self.batch
        self.model_config = model_config(config, data)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            network = build_model(self.model_config)
        self.network: Network = network.to(self.device)
        self.forward = torch.compile(self.network.backbone) if config.compiled else self.network.backbone
        with torch.no_grad():
            self.network.lipschitz_estimate(_WARM_START_STEPS)
        self.optimizer = _optimizer(config, self.network)
        self.loss = training_loss(config.loss)
        facts = DATASETS[config.dataset]
        self.crop = facts.crop if config.crop is None else config.crop
        self.flip = facts.flip if config.flip is None else config.flip
        self.images = data.train.images_NCHW.to(self.device)
        self.labels = data.train.labels_N.to(self.device)
        # Now, not when the record is written: what is committed while the run goes on did not train it.
        self.commit, self.dirty = git_state()
        self.step, self.seconds = 0, 0.0
        self.curve: list[list[float]] = []
        self.totals = torch.zeros(4, dtype=torch.float64 if self.device.type != "mps" else None, device=self.device)
        self.since = 0  # steps behind the totals
        self._order: tuple[int, Tensor] | None = None
        self.steps = 0 if config.minutes is not None else steps_of(config, len(data.train.labels_N))

    def indices(self, step: int) -> Tensor:
        """Training images of a step: a new seeded permutation every epoch."""
        epoch, position = divmod(step, self.per_epoch)
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed(_seed(self.config.seed, _ORDER, epoch))
            self._order = epoch, torch.randperm(len(self.labels), generator=generator).to(self.device)
        return self._order[1][position * self.batch : (position + 1) * self.batch]

    def train_step(self) -> None:
        """One optimiser step; adds to `totals` on the device."""
        config, progress = self.config, self.step / self.steps
        radius = training_radius(config, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, progress)
        index_B = self.indices(self.step)
        labels_B = self.labels[index_B]
        images_BCHW = self.images[index_B]
        if self.crop or self.flip:
            generator = torch.Generator(self.device).manual_seed(_seed(config.seed, _AUGMENT, self.step))
            images_BCHW = augment(images_BCHW, generator, self.crop, self.flip)
        images_BCHW = to_unit(images_BCHW, self.data.scale).to(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            features_BF = self.forward(images_BCHW)
        logits_BK = self.network.head(features_BF.float())
        lipschitz = self.network.lipschitz_estimate(config.power_steps)
        margin_KK = lipschitz * self.network.head.distances()
        loss = self.loss(logits_BK, labels_B, margin_KK, radius)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._count(loss.detach(), logits_BK.detach(), labels_B, margin_KK.detach(), radius, lipschitz.detach())
        self.step += 1

    def _count(self, loss, logits_BK, labels_B, margin_KK, radius, lipschitz) -> None:
        top_B, predicted_B = logits_BK.max(1)
        right_B = predicted_B == labels_B
        robust_B = right_B & (top_B > bottom_logit(logits_BK, margin_KK, radius))
        self.totals += torch.stack([loss, right_B.float().mean(), robust_B.float().mean(), lipschitz]).to(self.totals)
        self.since += 1

    def report(self, seconds: float) -> dict[str, float]:
        """Close an interval: one row of the curve. Waits for the device.

        Raises:
            TrainingError: the loss or the Lipschitz estimate is not finite.
        """
        loss, accuracy, robust, lipschitz = (self.totals / max(self.since, 1)).tolist()
        if not (np.isfinite(loss) and np.isfinite(lipschitz)):
            raise TrainingError(
                f"loss={loss}, Lipschitz estimate={lipschitz} before step {self.step}: training diverged; "
                f"lower lr ({self.config.lr}) or clip ({self.config.clip})"
            )
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

    def pin_minutes(self) -> None:
        """Turn `minutes` into steps by timing a throw-away copy of the run."""
        trial = copy.copy(self)
        trial.network = copy.deepcopy(self.network)
        trial.forward = torch.compile(trial.network.backbone) if self.config.compiled else trial.network.backbone
        trial.optimizer = _optimizer(self.config, trial.network)
        trial.totals, trial.steps = self.totals.clone(), 10**6
        for timed in (False, True):
            self.synchronise()
            start = time.perf_counter()
            for _ in range(10 if timed else 3):
                trial.train_step()
            self.synchronise()
            elapsed = time.perf_counter() - start
        self.steps = max(1, int(self.config.minutes * 60 / (elapsed / 10)))
        self.config = self.config.with_steps(self.steps)

    def synchronise(self) -> None:
        """Wait for the device, so that a clock read next tells the truth."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "config": self.config.model_dump(mode="json"), "data": self.data.sha256, "steps": self.steps,
            "step": self.step, "seconds": self.seconds, "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(), "curve": self.curve, "totals": self.totals, "since": self.since,
            "commit": self.commit, "dirty": self.dirty,
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
        settings = {k: tuple(v) if isinstance(v, list) else v for k, v in state["config"].items()}
        self.config = TrainConfig(**settings)
        self.network.load_state_dict(state["network"], strict=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps, self.step, self.seconds = state["steps"], state["step"], state["seconds"]
        self.curve, self.since = state["curve"], state["since"]
        self.totals.copy_(state["totals"])
        # Trained in parts by different code: no commit holds what made these numbers.
        if state["dirty"] or state["commit"] != self.commit:
            self.commit, self.dirty = state["commit"], True


def _train(run: Run, path: Path, shown: bool, checkpoint_seconds: float) -> None:
    interval = max(1, run.steps // _REPORTS)
    saved = start = time.monotonic()
    with Progress(run.steps, "step", shown, initial=run.step) as progress:
        while run.step < run.steps:
            run.train_step()
            if run.step % interval and run.step < run.steps:
                continue
            now = time.monotonic()
            row = run.report(now - start)
            start = now
            progress.update(
                run.step,
                f"loss {row['loss']:.3f}, accuracy {row['train_accuracy']:.1%}, certified (estimated) "
                f"{row['train_vra_estimated']:.1%}, {row['images'] / max(row['seconds'], 1e-9):,.0f} images/s",
            )
            if run.step < run.steps and now - saved >= checkpoint_seconds:
                save_checkpoint(path, run.state())
                saved = time.monotonic()


def model_config(config: TrainConfig, data: Dataset) -> ModelConfig:
    """The network a run trains."""
    channels, height, _ = data.shape
    return ModelConfig(
        family=config.family, depth=config.depth, width=config.width, neck=config.neck, neck_width=config.neck_width,
        stem=config.stem, channels=channels, input_size=height, classes=data.classes,
    )  # fmt: skip


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


def _optimizer(config: TrainConfig, network: Network) -> torch.optim.Optimizer:
    common = {"lr": config.lr, "betas": (config.beta1, config.beta2), "weight_decay": config.weight_decay}
    parameters = list(network.parameters())
    if config.optimizer == "nadam":
        optimizer = torch.optim.NAdam(parameters, decoupled_weight_decay=True, **common)
    else:
        # Without weight decay Adam and AdamW are the same method.
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
        optimizer = kind(parameters, fused=True, **common)
    if config.lookahead:
        try:
            from pytorch_optimizer import Lookahead
        except ImportError:
            raise TrainingError(
                "lookahead=True needs the package pytorch-optimizer: pip install 'lipcert[train]'"
            ) from None
        optimizer = Lookahead(optimizer, k=6, alpha=0.5)
    return optimizer


def _seed(*parts: int) -> int:
    """One seed for a (seed, stream, number) triple; streams do not overlap for neighbouring numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM keep the work as Ctrl-C does (main thread only; elsewhere signals are not ours)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(*words: object) -> None:
    print(*words, file=sys.stderr, flush=True)
