"""Networks: input sizes, and networks on disk; what each family computes is in test_families.py."""

import json
import math
import pickle
import random

import pytest
import torch
from nets import linear, tiny_model
from safetensors.torch import load_file, save_file
from torch import nn

from lipcert.config import ModelConfig
from lipcert.layers import MinMax, Shift
from lipcert.models import build_model, load, load_network, save_network
from lipcert.settings import ConfigError


@pytest.mark.parametrize(("size", "width"), [(8, 4), (28, 4), (32, 4), (64, 4), (224, 48)])
@pytest.mark.parametrize("neck", ["orthogonal", "dense", "conv_dense"])
def test_every_input_size_runs(size, width, neck):
    channels = 1 if size in (8, 28) else 3
    model = tiny_model(depth=1, width=width, channels=channels, input_size=size, neck=neck, classes=3)
    images = torch.rand(2, channels, size, size)
    with torch.no_grad():
        logits = model(images)
        assert logits.shape == (2, 3) and logits.isfinite().all()
        torch.testing.assert_close(model.plain()(images), logits, rtol=1e-4, atol=1e-5)
        assert float(model.lipschitz_estimate(2)) > 0


def test_mnist_images_are_padded_without_losing_their_units():
    model = tiny_model(input_size=28)
    image = torch.rand(1, 1, 28, 28)
    assert model.backbone.pad(image).norm().item() == pytest.approx(image.norm().item())


@pytest.mark.parametrize("size", [7, 10, 100, 33])
def test_impossible_sizes_name_the_possible_ones(size):
    with pytest.raises(ConfigError) as refusal:
        tiny_model(input_size=size)
    assert f"input_size={size}" in str(refusal.value)
    assert all(str(known) in str(refusal.value) for known in (8, 28, 32, 64, 224))


def test_a_stem_that_leaves_too_little_is_refused():
    with pytest.raises(ConfigError, match="7x7/4"):
        tiny_model(stem="7x7/4", input_size=8)


def test_patches_of_a_narrow_net_have_at_least_one_pixel():
    assert tiny_model(stem="patch", width=2, channels=64).backbone.stem.conv.kernel_size == (1, 1)


@pytest.mark.parametrize("init", ["orthogonal", "glorot"])
def test_gloro_weights_start_as_the_recipes_say(init):
    network = build_model(ModelConfig(family="gloro", depth=4, init=init, width=16, neck_width=64))
    for key, parameter in network.named_parameters():
        if "bias" in key:
            assert not parameter.any()
            continue
        matrix = parameter.detach().flatten(1)
        if init == "orthogonal":
            short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
            torch.testing.assert_close(short @ short.T, torch.eye(len(short)), rtol=1e-4, atol=1e-5)
        else:
            window = parameter[0, 0].numel() if parameter.ndim > 2 else 1
            limit = math.sqrt(6 / (window * sum(parameter.shape[:2])))
            assert 0.9 * limit < matrix.abs().max() <= limit


# --- on disk ----------------------------------------------------------------------------------------------------------

CARD = {
    "dataset": "digits", "classes": None, "class_seed": 2023, "class_names": list("0123456789"),
    "input_shape": [1, 8, 8], "radius": "36/255",
}  # fmt: skip


@pytest.fixture
def stored(tmp_path):
    chain = tiny_model().plain()
    path = tmp_path / "net.safetensors"
    save_network(chain, path, CARD)
    return chain, path


def test_round_trip_is_bit_exact(stored):
    chain, path = stored
    for given in (path, str(path), path.with_suffix("")):
        again = load_network(given)
        assert again.card.items() >= CARD.items() and not again.training
        assert list(again.state_dict()) == list(chain.state_dict())
        assert all(
            torch.equal(a, b) for a, b in zip(again.state_dict().values(), chain.state_dict().values(), strict=True)
        )
        assert all(not p.requires_grad for p in again.parameters())
        images = torch.rand(2, 1, 8, 8)
        assert torch.equal(again(images), chain(images))
    assert not list(path.parent.glob("*.partial"))


