"""`lipcert train | certify | verify | attack | bench | runs ...`: thin, over the functions that the notebooks call."""

import argparse
import sys
from collections.abc import Sequence

from lipcert import __version__

_EXIT_STOPPED = 130  # as a shell reports a program ended by Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; errors a user can mend go to standard error in full sentences, without a traceback."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse takes NAME=VALUE only before the first option.
    if rest and (not hasattr(options, "overrides") or any(text.startswith("-") for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    try:
        return options.run(options)
    except KeyboardInterrupt:
        return _EXIT_STOPPED
    except BrokenPipeError:  # an OSError, so it comes first
        return 0
    except (ValueError, TypeError, OSError, RuntimeError, ImportError, ArithmeticError) as error:
        if options.traceback:
            raise
        print(f"lipcert: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lipcert", description="Train, certify and record networks with proven robustness."
    )
    parser.add_argument("--version", action="version", version=f"lipcert {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    commands = parser.add_subparsers(title="commands", required=True)

    train = commands.add_parser("train", help="train and certify from a file of parameters; writes to results/local")
    train.add_argument("file", metavar="FILE", help="YAML of parameters; `lipcert params` lists them")
    train.add_argument("overrides", nargs="*", metavar="NAME=VALUE", help="parameters that replace those of the file")
    train.add_argument("--resume", action="store_true", help="continue an unfinished run of the same parameters")
    train.add_argument("--fresh", action="store_true", help="discard the checkpoint of an unfinished run")
    train.add_argument("--download", action="store_true", help="let torchvision download a missing data set")
    train.add_argument("--quiet", action="store_true", help="no progress bar")
    train.set_defaults(run=_train)

    study = commands.add_parser("study", help="make every missing run of a study file")
    study.add_argument("file", metavar="FILE", help="YAML of parameters with a matrix of those that vary")
    study.add_argument(
        "overrides", nargs="*", metavar="NAME=VALUE", help="parameters of all runs, or one value of a list"
    )
    study.add_argument("--list", action="store_true", help="only say which runs there are and which are missing")
    study.add_argument("--download", action="store_true", help="let torchvision download a missing data set")
    study.add_argument("--quiet", action="store_true", help="no progress bar")
    study.set_defaults(run=_study)

    machine = commands.add_parser("machine", help="what this machine is fast at: the choices behind `auto`")
    machine.add_argument("file", metavar="FILE", nargs="?", help="YAML of a run's parameters (default: all measured)")
    machine.add_argument("overrides", nargs="*", metavar="NAME=VALUE", help="parameters that replace those of the file")
    machine.add_argument("--measure", action="store_true", help="time every candidate for the run of FILE again")
    machine.add_argument("--download", action="store_true", help="let torchvision download a missing data set")
    machine.set_defaults(run=_machine)

    certify = commands.add_parser("certify", help="certify images with a stored network")
    certify.add_argument(
        "model", metavar="MODEL", help="a .safetensors file (with or without suffix) or a shipped name"
    )
    certify.add_argument("--images", metavar="DATASET", help="data set; default: the one the network was trained on")
    certify.add_argument("--count", type=int, default=10, help="number of test images; 0: all (default 10)")
    certify.add_argument("--start", type=int, default=0, help="first test image (default 0)")
    certify.add_argument("--radius", help="radius to count at (default: the network's own)")
    certify.add_argument("--norm", choices=("l2", "linf"), help="of the ball (default: the network's own)")
    certify.add_argument("--method", choices=("margin", "interval"), help="of proof (default: what proves the most)")
    certify.add_argument("--effort", default="fast", help="of the bounds: fast, tight or exact (default fast)")
    certify.add_argument(
        "--guarantee", default="executed", help="nominal, real or executed (default executed); see the book"
    )
    certify.add_argument("--arithmetic", default="float64", help="float64 or float32 (default float64)")
    relaxed = certify.add_mutually_exclusive_group()
    relaxed.add_argument("--top-k", type=int, default=0, metavar="K", help="certify sets of at most K classes instead")
    relaxed.add_argument(
        "--affinity", default="", metavar="SETS", help="certify sets inside of these, such as '[3,5][4,7]'"
    )
    certify.set_defaults(run=_certify)

    verify = commands.add_parser("verify", help="check a certificate bundle with the independent checker (no torch)")
    verify.add_argument("bundle", metavar="FOLDER", help="a bundle, as `lipcert certify` writes it")
    verify.add_argument("--data", metavar="DIR", help="folder of the data sets (default: LIPCERT_DATA, else data/)")
    verify.add_argument("--bounds-only", action="store_true", help="leave the images out; the exit code is then 3")
    verify.set_defaults(run=_verify)

    attack = commands.add_parser("attack", help="try to refute the certificates of a stored network")
    attack.add_argument("model", metavar="MODEL", help="as for certify")
    attack.add_argument("--count", type=int, default=0, help="images for the quick attack; 0: all (default)")
    attack.add_argument("--strong", type=int, default=100, help="images for the strong attacks (default 100)")
    attack.set_defaults(run=_attack)

    bench = commands.add_parser("bench", help="test a certifier, lipcert's own or yours, on known truth")
    bench.add_argument("--certify", metavar="MODULE:FUNCTION", help="(model, images) -> (prediction, radius)")
    bench.add_argument("--bound", metavar="MODULE:FUNCTION", help="(layer, input shape) -> upper bound on its norm")
    bench.add_argument("--cases", type=int, default=40, help="of each family (default 40)")
    bench.add_argument("--seed", type=int, default=0)
    bench.add_argument("--guarantee", default=None, choices=("nominal", "real", "executed"), help="what yours promises")
    bench.add_argument("--arithmetic", default="float64", choices=("float64", "float32"))
    bench.set_defaults(run=_bench)

    runs = commands.add_parser("runs", help="list, show, repeat and publish run records").add_subparsers(required=True)
    listing = runs.add_parser("list", help="all runs, yours and the published ones")
    listing.set_defaults(run=_runs_list)
    latest = runs.add_parser("latest", help="your newest run in one sentence")
    latest.set_defaults(run=_runs_latest)
    show = runs.add_parser("show", help="one run in words")
    show.add_argument("id", help="id or its unique beginning")
    show.set_defaults(run=_runs_show)
    publish = runs.add_parser(
        "publish", help="copy one of your runs to results/runs, where the study's tables come from"
    )
    publish.add_argument("id", help="id or its unique beginning")
    publish.add_argument("--model", metavar="NAME", help="ship the network, too, as results/models/NAME")
    publish.add_argument("--brief", action="store_true", help="leave the per-image radii out")
    publish.set_defaults(run=_runs_publish)

    again = runs.add_parser("certify", help="certify a finished run again, in every guarantee and arithmetic")
    again.add_argument("id", help="id or its unique beginning")
    again.add_argument("--effort", default="tight", choices=("fast", "tight", "exact"), help="default tight")
    again.set_defaults(run=_runs_certify)

    repeat = runs.add_parser("repeat", help="make a run again from its record and compare, bit for bit")
    repeat.add_argument("id", help="id or its unique beginning")
    repeat.add_argument("--quiet", action="store_true", help="no progress bar")
    repeat.add_argument("--download", action="store_true", help="download a missing data set")
    repeat.set_defaults(run=_runs_repeat)

    readme = commands.add_parser("readme", help="refresh the README's figure and table from results/")
    readme.set_defaults(run=_readme)

    params = commands.add_parser("params", help="every parameter of a run with type, range, default and meaning")
    params.set_defaults(run=_params)
    return parser


def _train(options: argparse.Namespace) -> int:
    from lipcert.config import load_config
    from lipcert.report.tables import run_sentence
    from lipcert.train import fit

    config = load_config(options.file, **_overrides(options.overrides))
    path = fit(config, options.resume, options.fresh, progress=not options.quiet, download=options.download)
    print(run_sentence(path))
    print(path)
    return 0


def _overrides(texts: Sequence[str]) -> dict[str, object]:
    import yaml

    from lipcert.settings import ConfigError, read_yaml

    overrides = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"{text!r}: parameters are written NAME=VALUE")
        try:
            overrides[name] = read_yaml(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"{text!r}: value not readable as YAML: {error}") from None
    return overrides


def _study(options: argparse.Namespace) -> int:
    from lipcert.commands import list_study
    from lipcert.report.tables import run_sentence
    from lipcert.study import check_networks, load_study, run_study

    study = load_study(options.file, **_overrides(options.overrides))
    check_networks(study)
    if options.list:
        return list_study(study)
    for path in run_study(study, progress=not options.quiet, download=options.download):
        print(run_sentence(path), path, sep="\n", flush=True)
    return list_study(study)


def _machine(options: argparse.Namespace) -> int:
    from lipcert.commands import show_machine
    from lipcert.config import load_config

    config = load_config(options.file, **_overrides(options.overrides)) if options.file else None
    return show_machine(config, options.measure, options.download)


def _certify(options: argparse.Namespace) -> int:
    from lipcert.commands import certify_images, certify_sets

    relaxed = ("top_k", "affinity") if options.top_k or options.affinity else ()
    names = ("model", "images", "start", "count", "norm", "method", "effort", "guarantee", "arithmetic", *relaxed)
    request = {name: getattr(options, name) for name in names}
    request["radii"] = (options.radius,) if options.radius else ()
    return certify_sets(request) if relaxed else certify_images(request)


def _verify(options: argparse.Namespace) -> int:
    from lipcert import checker

    arguments = [options.bundle, *(["--data", options.data] if options.data else [])]
    return checker.main([*arguments, *(["--bounds-only"] if options.bounds_only else [])])


def _runs_certify(options: argparse.Namespace) -> int:
    from lipcert.commands import certify_run

    return certify_run(options.id, options.effort)


def _attack(options: argparse.Namespace) -> int:
    from lipcert.attack import run

    found, _ = run(options.model, options.count, options.strong)
    return 1 if found.violations else 0


def _bench(options: argparse.Namespace) -> int:
    from lipcert.commands import bench_certifier

    names = ("certify", "bound", "cases", "seed", "guarantee", "arithmetic")
    return bench_certifier(**{name: getattr(options, name) for name in names})


def _runs_list(options: argparse.Namespace) -> int:
    from lipcert.commands import list_runs

    return list_runs()


def _runs_latest(options: argparse.Namespace) -> int:
    from lipcert.commands import latest_run

    return latest_run()


def _runs_show(options: argparse.Namespace) -> int:
    from lipcert.commands import show_run

    return show_run(options.id)


def _runs_publish(options: argparse.Namespace) -> int:
    from lipcert.records import publish

    print(publish(options.id, options.model, options.brief))
    return 0


def _runs_repeat(options: argparse.Namespace) -> int:
    from lipcert.commands import repeat_run

    return repeat_run(options.id, progress=not options.quiet, download=options.download)


def _readme(options: argparse.Namespace) -> int:
    from lipcert.report.readme import write

    print(*write(), sep="\n")
    return 0


def _params(options: argparse.Namespace) -> int:
    from lipcert.config import TrainConfig
    from lipcert.settings import describe

    print(describe(TrainConfig))
    return 0


if __name__ == "__main__":
    sys.exit(main())
