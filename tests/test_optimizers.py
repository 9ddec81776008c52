"""Muon against numpy's singular values and a step by hand; which parameters it takes; what a run refuses."""

import numpy as np
import pytest
import torch
from runs import tiny

from lipcert.config import ModelConfig, TrainConfig
from lipcert.data import load_dataset
from lipcert.models import build_model
from lipcert.optimizers import Joined, Muon, divide, make_optimizer, polar_factor
from lipcert.run import Run
from lipcert.settings import ConfigError, parse

SHAPES = [(6, 20), (20, 6), (9, 9), (3, 8, 30), (4, 30, 8)]


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
def test_polar_factor_keeps_singular_vectors_and_evens_out_singular_values(shape):
    matrix = drawn(*shape)
    u, _, v = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    found = polar_factor(matrix.double()).numpy()
    values = np.swapaxes(u, -1, -2) @ found @ np.swapaxes(v, -1, -2)  # diagonal, if the vectors are the same
    diagonal = np.diagonal(values, axis1=-2, axis2=-1)
    assert np.abs(values - diagonal[..., None] * np.eye(values.shape[-1])).max() < 1e-9
    assert diagonal.min() > 0.6
    assert diagonal.max() < 1.3


def test_each_matrix_of_a_batch_has_its_own_factor():
    stack = torch.stack([drawn(5, 12), 1e6 * drawn(5, 12, seed=1), torch.zeros(5, 12)])
    for whole, alone in zip(polar_factor(stack), stack, strict=True):
        torch.testing.assert_close(whole, polar_factor(alone))


def rounds_on_the_matrix(matrix, rounds=5):
    x = matrix / matrix.norm()
    for _ in range(rounds):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


@pytest.mark.parametrize("rank", [1, 5, 30])
def test_rounds_in_the_gram_matrix_are_rounds_on_the_matrix(rank):
    """Rounding included: what a matrix of low rank has for zeros in float32 stays small."""
    matrix = drawn(30, rank) @ drawn(rank, 200, seed=1)
    exact = rounds_on_the_matrix(matrix.double())
    torch.testing.assert_close(polar_factor(matrix.double()), exact, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(polar_factor(matrix).double(), exact, rtol=0, atol=2e-4)


def test_a_step_is_the_polar_factor_of_nesterov_momentum():
    start, lr, momentum, decay = drawn(2, 4, 3, 3, 3), 0.02, 0.9, 0.1
    parameter = torch.nn.Parameter(start.clone())
    optimizer = Muon([parameter], lr, momentum, decay)
    expected, average = start.double().numpy().reshape(2, 4, 27), np.zeros((2, 4, 27))
    for seed in (1, 2, 3):
        parameter.grad = drawn(2, 4, 3, 3, 3, seed=seed)
        optimizer.step()
        grad = drawn(2, 4, 3, 3, 3, seed=seed).double().numpy().reshape(2, 4, 27)
        average = momentum * average + (1 - momentum) * grad
        ahead = momentum * average + (1 - momentum) * grad
        factor = polar_factor(torch.from_numpy(ahead)).numpy()
        expected = (1 - lr * decay) * expected - lr * 0.2 * 27**0.5 * factor
    np.testing.assert_allclose(parameter.detach().numpy().reshape(2, 4, 27), expected, rtol=1e-4, atol=1e-6)


def test_a_step_is_of_the_size_of_adams():
    parameter = torch.nn.Parameter(torch.zeros(16, 64))
    parameter.grad = drawn(16, 64)
    Muon([parameter], lr=0.01).step()
    assert parameter.detach().square().mean().sqrt() == pytest.approx(0.2 * 0.01, rel=0.3)


@pytest.mark.parametrize("neck", ["orthogonal", "dense", "conv_dense"])
@pytest.mark.parametrize("family", ["liresnet", "resnet", "convnet"])
def test_matrices_are_kernels_and_dense_weights_of_the_backbone(family, neck):
    config = ModelConfig(family=family, depth=2, width=4, neck=neck, neck_width=8, tail_depth=2, input_size=8)
    network = build_model(config)
    matrices, others = divide(network)
    assert {id(p) for p in matrices}.isdisjoint(id(p) for p in others)
    assert len(matrices) + len(others) == len(list(network.parameters()))
    kernels = {"liresnet": 1, "resnet": 2, "convnet": 1}[family]  # stacks of them, beside stem, neck and tail
    assert len(matrices) == 1 + kernels + 2 + 1
    head = {id(p) for p in network.head.parameters()}
    assert head <= {id(p) for p in others}
    # A vector has a number per channel and block, at most; a matrix many per channel.
    assert max(p.numel() for p in others if id(p) not in head) <= 2 * 2 * 8
    assert min(p.numel() for p in matrices) >= 4 * 9


def test_a_vector_is_no_matrix():
    with pytest.raises(ValueError, match=r"shape \(3,\): must have two dimensions"):
        Muon([torch.nn.Parameter(torch.zeros(3))], lr=0.1)


def test_every_group_follows_the_schedule_of_the_run():
    config = tiny(optimizer="muon", warmup=0.0, lr=0.01)
    run = Run(config, load_dataset("digits"))
    run.train_step()
    assert [group["lr"] for group in run.optimizer.param_groups] == [0.01, 0.01]
    assert sum(len(group["params"]) for group in run.optimizer.param_groups) == len(list(run.network.parameters()))


def test_state_of_joined_optimisers_comes_back():
    network = build_model(ModelConfig(depth=2, width=4, neck_width=8, input_size=8))
    config = TrainConfig(dataset="digits", steps=1, optimizer="muon")
    first, second = make_optimizer(config, network), make_optimizer(config, network)
    assert isinstance(first, Joined)
    for number, parameter in enumerate(network.parameters()):
        parameter.grad = drawn(*parameter.shape, seed=number)
    first.step()
    second.load_state_dict(first.state_dict())
    for mine, theirs in zip(first.parts, second.parts, strict=True):
        for p, state in mine.state.items():
            for key, value in state.items():
                torch.testing.assert_close(theirs.state[p][key], value, rtol=0, atol=0)


@pytest.mark.parametrize("settings", [{"lookahead": True}, {"family": "linf_net", "loss": "linf_hinge"}])
def test_refused_beside_what_it_cannot_train(settings):
    with pytest.raises(ConfigError, match="optimizer='muon'"):
        parse(TrainConfig, {"dataset": "digits", "steps": 1, "optimizer": "muon"} | settings)
