"""What the page on the cost of proofs says of training: systems at equal VRA, and what a step of them costs."""

import pytest
from made_proofs import COST_ROWS, cells_of, check, linf, made

from lipcert.paths import results_dir
from lipcert.record import Record
from lipcert.records import write_record
from lipcert.report import proof_cost_systems


def run_system(
    title: str, dataset: str, ends: tuple[int, ...], looks: tuple[tuple[float, int], ...] = (), halves: int = 2
) -> None:
    """Records of a system's seeds: certified counts at their ends, and at looks (share of the run, count).

    Args:
        halves: of the usual length that the runs have.
    """
    (system,) = (s for s in proof_cost_systems.systems(dataset) if s.title == title)
    for cell, end in zip(system.cells, ends, strict=False):
        facts = made(cell, (end, 100, 10), (end + 3, 100, 10)).model_dump(by_alias=True, mode="json")
        facts["training"]["steps"] = facts["training"]["steps"] * halves // 2
        images = facts["training"]["images"] = facts["training"]["steps"] * cell.batch
        facts["training"] |= {
            "seconds": 100.0,
            "snapshots": [
                {"images": round(share * images), "seconds": 100 * share, "clean": 8000, "certified_correct": count,
                 "upper": 5.0}
                for share, count in looks
            ],
        }  # fmt: skip
        write_record(Record(**facts), results_dir())


def test_every_system_has_its_study_and_l2_systems_share_a_radius():
    for dataset in proof_cost_systems.SYSTEMS:
        systems = proof_cost_systems.systems(dataset)
        assert all(system.cells for system in systems), dataset
        assert {cell.dataset for system in systems for cell in system.cells} == {dataset}
        l2 = [system for system in systems if proof_cost_systems.is_l2(system)]
        assert len({system.cells[0].radius for system in l2}) == 1 and len(l2) == len(systems) - 1
        assert all(proof_cost_systems.training_operations(system) > 1e6 for system in systems)


def test_systems_that_were_not_run():
    table, words = proof_cost_systems.equal_table("cifar10"), proof_cost_systems.equal_words("cifar10")
    assert cells_of(table, "GloRo net")[1:] == ["not run"] * 3 and "**not run**" in words
    assert proof_cost_systems.levels("cifar10") == [] and proof_cost_systems.records("cifar10") == []
    run_system("GloRo net", "cifar10", (3000,))
    assert proof_cost_systems.levels("cifar10") == []
    assert cells_of(proof_cost_systems.equal_table("cifar10"), "GloRo net")[3] == "not comparable yet"
    assert "GloRo net" not in proof_cost_systems.equal_words("cifar10").partition("Not run:")[2]
    with pytest.raises(ValueError, match="dataset='digits': must be one of mnist, cifar10, cifar100"):
        proof_cost_systems.systems("digits")


def test_equal_vra_by_hand():
    looks = ((0.25, 2000), (0.5, 4000))
    run_system("GloRo net", "cifar10", (3050, 3150), halves=1)
    run_system("LiResNet, the papers' recipe", "cifar10", (4520,), looks)
    run_system("LiResNet, our recipe", "cifar10", (5600,), looks)
    assert proof_cost_systems.levels("cifar10") == [31, 45]
    (ours,) = (s for s in proof_cost_systems.systems("cifar10") if s.title == "LiResNet, our recipe")
    images = ours.runs[0].training.images
    found = proof_cost_systems.arrival(ours, 31)
    assert (found.passed, found.at_most) == (True, False)
    assert found.images == pytest.approx(images * (0.25 + 0.25 * 11 / 20))
    assert found.seconds == pytest.approx(100 * (0.25 + 0.25 * 11 / 20))
    table = proof_cost_systems.equal_table("cifar10")
    gloro = cells_of(table, "GloRo net")
    assert gloro[2].startswith("31.00 % at 36/255 (2 seeds)") and gloro[3].startswith("≤ ")
    assert gloro[4].startswith("**never**, in ")
    assert cells_of(table, "LiResNet, our recipe |")[3] == (
        f"{found.images:,.0f}; {found.images * proof_cost_systems.training_operations(ours) / 1e15:.2f}; 39 s"
    )
    words = proof_cost_systems.equal_words("cifar10")
    assert "All 3 systems with an ℓ₂ radius reach 31 %" in words
    assert "*GloRo net* never reaches 45 %: it stands at 31.00 % at best" in words
    assert "Not run: LiResNet, our recipe, half the width; ℓ∞-distance net." in words
    theirs = images * (0.25 + 0.25 * 11 / 20)
    assert f"In runs of {images:,} images: *LiResNet, the papers' recipe* after {theirs:,.0f}, *LiResNet, our" in words
    (gloro,) = (s for s in proof_cost_systems.systems("cifar10") if s.title == "GloRo net")
    short = gloro.runs[0].training.images
    assert f"In runs of {short:,} images: *GloRo net* after at most {short:,}. In runs of {images:,}" in words
    assert short < images and words.count("do not rank two systems of different length") == 1


