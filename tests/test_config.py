"""Settings: what is refused, what the message says, what the run's id depends on."""

import math

import pytest

from lipcert.config import ModelConfig, TrainConfig, load_config, steps_of
from lipcert.settings import ConfigError, describe, parse

BASE = {"dataset": "digits", "epochs": 1.0}

BAD = {
    "dpeth=12": ({"dpeth": 12}, ["dpeth=12", "unknown", "did you mean 'depth'"]),
    "depth=twelve": ({"depth": "twelve"}, ["depth='twelve'", "integer"]),
    "depth=12.5": ({"depth": 12.5}, ["depth=12.5", "integer"]),
    "depth=12.0": ({"depth": 12.0}, ["depth=12.0"]),
    "depth='12'": ({"depth": "12"}, ["depth='12'"]),
    "depth=True": ({"depth": True}, ["depth=True"]),
    "depth=0": ({"depth": 0}, ["depth=0", "greater than or equal to 1"]),
    "odd width": ({"width": 31}, ["width=31", "multiple of 2"]),
    "unknown loss": ({"loss": "hinge"}, ["loss='hinge'", "emma", "gloro"]),
    "unknown data": ({"dataset": "cifar11"}, ["dataset='cifar11'", "cifar10"]),
    "no length": ({"epochs": None}, ["steps, epochs, minutes", "none"]),
    "two lengths": ({"minutes": 3.0}, ["steps, epochs, minutes", "epochs=1.0", "minutes=3.0"]),
    "radius 36": ({"radius": "36"}, ["radius='36'", "36/255"]),
    "radius negative": ({"radius": "-1/255"}, ["radius='-1/255'", "non-negative"]),
    "radius nan": ({"radius": math.nan}, ["radius=nan"]),
    "radius zero": ({"radius": "0"}, ["radius=0", "must be > 0"]),
    "lr nan": ({"lr": math.nan}, ["lr=nan"]),
    "lr infinite": ({"lr": math.inf}, ["lr=inf"]),
    "lr zero": ({"lr": 0.0}, ["lr=0.0", "greater than 0"]),
    "warmup one": ({"warmup": 1.0}, ["warmup=1.0"]),
    "seed negative": ({"seed": -1}, ["seed=-1"]),
    "batch text": ({"batch": "big"}, ["batch='big'"]),
    "device": ({"device": "tpu"}, ["device='tpu'", "cuda"]),
    "report radii": ({"report_radii": ["36/255", "oops"]}, ["report_radii", "oops"]),
}


@pytest.mark.parametrize("name", BAD)
def test_refused_with_value_rule_and_known_parameters(name):
    changes, expected = BAD[name]
    with pytest.raises(ConfigError) as refusal:
        parse(TrainConfig, BASE | changes)
    message = str(refusal.value)
    for text in [*expected, "Known parameters", "depth: integer >= 1, <= 1000; default 6"]:
        assert text in message, text


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ConfigError) as refusal:
        parse(TrainConfig, BASE | {"dpeth": 1, "lr": -1.0, "loss": "x"})
    assert all(text in str(refusal.value) for text in ("dpeth=1", "lr=-1.0", "loss='x'"))


def test_every_parameter_is_described_with_type_and_meaning():
    lines = describe(TrainConfig).splitlines()
    assert [line.split(":")[0].strip() for line in lines] == list(TrainConfig.model_fields)
    for line in lines:
        kind, default, meaning = line.split(": ", 1)[1].split("; ", 2)
        assert kind and default and meaning


def other_value(name, default):
    choices = {
        "dataset": "mnist", "classes": 5, "validation": True, "neck": "dense", "stem": "3x3/1", "loss": "gloro",
        "radius": "0.2", "report_radii": ("0.1",), "steps": 7, "epochs": 2.0, "minutes": 1.0, "optimizer": "adam",
        "lr_schedule": "constant_exp", "crop": 1, "flip": True, "device": "cpu", "precision": "bfloat16",
        "published": ("row",), "lookahead": True, "compiled": True, "warmup": 0.1,
            "activation": "relu", "centering": True, "generated": "images.npz", "robust_weight": "2",
            "radius_schedule": "[0]-[1]", "augmentation": "randaugment",
            "plain_weight": "2", "exponent": "9", "layout": "contiguous", "kernels": "native",
        "norm_method": "lanczos", "train_images": 10,
    }  # fmt: skip
    if name in choices:
        return choices[name]
    return default + 2 if isinstance(default, int) else min(default + 0.005, 0.999)


