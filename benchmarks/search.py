"""The search for a recipe: which settings reach the highest VRA after a given number of images.

`python -m benchmarks.search --trials 20 --images 200000` runs or continues an Optuna study (tree-structured Parzen
estimator, median pruning) on a small LiResNet; `--ablate FILE` runs the rows of a YAML list, one change of the base
each. Both train on 45,000 images of CIFAR-10 and are judged on the 5,000 held out; the test images are never looked at.
The judge is the share certified at the radius by the estimated constant, which ranks recipes and proves nothing.

Every trial is one row of `trials.csv` (of `ablation.csv`), written when it ends, with what it changes of the base; the
base lies beside the table. The study itself is an SQLite file, `--study`, and the same command goes on with it.
"""

import argparse
import copy
import csv
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lipcert.config import TrainConfig
from lipcert.data import Dataset, load_dataset
from lipcert.device import own_threads
from lipcert.losses import bottom_logit
from lipcert.paths import results_dir
from lipcert.radius import Radius
from lipcert.run import Run
from lipcert.settings import parse, read_yaml

# The proxy: a fiftieth of the work of the network it stands for.
BASE: dict[str, Any] = {
    "dataset": "cifar10", "validation": True, "depth": 4, "width": 32, "neck_width": 128, "radius": "36/255",
    "radius_start": 0.1, "radius_end": 1.0, "optimizer": "adamw", "lr": 4e-3, "crop": 2, "power_steps": 3,
}  # fmt: skip
FIELDS = ("name", "state", "changes", "seed", "images", "parameters", "accuracy", "vra", "lipschitz", "seconds")
_REPORTS = 8  # judgements of a trial, each of which may end it
_CONVERGED = 150  # power-method rounds before a judgement
_PIECE = 500  # images


def judged(run: Run, steps: int = _CONVERGED) -> dict[str, float]:
    """Accuracy and VRA in percent on the validation images, by the estimate of a copy of the network."""
    data = run.data.validation
    assert len(data.labels_N), "no validation images"
    network = copy.deepcopy(run.network).eval()
    right, certified = 0, 0
    with torch.no_grad():
        lipschitz = network.lipschitz_estimate(steps)
        margin_KK = network.margin_lipschitz(lipschitz)
        for start in range(0, len(data.labels_N), _PIECE):
            labels_B = data.labels_N[start : start + _PIECE].to(run.device)
            images_BCHW = data.images_NCHW[start : start + _PIECE].to(run.device) / run.data.scale
            with torch.autocast(run.device.type, torch.bfloat16, run.config.precision == "bfloat16"):
                features_BF = network.backbone(images_BCHW.to(memory_format=torch.channels_last))
            logits_BK = network.head(features_BF.float())
            right_B = logits_BK.argmax(1) == labels_B
            bottom_B = bottom_logit(logits_BK, margin_KK, float(Radius(run.config.radius)))
            right += int(right_B.sum())
            certified += int((right_B & (logits_BK.amax(1) > bottom_B)).sum())
    count = len(data.labels_N)
    return {"accuracy": 100 * right / count, "vra": 100 * certified / count, "lipschitz": float(lipschitz)}


