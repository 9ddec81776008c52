"""What readers call networks, data sets and losses: the one place where settings become names."""

from collections import Counter
from collections.abc import Sequence

from lipcert import families
from lipcert.config import Architecture
from lipcert.record import Record

DATASETS = {
    "digits": "digits", "mnist": "MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100",
    "fashion_mnist": "Fashion-MNIST", "tiny_imagenet": "Tiny-ImageNet", "imagenet": "ImageNet",
    "imagenet64": "ImageNet 64x64",
}  # fmt: skip
FAMILIES = {name: family.title for name, family in families.FAMILIES.items()}
LOSSES = {
    "emma": "EMMA", "emma_fixed": "EMMA at fixed radius", "gloro": "GloRo", "trades_kl": "TRADES-KL",
    "trades_ce": "TRADES-CE", "cross_entropy": "cross-entropy", "linf_mixture": "clipped hinge + cross-entropy",
    "linf_hinge": "hinge", "ibp": "IBP", "margin": "clipped margin + cross-entropy", "focal": "focal EMMA",
    "annealing": "logit annealing",
}  # fmt: skip


def network_name(network: Record | Architecture) -> str:
    """`LiResNet L6W64`, `ResNet L6W32, conventional`, `GloRo 2C2F`, `SortNet L6W5120`.

    Said only where it is not the family's rule: an activation other than MinMax (GloRo: than ReLU), orthogonal dense
    layers at the end (`LiResNet L12W512, 8 dense`), another width than that of the published GloRo net.
    """
    config = network.config if isinstance(network, Record) else network
    size, usual = f"L{config.depth}W{config.width}", "minmax"
    if config.family == "gloro":
        net = families.GLORO_NETS[config.depth]
        size, usual = net.name if config.width == net.width else f"{net.name}, width {config.width}", "relu"
    family = "SortNet" if config.keep < 1 else FAMILIES[config.family]
    remarks = ["conventional"] if config.family == "resnet" else []
    remarks += ["+MLP"] if config.mlp_width else []
    remarks += [f"{config.tail_depth} dense"] if config.tail_depth else []
    remarks += [{"minmax": "MinMax", "relu": "ReLU"}[config.activation]] if config.activation != usual else []
    return ", ".join([f"{family} {size}", *remarks])


def data_name(record: Record) -> str:
    """`CIFAR-100 (20 classes, 5,000 images)` for a subset, `CIFAR-10` otherwise."""
    name, config = DATASETS.get(record.data.name, record.data.name), record.config
    parts = [] if config.classes is None else [f"{record.data.classes} classes"]
    parts += [] if config.train_images is None else [f"{config.train_images:,} images"]
    return f"{name} ({', '.join(parts)})" if parts else name


def labelled(records: Sequence[Record]) -> list[tuple[str, Record]]:
    """Runs that a table or figure shows side by side, each behind its label: `CIFAR-10, LiResNet L6W32`.

    With the loss, as in `CIFAR-10, LiResNet L6W32, GloRo`, where the same network was trained with another one too.
    """
    names = [f"{data_name(r)}, {network_name(r)}" for r in records]
    trained = [(name, LOSSES[r.config.loss]) for name, r in zip(names, records, strict=True)]
    ways = Counter(name for name, _ in set(trained))
    labels = [f"{name}, {loss}" if ways[name] > 1 else name for name, loss in trained]
    return list(zip(labels, records, strict=True))
