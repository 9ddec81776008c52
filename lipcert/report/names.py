"""What readers call networks, data sets and losses: the one place where settings become names."""

from lipcert import families
from lipcert.config import Architecture
from lipcert.records import Record

DATASETS = {
    "digits": "digits", "mnist": "MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100",
    "fashion_mnist": "Fashion-MNIST", "tiny_imagenet": "Tiny-ImageNet", "imagenet": "ImageNet",
    "imagenet64": "ImageNet 64x64",
}  # fmt: skip
FAMILIES = {name: family.title for name, family in families.FAMILIES.items()}
LOSSES = {
    "emma": "EMMA", "emma_fixed": "EMMA at fixed radius", "gloro": "GloRo", "trades_kl": "TRADES-KL",
    "trades_ce": "TRADES-CE", "cross_entropy": "cross-entropy",
}  # fmt: skip
# Depth of a GloRo net -> the paper's name (convolutions, dense layers) and the width it goes with.
GLORO = {2: ("2C2F", 16), 4: ("4C3F", 32), 6: ("6C2F", 32), 7: ("7C1F", 64), 8: ("8C2F", 64)}


def network_name(network: Record | Architecture) -> str:
    """`LiResNet L6W64`, `ResNet L6W32, conventional`, `GloRo 2C2F`.

    Said only where it is not the family's rule: an activation other than MinMax (GloRo: than ReLU), orthogonal dense
    layers at the end (`LiResNet L12W512, 8 dense`), another width than that of the published GloRo net.
    """
    config = network.config if isinstance(network, Record) else network
    size, usual = f"L{config.depth}W{config.width}", "minmax"
    if config.family == "gloro":
        published, width = GLORO.get(config.depth, (f"{config.depth} convolutions", config.width))
        size, usual = published if config.width == width else f"{published}, width {config.width}", "relu"
    remarks = ["conventional"] if config.family == "resnet" else []
    remarks += [f"{config.tail_depth} dense"] if config.tail_depth else []
    remarks += [{"minmax": "MinMax", "relu": "ReLU"}[config.activation]] if config.activation != usual else []
    return ", ".join([f"{FAMILIES[config.family]} {size}", *remarks])


def data_name(record: Record) -> str:
    """`CIFAR-100 (20 classes)` for a subset, `CIFAR-10` otherwise."""
    name = DATASETS.get(record.data.name, record.data.name)
    return name if record.config.classes is None else f"{name} ({record.data.classes} classes)"