def test_round_trip_of_every_kind_and_odd_geometry(tmp_path):
    chain = nn.Sequential(
        nn.ZeroPad2d((1, 0, 2, 1)), Shift(0.25), MinMax(),
        nn.Conv2d(2, 4, (3, 1), (2, 1), (1, 0), groups=2, bias=False),
        nn.Conv2d(4, 2, 3, padding="same", padding_mode="circular", dilation=2), nn.ReLU(), nn.Identity(), nn.Flatten(),
        nn.Linear(2 * 5 * 7, 3, bias=False),
    ).eval()  # fmt: skip
    images = torch.rand(2, 2, 6, 6)
    save_network(chain, tmp_path / "odd.safetensors", CARD)
    assert torch.equal(load_network(tmp_path / "odd")(images), chain(images))


def test_unknown_networks_are_named(results):
    with pytest.raises(FileNotFoundError, match="no-such-net"):
        load("no-such-net")


def test_truncated_files_are_refused(stored):
    _, path = stored
    whole = path.read_bytes()
    for size in (0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="damaged"):
            load_network(path)


def test_flipped_bits_are_refused_or_harmless(stored):
    chain, path = stored
    whole, rng = path.read_bytes(), random.Random(0)
    undetected = 0
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(damaged))
        try:
            again = load_network(path)
        except ValueError:
            continue
        same = all(torch.equal(a, b) for a, b in zip(again.parameters(), chain.parameters(), strict=True))
        undetected += not same
    assert undetected == 0


def rewrite(path, change_geometry=lambda layers: None, change_tensors=lambda tensors: None):
    """The stored file with other contents, as a careless or hostile author would write it."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    layers, tensors = json.loads(metadata["geometry"]), load_file(path)
    layers = change_geometry(layers) or layers
    change_tensors(tensors)
    save_file(tensors, path, metadata=metadata | {"geometry": json.dumps(layers)})


HOSTILE = {
    "unknown kind": {"change_geometry": lambda g: g[0].update(kind="BatchNorm2d")},
    "kind with a path": {"change_geometry": lambda g: g[0].update(kind="os.system")},
    "missing kind": {"change_geometry": lambda g: g[0].pop("kind") and None},
    "extra argument": {"change_geometry": lambda g: g[0].update(device="cuda")},
    "missing argument": {"change_geometry": lambda g: g[1].pop("stride") and None},
    "layer left out": {"change_geometry": lambda g: g.pop(1) and None},
    "other width": {"change_geometry": lambda g: g[-1].update(in_features=3)},
    "not a list": {"change_geometry": lambda g: {"layers": 1}},
    "list of text": {"change_geometry": lambda g: ["Linear"]},
    "name with a dot": {"change_geometry": lambda g: g[0].update(name="a.b")},
    "NaN weight": {"change_tensors": lambda t: t["head.weight"].fill_(float("nan"))},
    "infinite bias": {"change_tensors": lambda t: t["head.bias"].fill_(float("inf"))},
    "float64 weight": {"change_tensors": lambda t: t.update({"head.bias": t["head.bias"].double()})},
    "missing tensor": {"change_tensors": lambda t: t.pop("head.bias")},
    "extra tensor": {"change_tensors": lambda t: t.update(extra=torch.zeros(1))},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(stored, name):
    rewrite(stored[1], **HOSTILE[name])
    with pytest.raises(ValueError, match="damaged or was not written by lipcert"):
        load_network(stored[1])


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


def test_nothing_is_unpickled(stored):
    stored[1].write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="damaged"):
        load_network(stored[1])


@pytest.mark.parametrize("text", ["", "{", "\xff"])
def test_damaged_cards_are_refused(stored, text):
    stored[1].with_suffix(".json").write_bytes(text.encode("latin1"))
    with pytest.raises(ValueError, match="damaged"):
        load_network(stored[1])


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm2d(1), type("Linear", (nn.Linear,), {})(2, 2), nn.Sequential(linear(torch.eye(2)))]
)
def test_other_layers_are_not_stored(tmp_path, layer):
    with pytest.raises(TypeError, match="cannot store"):
        save_network(nn.Sequential(layer), tmp_path / "x.safetensors", CARD)


def test_a_layer_that_stands_twice_is_stored_twice_or_refused(tmp_path):
    double, image = linear(2 * torch.eye(2)), torch.ones(1, 2)
    chain = nn.Sequential(double, double).eval()
    try:
        save_network(chain, tmp_path / "x.safetensors", CARD)
    except (TypeError, ValueError, RuntimeError):
        return
    assert torch.equal(load_network(tmp_path / "x")(image), chain(image))
