"""Which class threatens each training image, noted over a run: does the threat rotate (arXiv 2301.12549, section 4)?

A loss that pushes only the highest wrong class pushes another one whenever the highest changes; EMMA pushes all. The
notes say how often it does change. They draw nothing and leave no trace in the training.

Shape letters: N images of the sample, B a piece of them, C H W image, K classes.
"""

from typing import Any

import torch
from torch import Tensor

from lipcert import kernels
from lipcert.arithmetic import tensor_float
from lipcert.config import TrainConfig
from lipcert.data import Dataset, to_unit
from lipcert.data.splits import SPLIT_SEED, draw_order
from lipcert.margin_statistics import boundary_distances
from lipcert.models import Network
from lipcert.radius import Radius

SAMPLE = 2000  # training images looked at, at most
_PIECE = 250


class Threats:
    """The notes of a run on a fixed sample of its training images, as they are without augmentation.

    Attributes:
        notes: one `lipcert.record.Threat` each, as plain dictionaries, in order.
    """

    def __init__(self, config: TrainConfig, data: Dataset, device: torch.device):
        count = len(data.train)
        chosen_N = torch.from_numpy(draw_order(count, SPLIT_SEED)[:SAMPLE].copy()).sort().values
        self.images_NCHW, self.labels_N = data.train.images_NCHW[chosen_N], data.train.labels_N[chosen_N]
        self.scale, self.device = data.scale, device
        self.radius, self.native = float(Radius(config.radius)), config.kernels == "native"
        self.notes: list[dict[str, int | None]] = []
        self.last: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def note(self, network: Network, images: int) -> None:
        """Look at the sample once and append a note.

        Args:
            network: as training has it now; left in the mode it came in.
            images: seen in training until now.
        """
        trains = network.training
        network.eval()
        with kernels.fast(self.native), tensor_float(False, self.device):
            # No round of the power method: one would move the warm start of the next step.
            margin_KK = network.margin_lipschitz(network.lipschitz_estimate(0)).float()
            pieces = [
                limiting(network(to_unit(images_BCHW, self.scale).to(self.device)).float(), labels_B, margin_KK)
                for images_BCHW, labels_B in zip(
                    self.images_NCHW.split(_PIECE), self.labels_N.to(self.device).split(_PIECE), strict=True
                )
            ]
        network.train(trains)
        highest_N, nearest_N, distance_N = (torch.cat(parts).cpu() for parts in zip(*pieces, strict=True))
        changed = [None, None]
        if self.last is not None:
            changed = [int((now != then).sum()) for now, then in zip((highest_N, nearest_N), self.last, strict=True)]
        self.last = highest_N, nearest_N
        self.notes.append(
            {
                "images": images,
                "sample": len(self.labels_N),
                "changed": changed[0],
                "changed_nearest": changed[1],
                "right": int((distance_N > 0).sum()),
                "certified_estimated": int((distance_N > self.radius).sum()),
            }
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"notes": self.notes, "last": None if self.last is None else list(self.last)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.notes = state["notes"]
        self.last = None if state["last"] is None else tuple(state["last"])


def limiting(logits_BK: Tensor, labels_B: Tensor, margin_KK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What threatens each image, (B,) each: the wrong class of the highest logit, the wrong class whose boundary with
    the label is nearest, and the distance to it under the constants given, negative where it is passed.

    Args:
        logits_BK: (B, K). labels_B: (B,) int64. margin_KK: margin Lipschitz matrix (K, K), 0 on its diagonal.
    """
    highest_B = logits_BK.scatter(1, labels_B[:, None], -torch.inf).argmax(1)
    distance_B, nearest_B = boundary_distances(logits_BK, labels_B, margin_KK).min(1)
    return highest_B, nearest_B, distance_B
