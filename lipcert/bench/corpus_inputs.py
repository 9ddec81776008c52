"""Counter-examples in what is handed over: networks that are random when run, images that do not fit."""

from __future__ import annotations

import math

import torch
from torch import nn

from lipcert.bench.corpus import entry, grey, nothing, pair
from lipcert.bench.edge import convolution, frozen
from lipcert.bench.verdict import Case

RANDOM = "evaluation left in training mode: the network certified is not the one that runs"
UNITS = "radii are in units of the input tensor"
CAUGHT = "alpha-beta-CROWN issue 83: a swallowed assertion verified every instance"


def _training(*middle: nn.Module, only_layer: bool = False) -> Case:
    model = pair(*middle)
    (model[2] if only_layer else model).train()
    return nothing(model, torch.tensor([0.5, 0.5, 0.25, 0.75]).reshape(2, 1, 1, 2))


def _of_255() -> Case:
    """z = (x - 1, 0) for one pixel of 102: class 0, and class 1 for the same pixel divided by 255."""
    model = nn.Sequential(nn.Flatten(), frozen(torch.tensor([[1.0], [0.0]]), torch.tensor([-101.875, 0.0]))).eval()
    return Case(model, torch.full((1, 1, 1, 1), 102.0), ((0, torch.full((1, 1, 1), 101.8)),))


def _bytes(dtype: torch.dtype) -> Case:
    model = nn.Sequential(nn.Flatten(), frozen(torch.tensor([[1.0], [0.0]]), torch.tensor([-101.875, 0.0]))).eval()
    images = torch.full((1, 1, 1, 1), 102, dtype=dtype)
    return Case(model, images, ((0, torch.full((1, 1, 1), 101.8)),))


def _conv_net() -> nn.Sequential:
    return nn.Sequential(convolution(torch.ones(1, 2, 1, 1)), nn.Flatten(), frozen(torch.eye(2, 4))).eval()


def _flatten_all() -> Case:
    model = nn.Sequential(nn.Flatten(0, -1), frozen(torch.eye(2), torch.tensor([0.25, 0.0]))).eval()
    return nothing(model, grey())


def _broadcast() -> Case:
    """A layer of one input on a map of two columns: torch sums nothing and adds a dimension instead of failing."""
    model = nn.Sequential(frozen(torch.eye(2)), frozen(torch.eye(2), torch.tensor([0.25, 0.0]))).eval()
    return nothing(model, grey())


def _no_head() -> Case:
    return nothing(nn.Sequential(nn.Flatten(), nn.Sigmoid()).eval(), torch.tensor([[[[0.25, 0.75]]]]))


NOTHING_FITS = "input that the network does not take"
ENTRIES = [
    entry("random networks", "dropout left on", RANDOM, lambda: _training(nn.Dropout(0.5))),
    entry(
        "random networks", "one dropout in training mode", RANDOM, lambda: _training(nn.Dropout(0.5), only_layer=True)
    ),
    entry("random networks", "BatchNorm in training mode", RANDOM, lambda: _training(nn.BatchNorm1d(2))),
    entry(
        "random networks",
        "one BatchNorm in training mode",
        RANDOM,
        lambda: _training(nn.BatchNorm1d(2), only_layer=True),
    ),
    entry("random networks", "alpha dropout left on", RANDOM, lambda: _training(nn.AlphaDropout(0.5))),
    entry("random networks", "RReLU in training mode", RANDOM, lambda: _training(nn.RReLU(0.1, 3.0))),
    entry("images", "pixels up to 255", UNITS, _of_255),
    entry("images", "uint8 pixels", UNITS, lambda: _bytes(torch.uint8)),
    entry("images", "int64 pixels", UNITS, lambda: _bytes(torch.int64)),
    entry("images", "NaN pixels", CAUGHT, lambda: nothing(pair(), grey() * math.nan)),
    entry("images", "one NaN pixel", CAUGHT, lambda: nothing(pair(), torch.tensor([[[[0.5, math.nan]]]]))),
    entry("images", "infinite pixel", CAUGHT, lambda: nothing(pair(), torch.tensor([[[[0.5, -math.inf]]]]))),
    entry("images", "complex pixels", CAUGHT, lambda: nothing(pair(), grey().to(torch.complex64))),
    entry("images", "empty batch", NOTHING_FITS, lambda: nothing(pair(), grey()[:0])),
    entry("images", "no batch dimension", NOTHING_FITS, lambda: nothing(pair(), grey()[0])),
    entry("images", "no dimensions", NOTHING_FITS, lambda: nothing(pair(), torch.tensor(0.5))),
    entry("images", "one pixel too many", NOTHING_FITS, lambda: nothing(pair(), grey((1, 1, 3)))),
    entry("images", "wrong channels", NOTHING_FITS, lambda: nothing(_conv_net(), grey((3, 2, 2)))),
    entry("images", "wrong height", NOTHING_FITS, lambda: nothing(_conv_net(), grey((2, 4, 4)))),
    entry("chains", "the batch is flattened too", NOTHING_FITS, _flatten_all),
    entry("chains", "dense layers on unflattened images", NOTHING_FITS, _broadcast),
    entry("chains", "no layers", NOTHING_FITS, lambda: nothing(nn.Sequential().eval(), grey())),
    entry(
        "chains",
        "no linear layer at the end",
        NOTHING_FITS,
        _no_head,
    ),
]
