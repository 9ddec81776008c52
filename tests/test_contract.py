"""The contract of an l2 map: every kind in lipcert, at several sizes, keeps the same promises.

Truth is dense: `stretch.constant`, in float64. The maps of l_inf have theirs in test_linf_training.
"""

import importlib
import pkgutil
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from stretch import constant, images, steepest
from torch import nn
from torch.func import functional_call

import lipcert
from lipcert.blocks import ConvStack, LinearResidualStack, ResidualStack
from lipcert.bounds import norm_bound
from lipcert.chain import chain_bounds
from lipcert.layers import Conv, Dense, Flatten, Head, Map, MinMax, NormalizedHead, ReLU, Shift, ZeroPad
from lipcert.models import load_network, save_network
from lipcert.orthogonal import OrthogonalDense, OrthogonalPatchConv, OrthogonalResidualStack

RIDGED = (OrthogonalPatchConv, OrthogonalDense, OrthogonalResidualStack)  # the ridge is held constant in the gradient
ROUNDING = 1e-9  # of a stretch measured in float64
TIGHT = 3e-9  # how far a proven bound of one small layer may exceed the truth; `norm_bound` says 2e-9


def conv(inputs, outputs, kernel, stride, padding, size):
    return lambda: Conv(inputs, outputs, kernel, stride, padding, size), (inputs, size, size)


def dense(inputs, outputs, kind=Dense):
    return lambda: kind(inputs, outputs), (inputs,)


def stack(kind, depth, width, size, activation="minmax", **settings):
    return lambda: kind(depth, width, size, activation, **settings), (width, size, size)


def patches(inputs, outputs, kernel, size):
    return lambda: OrthogonalPatchConv(inputs, outputs, kernel), (inputs, size, size)


CASES = {  # name, beginning with that of the class -> maker, shape of one input
    "MinMax": (MinMax, (4, 3, 5)),
    "MinMax of features": (MinMax, (6,)),
    "ReLU": (ReLU, (3, 4, 4)),
    "ReLU of features": (ReLU, (5,)),
    "Shift": (Shift, (2, 3, 4)),
    "Shift by another amount": (lambda: Shift(-1.25), (1, 4, 4)),
    "ZeroPad": (lambda: ZeroPad(2), (1, 3, 4)),
    "ZeroPad by nothing": (lambda: ZeroPad(0), (2, 3, 3)),
    "Flatten": (Flatten, (2, 3, 4)),
    "Conv 3x3, same": conv(2, 3, 3, 1, 1, 6),
    "Conv 3x3, valid": conv(3, 2, 3, 1, 0, 5),
    "Conv 1x1": conv(3, 4, 1, 1, 0, 4),
    "Conv 5x5/2, even": conv(1, 4, 5, 2, 2, 8),
    "Conv 5x5/2, odd": conv(2, 3, 5, 2, 2, 7),
    "Conv 7x7/4": conv(1, 3, 7, 4, 3, 9),
    "Conv 4x4/2": conv(2, 4, 4, 2, 1, 6),
    "Conv patches": conv(2, 6, 4, 4, 0, 8),
    "Conv patches with a rest": conv(2, 3, 4, 4, 0, 10),
    "Conv with gaps": conv(1, 2, 2, 3, 0, 8),
    "Conv larger than its image": conv(1, 2, 5, 2, 2, 3),
    "Conv padded more than needed": conv(1, 2, 3, 1, 3, 4),
    "Dense wide": dense(9, 4),
    "Dense tall": dense(3, 8),
    "Dense square": dense(6, 6),
    "Dense of one output": dense(5, 1),
    "Dense of one input": dense(1, 5),
    "Head": dense(6, 3, Head),
    "Head of two classes": dense(4, 2, Head),
    "NormalizedHead": dense(5, 7, NormalizedHead),
    "LinearResidualStack": stack(LinearResidualStack, 3, 4, 5),
    "LinearResidualStack, relu": stack(LinearResidualStack, 2, 2, 6, "relu"),
    "LinearResidualStack, one block": stack(LinearResidualStack, 1, 6, 4),
    "LinearResidualStack, centred": stack(LinearResidualStack, 2, 4, 5, centering=True),
    "LinearResidualStack, centred, relu": stack(LinearResidualStack, 3, 2, 4, "relu", centering=True),
    "LinearResidualStack, one pixel": stack(LinearResidualStack, 2, 4, 1),
    "ConvStack": stack(ConvStack, 3, 4, 5),
    "ConvStack, relu": stack(ConvStack, 2, 2, 6, "relu"),
    "ResidualStack": stack(ResidualStack, 2, 4, 5),
    "ResidualStack, relu": stack(ResidualStack, 3, 2, 4, "relu"),
    "ResidualStack, one block": stack(ResidualStack, 1, 2, 6),
    "OrthogonalPatchConv wide": patches(2, 4, 4, 8),
    "OrthogonalPatchConv tall": patches(1, 6, 2, 6),
    "OrthogonalDense wide": dense(8, 4, OrthogonalDense),
    "OrthogonalDense tall": dense(3, 7, OrthogonalDense),
    "OrthogonalDense square": dense(5, 5, OrthogonalDense),
    "OrthogonalResidualStack": (lambda: OrthogonalResidualStack(3, 6), (6,)),
    "OrthogonalResidualStack, one layer": (lambda: OrthogonalResidualStack(1, 4), (4,)),
}
HEADS = [name for name in CASES if "Head" in name]
ESTIMATED = [name for name in CASES if name not in HEADS]
# A plain float says "at most 1 by construction".
ONE_LIPSCHITZ = [name for name in ESTIMATED if isinstance(CASES[name][0]().norm_estimate(1), float)]
LEARNT = [name for name in ESTIMATED if name not in ONE_LIPSCHITZ]
CENTRED = [name for name in CASES if "centred" in name]


