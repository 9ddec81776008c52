"""What the certifier must refuse, or abstain from."""

import math
from collections import OrderedDict

import pytest
import torch
from nets import grey, identity_net, linear, shift_net, signed_permutation, tiny_model
from torch import nn
from torch.nn.utils import parametrizations

from lipcert.certify import ABSTAIN, certify, vra
from lipcert.chain import NotCertifiable
from lipcert.layers import MinMax, Residual

REFUSED = (NotCertifiable, TypeError, ValueError, ArithmeticError, NotImplementedError, RuntimeError)


class Triple(nn.Module):
    def forward(self, x):
        return 3 * x


class Louder(nn.Sequential):
    """Looks like a chain and computes something else."""

    def forward(self, x):
        return super().forward(100 * (x - 0.5) + 0.5)


def louder(module, inputs):
    return (100 * (inputs[0] - 0.5) + 0.5,)


def with_layer(layer):
    net = identity_net()
    return nn.Sequential(net[0], net[1], layer, net[2]).eval()


def in_training(net):
    net[2].train()
    return net


def hooked(place, kind="register_forward_pre_hook"):
    net = identity_net()
    target = net if place is None else net[place]
    getattr(target, kind)(louder if "pre" in kind else lambda module, inputs, output: 100 * output)
    return net


def replaced(place):
    net = identity_net()
    target = net if place is None else net[place]
    original = target.forward
    target.forward = lambda x: original(100 * (x - 0.5) + 0.5)
    return net


def three_channel_minmax():
    return nn.Sequential(
        nn.Flatten(), linear([[1.0, 0], [0, 1], [1, 1]]), MinMax(), linear(torch.eye(2, 4), [3.0, 0])
    ).eval()


def training(net):
    return net.train()


def nan_weight():
    net = identity_net()
    net[1].weight[0, 0] = math.nan
    return net


def infinite_weight():
    net = identity_net()
    net[1].weight[0, 0] = math.inf
    return net


class Renamed(nn.Linear):
    def forward(self, x):
        return 100 * super().forward(x)


