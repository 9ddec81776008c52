"""The GPU queue: every file can be run, its counts are torch's, and the measurement survives whatever happens to it."""

import argparse
import json
import signal
from pathlib import Path

import pytest
import torch
from made import make_record
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import gpu_session, gpu_step, harness
from lipcert.config import TrainConfig, load_config, steps_of
from lipcert.data.registry import DATASETS
from lipcert.models import build_model
from lipcert.optimizers import polar_factor
from lipcert.orthogonal import cholesky_orthogonalise
from lipcert.paths import ROOT
from lipcert.records import read_record
from lipcert.report import gpu_queue
from lipcert.run import Run

ENTRIES = gpu_queue.entries()
FILES = {entry.path.stem: entry for entry in ENTRIES if entry.path}
TRAINED = [entry for entry in FILES.values() if entry.order in (2, 3, 4)]
EVERY = pytest.mark.parametrize("entry", TRAINED, ids=lambda entry: entry.path.stem)


def on_meta(config):
    channels, size, _ = DATASETS[config.dataset].shape
    with torch.device("meta"):
        return build_model(config.model(channels, size, DATASETS[config.dataset].classes))


def operations(work):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return counter.get_total_flops()


# --- the files -------------------------------------------------------------------------------------------------------


def test_the_queue_is_in_order_and_its_commands_name_files():
    orders = [entry.order for entry in ENTRIES]
    assert orders == sorted(orders) and set(orders) == {1, 2, 3, 4, 5, 6}
    assert [orders.count(n) for n in range(1, 6)] == [1] * 5
    for entry in FILES.values():
        assert (ROOT / entry.command.split()[-1]) == entry.path


@pytest.mark.parametrize("name", FILES)
def test_every_file_builds_a_network(name):
    assert on_meta(FILES[name].config).parameter_count() > 0


@EVERY
def test_parameters_are_those_of_the_network(entry):
    assert on_meta(entry.config).parameter_count() == gpu_queue.parameters(entry.config)


@EVERY
def test_wants_a_gpu_and_leaves_nothing_to_a_measurement_but_its_length(entry):
    config = entry.config
    assert config.device == "cuda" and not config.left_open() and config.minutes is not None
    assert config.generated is None and config.snapshots == 0 and config.seed == 0


def test_entries_differ_in_what_their_heads_say():
    second, third, fourth = (entry.config.model_dump() for entry in TRAINED)
    assert {key for key in third if third[key] != fourth[key]} == {"dataset"}
    assert {key for key in third if third[key] != second[key]} == {"width", "neck_width", "lr", "minutes"}


def test_a_head_with_another_number_is_refused(tmp_path, monkeypatch):
    (tmp_path / "3-x.yaml").write_text("# GPU queue, entry 2: x. y\n")
    monkeypatch.setattr(gpu_queue, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match="must begin with"):
        gpu_queue.entries()


# --- counts and predictions ------------------------------------------------------------------------------------------


@EVERY
def test_operations_of_an_image_are_those_that_torch_counts(entry):
    network, shape = on_meta(entry.config), DATASETS[entry.config.dataset].shape

    def at(batch):
        with torch.device("meta"):
            return operations(lambda: network(torch.zeros(batch, *shape)))

    assert at(2) - at(1) == gpu_queue.forward_operations(entry.config)  # what a step does once drops out


def test_operations_of_the_optimiser_are_those_that_torch_counts():
    assert operations(lambda: polar_factor(torch.randn(12, 40))) == gpu_queue._polar((40, 12))