def prepared(name: str, dtype: torch.dtype = torch.float64) -> tuple[Map, tuple[int, ...]]:
    """The map, away from its initial weights, in evaluation mode; and the shape of one input."""
    torch.manual_seed(list(CASES).index(name))
    layer = CASES[name][0]()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
        if name in CENTRED:
            layer.mean_LO.normal_()
    return layer.to(dtype).eval(), CASES[name][1]


def plain_chain(layer: Map, shape: tuple[int, ...]) -> nn.Sequential:
    """The plain form with a head of two classes behind it."""
    parts = [*layer.plain(), nn.Flatten()]
    features = nn.Sequential(*parts)(torch.zeros(1, *shape)).shape[1]
    return nn.Sequential(*parts, nn.Linear(features, 2)).requires_grad_(False).eval()


def test_every_map_is_in_the_table():
    for module in pkgutil.walk_packages(lipcert.__path__, "lipcert."):
        if not re.search(r"\.(bench|report|__main__|linf)", module.name):
            importlib.import_module(module.name)
    subclasses, todo = set(), [Map]
    while todo:
        found = todo.pop().__subclasses__()
        todo += found
        subclasses |= {kind.__name__ for kind in found if re.match(r"lipcert\.(?!bench|linf)", kind.__module__)}
    tested = {type(maker()).__name__ for maker, _ in CASES.values()}
    assert subclasses == tested, f"not in CASES on top of this file: {', '.join(sorted(subclasses - tested))}"
    assert all(name.startswith(type(maker()).__name__) for name, (maker, _) in CASES.items())


# --- norms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ESTIMATED)
def test_the_estimate_stays_below_the_dense_norm_and_gets_there(name):
    layer, shape = prepared(name)
    truth = constant(layer, shape)
    if name in ONE_LIPSCHITZ:
        assert layer.norm_estimate(500) == 1.0 and truth <= 1 + 1e-12
        return
    with torch.no_grad():
        assert float(layer.norm_estimate(1)) <= truth * (1 + 1e-12)
        assert truth * (1 - 1e-3) <= float(layer.norm_estimate(500)) <= truth * (1 + 1e-12)
        assert float(prepared(name, torch.float32)[0].norm_estimate(50)) <= truth * (1 + 1e-6)


@pytest.mark.parametrize("name", HEADS)
def test_heads_have_distances_instead_of_an_estimate(name):
    layer, shape = prepared(name)
    with pytest.raises(NotImplementedError, match=type(layer).__name__):
        layer.norm_estimate(1)
    with torch.no_grad():
        rows_KF = (layer(torch.eye(shape[0], dtype=torch.float64)) - layer(torch.zeros(1, *shape).double())).T.numpy()
    pairs = rows_KF[:, None] - rows_KF[None]
    np.testing.assert_allclose(layer.distances().detach(), np.linalg.norm(pairs, axis=2), rtol=1e-12, atol=1e-14)
    chain = nn.Sequential(*layer.plain())
    rows_KF = chain[0].weight.double().numpy()
    exact, proven = np.linalg.norm(rows_KF[:, None] - rows_KF[None], axis=2), chain_bounds(chain, shape)
    assert (proven.distances_KK.numpy() >= exact).all()
    np.testing.assert_allclose(proven.margin_lipschitz_KK, exact, rtol=1e-12, atol=1e-150)


@pytest.mark.parametrize("name", ESTIMATED)
def test_the_proven_bound_is_above_the_dense_norm_and_close(name):
    layer, shape = prepared(name, torch.float32)
    chain = nn.Sequential(*layer.plain()).double()
    truth = constant(chain, shape)
    affine = [part for part in chain.modules() if isinstance(part, (nn.Linear, nn.Conv2d))]
    for effort in ("fast", "tight"):
        bounds = chain_bounds(plain_chain(layer, shape), shape, effort)
        assert bounds.lower <= truth <= bounds.upper <= truth * (1 + TIGHT) ** len(affine)
        if not affine:
            assert bounds.lower == bounds.upper == 1.0


