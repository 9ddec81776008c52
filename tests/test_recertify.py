"""What is printed of a certificate, and bounds that serve one chain only."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import nn

import lipcert.evaluate as evaluate
from lipcert.certify import certify
from lipcert.chain import NotCertifiable, chain_bounds
from lipcert.config import ModelConfig, TrainConfig, load_config
from lipcert.data import Split, load_dataset, to_unit
from lipcert.data.lazy import LazyImages
from lipcert.device import own_threads, step_flops
from lipcert.layers import plain_linear
from lipcert.models import build_model
from lipcert.paths import RESULTS
from lipcert.recertify import Request, SetRequest, cut, recertify, recertify_sets
from lipcert.records import read_record
from lipcert.train import fit

SHIPPED = RESULTS / "models" / "digits-liresnet-L6W32.safetensors"
IMAGES = torch.full((1, 1, 8, 8), 0.5, dtype=torch.float64)


def chain(scale: float = 1.0) -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    dense = plain_linear(scale * torch.randn(6, 64, generator=generator), torch.zeros(6))
    return nn.Sequential(
        nn.Flatten(), dense, plain_linear(torch.randn(3, 6, generator=generator), torch.ones(3))
    ).eval()


def test_a_printed_radius_is_never_above_the_proven_one() -> None:
    for n in range(1, 20_000):
        radius = n / 10_000
        for value in (radius, torch.nextafter(torch.tensor(radius).double(), torch.tensor(0.0).double()).item()):
            assert Fraction(cut(value)) <= Fraction(value) < Fraction(cut(value)) + Fraction(1, 10_000)


def test_bounds_of_another_chain_shape_or_effort_are_refused() -> None:
    bounds = chain_bounds(chain(), (1, 8, 8))
    assert torch.equal(certify(chain(), IMAGES, bounds=bounds).radius_B, certify(chain(), IMAGES).radius_B)
    with pytest.raises(NotCertifiable, match="bounds"):
        certify(chain(100.0), IMAGES, bounds=bounds)
    with pytest.raises(NotCertifiable, match="bounds"):
        certify(chain(), IMAGES.reshape(1, 1, 4, 16), bounds=bounds)
    with pytest.raises(NotCertifiable, match="bounds"):
        certify(chain(), IMAGES, effort="exact", bounds=bounds)


def test_a_network_with_a_hook_or_of_a_subclass_is_refused() -> None:
    network = build_model(ModelConfig(depth=1, width=4, neck_width=8)).eval()
    assert len(certify(network, IMAGES)) == 1
    network.backbone[3].register_forward_hook(lambda module, inputs, output: 100 * output)
    with pytest.raises(TypeError, match="hooks"):
        certify(network, IMAGES)

    class Other(type(network)):
        pass

    other = build_model(ModelConfig(depth=1, width=4, neck_width=8)).eval()
    other.__class__ = Other
    with pytest.raises(TypeError, match="Other"):
        certify(other, IMAGES)


def test_a_record_is_a_file_of_settings(tmp_path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("{dataset: digits, depth: 1, width: 4, neck_width: 8, batch: 64, steps: 3, device: cpu}")
    record = read_record(fit(load_config(path), progress=False))
    again = load_config(fit(load_config(path), progress=False))
    assert again.run_id() == record.id


def test_small_steps_stay_on_one_thread_and_give_the_number_back(tmp_path) -> None:
    data = load_dataset("digits")
    torch.set_num_threads(2)
    small = TrainConfig(depth=6, width=32, batch=64, steps=1, device="cpu")
    with own_threads(small, data):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    large = small.model_copy(update={"width": 128})
    # The convolutions of the stack alone: 2 operations a multiplication, 9 taps, 64 pixels, three passes.
    assert step_flops(large, data) > 3 * 64 * 6 * 2 * 9 * 64 * 128 * 128
    with own_threads(large, data):
        assert torch.get_num_threads() == 2


def test_operations_are_counted_for_the_images_that_a_step_really_has() -> None:
    data = load_dataset("digits")
    config = TrainConfig(depth=1, width=4, neck_width=8, batch=64, steps=1, device="cpu")
    one = step_flops(config, data) // 64
    assert step_flops(config.model_copy(update={"batch": 10_000}), data) == 1437 * one
    mixed = config.model_copy(update={"generated": "images.npz", "generated_ratio": 0.5})
    assert step_flops(mixed, data) == (64 + 32) * one


def test_certificates_of_another_kind_have_files_of_their_own() -> None:
    config = TrainConfig(depth=1, width=4, neck_width=8, batch=64, steps=3, device="cpu")
    run = read_record(fit(config, progress=False)).id
    found = [
        recertify(Request(model=run, count=5, **how))
        for how in (
            {}, {"guarantee": "nominal"}, {"guarantee": "real"}, {"arithmetic": "float32"}, {"effort": "exact"},
        )
    ]  # fmt: skip
    assert len({result.path for result in found}) == 5 and all(result.path.exists() for result in found)
    bundles = [result.bundle for result in found if result.bundle]
    assert len(set(bundles)) == len(bundles) == 4
    assert found[0].path.stem.endswith("-digits-0-5-executed-float64-fast")


def test_images_are_brought_to_float64_piece_by_piece(monkeypatch) -> None:
    request = {"model": str(SHIPPED), "start": 7, "count": 140}
    sets = SetRequest(**request, top_k=3), SetRequest(**request, affinity="[3,5][4,7]")
    one, one_of_sets = recertify(Request(**request)), [recertify_sets(asked) for asked in sets]
    sizes = []
    monkeypatch.setattr(evaluate, "_PIECE_BYTES", 1)
    monkeypatch.setattr(evaluate, "to_unit", lambda images, *rest: sizes.append(len(images)) or to_unit(images, *rest))
    found = recertify(Request(**request))
    assert sizes == [64, 64, 12]
    for name in ("prediction_B", "radius_B", "runner_up_B", "logits_BK", "estimated_radius_B"):
        assert torch.equal(getattr(found.certificates, name), getattr(one.certificates, name))
    for asked, whole in zip(sets, one_of_sets, strict=True):
        pieces = recertify_sets(asked).certificates
        for name in ("order_BT", "radius_BT", "runner_up_BT", "logits_BK"):
            assert torch.equal(getattr(pieces, name), getattr(whole.certificates, name))
    test = load_dataset("digits").test
    assert torch.equal(found.image_CHW(139), test.images_NCHW[146].double() / 16)
    assert torch.equal(found.labels_N, test.labels_N[7:147])


def test_images_in_files_are_decoded_when_they_are_asked_for(monkeypatch, tmp_path) -> None:
    pytest.importorskip("PIL")
    from pictures import picture, save

    digits, names = load_dataset("digits"), [f"{n}.png" for n in range(5)]
    for n, name in enumerate(names[1:4]):
        save(tmp_path / name, picture(n, 8, 8))
    files = LazyImages(tmp_path, names, [1] * 5, side=8, shorter=8)
    data = replace(digits, shape=(3, 8, 8), scale=255, test=Split(files, digits.test.labels_N[:5], torch.arange(5)))
    network = nn.Sequential(nn.Flatten(), plain_linear(torch.randn(10, 192), torch.zeros(10))).eval()
    network.card = {
        "dataset": "digits", "classes": None, "class_seed": 0, "input_shape": [3, 8, 8],
        "class_names": list(digits.class_names), "radius": "0.1",
    }  # fmt: skip
    monkeypatch.setattr("lipcert.recertify.open_network", lambda model: network)
    monkeypatch.setattr("lipcert.recertify.load_dataset", lambda *choice: data)
    found = recertify(Request(model="network", start=1, count=3, guarantee="nominal"))
    assert len(found.certificates) == 3 and torch.equal(found.image_CHW(2), files[3:4][0].double() / 255)
