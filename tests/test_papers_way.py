"""The baseline of the benchmarks computes what lipcert computes: same loss, same gradients, same training."""

import pytest
import torch

from benchmarks import harness, training_step
from benchmarks.harness import random_data
from benchmarks.papers_way import PHASES, PapersNet, PapersStep, disagreements, minmax, operation_shares, orthogonalised
from lipcert.config import ModelConfig, TrainConfig
from lipcert.layers import MinMax
from lipcert.losses import emma_loss
from lipcert.models import build_model
from lipcert.orthogonal import cholesky_orthogonalise
from lipcert.run import Run
from lipcert.schedules import learning_rate, training_radius

SHAPE = {"depth": 3, "width": 8, "centering": True}


def networks(neck_width):
    torch.manual_seed(0)
    network = build_model(ModelConfig(**SHAPE, neck_width=neck_width, channels=3, input_size=32)).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    # The neck of 160 features has more rows than its 128 columns: there the two codes differ unless told not to.
    papers = PapersNet(3, 8, neck_width, smaller_side=neck_width > 128).double().adopt(network)
    return network.train(), papers


@pytest.mark.parametrize("neck_width", [96, 160])
def test_same_loss_and_gradients_from_the_same_weights(neck_width):
    network, papers = networks(neck_width)
    images_BCHW, labels_B = torch.rand(16, 3, 32, 32).double(), torch.randint(0, 10, (16,))
    margins_KK = network.margin_lipschitz(network.lipschitz_estimate(10))
    loss = emma_loss(network(images_BCHW), labels_B, margins_KK, 0.2)
    loss.backward()
    step = PapersStep(papers, lookahead=False)
    step.optimizer.zero_grad = lambda **_: None
    step.clip = torch.inf
    assert float(step(images_BCHW, labels_B, 0.2)) == pytest.approx(loss.item(), rel=1e-9)
    for own, other in papers.pairs(network):
        if other.grad is not None:
            gradient = torch.stack([tensor.grad for tensor in own]).reshape(other.shape)
            assert (gradient - other.grad).norm() <= 1e-7 * other.grad.norm()


def test_same_weights_after_steps_of_the_same_optimiser():
    data, steps, betas = random_data(64), 8, (0.9, 0.999)
    config = TrainConfig(
        dataset="cifar10", **SHAPE, neck_width=96, batch=16, steps=steps, device="cpu", power_steps=10, lr=1e-3,
        optimizer="nadam", beta2=betas[1], lookahead=True,
    )  # fmt: skip
    run = Run(config, data)
    papers = PapersNet(3, 8, 96).adopt(run.network)
    step = PapersStep(papers, betas=betas)
    for number in range(steps):
        for group in step.optimizer.param_groups:
            group["lr"] = learning_rate(config, number / steps)
        images_BCHW, labels_B = run.stream(number)
        step(images_BCHW.contiguous(), labels_B, training_radius(config, number / steps))
        run.train_step()
    start = Run(config, data).network.state_dict()
    names = {id(tensor): name for name, tensor in run.network.named_parameters()}
    for own, other in papers.pairs(run.network):
        if id(other) in names:
            moved = (other.detach() - start[names[id(other)]]).norm()
            # Adam's first steps are signs of gradients: where one is rounding noise, so is its sign.
            assert (torch.stack(own).reshape(other.shape) - other).norm() <= 0.05 * moved, names[id(other)]


def test_orthogonalising_rows_is_other_mathematics_where_there_are_more_of_them():
    matrix_RC = torch.randn(48, 32, dtype=torch.float64)
    torch.testing.assert_close(orthogonalised(matrix_RC, True), cholesky_orthogonalise(matrix_RC))
    assert (orthogonalised(matrix_RC, False) - cholesky_orthogonalise(matrix_RC)).norm() > 1
    torch.testing.assert_close(orthogonalised(matrix_RC.mT, False), cholesky_orthogonalise(matrix_RC.mT))


def test_minmax_sorts_as_the_layer_does():
    x_BF = torch.randn(5, 8)
    assert torch.equal(minmax(x_BF), MinMax()(x_BF))


def test_shares_are_measured_and_compared():
    step = PapersStep(PapersNet(1, 8, 96))
    images_BCHW, labels_B = torch.rand(4, 3, 32, 32), torch.randint(0, 10, (4,))
    shares = operation_shares(lambda: step(images_BCHW, labels_B, 0.1), 1)
    assert sum(shares.values()) == pytest.approx(1) and min(shares.values()) > 0
    good = {"orthogonalisation": 0.4, "convolution gradients": 0.22, "convolution": 0.09, "passes over images": 0.2}
    assert disagreements(PHASES, good) == []
    (words,) = disagreements(PHASES | {"forward and loss": 0.5}, good)
    assert words == "forward and loss 50.0% of the step, 28.0% in the public code"


def test_two_small_steps_pay_for_the_neck_twice():
    """The speed run's batch is half of the others': its parts that do not depend on the batch come twice."""
    row = "speed run, neck 256; float32, native"
    works = {"papers' way": 2.0, "papers' way, neck 256": 1.5, row: 1.0, "convolutions; float32": 0.5}
    works |= {f"{part}; {label}": 0.01 for part in ("lipschitz", "orthogonalisation", "images")
              for label in ("same", "changed", "neck 256")}  # fmt: skip
    rates = dict.fromkeys(("convolution, float32", "convolution gradients, float32", "product, float32", "memory"), 1e9)
    found = {"seconds": {name: [s] * 3 for name, s in works.items()}, "rates": rates, "differences": {},
             "phases": {}, "operations": {}}  # fmt: skip
    _, numbers = training_step.rows_of("L6 W64", found, claimed=True)
    shares = [numbers[f"L6 W64; {row}; {part} share"] for part in ("lipschitz", "orthogonalisation", "images")]
    assert shares == pytest.approx([0.02, 0.02, 0.01])
    parts = harness.liresnet_parts(6, 64, 256, 256)
    limit = harness.floor_seconds([*parts, *parts[-2:]], rates, "float32")
    assert numbers[f"L6 W64; {row}; of the limit"] == pytest.approx(limit)
