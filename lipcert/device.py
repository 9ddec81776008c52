"""Where a run computes: its device, what that device can do, how many threads its steps deserve."""

import contextlib
from collections.abc import Iterator

import torch

from lipcert import kernels
from lipcert.config import TrainConfig
from lipcert.data import Dataset
from lipcert.families import FAMILIES
from lipcert.models import build_model
from lipcert.stream import step_images

_SHARED_FLOPS = 5e9  # a step below this stays on one thread


class TrainingError(RuntimeError):
    """A run that cannot go on; says what is kept and how to continue."""


class Diverged(TrainingError):
    """Loss, Lipschitz estimate or gradient of a run are not finite."""


def check_machine(config: TrainConfig, device: torch.device) -> None:
    """Raises TrainingError for a way to compute that the device or this machine does not have.

    A run that computed in another way than its settings say would leave a false record.
    """
    if config.precision == "tfloat32" and device.type != "cuda":
        raise TrainingError(f"precision='tfloat32' on {device.type}: only CUDA has it; use float32, bfloat16 or auto")
    if config.kernels == "native" and FAMILIES[config.family].norm == "l2":  # distance layers pick their own
        why = "only CPUs have them" if device.type != "cpu" else kernels.problem()
        if why:
            raise TrainingError(f"kernels='native' on {device.type}: {why}; use kernels=torch or auto")
    if config.norm_method == "lanczos" and device.type == "mps":
        raise TrainingError("norm_method='lanczos' on mps: needs float64, which it does not have; use power")


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
