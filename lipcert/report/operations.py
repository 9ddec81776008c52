"""Operations of a training step, counted before anything runs: what predictions for a GPU, prices and fits rest on.

Shape letters: R rows, C columns of a matrix, R <= C.
"""

from dataclasses import dataclass

from lipcert.config import TrainConfig
from lipcert.data.registry import DATASETS

_CONVOLUTIONS = {"liresnet": 1, "convnet": 1, "resnet": 2}  # of a block, all of 3x3
_PASSES = 13  # over a block's output, beside its convolutions: MinMax and bias, forward and backward
_STEMS = {28: "5x5/2", 32: "5x5/2", 64: "5x5/2"}  # what "auto" stands for, by pixels; 28 are padded to 32


@dataclass(frozen=True)
class Counts:
    """Operations of one step of a LiResNet, by what they run as, and bytes of element-wise work. All for the batch."""

    convolutions: float
    orthogonalisation: float
    optimizer: float
    estimates: float
    traffic: float


def forward_operations(config: TrainConfig) -> float:
    """Floating-point operations of one image, forward, through a LiResNet or ConvNet; of a conventional block one of
    its two convolutions.

    Raises:
        ValueError: a stem that cuts the image into patches.
    """
    (kernel, side), classes = _stem(config), config.classes or DATASETS[config.dataset].classes
    width, features, cells = config.width, config.neck_width, (side // 4) ** 2
    trunk = 2.0 * side**2 * width * (kernel**2 * DATASETS[config.dataset].shape[0] + 9 * width * config.depth)
    neck = 2.0 * cells * 16 * width * _neck(config) + 2.0 * cells * _neck(config) * features
    return trunk + neck + 2.0 * features * (config.tail_depth * features + classes)


def counts(config: TrainConfig) -> Counts:
    """Of one step, as lipcert computes it: eager, orthogonalisation and optimiser once a step, whatever the batch.
    Augmentation and loss count nothing.

    Raises:
        ValueError: another network than a stack of 3x3 blocks between stem and neck; generated images.
    """
    channels, _, _ = DATASETS[config.dataset].shape
    if config.family not in _CONVOLUTIONS or config.generated:
        what = f"family={config.family!r}, generated={config.generated!r}"
        raise ValueError(f"{what}: counted are {', '.join(_CONVOLUTIONS)} on real images")
    (kernel, side), layers = _stem(config), config.depth * _CONVOLUTIONS[config.family]
    width, features = config.width, config.neck_width
    tail = [(features, features)] * config.tail_depth
    neck = [(_neck(config), 16 * width), (features, (side // 4) ** 2 * _neck(config))]
    matrices = [(width, kernel**2 * channels), *[(width, 9 * width)] * layers, *neck, *tail]
    layer = 2.0 * side**2 * 9 * width**2
    forward = forward_operations(config) + layer * (layers - config.depth)
    return Counts(
        convolutions=3 * config.batch * forward,
        orthogonalisation=sum(map(_orthogonalise, neck * (config.neck == "orthogonal") + tail)),
        optimizer=sum(map(_polar, matrices)) if config.optimizer == "muon" else 0.0,
        estimates=(2 * config.power_steps + 2) * layer * layers,  # of all blocks with one vector each
        # The stem's map is four blocks' worth.
        traffic=_PASSES * _bytes(config) * config.batch * (layers + 4) * side**2 * width,
    )


def _stem(config: TrainConfig) -> tuple[int, int]:
    """Sides of the stem's kernel and of the map that it leaves to the blocks."""
    size = DATASETS[config.dataset].shape[1]
    name = _STEMS.get(size, "patch") if config.stem == "auto" else config.stem
    if name == "patch":
        raise ValueError(f"stem={config.stem!r} on {size} pixels: counted are stems that do not cut into patches")
    kernel, stride = int(name[0]), int(name[-1])
    return kernel, ((32 if size == 28 else size) + 2 * (kernel // 2) - kernel) // stride + 1


def _neck(config: TrainConfig) -> int:
    """Channels inside of the neck."""
    return config.width * (2 if config.neck == "conv_dense" else 1)


def _bytes(config: TrainConfig) -> int:
    """Of a number in the training step."""
    return 2 if config.precision == "bfloat16" else 4


def _orthogonalise(shape: tuple[int, int]) -> float:
    """Gram matrix (a triangle), factor and solve; one triangle of a product, a product and a solve backward."""
    r, c = map(float, sorted(shape))
    return 6 * r**2 * c + r**3 / 3


def _polar(shape: tuple[int, int]) -> float:
    """Of `lipcert.optimizers.polar_factor`: two products with the wide matrix, 19 of small ones in five rounds."""
    r, c = map(float, sorted(shape))
    return 4 * r**2 * c + 38 * r**3


def parameters(config: TrainConfig) -> int:
    """Of a LiResNet with orthogonal neck on images of 32 pixels, without a tail."""
    width, features, classes = config.width, config.neck_width, config.classes or DATASETS[config.dataset].classes
    trunk = width * (25 * DATASETS[config.dataset].shape[0] + 1) + config.depth * width * (9 * width + 2)
    return trunk + 16 * width**2 + features * (16 * width + 1) + classes * (features + 1)
