"""The GPU queue: every file can be run, its counts are torch's, and the measurement survives whatever happens to it."""

import argparse
import csv
import json
import re
import signal
from pathlib import Path

import pytest
import torch
import yaml
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
from lipcert.report import gpu_predictions, gpu_queue
from lipcert.report import operations as step_operations
from lipcert.run import Run
from workflow.cells import queued

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
    assert orders == sorted(orders) and set(orders) == set(range(1, 12))
    assert [orders.count(n) for n in (*range(1, 6), 11)] == [1] * 6
    for entry in FILES.values():
        program, verb, file, *rest = entry.command.split()
        assert (program, ROOT / file) == ("lipcert", entry.path)
        assert verb == ("study" if "matrix" in yaml.safe_load(entry.path.read_text()) else "train")
        assert rest == (["--resume"] if entry.order >= 10 else [])


def test_the_workflow_makes_the_files_in_the_order_of_the_queue():
    assert queued(gpu_queue.FOLDER) == [entry.path for entry in ENTRIES if entry.path and entry.order != 10]


def test_the_presets_of_the_queue_need_no_images_that_must_be_made():
    names = {entry.path.stem for entry in ENTRIES if entry.order == 10}
    folder = ROOT / "notebooks" / "params" / "published"
    assert names == {
        path.stem
        for path in folder.glob("liresnet-*.yaml")
        if "imagenet" not in path.stem and "generated:" not in path.read_text()
    }
    every = len(list(folder.glob("*.yaml")))
    assert f"lists {len(names)} of the {every} presets" in gpu_queue.presets_words()


@pytest.mark.parametrize("name", FILES)
def test_every_file_builds_a_network(name):
    configs = FILES[name].configs
    differ = {(c.family, c.depth, c.width, c.classes): c for c in configs}.values()
    assert configs and all(on_meta(config).parameter_count() > 0 for config in differ)


@pytest.mark.parametrize("name", [name for name, entry in FILES.items() if 7 <= entry.order <= 9 or entry.order == 11])
def test_later_entries_have_the_recipe_of_the_first(name):
    first, (config, *_) = FILES["2-cifar10-10min"].config.model_dump(), FILES[name].configs
    # The network, the data, the length, and what they bring with them.
    free = {"dataset", "family", "depth", "width", "neck_width", "stem", "branch_scale", "classes", "class_seed"}
    free |= {"train_images", "minutes", "steps", "epochs", "crop", "lr", "loss", "robust_weight", "seed"}
    config = config.model_dump()
    assert {key for key in config if config[key] != first[key]} <= free
    assert config["crop"] == (8 if config["dataset"] == "tiny_imagenet" else 4) and not config["minutes"]


@pytest.mark.parametrize("name", [name for name, entry in FILES.items() if 7 <= entry.order <= 9 or entry.order == 11])
def test_heads_say_what_is_counted(name):
    time, *_ = gpu_queue._time(FILES[name]).split(",")
    said = gpu_queue.counted_time(FILES[name].path)
    assert said == time.replace(" min", " minutes").replace(" h", " hours")


def test_what_a_matrix_has_in_common_and_what_varies():
    depth = {name: FILES[name] for name in FILES if name.startswith("7-")}
    assert all([config.depth for config in entry.configs] == [3, 6, 12, 18, 24] for entry in depth.values())
    assert {c.family for e in depth.values() for c in e.configs} == {"liresnet", "resnet", "convnet"}
    count = [c for name in FILES if name.startswith("8-") for c in FILES[name].configs]
    assert {(c.classes, c.train_images) for c in count} == {
        (None, None), (10, None), (20, None), (50, None), (20, 5000), (50, 5000), (100, 5000),
    }  # fmt: skip
    assert len({c.steps for c in count}) == 1 and len({c.run_id() for c in count}) == len(count)
    losses = [c for name in FILES if name.startswith("9-") for c in FILES[name].configs]
    assert {c.loss for c in losses} == {"emma", "emma_fixed", "gloro", "trades_kl", "annealing"}
    assert len({c.epochs for c in losses}) == 1


@EVERY
def test_parameters_are_those_of_the_network(entry):
    assert on_meta(entry.config).parameter_count() == step_operations.parameters(entry.config)


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

    assert at(2) - at(1) == step_operations.forward_operations(entry.config)  # what a step does once drops out


def test_operations_of_the_optimiser_are_those_that_torch_counts():
    assert operations(lambda: polar_factor(torch.randn(12, 40))) == step_operations._polar((40, 12))