@pytest.mark.parametrize("name", [name for name in ESTIMATED if name.startswith(("Conv ", "Dense"))])
def test_one_layer_has_one_norm(name):
    layer, shape = prepared(name, torch.float32)
    (part,) = layer.plain()
    found, truth = norm_bound(part, shape), constant(part.double(), shape)
    assert truth * (1 - 1e-6) <= found.lower <= truth <= found.upper <= truth * (1 + TIGHT)


@pytest.mark.parametrize("name", LEARNT)
def test_the_gradient_of_the_estimate_is_that_of_the_norm(name):
    layer, shape = prepared(name)
    parameters = {key: p for key, p in layer.named_parameters() if "bias" not in key}
    with torch.no_grad():
        for parameter in parameters.values():
            if parameter.ndim > 1:
                parameter.abs_()  # the top singular value of a positive matrix is far from the next one
    layer.norm_estimate(150).backward()
    way = {key: torch.randn_like(p) for key, p in parameters.items()}
    slope = sum(float((way[key] * p.grad).sum()) for key, p in parameters.items())
    ends = []
    for step in (1e-5, -2e-5):
        with torch.no_grad():
            for key, parameter in parameters.items():
                parameter += step * way[key]
        ends.append(constant(layer, shape))
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-5)
    assert all(p.grad is None for key, p in layer.named_parameters() if key not in parameters)


@pytest.mark.parametrize("name", ESTIMATED)
def test_no_pair_of_inputs_beats_the_bound(name):
    layer, shape = prepared(name, torch.float32)
    chain = nn.Sequential(*layer.plain())
    upper = chain_bounds(plain_chain(layer, shape), shape).upper
    chain.double()
    with torch.no_grad():
        near, far = images(shape, 200), images(shape, 200)
        for other in (far, near + 0.01 * far):
            stretch = (chain(near) - chain(other)).flatten(1).norm(dim=1) / (near - other).flatten(1).norm(dim=1)
            assert stretch.max() <= upper * (1 + ROUNDING)
    found = steepest(chain, shape, 40)
    assert found <= upper * (1 + ROUNDING)
    if not any(isinstance(part, (nn.ReLU, MinMax, ReLU)) for part in chain.modules()):
        assert found >= 0.9 * upper, "the search is no use: it misses the norm of a linear map"


# --- modes, gradients, storage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in CASES if name not in CENTRED])
def test_training_and_evaluation_compute_the_same(name):
    layer, shape = prepared(name)
    x = images(shape)
    assert torch.equal(layer.train()(x), layer.eval()(x))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_gradient_of_the_map(name, training):
    layer, shape = prepared(name)
    if isinstance(layer, RIDGED):
        learnt = {key: p for key, p in layer.named_parameters() if "bias" in key}
    else:
        learnt = dict(layer.named_parameters())
    layer.train(training)

    def f(x, *values):
        return functional_call(layer, dict(zip(learnt, values, strict=True)), x)

    assert torch.autograd.gradcheck(f, (images(shape).requires_grad_(), *learnt.values()), fast_mode=True)


@pytest.mark.parametrize("name", CASES)
def test_the_plain_form_is_the_same_map(name):
    layer, shape = prepared(name, torch.float32)
    chain, x = nn.Sequential(*layer.plain()), images(shape, dtype=torch.float32)
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in chain.parameters())
    assert not any(isinstance(part, Map) and part.state_dict() for part in chain.modules())
    with torch.no_grad():
        torch.testing.assert_close(chain(x), layer(x), rtol=1e-5, atol=1e-5)
        before = chain(x).clone()
        # Against the map in double, which has the weights before they were rounded to float32.
        torch.testing.assert_close(chain.double()(x.double()), layer.double()(x.double()), rtol=1e-5, atol=1e-5)
        for tensor in layer.state_dict().values():
            tensor.mul_(3)
        assert torch.equal(chain.float()(x), before), "the plain form must not share memory with the map"


@pytest.mark.parametrize("name", CASES)
def test_a_stored_map_is_the_same_map(name):
    layer, shape = prepared(name, torch.float32)
    x = images(shape, dtype=torch.float32)
    again = CASES[name][0]().eval()
    again.load_state_dict(load(save(layer.state_dict())), strict=True)
    assert torch.equal(again(x), layer(x))
    if name in ESTIMATED:
        assert torch.equal(torch.as_tensor(again.norm_estimate(2)), torch.as_tensor(layer.norm_estimate(2)))


@pytest.mark.parametrize("name", CASES)
def test_a_stored_plain_form_is_the_same_network(name, tmp_path):
    layer, shape = prepared(name, torch.float32)
    chain, x = plain_chain(layer, shape), images(shape, dtype=torch.float32)
    card = dict.fromkeys(("dataset", "classes", "class_seed", "class_names", "radius"))
    save_network(chain, tmp_path / "net.safetensors", card | {"input_shape": list(shape)})
    again = load_network(tmp_path / "net")
    assert torch.equal(again(x), chain(x))
    assert chain_bounds(again, shape).upper == chain_bounds(chain, shape).upper
