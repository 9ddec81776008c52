"""Residual blocks in network files: a round trip, and files that a hostile author would write."""

import json

import pytest
import torch
from blocks import IMAGE, block, residual_chain
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from lipcert.certify import certify
from lipcert.models import load_network
from lipcert.models.stored import _digest, save_network

CARD = {
    "dataset": "digits", "classes": 3, "class_seed": 0, "class_names": ["0", "1", "2"], "input_shape": list(IMAGE),
    "radius": "36/255",
}  # fmt: skip


@pytest.fixture
def stored(tmp_path):
    chain, image = residual_chain(1)
    save_network(chain, tmp_path / "net.safetensors", CARD)
    return chain, image, tmp_path / "net.safetensors"


def test_blocks_survive_storage(stored):
    chain, image, path = stored
    again = load_network(path)
    assert str(again) == str(chain) and torch.equal(again(image.float()), chain(image.float()))
    assert torch.equal(certify(again, image).radius_B, certify(chain, image).radius_B)


def rewritten(path, change) -> None:
    """The stored file with another geometry and a digest that fits, as a hostile author would write it."""
    with safe_open(path, framework="pt") as file:
        lines = json.loads(file.metadata()["geometry"])
    plan, tensors = json.dumps(change(lines)), load_file(path)
    save_file(tensors, path, metadata={"geometry": plan})
    card = json.loads(path.with_suffix(".json").read_text()) | {"file_sha256": _digest(plan, tensors)}
    path.with_suffix(".json").write_text(json.dumps(card))


def line(lines: list, name: str) -> int:
    return [entry["name"] for entry in lines].index(name)


def dropped(*names: str):
    return lambda lines: [entry for entry in lines if entry["name"] not in names]


def renamed(old: str, new: str):
    return lambda lines: [entry | {"name": new if entry["name"] == old else entry["name"]} for entry in lines]


def moved(name: str, before: str):
    def change(lines: list) -> list:
        entry = lines.pop(line(lines, name))
        lines.insert(line(lines, before), entry)
        return lines

    return change


HOSTILE = {
    "no Fork": dropped("2.fork"),
    "no Join": dropped("2.join"),
    "neither": dropped("2.fork", "2.join"),
    "Join of another block": renamed("2.join", "4.join"),
    "Fork without its ending": renamed("2.fork", "2"),
    "Join inside of its branch": moved("2.join", "2.branch.2"),
    "Fork inside of its branch": moved("2.fork", "2.branch.1"),
    "Fork behind its Join": moved("2.join", "2.fork"),
    "inner block ends after the outer": moved("4.join", "4.branch.2.join"),
    "a branch's layer outside": moved("2.branch.2", "3"),
    "a layer inside of the branch": moved("3", "2.join"),
    "a name twice": renamed("2.branch.2", "2.branch.0"),
    "a block named like a layer": lambda lines: [
        entry | {"name": "0" + entry["name"][1:] if entry["name"].startswith("2.") else entry["name"]}
        for entry in lines
    ],
    "a branch that changes the shape": lambda lines: [
        entry | ({"padding": [0, 0]} if entry["name"] == "2.branch.2" else {}) for entry in lines
    ],
    "a Fork with an argument": lambda lines: [
        entry | ({"amount": 1.0} if entry["name"] == "2.fork" else {}) for entry in lines
    ],
    "a Fork with a bias": lambda lines: [
        entry | ({"bias": True} if entry["name"] == "2.fork" else {}) for entry in lines
    ],
    "a Residual by name": lambda lines: [
        entry | ({"kind": "Residual"} if entry["name"] == "2.fork" else {}) for entry in lines
    ],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_blocks_are_refused(stored, name):
    rewritten(stored[2], HOSTILE[name])
    with pytest.raises(ValueError, match="damaged or was not written by lipcert"):
        load_network(stored[2])


def test_the_rewriting_is_not_what_is_refused(stored):
    rewritten(stored[2], lambda lines: lines)
    assert str(load_network(stored[2])) == str(stored[0])


def test_an_empty_branch_is_not_stored(tmp_path):
    with pytest.raises(TypeError, match="at least one layer"):
        save_network(nn.Sequential(block(), nn.Linear(2, 2)), tmp_path / "x.safetensors", CARD)
