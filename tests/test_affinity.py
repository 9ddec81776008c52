"""Affinity sets from text, lists and matrices; every mistake by name. What the command line prints of sets."""

import shutil

import numpy as np
import pytest
import torch

from lipcert.__main__ import main
from lipcert.affinity import affinity_sets
from lipcert.chain import NotCertifiable
from lipcert.data import load_dataset, to_unit
from lipcert.data.superclasses import CIFAR10_KINDS, cifar100_superclasses
from lipcert.models import load_network
from lipcert.paths import RESULTS
from lipcert.recertify import SetRequest, recertify_sets
from lipcert.relaxed import certify_top_k

NAMES = ["cat", "dog", "7", "truck"]
SETS = ((0, 1), (2, 3))

GOOD = {
    "text": "[0,1][2,3]",
    "text with spaces": " [ 1, 0 ]  [3 ,2]\n",
    "text with names": "[cat, dog][7, truck]",
    "names and numbers": "[cat, 1][7, 3]",
    "lists": [[0, 1], [3, 2]],
    "tuples and sets": ({1, 0}, (2, 3)),
    "names in lists": [["dog", "cat"], ["truck", 2]],
    "a mapping": {"animals": ["cat", "dog"], "rest": (2, 3)},
    "NumPy's integers": [np.array([0, 1]).tolist(), [np.int64(2), np.int64(3)]],
    "a tensor": torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]]),
    "a boolean array": np.array([[True, True, False, False], [False, False, True, True]]),
}


@pytest.mark.parametrize("name", GOOD)
def test_read(name):
    assert affinity_sets(GOOD[name], 4, NAMES) == SETS


def test_a_name_that_looks_like_a_number_is_a_name():
    assert affinity_sets("[7][cat]", 4, NAMES) == ((2,), (0,))
    assert affinity_sets("[0,1]", 4) == ((0, 1),)
    with pytest.raises(NotCertifiable, match="class '7'"):
        affinity_sets("[7]", 4)


BAD = {
    "no brackets": ("0,1", "written"),
    "text after": ("[0,1] and [2]", "written"),
    "nested": ("[[0,1]]", "written"),
    "nothing": ("", "written"),
    "no sets": ([], "at least one set"),
    "empty set": ("[0][]", "empty"),
    "empty list": ([[0], []], "empty"),
    "empty row": (torch.zeros(1, 4), "empty"),
    "trailing comma": ("[0,]", "class ''"),
    "too large": ("[0,4]", "class '4'"),
    "negative": ([[-1]], "class -1"),
    "negative text": ("[-1]", "class '-1'"),
    "unknown name": ("[cat, horse]", "'horse'.*cat, dog"),
    "bool": ([[True, False]], "class True"),
    "float": ([[0.0, 1.0]], "class 0.0"),
    "twice": ("[0,0]", "twice"),
    "twice by name": ("[0,cat]", "twice"),
    "all classes": ("[0,1,2,3]", "all 4"),
    "flat list": ([0, 1], "sets of classes"),
    "number": (3, "sets of classes"),
    "matrix of another width": (torch.ones(2, 3), r"\(sets, 4\)"),
    "matrix of other numbers": (torch.tensor([[0.5, 0, 0, 1]]), "0 and 1"),
    "vector": (np.ones(4), "0 and 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_refused(name):
    given, says = BAD[name]
    with pytest.raises(NotCertifiable, match=says):
        affinity_sets(given, 4, NAMES)


def test_names_must_be_one_each():
    with pytest.raises(NotCertifiable, match="3 class names for 4"):
        affinity_sets("[0]", 4, NAMES[:3])


# --- groups that come with data sets ----------------------------------------------------------------------------------


@pytest.mark.data("cifar100")
def test_superclasses_are_twenty_groups_of_five():
    groups = cifar100_superclasses()
    assert len(groups) == 20 and all(len(members) == 5 for members in groups.values())
    assert sorted(c for members in groups.values() for c in members) == list(range(100))
    names = load_network(RESULTS / "models" / "cifar100-liresnet-L6W80").card["class_names"]
    assert {names[c] for c in groups["people"]} == {"baby", "boy", "girl", "man", "woman"}
    assert affinity_sets(groups, 100, names) == tuple(groups.values())


def test_superclasses_of_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="LIPCERT_DATA"):
        cifar100_superclasses(tmp_path)
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    (folder / "train").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(ValueError, match="SHA-256"):
        cifar100_superclasses(tmp_path)


def test_the_kinds_of_cifar10_are_all_its_classes():
    names = load_network(RESULTS / "models" / "cifar10-liresnet-L6W80").card["class_names"]
    assert sorted(c for members in affinity_sets(CIFAR10_KINDS, 10, names) for c in members) == list(range(10))


# --- command line -----------------------------------------------------------------------------------------------------


@pytest.fixture
def shipped(results):
    """The digits network where `lipcert certify` looks for it."""
    shutil.copytree(RESULTS / "models", results / "models", ignore=shutil.ignore_patterns("cifar*", "mnist*"))
    return "digits-liresnet-L6W32"


def test_sets_are_printed_with_their_radii(shipped, capsys):
    assert main(["certify", shipped, "--top-k", "2", "--start", "11", "--count", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    network, data = load_network(RESULTS / "models" / shipped), load_dataset("digits")
    images = to_unit(data.test.images_NCHW[11:13], data.scale, torch.float64)
    expected = certify_top_k(network, images, 2)
    for line, members, radii in zip(
        lines[1:], expected.members(expected.best_k_B), expected.radius_BT.tolist(), strict=False
    ):
        number, _, *said, proven, alone = line.split()
        assert number in ("11", "12") and [int(word.strip(",")) for word in said] == list(members)
        assert 0 <= max(radii) - float(proven) < 1e-4 and 0 <= radii[0] - float(alone) < 1e-4
    assert "No VRA" in lines[4] and "in a certified set of at most 2 at l2 radius 36/255" in lines[5]


def test_affinity_is_printed_with_counts_of_its_own(shipped, capsys):
    assert main(["certify", shipped, "--affinity", "[3,5]", "--start", "11", "--count", "1", "--radius", "0.2"]) == 0
    out = capsys.readouterr().out
    assert "5, 3" in out and "1 of 1 have their label in a certified set inside of the affinity sets" in out
    assert "0 are correct and certified as one class" in out


@pytest.mark.parametrize(
    "options, says",
    [
        (["--top-k", "10"], "k_max=10 with 10 classes"),
        (["--top-k", "-1"], "top_k=-1"),
        (["--affinity", "[cat]"], "class 'cat'"),
        (["--affinity", "3,5"], "written"),
    ],
)
def test_wrong_sets_end_with_a_sentence(shipped, options, says, capsys):
    assert main(["certify", shipped, *options]) == 2
    captured = capsys.readouterr()
    assert says in captured.err and not captured.out


def test_a_request_names_one_kind_of_sets(shipped):
    with pytest.raises(NotCertifiable, match="exactly one"):
        recertify_sets(SetRequest(model=shipped))
