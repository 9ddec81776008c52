"""What has no bound is refused by name, with the value, the rule and the way out: never bounded by a guess."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lipcert.bounds import Enclosure, norm_bound


def refused(layer, shape, error, match, **options):
    with pytest.raises(error, match=match):
        norm_bound(layer, shape, **options)


def test_unknown_layers_are_refused():
    refused(nn.BatchNorm2d(3), (3, 4, 4), TypeError, "no l2 bound for BatchNorm2d")
    refused(nn.Conv1d(3, 3, 1), (3, 4), TypeError, "no l2 bound for Conv1d")
    refused(nn.ConvTranspose2d(3, 3, 1), (3, 4, 4), TypeError, "no l2 bound for ConvTranspose2d")
    refused(nn.Sequential(nn.Linear(2, 2)), (2,), TypeError, "no l2 bound for Sequential")
    refused(nn.utils.parametrizations.orthogonal(nn.Linear(2, 2)), (2,), TypeError, "ParametrizedLinear")
    hooked = nn.Linear(2, 2)
    hooked.register_forward_hook(lambda module, inputs, outputs: 3 * outputs)
    refused(hooked, (2,), TypeError, "forward hooks")

    replaced = nn.Linear(2, 2)
    replaced.forward = lambda features: 3 * features
    refused(replaced, (2,), TypeError, "replaced forward")

    class Masked(torch.Tensor):
        pass

    masked = nn.Linear(2, 2)
    masked.weight = nn.Parameter(torch.ones(2, 2).as_subclass(Masked))
    refused(masked, (2,), TypeError, "weights of Masked")

    class Doubled(nn.Linear):
        def forward(self, features):
            return 2 * super().forward(features)

    refused(Doubled(2, 2), (2,), TypeError, "no l2 bound for Doubled")


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_other_paddings_are_refused(mode):
    negative = nn.Conv2d(1, 1, 3)
    negative.padding = (-1, 0)
    refused(negative, (1, 6, 6), ValueError, "negative")
    refused(nn.Conv2d(1, 1, 3, padding=1, padding_mode=mode), (1, 4, 4), ValueError, mode)


def test_circular_padding_outside_the_lemma_is_refused():
    refused(nn.Conv2d(1, 1, 3, stride=2, padding=1, padding_mode="circular"), (1, 5, 4), ValueError, "circular")
    refused(nn.Conv2d(1, 1, 3, padding=2, padding_mode="circular"), (1, 4, 4), ValueError, "circular")


@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 4), (2, 4, 4, 4), (1, 2, 4, 4), (2, 0, 4), (2, 2, 2)])
def test_wrong_input_shapes_are_refused(shape):
    refused(nn.Conv2d(2, 2, 3), shape, ValueError, "input_shape")
    refused(nn.Linear(5, 2), shape, ValueError, "input_shape")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(bad):
    layer = nn.Linear(2, 2)
    layer.weight.data[0, 1] = bad
    refused(layer, (2,), ValueError, "must be finite")


def test_weights_of_other_kinds_are_refused():
    layer = nn.Linear(2, 2)
    for weight in (torch.ones(2, 2, dtype=torch.int64), torch.ones(2, 2, dtype=torch.complex64), torch.ones(0, 2)):
        layer.weight = nn.Parameter(weight, requires_grad=False)
        refused(layer, (2,), ValueError, "weights of")
    refused(nn.Linear(2, 2, device="meta"), (2,), ValueError, "weights of")


def test_other_norms_and_efforts_are_refused():
    layer = nn.Linear(2, 2)
    refused(layer, (2,), ValueError, "norm='linf'", norm="linf")
    refused(layer, (2,), ValueError, "effort='quick'", effort="quick")


@pytest.mark.parametrize("ends", [(2.0, 1.0), (float("nan"), 1.0), (0.0, float("nan")), (-1.0, 1.0)])
def test_what_is_no_enclosure_is_refused(ends):
    with pytest.raises(ArithmeticError, match="not an enclosure"):
        Enclosure(*ends, "matrix")