REFUSALS = {
    "BatchNorm": lambda: certify(with_layer(nn.BatchNorm1d(2)), grey()),
    "BatchNorm on images": lambda: certify(nn.Sequential(nn.BatchNorm2d(1), *identity_net()).eval(), grey()),
    "LayerNorm": lambda: certify(with_layer(nn.LayerNorm(2)), grey()),
    "Dropout in training mode": lambda: certify(in_training(with_layer(nn.Dropout())), grey()),
    "Softmax": lambda: certify(with_layer(nn.Softmax(1)), grey()),
    "GELU": lambda: certify(with_layer(nn.GELU()), grey()),
    "LeakyReLU": lambda: certify(with_layer(nn.LeakyReLU(3.0)), grey()),
    "average pooling": lambda: certify(nn.Sequential(nn.AvgPool2d(1), *identity_net()).eval(), grey()),
    "upsampling": lambda: certify(nn.Sequential(nn.Upsample(scale_factor=1), *identity_net()).eval(), grey()),
    "custom module": lambda: certify(with_layer(Triple()), grey()),
    "nested Sequential": lambda: certify(with_layer(nn.Sequential(Triple())), grey()),
    "subclass of Linear": lambda: certify(with_layer(Renamed(2, 2)), grey()),
    "no Linear at the end": lambda: certify(nn.Sequential(nn.Flatten(), nn.ReLU()).eval(), grey()),
    "spectral_norm": lambda: certify(with_layer(parametrizations.spectral_norm(nn.Linear(2, 2))), grey()),
    "weight_norm": lambda: certify(with_layer(parametrizations.weight_norm(nn.Linear(2, 2))), grey()),
    "parametrised head": lambda: certify(
        nn.Sequential(nn.Flatten(), parametrizations.spectral_norm(nn.Linear(2, 2))).eval(), grey()
    ),
    "hook on a layer": lambda: certify(hooked(1), grey()),
    "output hook on a layer": lambda: certify(hooked(1, "register_forward_hook"), grey()),
    "hook on the head": lambda: certify(hooked(-1), grey()),
    "output hook on the head": lambda: certify(hooked(-1, "register_forward_hook"), grey()),
    "hook on the chain": lambda: certify(hooked(None), grey()),
    "output hook on the chain": lambda: certify(hooked(None, "register_forward_hook"), grey()),
    "replaced forward of a layer": lambda: certify(replaced(1), grey()),
    "replaced forward of the head": lambda: certify(replaced(-1), grey()),
    "replaced forward of the chain": lambda: certify(replaced(None), grey()),
    "subclass of Sequential": lambda: certify(Louder(*identity_net()).eval(), grey()),
    "MinMax over three features": lambda: certify(three_channel_minmax(), grey()),
    "Shift by a tensor that broadcasts": lambda: certify(shift_net(torch.zeros(1, 2, 1, 1)), grey()[..., :1]),
    "padding of flat features": lambda: certify(
        nn.Sequential(nn.Flatten(), nn.ZeroPad2d(1), linear(torch.eye(2, 4), [1.0, 0.0])).eval(), grey()
    ),
    "Flatten of the batch": lambda: certify(
        nn.Sequential(nn.Flatten(0, -1), linear(torch.eye(2), [1.0, 0.0])).eval(), grey()
    ),
    "bare Linear": lambda: certify(linear(torch.eye(2)), grey()),
    "plain function": lambda: certify(lambda x: x, grey()),
    "empty chain": lambda: certify(nn.Sequential().eval(), grey()),
    "training mode": lambda: certify(identity_net().train(), grey()),
    "NaN weight": lambda: certify(nan_weight(), grey()),
    "infinite weight": lambda: certify(infinite_weight(), grey()),
    "uint8 images": lambda: certify(identity_net(), torch.zeros(1, 1, 1, 2, dtype=torch.uint8)),
    "int64 images": lambda: certify(identity_net(), torch.zeros(1, 1, 1, 2, dtype=torch.long)),
    "pixels to 255": lambda: certify(identity_net(), grey() * 255),
    "pixels below 0": lambda: certify(identity_net(), grey() - 0.6),
    "NaN pixel": lambda: certify(identity_net(), grey() * math.nan),
    "infinite pixel": lambda: certify(identity_net(), grey() * math.inf),
    "empty batch": lambda: certify(identity_net(), grey()[:0]),
    "no batch dimension": lambda: certify(identity_net(), grey()[0]),
    "wrong size": lambda: certify(identity_net(), torch.zeros(1, 1, 1, 3)),
    "wrong channels": lambda: certify(tiny_model().plain(), torch.zeros(1, 3, 8, 8)),
    "wrong size of a LiResNet": lambda: certify(tiny_model().plain(), torch.zeros(1, 1, 16, 16)),
    "norm linf": lambda: certify(identity_net(), grey(), norm="linf"),
    "method interval": lambda: certify(identity_net(), grey(), method="interval"),
    "guarantee unknown": lambda: certify(identity_net(), grey(), guarantee="certain"),
    "guarantee estimated": lambda: certify(identity_net(), grey(), guarantee="estimated"),
    "arithmetic bfloat16": lambda: certify(identity_net(), grey(), arithmetic="bfloat16"),
    "weights that float32 cannot hold": lambda: certify(
        nn.Sequential(nn.Flatten(), linear([[0.1, 0.0], [0.0, 1.0]], [1.0, 0.0], torch.float64)).eval(),
        grey(),
        arithmetic="float32",
    ),
    "effort unknown": lambda: certify(identity_net(), grey(), effort="hard"),
    "reflecting convolution": lambda: certify(
        nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), nn.Flatten(), nn.Linear(16, 2)).eval(),
        torch.zeros(1, 1, 4, 4),
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refused(name):
    with pytest.raises(REFUSED) as refusal:
        REFUSALS[name]()
    assert len(str(refusal.value)) > 15