def test_the_id_changes_with_every_setting_but_the_device():
    config = TrainConfig(**BASE)
    assert config.run_id() == TrainConfig(**BASE).run_id()
    for name, field in TrainConfig.model_fields.items():
        if name in ("family", "init", "branch_scale", "keep", "mlp_width"):  # not of every family
            continue
        changed = {**BASE, name: other_value(name, field.default)}
        if name in ("steps", "minutes"):
            changed["epochs"] = None
        same = TrainConfig(**changed).run_id() == config.run_id()
        assert same == (name == "device"), name


def test_the_id_is_stable_across_releases():
    # A changed digest orphans every record and checkpoint: if this fails, it must be on purpose.
    config = TrainConfig(dataset="digits", steps=10, depth=2, width=8)
    assert config.run_id().startswith("digits-liresnet-L2W8-emma-s0-")
    assert config.run_id() == parse(TrainConfig, config.model_dump(mode="json")).run_id()


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        TrainConfig(**BASE).depth = 3


def test_yaml_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("dataset: digits\ndepth: 3\nepochs: 2.5\nradius: 36/255\nreport_radii: [36/255, 0.5]\n")
    config = load_config(path, depth=4)
    assert (config.depth, config.epochs, config.radius, config.report_radii) == (4, 2.5, "36/255", ("36/255", "0.5"))


@pytest.mark.parametrize(
    "text", ["depth: [", "- 1\n- 2\n", "just text", "", "depth: twelve\nepochs: 1", "1: 2\nepochs: 1"]
)
def test_bad_yaml_names_the_file(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        load_config(path)


def test_yaml_cannot_make_objects(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("depth: !!python/object/apply:os.mkdir [%s]\n" % (tmp_path / "made"))
    with pytest.raises(ConfigError):
        load_config(path)
    assert not (tmp_path / "made").exists()


def test_exponents_without_a_dot_are_numbers(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("epochs: 1\nlr: 1e-3\n")  # YAML 1.1 reads this as text
    assert load_config(path).lr == 1e-3


@pytest.mark.parametrize(
    ("length", "images", "steps"),
    [({"steps": 5}, 1000, 5), ({"epochs": 2.0}, 1000, 6), ({"epochs": 0.5}, 1000, 2), ({"epochs": 1e-6}, 1000, 1),
     ({"epochs": 3.0}, 100, 3)],
)  # fmt: skip
def test_steps(length, images, steps):
    assert steps_of(TrainConfig(batch=256, **length), images) == steps


def test_minutes_are_not_guessed():
    with pytest.raises(ConfigError, match="minutes"):
        steps_of(TrainConfig(minutes=1.0), 100)


def test_pinned_length():
    pinned = TrainConfig(minutes=1.0).with_steps(33)
    assert (pinned.steps, pinned.minutes, pinned.epochs) == (33, None, None)
    assert TrainConfig(**pinned.model_dump()) == pinned


@pytest.mark.parametrize("size", [0, -4])
def test_input_size_must_be_positive(size):
    with pytest.raises(ConfigError, match="input_size"):
        parse(ModelConfig, {"input_size": size})


def test_a_run_names_its_network():
    config = TrainConfig(**BASE, family="gloro", depth=4, width=16, classes=3)
    network = config.model(3, 32, 7)
    assert network == ModelConfig(family="gloro", depth=4, width=16, channels=3, input_size=32, classes=7)


def test_compiled_kernels_in_c_are_refused():
    with pytest.raises(ValueError, match="compiled=True with kernels='native'"):
        TrainConfig(dataset="digits", steps=1, compiled=True, kernels="native")
