"""The plan of the study: it fits, its cells are fit to be compared, and its counts are torch's."""

import itertools

import pytest
import torch
from made import make_record
from torch.utils.flop_counter import FlopCounterMode

from lipcert.config import TrainConfig
from lipcert.data.registry import DATASETS
from lipcert.data.splits import choose_classes
from lipcert.models import build_model
from lipcert.report import matrices
from lipcert.study import load_study

PLAN = matrices.matrices()
BY_NAME = {matrix.study.name: matrix for matrix in PLAN}
NETWORK = ("family", "depth", "width", "neck_width", "dataset", "classes")
NETWORKS = list({tuple(getattr(c, key) for key in NETWORK): c for m in PLAN for c in m.study.cells}.values())
BLOCKS = {"family", "branch_scale"}


def cells(name):
    return load_study(matrices.FOLDER / f"{name}.yaml").cells


def differences(one, other):
    """Settings in which two runs differ."""
    return {key for key in TrainConfig.model_fields if getattr(one, key) != getattr(other, key)}


# --- the files --------------------------------------------------------------------------------------------------------


def test_every_experiment_has_matrices_in_the_order_of_their_priority():
    order = [matrix.experiment for matrix in PLAN]
    assert list(dict.fromkeys(order)) == list(matrices.PRIORITY) and order == sorted(order, key=matrices.PRIORITY.index)
    assert all(matrix.question.endswith("?") and matrix.own for matrix in PLAN)


def test_the_plan_fits():
    hours = [matrix.hours() for matrix in PLAN]
    assert min(hours) > 0 and sum(hours) <= matrices.BUDGET_HOURS


def test_no_run_is_counted_twice_and_none_touches_the_validation_split():
    own = [cell.run_id() for matrix in PLAN for cell in matrix.own]
    assert len(set(own)) == len(own)
    assert {cell.run_id() for matrix in PLAN for cell in matrix.study.cells} == set(own)
    assert not any(cell.validation or cell.left_open() for matrix in PLAN for cell in matrix.study.cells)


def test_classes_are_drawn_five_times_nested_and_every_run_sees_as_many_images():
    drawn = {}
    for cell in cells("class-count-images"):
        drawn[cell.class_seed, cell.classes] = set(choose_classes("cifar100", 100, cell.classes, cell.class_seed))
    assert {count for _, count in drawn} == {10, 20, 50}
    for seed in range(5):
        assert drawn[seed, 10] < drawn[seed, 20] < drawn[seed, 50]
    assert len({frozenset(drawn[seed, 10]) for seed in range(5)}) == 5
    named = [m for m in PLAN if m.study.name.startswith(("class-count", "losses"))]
    assert {matrices.seen(cell) for matrix in named for cell in matrix.study.cells} == {249_856}
    every = [cell for matrix in named for cell in matrix.study.cells]
    varied = {"classes", "class_seed", "seed", "loss", "robust_weight", "plain_weight", "train_images"}
    assert all(differences(every[0], cell) <= varied for cell in every)