def test_operations_of_orthogonalisation_are_about_those_of_its_gradient_step():
    rows, columns = 512, 2048
    matrix = torch.randn(rows, columns, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        cholesky_orthogonalise(matrix).sum().backward()
    # Blockwise: solves are not counted by torch, and blocks on the diagonal do both triangles.
    assert counter.get_total_flops() == pytest.approx(step_operations._orthogonalise((rows, columns)), rel=0.35)


@EVERY
def test_sees_every_image_often_enough_even_at_half_the_speed(entry):
    low, high = gpu_predictions.predicted(entry.config).epochs
    slow = entry.config.batch / gpu_predictions.step_seconds(entry.config, gpu_predictions.UTILISATION[0] / 2)
    assert 200 < low < high < 400
    assert 60 * entry.config.minutes * slow / DATASETS[entry.config.dataset].train > 100


@pytest.mark.parametrize(
    ("name", "depth"),
    [("7-depth-resnet", 3), ("7-depth-convnet", 6), ("11-tiny-imagenet", 12), ("liresnet-v1-tiny", 18)],
)
def test_operations_of_other_networks_are_those_that_torch_counts(name, depth):
    config = next(config for config in FILES[name].configs if config.depth == depth)
    network, shape = on_meta(config), DATASETS[config.dataset].shape

    def at(batch):
        with torch.device("meta"):
            return operations(lambda: network(torch.zeros(batch, *shape)))

    assert 3 * config.batch * (at(2) - at(1)) == step_operations.counts(config).convolutions


@pytest.mark.parametrize("family", gpu_predictions.LAUNCHES)
def test_launches_are_those_of_a_step(family):
    rest, block = gpu_predictions.LAUNCHES[family]
    assert [launched(family, depth) for depth in (3, 6)] == [rest + 3 * block, rest + 6 * block]


def launched(family, depth):
    """Operations of one training step that are no views."""
    shape = {"family": family, "depth": depth, "width": 8, "neck_width": 16, "batch": 16}
    recipe = FILES["2-cifar10-10min"].config.model_dump() | shape | {"minutes": None, "steps": 9, "device": "cpu"}
    run = Run(TrainConfig(**recipe), harness.random_data(64))
    run.train_step()
    with Dispatched() as found:
        run.train_step()
    return found.count


class Dispatched(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        # What a view returns shares its memory with what it was given, by its schema, which hides it in one case.
        view = any(part.alias_info and not part.alias_info.is_write for part in function._schema.returns)
        self.count += not view and "_unsafe_view" not in function.__name__
        return function(*args, **(kwargs or {}))


def test_of_generated_images_and_distances_nothing_is_counted():
    folder = ROOT / "notebooks" / "params"
    for name in ("published/liresnet-iclr-cifar10-generated", "gpu/6-linf-cifar10-8"):
        with pytest.raises(ValueError, match="counted are"):
            step_operations.counts(load_config(folder / f"{name}.yaml"))


def test_most_steps_of_entries_7_to_9_are_as_long_as_their_launches():
    configs = [config for entry in ENTRIES if 7 <= entry.order <= 9 for config in entry.configs]
    bound = [c for c in configs if gpu_predictions.step_seconds(c, 0.35) == gpu_predictions.launch_seconds(c)]
    assert len(configs) / 2 < len(bound) < len(configs)


def test_launching_is_the_limit_of_small_steps():
    config = FILES["2-cifar10-10min"].config.model_copy(update={"batch": 64})
    assert gpu_predictions.step_seconds(config, 0.4) == gpu_predictions.HOST_SECONDS


def _published():
    """VRA at 36/255 of the LiResNets that published.csv has without generated data on CIFAR."""
    with open(ROOT / "results" / "published.csv", newline="") as file:
        for row in csv.DictReader(file):
            size = re.fullmatch(r"(?:CHORD )?LiResNet L\d+W(\d+)( .*)?", row["model"])
            asked = ("none", "l2", "36/255", "vra")
            if size and (row["extra_data"], row["norm"], row["radius"], row["metric"]) == asked:
                yield row, int(size[1])


def test_the_rule_of_thumb_covers_two_generations_and_not_the_third():
    words, seen = gpu_queue.rule_words().splitlines(), 0
    for row, width in _published():
        if row["dataset"] not in ("cifar10", "cifar100"):
            continue
        low, high = gpu_predictions.extrapolated(row["dataset"], 800 * 50_000, width)
        third, value = row["model"].startswith("CHORD"), float(row["value_percent"])
        assert (value > high) if third else (low <= value <= high)
        (line,) = (line for line in words if f"{value}\N{NO-BREAK SPACE}% on" in line)
        assert ("third generation" in line) == third == (": above the rule" in line)
        seen += 1
    assert seen == 7 == "".join(words).count("by the rule")


@pytest.mark.parametrize("run", ["cifar10-liresnet-L6W80-emma-s0-bb9ff20a", "cifar100-liresnet-L6W80-emma-s0-a39b6a37"])
def test_the_rule_starts_from_runs_of_the_study(run):
    record = read_record(ROOT / "results" / "runs" / f"{run}.json")
    known, images, width = gpu_predictions.KNOWN[record.config.dataset]
    certified = next(
        result.certified_correct
        for result in record.test.results
        if (result.radius, result.guarantee, result.arithmetic) == ("36/255", "executed", "float64")
    )
    assert (100 * certified / record.test.images, record.training.images, record.model.width) == (known, images, width)


def test_a_length_in_epochs_cannot_be_predicted():
    config = FILES["2-cifar10-10min"].config.with_steps(10)
    with pytest.raises(ValueError, match="minutes"):
        gpu_predictions.predicted(config)


# --- tables ----------------------------------------------------------------------------------------------------------


def test_the_table_says_not_run_until_there_is_a_record():
    lines = gpu_queue.queue_table().splitlines()[2:]
    assert len(lines) == len(ENTRIES) and all(line.endswith("| not run |") for line in lines)
    shown = gpu_queue.commands().splitlines()
    assert (shown[0], shown[-1]) == ("```bash", "```")
    for entry, line, command in zip(ENTRIES, lines, shown[1:-1], strict=True):
        assert line.startswith(f"| {entry.order} | {entry.title} |")
        assert command.split("  # ") == [command.split("  # ")[0], str(entry.order)]
        assert command.split("  # ")[0].rstrip() == entry.command
    assert len(gpu_queue.counts_table().splitlines()) == 2 + len(TRAINED)


def test_a_record_of_any_seed_is_shown():
    entry = FILES["2-cifar10-10min"]
    ran = entry.config.with_steps(12_000)
    records = [make_record(ran.model_copy(update={"seed": seed, "compiled": True})) for seed in (0, 1)]
    assert gpu_queue.status(entry, records) == "65.10 % (seed 0); 65.10 % (seed 1)"
    assert gpu_queue.status(FILES["3-cifar10-25min"], records) == "not run"


def test_seeds_of_entry_2_are_those_of_entry_5():
    (fifth,) = (entry for entry in ENTRIES if entry.order == 5)
    ran = FILES["2-cifar10-10min"].config.with_steps(12_000)
    first, again = (make_record(ran.model_copy(update={"seed": seed})) for seed in (0, 2))
    assert gpu_queue.status(fifth, [first]) == "not run"
    assert gpu_queue.status(fifth, [first, again]) == "65.10 % (seed 2)"


def test_a_matrix_says_how_many_of_its_runs_there_are():
    entry = FILES["7-depth-convnet"]
    shallow, *_, deep = entry.configs
    records = [make_record(shallow, epochs=200), make_record(deep, epochs=200, status="diverged")]
    assert gpu_queue.status(entry, records[:1]) == "1 of 5 runs: 65.10 % (depth 3)"
    assert gpu_queue.status(entry, records) == "2 of 5 runs: 65.10 % (depth 3); diverged (depth 24)"
    other = make_record(shallow.model_copy(update={"seed": 1}), epochs=200)  # the file asks for seed 0
    assert gpu_queue.status(entry, [other]) == "not run"


def test_a_shorter_run_is_not_the_one_that_was_asked_for():
    entry = FILES["liresnet-v1-cifar10"]
    short = make_record(entry.config.model_copy(update={"epochs": 2.0}), epochs=2)
    assert gpu_queue.status(entry, [short]) == "not run"
    assert gpu_queue.status(entry, [short, make_record(entry.config)]) == "65.10 % (seed 0)"
    stopped = make_record(entry.config, status="stopped")
    assert gpu_queue.status(entry, [stopped]) == "not run"


def test_aims_are_published_numbers():
    aims = {entry.path.stem: gpu_queue._aim(entry) for entry in FILES.values()}
    assert [aims[f"6-linf-{name}"] for name in ("cifar10-8", "mnist-0.1", "mnist-0.3")] == [
        "VRA at 8/255 beside the published 40.06 %",
        "VRA at 0.1 beside the published 97.95 %",
        "VRA at 0.3 beside the published 93.20 %",
    ]
    assert aims["11-tiny-imagenet"] == "VRA at 36/255 of 29.2 % or more"
    assert aims["liresnet-iclr-cifar10"] == "VRA at 36/255 beside the published 69.8 %"


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(150, 150, "2.5 min"), (700, 1000, "12 to 17 min"), (7_900, 8_900, "2.2 to 2.5 h"), (90_000, 90_000, "25 h")],
)
def test_durations_in_words(low, high, said):
    assert gpu_queue._duration(low, high) == said


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