def test_a_refused_layer_is_named_with_its_place():
    net = nn.Sequential()
    for name, layer in (("first", nn.Flatten()), ("norm", nn.BatchNorm1d(2)), ("head", linear(torch.eye(2)))):
        net.add_module(name, layer)
    with pytest.raises(TypeError, match="BatchNorm1d at 'norm'"):
        certify(net.eval(), grey())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("tensor", ["stem.weight", "stem.bias", "block.branch.dense.bias", "head.weight", "head.bias"])
def test_a_tensor_that_is_not_finite_is_named(tensor, value):
    branch = nn.Sequential(OrderedDict(dense=linear(torch.eye(2), [0.0, 0.0])))
    stem, head = linear(torch.eye(2), [0.0, 0.0]), linear(torch.eye(2), [1.0, 0.0])
    layers = OrderedDict(flatten=nn.Flatten(), stem=stem, block=Residual(branch), head=head)
    net = nn.Sequential(layers).eval()
    assert certify(net, grey()).prediction_B.tolist() == [0], "refused for another reason"
    net.state_dict()[tensor].view(-1)[-1] = value
    with pytest.raises(NotCertifiable, match=rf"{tensor} holds {value}: .* must be finite; .* again"):
        certify(net, grey())


ABSTENTIONS = {
    "NaN bias of the head": lambda: linear(torch.eye(2), [math.nan, 0.0]),
    "infinite bias of the head": lambda: linear(torch.eye(2), [math.inf, 0.0]),
    "NaN weight of the head": lambda: linear([[math.nan, 0.0], [0.0, 1.0]]),
    "infinite weight of the head": lambda: linear([[math.inf, 0.0], [0.0, 1.0]]),
    "tie": lambda: linear(torch.eye(2)),
    "float64 head that overflows": lambda: linear([[1e200, 0], [0, 1e200]], [1.0, 0.0], torch.float64),
}


@pytest.mark.parametrize("name", ABSTENTIONS)
def test_abstains_or_refuses(name):
    net = nn.Sequential(nn.Flatten(), linear(torch.eye(2)), ABSTENTIONS[name]()).eval()
    try:
        result = certify(net, grey(2))
    except REFUSED:
        return
    assert result.prediction_B.tolist() == [ABSTAIN] * 2
    assert result.radius_B.tolist() == [0.0] * 2
    assert vra(result, torch.zeros(2, dtype=torch.long), "0") == 0


def test_a_layer_that_stands_twice_counts_twice_or_is_refused():
    tenfold = linear(10 * torch.eye(2))
    head = linear(torch.eye(2), [1.0, 0.0])
    apart = nn.Sequential(nn.Flatten(), linear(10 * torch.eye(2)), linear(10 * torch.eye(2)), head).eval()
    truth = certify(apart, grey()).radius_B
    try:
        tied = certify(nn.Sequential(nn.Flatten(), tenfold, tenfold, head).eval(), grey())
    except REFUSED:
        return
    assert torch.equal(tied.radius_B, truth)


def test_an_activation_that_stands_twice_is_no_loophole():
    activation, generator = MinMax(), torch.Generator().manual_seed(0)
    first, second = (linear(signed_permutation(4, generator)) for _ in range(2))
    head = linear(torch.randn(2, 4, generator=generator))
    image = torch.rand(1, 1, 2, 2, generator=generator)
    apart = certify(nn.Sequential(nn.Flatten(), first, MinMax(), second, MinMax(), head).eval(), image)
    try:
        shared = certify(nn.Sequential(nn.Flatten(), first, activation, second, activation, head).eval(), image)
    except REFUSED:
        return
    assert torch.equal(shared.logits_BK, apart.logits_BK) and torch.equal(shared.radius_B, apart.radius_B)
