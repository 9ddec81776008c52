"""Networks so small that their Lipschitz constant can be computed: three kinds, random or trained in seconds.

dense: affine layers with activations between. linear: residual blocks I + V, each one affine map, as in LiResNet.
conventional: residual blocks x + W2 act(W1 x). Every network ends with a dense layer, its head.
Shape letters: B points, N inputs, F features, K classes.
"""

import copy
import functools
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipcert.chain import chain_bounds
from lipcert.data import load_dataset, to_unit
from lipcert.layers import MinMax, Residual
from lipcert.losses import emma_loss
from lipcert.power import norm_estimate

KINDS = ("dense", "linear", "conventional")
ACTIVATIONS = {"MinMax": MinMax, "ReLU": nn.ReLU}
WEIGHTS = ("random", "cross-entropy", "emma")
STEPS, RATE = 400, 0.01  # of training: Adam on the whole set


def small_net(
    family: str, blocks: int, inputs: int, hidden: int, classes: int, activation: str = "MinMax", seed: int = 0
) -> nn.Sequential:
    """A random network of `blocks` blocks and a head.

    Args:
        family: of `KINDS`. hidden: width of a dense layer, or inside the branch of a conventional block; a linear
            block has as many features as there are inputs. seed: of the weights; torch's generator stays as it is.
    """
    act, layers, features = ACTIVATIONS[activation], [], inputs
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)
        for _ in range(blocks):
            if family == "dense":
                layers += [nn.Linear(features, hidden), act()]
                features = hidden
            elif family == "linear":
                block = nn.Linear(inputs, inputs)
                block.weight.data += torch.eye(inputs)
                layers += [block, act()]
            else:
                layers += [Residual(nn.Sequential(nn.Linear(inputs, hidden), act(), nn.Linear(hidden, inputs)))]
        return nn.Sequential(*layers, nn.Linear(features, classes)).eval()


def trained(
    net: nn.Sequential, points_BN: Tensor, labels_B: Tensor, loss: str, radius: float, steps: int = STEPS
) -> nn.Sequential:
    """The network, trained in place: with "emma" against its own product of norms, or with "cross-entropy"."""
    optimiser = torch.optim.Adam(net.parameters(), lr=RATE)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = RATE * (1 - step / steps)
        optimiser.zero_grad()
        logits_BK = net(points_BN)
        if loss == "emma":
            emma_loss(logits_BK, labels_B, _margin_lipschitz(net), radius).backward()
        else:
            F.cross_entropy(logits_BK, labels_B).backward()
        optimiser.step()
    return net.requires_grad_(False)


def _margin_lipschitz(net: nn.Sequential) -> Tensor:
    """K_ij from singular values, differentiable, (K, K)."""
    head_KF = net[-1].weight
    # The added length keeps the slope of the root finite on the diagonal, which the factor then removes.
    apart_KK = (head_KF[:, None] - head_KF[None] + 1e-12).norm(dim=2) * (1 - torch.eye(len(head_KF)))
    return product_over_layers(net[:-1], lambda layer: torch.linalg.matrix_norm(layer.weight, 2)) * apart_KK


@functools.cache
def arms(points: int = 90, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Three curled arms in the plane, (B, 2), and which arm each point is on."""
    rng = np.random.default_rng(seed)
    labels_B = np.repeat(np.arange(3), points // 3)
    length_B = np.tile(np.linspace(0.5, 2.3, points // 3), 3)
    angle_B = 2 * np.pi * labels_B / 3 + 1.25 * length_B + rng.normal(0, 0.22, len(labels_B))
    points_B2 = np.stack([length_B * np.cos(angle_B), length_B * np.sin(angle_B)], axis=1)
    return torch.from_numpy(points_B2).float(), torch.from_numpy(labels_B)


@functools.cache
def projected_digits(inputs: int) -> tuple[Tensor, Tensor]:
    """The training digits on their first principal axes, (B, inputs), in units of pixels in [0, 1], and labels."""
    data = load_dataset("digits")
    images_BN = to_unit(data.train.images_NCHW, data.scale).flatten(1)
    axes_NN = torch.linalg.svd(images_BN - images_BN.mean(0), full_matrices=False)[2]
    return (images_BN - images_BN.mean(0)) @ axes_NN[:inputs].T, data.train.labels_N


def product_over_layers(chain: nn.Sequential, norm: Callable[[nn.Linear], float | Tensor]):
    """Product of the layers' norms, 1 + the branch's product for a residual block, for training and estimates."""
    product = 1
    for layer in chain:
        if isinstance(layer, nn.Linear):
            product = product * norm(layer)
        elif isinstance(layer, Residual):
            product = product * (1 + product_over_layers(layer.branch, norm))
    return product


def proven(chain: nn.Sequential) -> float:
    """The bound that lipcert certifies with, over all layers of the chain."""
    dense = [layer for layer in chain.modules() if isinstance(layer, nn.Linear)]
    # Bounds of a chain leave its head out, so another one is appended; its weights do not matter.
    head = nn.Linear(dense[-1].out_features, 1, bias=False, device="meta").to_empty(device="cpu")
    nn.init.zeros_(head.weight)
    return chain_bounds(nn.Sequential(*chain, head), (dense[0].in_features,)).upper


def estimated(chain: nn.Sequential, steps: int, seed: int = 0) -> float:
    """That product from the power method, cold start, in float64."""
    double = copy.deepcopy(chain).double().requires_grad_(False)
    value = product_over_layers(double, lambda layer: float(norm_estimate(layer, (layer.in_features,), steps, seed)))
    return float(value)
