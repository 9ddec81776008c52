"""Checkpoints: exact, atomic, damaged ones refused, nothing unpickled."""

import os
import pickle
import random

import pytest
import torch

from lipcert.checkpoint import load_checkpoint, remove_checkpoint, save_checkpoint

STATE = {
    "step": 3, "seconds": 0.1 + 0.2, "none": None, "flag": True, "text": "a\"é", "list": [1, [2.5, "x"], ()],
    "tuple": (1, (2,)), "int keys": {0: "a", 1: {"b": 2}}, "tuple keys": {(0, 1): 2.0},
    "tensors": {"float": torch.randn(3, 4), "double": torch.randn(2, dtype=torch.float64), "int": torch.arange(3),
                "bool": torch.tensor([True, False]), "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3),
                "strided": torch.randn(4, 3).T, "half": torch.randn(3).bfloat16()},
}  # fmt: skip


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.safetensors"


def test_round_trip_is_exact(path):
    save_checkpoint(path, STATE)
    assert same(load_checkpoint(path), STATE)
    assert [p.name for p in path.parent.iterdir()] == ["run.safetensors"]


def test_none_when_there_is_none(path):
    assert load_checkpoint(path) is None


def test_shared_memory_is_stored_twice(path):
    tensor = torch.randn(3)
    save_checkpoint(path, {"a": tensor, "b": tensor, "c": tensor[:2]})
    assert same(load_checkpoint(path), {"a": tensor, "b": tensor, "c": tensor[:2]})


def test_the_state_before_is_kept_and_used_when_the_newest_is_damaged(path):
    for step in (1, 2, 3):
        save_checkpoint(path, {"step": step})
    assert load_checkpoint(path) == {"step": 3}
    path.write_bytes(path.read_bytes()[:-1])
    assert load_checkpoint(path) == {"step": 2}
    path.unlink()
    assert load_checkpoint(path) == {"step": 2}


def test_all_damaged_is_an_error_that_names_the_way_out(path):
    save_checkpoint(path, STATE)
    save_checkpoint(path, STATE)
    for file in path.parent.iterdir():
        file.write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="--fresh"):
        load_checkpoint(path)


def test_every_flipped_bit_is_noticed(path):
    save_checkpoint(path, {"w": torch.randn(20, 20), "step": 1})
    whole, rng = path.read_bytes(), random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(damaged))
        try:
            state = load_checkpoint(path)
        except ValueError:
            continue
        # A flip in the padding of the header changes nothing that is read.
        path.write_bytes(whole)
        assert same(state, load_checkpoint(path))


def test_every_truncation_is_noticed(path):
    save_checkpoint(path, {"w": torch.randn(5), "step": 1})
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="no usable checkpoint"):
            load_checkpoint(path)


class Bomb:
    def __reduce__(self):
        return os._exit, (66,)


@pytest.mark.parametrize("payload", [pickle.dumps(Bomb()), b"PK\x03\x04" + b"\0" * 64])
def test_a_pickle_under_the_name_of_a_checkpoint_is_refused(path, payload):
    path.write_bytes(payload)
    with pytest.raises(ValueError, match="no usable checkpoint"):
        load_checkpoint(path)


def test_a_torch_file_is_refused(path):
    torch.save({"step": Bomb}, path)
    with pytest.raises(ValueError, match="no usable checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("value", [object(), {1, 2}, lambda: 0, b"bytes"])
def test_other_objects_are_not_stored(path, value):
    with pytest.raises(TypeError, match="cannot store"):
        save_checkpoint(path, {"x": value})
    assert not path.exists()


@pytest.mark.parametrize(
    "structure", ["[]", '{"value": 1, "dict": []}', '{"call": "os.system"}', '{"tensor": "t9"}', "5"]
)
def test_a_well_signed_but_malformed_structure_is_refused(path, structure):
    from safetensors.torch import save_file

    from lipcert.checkpoint import _digest

    save_file({}, path, metadata={"structure": structure, "sha256": _digest(structure, {})})
    with pytest.raises(ValueError, match="no usable checkpoint"):
        load_checkpoint(path)


def test_remove(path):
    save_checkpoint(path, STATE)
    save_checkpoint(path, STATE)
    remove_checkpoint(path)
    assert not list(path.parent.iterdir())
    remove_checkpoint(path)