def train(config: TrainConfig, data: Dataset, seen: Callable[[int, dict], None] | None = None) -> dict[str, float]:
    """Train and judge; `seen(step, judgement)` is called on the way and may raise."""
    torch.compiler.reset()  # it counts networks, and stops to compile after eight
    with own_threads(config, data):
        run, begin = Run(config, data), time.perf_counter()
        while run.step < run.steps:
            run.train_step()
            if seen is not None and run.step % max(1, run.steps // _REPORTS) == 0 and run.step < run.steps:
                run.check_finite()
                seen(run.step, judged(run, config.power_steps))
        found = judged(run)
    return found | {"seconds": time.perf_counter() - begin, "parameters": run.network.parameter_count()}


def settings(base: dict[str, Any], changes: dict[str, Any], images: int) -> TrainConfig:
    """The base with changes, as long as `images` allow."""
    chosen = base | changes
    return parse(TrainConfig, chosen | {"steps": max(1, images // chosen.get("batch", 256))})


def suggested(trial: Any) -> dict[str, Any]:
    """The space: a superset of what the ablation found to matter."""
    changes = {
        "optimizer": trial.suggest_categorical("optimizer", ["adamw", "nadam", "muon"]),
        "lr": trial.suggest_float("lr", 1e-3, 3e-2, log=True),
        "batch": trial.suggest_categorical("batch", [128, 256, 512]),
        "radius_end": trial.suggest_float("radius_end", 1.0, 3.0),
        "radius_ramp": trial.suggest_float("radius_ramp", 0.2, 0.8),
        "warmup": trial.suggest_float("warmup", 0.02, 0.2),
        "crop": trial.suggest_int("crop", 0, 4),
        "centering": trial.suggest_categorical("centering", [False, True]),
    }
    if changes["optimizer"] == "muon":
        changes["momentum"] = trial.suggest_categorical("momentum", [0.8, 0.9, 0.95])
    return changes


def search(base: dict[str, Any], images: int, trials: int, study_file: Path, table: Path, seed: int) -> None:
    """Run `trials` more trials of the study.

    Raises:
        ImportError: Optuna is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise ImportError("the search needs the package optuna: pip install 'lipcert[search]'") from None
    data = load_dataset(base["dataset"], validation=True)
    study_file.parent.mkdir(parents=True, exist_ok=True)
    name = f"{base['dataset']}-L{base['depth']}W{base['width']}-{images}"
    study = optuna.create_study(
        study_name=name,
        storage=f"sqlite:///{study_file.resolve()}",
        load_if_exists=True,
        direction="maximize",
        # Not before half of the run: until then the training radius grows, and how fast is searched for.
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=images // 2),
    )
    # A continued study draws on; with the seed it began with it would repeat itself.
    drawn = seed + len(study.trials)
    study.sampler = optuna.samplers.TPESampler(seed=drawn, n_startup_trials=8)

    def objective(trial: optuna.Trial) -> float:
        config = settings(base, suggested(trial), images)

        def seen(step: int, judgement: dict) -> None:
            trial.report(judgement["vra"], step * config.batch)
            if trial.should_prune():
                raise optuna.TrialPruned

        found = train(config, data, seen)
        for key, value in found.items():
            trial.set_user_attr(key, value)
        return found["vra"]

    def written(study: optuna.Study, _: object) -> None:
        write(table, [_row(trial, base, images) for trial in study.trials if trial.state.is_finished()])

    study.optimize(objective, n_trials=trials, callbacks=[written])


def _row(trial: Any, base: dict[str, Any], images: int) -> dict[str, Any]:
    state, found = trial.state.name.lower(), trial.user_attrs
    if state == "pruned" and trial.intermediate_values:
        images, vra = max(trial.intermediate_values.items())
        found = {"vra": vra}
    return row(str(trial.number), state, trial.params, base.get("seed", 0), images, found)


def ablate(base: dict[str, Any], rows: list[dict], images: int, seeds: list[int], table: Path) -> None:
    """Train every row with every seed; rows of the table are kept and not made again.

    rows: mappings with a `name` and the settings to change, and perhaps `images`.
    """
    data, made = load_dataset(base["dataset"], validation=True), read(table)
    done = {(line["name"], line["seed"], line["images"]) for line in made}
    for given in rows:
        changes = {key: value for key, value in given.items() if key not in ("name", "images")}
        seen = given.get("images", images)
        for seed in seeds:
            if (given["name"], str(seed), str(seen)) in done:
                continue
            found = train(settings(base, changes | {"seed": seed}, seen), data)
            made.append(row(given["name"], "complete", changes, seed, seen, found))
            write(table, made)
            print(f"{given['name']}, seed {seed}: VRA {found['vra']:.2f} %", flush=True)


def row(name: str, state: str, changes: dict, seed: int, images: int, found: dict[str, float]) -> dict[str, Any]:
    """One line of a table; what was not measured is empty."""
    measured = {key: "" if key not in found else f"{found[key]:.6g}" for key in FIELDS[5:]}
    facts = {"name": name, "state": state, "changes": json.dumps(changes), "seed": str(seed), "images": str(images)}
    return facts | measured


def read(table: Path) -> list[dict[str, str]]:
    """The rows of a table, none if there is no such file."""
    if not table.exists():
        return []
    with open(table, newline="") as file:
        return list(csv.DictReader(file))


def write(table: Path, rows: list[dict[str, Any]]) -> None:
    """All rows, columns `FIELDS`."""
    table.parent.mkdir(parents=True, exist_ok=True)
    with open(table, "w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--images", type=int, default=200_000, help="training images of a trial")
    parser.add_argument("--base", type=Path, help="YAML of settings to change in the base of all trials")
    parser.add_argument("--ablate", type=Path, help="YAML list of rows instead of a search")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--study", type=Path, default=Path("search.sqlite"), help="where the study is kept")
    parser.add_argument("--out", type=Path, default=results_dir() / "search", help="folder of the tables")
    given = parser.parse_args(arguments)
    base = BASE | (read_yaml(given.base.read_text()) if given.base else {})
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / f"base-{'ablation' if given.ablate else 'trials'}.json").write_text(json.dumps(base, indent=1) + "\n")
    if given.ablate:
        rows = read_yaml(given.ablate.read_text())
        ablate(base, rows, given.images, given.seeds, given.out / "ablation.csv")
    else:
        base["seed"] = given.seeds[0]
        search(base, given.images, given.trials, given.study, given.out / "trials.csv", given.seeds[0])


if __name__ == "__main__":
    main()