def test_systems_of_one_length_stand_in_one_sentence():
    run_system("GloRo net", "cifar10", (4000,))
    run_system("LiResNet, our recipe", "cifar10", (4600,), ((0.5, 3000),))
    words = proof_cost_systems.equal_words("cifar10")
    (images,) = {run.training.images for run in proof_cost_systems.records("cifar10")}
    half = images * (0.5 + 0.5 * 10 / 16)
    said = f"*LiResNet, our recipe* after {half:,.0f}, *GloRo net* after at most {images:,}."
    assert f"In runs of {images:,} images: {said}" in words and "rank" not in words


def test_another_norm_stands_beside():
    (system,) = (s for s in proof_cost_systems.systems("cifar10") if s.title.startswith("ℓ∞"))
    facts = linf().model_dump(by_alias=True, mode="json")
    cell = system.cells[0]
    record = Record(**{**facts, "id": cell.run_id(), "config": cell.model_dump(mode="json")})
    write_record(record, results_dir())
    run_system("GloRo net", "cifar10", (3000,))
    run_system("LiResNet, our recipe", "cifar10", (5600,))
    assert cells_of(proof_cost_systems.equal_table("cifar10"), "ℓ∞")[3:] == ["another norm"] * 2
    assert proof_cost_systems.levels("cifar10") == [30, 56]
    assert "All 2 systems" in proof_cost_systems.equal_words("cifar10")


def test_a_step_beside_a_plain_network():
    assert proof_cost_systems.step_table().startswith("Not run") and proof_cost_systems.step_words() == ""
    assert proof_cost_systems.memory_ratios() == {}
    check("cost", {}, COST_ROWS)
    table = proof_cost_systems.step_table()
    assert cells_of(table, "LiResNet, EMMA")[1:] == ["1.30 × a plain step", "120 MB", "1.20 ×", "`cost`"]
    assert "LiResNet, GloRo" not in table and cells_of(table, "plain ConvNet")[3] == "1.00 ×"
    assert proof_cost_systems.memory_ratios() == {"LiResNet": [0.9, 1.2], "GloRo 6C2F": [2.0]}
    numbers = {"threads": 2, "L6 W64; papers' way; ms": 900.0, "L6 W64; changed; float32, eager; ms": 300.0}
    for key, ratio in (("papers", 2.5), ("float32, eager", 1.1)):
        numbers |= {f"L6 W64; memory {key}; MB": 100 * ratio, f"L6 W64; memory {key}; ratio of MB": ratio}
    check("training-step", numbers, (("net", "step", "ms"), ("L6 W64", "papers' way", "900")))
    table = proof_cost_systems.step_table()
    assert cells_of(table, "LiResNet L6 W64, lipcert, neck of 2048")[1:4] == [
        "0.33 × the papers' step",
        "110 MB",
        "1.10 ×",
    ]
    assert proof_cost_systems.memory_ratios()["the papers' way"] == [2.5]
    assert proof_cost_systems.memory_ratios()["LiResNet"] == [0.9, 1.2, 1.1]
    wide = {"L6 W128; memory float32, eager; MB": 500.0, "L6 W128; memory float32, eager; ratio of MB": 1.5}
    wide["L6 W128; memory neck 256; float32, eager; ratio of KB an image"] = 4.5
    check("training-step", numbers | wide, (("net", "step", "ms"), ("L6 W128", "x", "1"), ("L6 W64", "x", "1")))
    assert cells_of(proof_cost_systems.step_table(), "LiResNet L6 W128, lipcert")[1:4] == [
        "not run",
        "500 MB",
        "1.50 ×",
    ]
    assert proof_cost_systems.memory_ratios()["LiResNet, an image"] == [4.5]
    assert proof_cost_systems.step_memory() == {64: [1.1], 128: [1.5]}
    assert "abacus, 2 threads" in proof_cost_systems.step_words()
