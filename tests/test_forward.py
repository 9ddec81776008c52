"""The certifying forward pass against torch's own, and what its bytes do not depend on."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from lipcert.certify import certify
from lipcert.chain import plain_chain
from lipcert.data import load_dataset, to_unit
from lipcert.forward import FORMATS, affine, output_shape, run_chain
from lipcert.layers import MinMax, Shift
from lipcert.models import load_network
from lipcert.paths import ROOT

SHIPPED = str(ROOT / "results" / "models" / "digits-liresnet-L6W32.safetensors")

CONVOLUTIONS = {
    "plain": nn.Conv2d(3, 4, 3),
    "padded": nn.Conv2d(3, 4, 3, padding=1),
    "strided": nn.Conv2d(3, 4, 5, stride=2, padding=2),
    "oblong": nn.Conv2d(3, 6, (2, 5), stride=(1, 3), padding=(0, 4)),
    "dilated": nn.Conv2d(3, 4, 3, dilation=(2, 1), padding=2),
    "groups": nn.Conv2d(3, 9, 3, groups=3, padding=1, bias=False),
    "same": nn.Conv2d(3, 4, (5, 3), dilation=(1, 2), padding="same"),
    "valid": nn.Conv2d(3, 4, 3, padding="valid"),
    "circular": nn.Conv2d(3, 4, 3, padding=(2, 1), padding_mode="circular"),
    "patches": nn.Conv2d(3, 8, 4, stride=4),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("batch", [1, 3, 70])
def test_convolutions_agree_with_torch(name, batch):
    layer = CONVOLUTIONS[name].double()
    images = torch.rand(batch, 3, 12, 11, dtype=torch.float64)
    with torch.no_grad():
        truth = layer(images)
        chain = nn.Sequential(layer, nn.Flatten(), nn.Linear(truth[0].numel(), 3).double())
        torch.testing.assert_close(run_chain(chain, images).logits_BK, chain(images), rtol=1e-13, atol=1e-13)
    assert output_shape(layer, (3, 12, 11)) == tuple(truth.shape[1:])


def test_every_layer_agrees_with_torch():
    torch.manual_seed(0)
    chain = nn.Sequential(
        nn.ZeroPad2d((1, 2, 3, 0)), Shift(0.25), nn.Conv2d(2, 6, 3), MinMax(), nn.Identity(), nn.Conv2d(6, 4, 2),
        nn.ReLU(), nn.ZeroPad2d(-1), nn.Flatten(), nn.Linear(4 * 5 * 5, 8, bias=False), MinMax(), nn.Linear(8, 5),
    ).double()  # fmt: skip
    images = torch.rand(5, 2, 7, 7, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(run_chain(chain, images).logits_BK, chain(images), rtol=1e-13, atol=1e-13)
        single = chain.float()(images.float()).double()
    torch.testing.assert_close(run_chain(chain, images, "float32").logits_BK, single, rtol=1e-5, atol=1e-6)


def test_norms_and_magnitudes_are_those_of_the_activations():
    torch.manual_seed(1)
    chain = nn.Sequential(Shift(0.5), nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 2 * 2, 3)).double()
    images = torch.rand(4, 1, 4, 4, dtype=torch.float64)
    passed = run_chain(chain, images, magnitudes=True)
    with torch.no_grad():
        shifted = images - 0.5
        hidden = chain[1](shifted)
        flat = hidden.relu().flatten(1)
        rows = [shifted, shifted, None, None, flat]
        norms = [torch.zeros(4).double() if row is None else row.flatten(1).norm(dim=1) for row in rows]
        size = nn.functional.conv2d(shifted.abs(), chain[1].weight.abs(), chain[1].bias.abs()).flatten(1).norm(dim=1)
        head = flat.abs() @ chain[4].weight.abs().T + chain[4].bias.abs()
    torch.testing.assert_close(passed.image_norms_B, images.flatten(1).norm(dim=1))
    torch.testing.assert_close(passed.norms_BL, torch.stack(norms, dim=1))
    torch.testing.assert_close(passed.magnitudes_BL[:, 1], size)
    torch.testing.assert_close(passed.head_magnitudes_BK, head)


@pytest.fixture(scope="module")
def digits():
    data = load_dataset("digits")
    return load_network(SHIPPED), to_unit(data.test.images_NCHW, data.scale, torch.float64)


@pytest.mark.parametrize("arithmetic", FORMATS)
def test_bytes_do_not_depend_on_batch_size(digits, arithmetic):
    chain, images = digits
    whole = run_chain(chain, images[:256], arithmetic).logits_BK
    for size, count in ((1, 20), (7, 35), (256, 256)):
        parts = [run_chain(chain, part, arithmetic).logits_BK for part in images[:count].split(size)]
        assert torch.equal(torch.cat(parts), whole[:count])


@pytest.mark.parametrize("arithmetic", FORMATS)
def test_equal_images_get_equal_bytes_wherever_they_stand(arithmetic):
    """Rows of odd length start at odd addresses, where BLAS adds up in another order."""
    dtype = FORMATS[arithmetic].dtype
    for inputs, outputs in [(9, 4), (49, 3), (7, 1), (33, 16), (131, 5)]:
        layer, row = nn.Linear(inputs, outputs, dtype=dtype), torch.randn(1, inputs, dtype=dtype)
        with torch.no_grad():
            out = affine(layer, row.expand(64, -1).contiguous(), layer.weight, layer.bias)
        assert torch.equal(out, out[:1].expand_as(out)), (inputs, outputs)
    for channels, outputs, kernel, stride, size in [(1, 2, 3, 1, 3), (3, 7, 5, 2, 8), (2, 8, 2, 1, 7), (5, 3, 3, 1, 5)]:
        layer = nn.Conv2d(channels, outputs, kernel, stride, dtype=dtype)
        image = torch.randn(1, channels, size, size, dtype=dtype)
        with torch.no_grad():
            out = affine(layer, image.expand(64, -1, -1, -1).contiguous(), layer.weight, layer.bias)
        assert torch.equal(out, out[:1].expand_as(out)), (channels, outputs, kernel)


def test_bytes_do_not_depend_on_threads_or_process():
    program = (
        "import sys, torch, hashlib, lipcert; torch.set_num_threads(int(sys.argv[1]));"
        "from lipcert.data import to_unit; data = lipcert.load_dataset('digits');"
        "images = to_unit(data.test.images_NCHW, data.scale, torch.float64);"
        "from lipcert.models import load_network; c = lipcert.certify(load_network(sys.argv[2]), images);"
        "print(hashlib.sha256(c.logits_BK.numpy().tobytes() + c.radius_B.numpy().tobytes()).hexdigest());"
        "print(torch.get_num_threads())"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", program, str(n), SHIPPED], capture_output=True, text=True, check=True
        ).stdout.split()
        for n in (1, 2)
    ]
    assert runs[0][0] == runs[1][0]
    assert [run[1] for run in runs] == ["1", "2"], "the caller's number of threads must be restored"


def test_progress_counts_every_image_once(digits):
    chain, images = digits
    done: list[int] = []
    run_chain(chain, images[:100], progress=done.append)
    assert done == [64, 36]


def test_reduced_precision_set_by_the_caller_does_not_reach_float32(digits):
    chain, images = digits
    before = run_chain(chain, images[:8], "float32").logits_BK
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(run_chain(chain, images[:8], "float32").logits_BK, before)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_products_that_are_not_ieee_are_refused(digits, monkeypatch):
    chain, images = digits
    honest = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: honest(a.bfloat16(), b.bfloat16()).to(a.dtype))
    with pytest.raises(ValueError, match="not IEEE"):
        run_chain(chain, images[:8], "float32")


# --- anyone's net -----------------------------------------------------------------------------------------------------


def nested() -> nn.Sequential:
    torch.manual_seed(2)
    features = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 4, 2, 2), nn.ReLU()))
    return nn.Sequential(features, nn.Flatten(), nn.Dropout(0.5), nn.Sequential(nn.Linear(16, 3))).eval()


def test_nested_sequentials_certify_like_flat_ones():
    model, images = nested(), torch.rand(3, 1, 4, 4, dtype=torch.float64)
    flat = nn.Sequential(*model[0][:2], *model[0][2], model[1], model[3][0]).eval()
    result, same = certify(model, images), certify(flat, images)
    assert torch.equal(result.radius_B, same.radius_B)
    assert [b.name for b in result.bounds.layers] == ["0_0", "0_1", "0_2_0", "0_2_1", "1", "2"]
    assert [type(layer) for layer in plain_chain(model)][5] is nn.Identity


@pytest.mark.parametrize("place", ["inner layer", "inner container"])
def test_hooks_inside_nested_sequentials_are_refused(place):
    model = nested()
    (model[0][2][0] if place == "inner layer" else model[0][2]).register_forward_hook(lambda m, i, o: 100 * o)
    with pytest.raises(TypeError, match="hooks"):
        certify(model, torch.rand(1, 1, 4, 4))


def test_an_inner_layer_in_training_mode_is_refused():
    model = nested()
    model[2].train()
    with pytest.raises(ValueError, match="training mode"):
        certify(model, torch.rand(1, 1, 4, 4))


def test_names_that_collide_once_joined_are_refused():
    model = nn.Sequential()
    model.add_module("a", nn.Sequential(nn.Flatten()))
    model.add_module("a_0", nn.Linear(16, 3))
    with pytest.raises(TypeError, match="rename"):
        certify(model.eval(), torch.rand(1, 1, 4, 4))