def test_operations_of_orthogonalisation_are_about_those_of_its_gradient_step():
    rows, columns = 512, 2048
    matrix = torch.randn(rows, columns, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        cholesky_orthogonalise(matrix).sum().backward()
    # Blockwise: solves are not counted by torch, and blocks on the diagonal do both triangles.
    assert counter.get_total_flops() == pytest.approx(gpu_queue._orthogonalise((rows, columns)), rel=0.35)


@EVERY
def test_sees_every_image_often_enough_even_at_half_the_speed(entry):
    low, high = gpu_queue.predicted(entry.config).epochs
    slow = entry.config.batch / gpu_queue.step_seconds(entry.config, gpu_queue.UTILISATION[0] / 2)
    assert 200 < low < high < 400
    assert 60 * entry.config.minutes * slow / DATASETS[entry.config.dataset].train > 100


def test_launching_is_the_limit_of_small_steps():
    config = FILES["2-cifar10-10min"].config.model_copy(update={"batch": 64})
    assert gpu_queue.step_seconds(config, 0.4) == gpu_queue.HOST_SECONDS


@pytest.mark.parametrize(
    ("dataset", "width", "published"),
    [("cifar10", 256, 65.1), ("cifar10", 512, 66.9), ("cifar100", 256, 36.3), ("cifar100", 512, 37.5)],
)
def test_the_rule_of_thumb_covers_what_is_published(dataset, width, published):
    low, high = gpu_queue.extrapolated(dataset, 800 * 50_000, width)
    assert low <= published <= high


@pytest.mark.parametrize("run", ["cifar10-liresnet-L6W80-emma-s0-bb9ff20a", "cifar100-liresnet-L6W80-emma-s0-a39b6a37"])
def test_the_rule_starts_from_runs_of_the_study(run):
    record = read_record(ROOT / "results" / "runs" / f"{run}.json")
    known, images, width = gpu_queue._KNOWN[record.config.dataset]
    certified = next(
        result.certified_correct
        for result in record.test.results
        if (result.radius, result.guarantee, result.arithmetic) == ("36/255", "executed", "float64")
    )
    assert (100 * certified / record.test.images, record.training.images, record.model.width) == (known, images, width)


def test_a_length_in_epochs_cannot_be_predicted():
    config = FILES["2-cifar10-10min"].config.with_steps(10)
    with pytest.raises(ValueError, match="minutes"):
        gpu_queue.predicted(config)


# --- tables ----------------------------------------------------------------------------------------------------------


def test_the_table_says_not_run_until_there_is_a_record():
    lines = gpu_queue.queue_table().splitlines()[2:]
    assert len(lines) == len(ENTRIES) and all("not run" in line for line in lines)
    for entry, line in zip(ENTRIES, lines, strict=True):
        assert f"`{entry.command}`" in line
    assert len(gpu_queue.counts_table().splitlines()) == 2 + len(TRAINED)


def test_a_record_of_any_seed_is_shown():
    entry = FILES["2-cifar10-10min"]
    ran = entry.config.with_steps(12_000)
    records = [make_record(ran.model_copy(update={"seed": seed, "compiled": True})) for seed in (0, 1)]
    assert gpu_queue.status(entry, records) == "65.10 % (seed 0); 65.10 % (seed 1)"
    assert gpu_queue.status(FILES["3-cifar10-25min"], records) == "not run"


# --- the step --------------------------------------------------------------------------------------------------------

_READ_BACK = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "item", "unique")