def test_images_in_total_are_fixed_by_fewer_of_a_class_and_nothing_else():
    total, whole = cells("class-count-total"), cells("class-count-images")
    found = {(cell.classes, matrices.training_images(cell) / cell.classes) for cell in total}
    assert found == {(20, 250), (50, 100), (100, 50)}
    assert {matrices.training_images(cell) / cell.classes for cell in whole} == {500}
    for cell in total:
        partner = [other for other in whole if differences(cell, other) == {"train_images"}]
        assert len(partner) == (cell.classes < 100)
    epochs = total[0].model_copy(update={"steps": None, "epochs": 2.0})
    assert matrices.seen(epochs) == 2 * (5000 // 128) * 128


@pytest.mark.parametrize("name", ["losses-10", "losses-100"])
def test_losses_are_compared_at_equal_everything_and_share_the_runs_of_emma(name):
    assert {cell.robust_weight for cell in cells(f"{name}-trades")} == {"2"}  # at 1 TRADES-KL is GloRo's loss
    every = [cell for suffix in ("", "-margin", "-trades") for cell in cells(name + suffix)]
    for one, other in itertools.combinations(every, 2):
        if (one.seed, one.class_seed) == (other.seed, other.class_seed):
            assert differences(one, other) - {"robust_weight", "plain_weight"} == {"loss"}
    assert {cell.loss for cell in BY_NAME[name].shared} == {"emma"} and len(BY_NAME[name].shared) == 3
    assert len({cell.loss for cell in every}) == 7


def test_families_are_compared_over_depth_with_one_recipe():
    for straight, conventional in (("depth-liresnet", "depth-resnet"), ("depth-liresnet-24", "depth-resnet-24")):
        for one, other in zip(cells(straight), cells(conventional), strict=True):
            assert differences(one, other) == BLOCKS and other.branch_scale == 1
    short = {cell.depth: cell for name in ("depth-liresnet", "depth-liresnet-24") for cell in cells(name)[::-1]
             if (cell.epochs, cell.seed) == (6, 0)}  # fmt: skip
    for cell in cells("depth-convnet"):
        assert differences(short[cell.depth], cell) == {"family", "lr"}


def test_depth_is_trained_by_the_recipe_of_the_speed_run():
    speed, cut = cells("speedrun-cpu")[0], cells("depth-liresnet")[0]
    assert differences(speed, cut) == {"depth", "width", "neck_width", "epochs", "snapshots"}


@pytest.mark.parametrize(
    "names",
    [
        ("vra-liresnet-mnist", "vra-gloro-mnist", "linf-losses-mnist"),
        ("vra-liresnet-cifar10", "vra-gloro-cifar10", "vra-l3w64-cifar10", "linf-cifar10"),
        ("class-count-100", "vra-gloro-cifar100", "vra-linf-cifar100"),
    ],
)
def test_systems_side_by_side_saw_as_many_images(names):
    assert len({matrices.seen(cell) for name in names for cell in cells(name)}) == 1
    assert len({cell.dataset for name in names for cell in cells(name)}) == 1


@pytest.mark.parametrize(
    "head", ["# Experiment 2, depth. No question.", "# Experiment 9, depth. Why?", "# Experiment 2"]
)
def test_a_head_that_goes_astray_is_refused(head, tmp_path):
    (tmp_path / "x.yaml").write_text(f"{head}\nsteps: 1\nmatrix: {{depth: [1]}}\n")
    with pytest.raises(ValueError, match=r"x\.yaml: must begin with '# Experiment N, title\. Question\?'"):
        matrices.matrices(tmp_path)


def test_other_studies_are_no_part_of_the_plan(tmp_path):
    (tmp_path / "x.yaml").write_text("# A study.\nsteps: 1\nmatrix: {depth: [1]}\n")
    assert matrices.matrices(tmp_path) == []


# --- counts and predictions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", NETWORKS, ids=lambda c: f"{c.dataset}-{c.family}-L{c.depth}W{c.width}-{c.classes}")
def test_operations_of_an_image_are_those_that_torch_counts(config):
    shape = DATASETS[config.dataset].shape
    with torch.device("meta"):
        network = build_model(config.model(*shape[:2], matrices.classes(config)))
    if config.family == "linf_net":  # torch counts no operations of distances
        expected = 2 * sum(p.numel() for p in network.parameters() if p.ndim == 2)
    else:

        def at(batch):
            with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
                network(torch.zeros(batch, *shape))
            return counter.get_total_flops()

        expected = at(2) - at(1)  # what a step does once, whatever the batch, drops out
    assert matrices.forward_operations(config) == expected


def test_networks_that_nobody_counted_or_timed_are_refused():
    base = {"dataset": "cifar10", "steps": 1}
    with pytest.raises(ValueError, match="neck='dense' on 32 pixels"):
        matrices.forward_operations(TrainConfig(**base, neck="dense"))
    with pytest.raises(ValueError, match=r"liresnet of width 48: not timed; timed widths are \[16, 32, 64\]"):
        matrices.training_seconds(TrainConfig(**base, width=48))


def test_the_speed_run_is_predicted_as_it_was_measured():
    config = cells("speedrun-cpu")[0]
    assert matrices.seen(config) / matrices.training_seconds(config) == pytest.approx(640, rel=0.1)


def test_a_prediction_grows_with_what_costs():
    base = TrainConfig(dataset="cifar100", depth=6, width=32, steps=100, batch=128)

    def training(**changes):
        return matrices.training_seconds(base.model_copy(update=changes))

    def certification(**changes):
        return matrices.certification_seconds(base.model_copy(update=changes))

    assert training(steps=200) == pytest.approx(2 * training())
    assert training(family="resnet") == pytest.approx(training(depth=12)) and training(depth=12) < 2 * training()
    assert training(width=16) < training() < training(width=64) and training(classes=10) < training()
    assert certification(classes=10) == pytest.approx(certification() / 10)
    longer = base.model_copy(update={"snapshots": 4})
    assert matrices.run_seconds(longer) - matrices.run_seconds(base) == pytest.approx(3 * certification())


# --- what a page says -------------------------------------------------------------------------------------------------


def test_the_table_has_a_line_a_matrix_and_says_what_was_made(monkeypatch):
    lines = matrices.plan_table().splitlines()[2:]
    assert len(lines) == len(PLAN) + 1
    for matrix, line in zip(PLAN, lines, strict=False):
        assert f"`{matrix.study.name}`" in line and f"| 0 of {len(matrix.own)} |" in line and matrix.question in line
    assert "None of them has been run yet" in matrices.plan_words()
    first = PLAN[0]
    made = make_record(first.own[0])
    monkeypatch.setattr(matrices, "load_records", lambda: [made])
    assert f"| 1 of {len(first.own)}, 0.03 h |" in matrices.plan_table().splitlines()[2]  # 118 + 2 seconds
    predicted = matrices.run_seconds(first.own[0]) / 3600
    assert f"1 were run: {predicted:.2f} hours by prediction, 0.03 by their records" in matrices.plan_words()


def test_words_hold_the_sums_of_the_table():
    last = matrices.plan_table().splitlines()[-1]
    runs, images, operations, hours = (cell.strip() for cell in last.split("|")[3:7])
    words = matrices.plan_words()
    assert f"{runs} runs in {len(PLAN)} matrices: {images} million images, {operations}" in words
    assert f"{hours} hours of one processor core" in words
    assert "7 ms at width 32" in matrices.cost_words() and "15 % are added" in matrices.cost_words()