class Watch(TorchDispatchMode):
    """Operations whose result the host has to wait for."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.__name__.split(".")[0].startswith(_READ_BACK):
            self.found.append(function.__name__)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("norm_method", ["power", "lanczos"])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_nothing_of_a_step_is_read_back(optimizer, norm_method, monkeypatch):
    shape = {"depth": 2, "width": 8, "neck_width": 16, "batch": 16, "centering": True, "tail_depth": 1}
    config = TrainConfig(
        dataset="cifar10",
        steps=9,
        device="cpu",
        precision="bfloat16",
        optimizer=optimizer,
        norm_method=norm_method,
        **shape,
    )
    run = Run(config, harness.random_data(64))
    run.train_step()
    for name in ("tolist", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_, name=name: pytest.fail(f"a step calls {name}"))
    with Watch() as watch:
        run.train_step()
        assert watch.found == []
        float(run.totals[0])  # the watch can fail
    assert watch.found


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_backbone_is_one_graph_to_the_compiler(precision):
    shape = {"depth": 2, "width": 8, "neck_width": 16, "batch": 8, "centering": True, "tail_depth": 1}
    run = Run(TrainConfig(dataset="cifar10", steps=9, device="cpu", **shape), harness.random_data(32))
    torch.compiler.reset()
    with torch.autocast("cpu", torch.bfloat16, precision == "bfloat16"):
        found = torch._dynamo.explain(run.network.backbone)(run.stream(0)[0])
    assert (found.graph_count, found.graph_break_count) == (1, 0)


# --- the measurement -------------------------------------------------------------------------------------------------


@pytest.fixture
def session():
    return gpu_session.Session(argparse.Namespace(device="cpu", quick=True, seconds=60.0), "gpu-step")


def test_a_failure_is_a_line_and_the_next_one_goes_on(session):
    def fail():
        raise RuntimeError("out of memory\nand much more")

    session.measure("first", fail)
    session.measure("second", lambda: {"ms": 2.0})
    session.end = 0.0
    session.measure("third", lambda: {"ms": 3.0}, 5)
    lines = [json.loads(line) for line in session.path.read_text().splitlines()]
    assert lines == [{"first": {"failed": "RuntimeError: out of memory"}}, {"second": {"ms": 2.0}}]
    assert session.missed == ["third"] and session.numbers["second; ms"] == 2.0
    session.enter(lambda _: 1 / 0)
    assert session.failed == ["first: RuntimeError: out of memory", "<lambda>: ZeroDivisionError: division by zero"]


def test_a_signal_leaves_the_measuring_not_the_record(session):
    with gpu_session.stoppable():
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("not stopped")
    told = gpu_session.told(session)
    assert told["verdict"] == "fell short" and "0 images/s" in told["measured"]


def test_the_limit_counts_tensor_float_at_its_own_rates(session):
    for precision, rate in (("tfloat32", 4e9), ("float32", 1e9)):
        session.numbers |= {f"peak; {name}; W16; {precision}; operations/s": rate
                            for name in ("convolution", "convolution gradients")}  # fmt: skip
        session.numbers[f"peak; product; {precision}; operations/s"] = rate
    session.numbers["peak; memory; bytes/s"] = 1e15
    slow, fast = (gpu_session.limit_seconds(session, 16, 32, p) for p in ("float32", "tfloat32"))
    assert slow == pytest.approx(4 * fast)
    assert gpu_session.limit_seconds(session, 16, 32, "bfloat16") is None


def test_without_a_gpu_the_measurement_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu_step"])
    assert gpu_step.main() == 2 and "no CUDA GPU" in capsys.readouterr().err


@pytest.mark.slow
def test_the_rehearsal_leaves_a_record(monkeypatch, results):
    sections = [s.__name__ for s in gpu_step.SECTIONS if s.__name__ not in ("compiled", "tight")]
    monkeypatch.setattr("sys.argv", ["gpu_step", "--device", "cpu", "--quick", "--sections", *sections])
    assert gpu_step.main() == 0
    check = json.loads((Path(results) / f"local/checks/gpu-{'-'.join(sections)}.json").read_text())
    numbers = check["numbers"]
    assert numbers["same; executed, cpu"] == numbers["same; executed, device"]
    assert numbers["step; W16; B32; bfloat16; images/s"] > 0 and "failed" not in check["measured"]


def test_seeds_follow_the_record_of_the_first(tmp_path):
    ran = FILES["2-cifar10-10min"].config.with_steps(12_000)
    (tmp_path / "run.json").write_text(json.dumps({"schema": 1, "config": ran.model_dump(mode="json")}))
    again = load_config(tmp_path / "run.json", seed=1)
    assert again == ran.model_copy(update={"seed": 1}) and steps_of(again, 50_000) == 12_000
