"""Run records: typed, consistent, exact; and what may be published."""

import json
from fractions import Fraction

import pytest

from lipcert.config import TrainConfig
from lipcert.paths import RESULTS, local_dir, results_dir
from lipcert.records import RecordError, find_record, load_records, publish, read_record, records_frame, write_record
from lipcert.train import fit

CONFIG = TrainConfig(dataset="digits", depth=1, width=4, neck_width=8, batch=64, steps=4, device="cpu")


def trained(folder, dirty=False, **changes):
    """A real run in `folder`, as if of committed code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIPCERT_RESULTS", str(folder))
        patch.setattr("lipcert.run.git_state", lambda: ("c" * 40, dirty))
        return fit(CONFIG.model_copy(update=changes), progress=False)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("run"))


@pytest.fixture
def mine(results):
    """The path of a record among your runs."""
    return trained(results)


def changed(path, tmp_path, change):
    facts = json.loads(path.read_text())
    change(facts)
    target = tmp_path / "changed.json"
    target.write_text(json.dumps(facts))
    return target


def test_round_trip(written, tmp_path):
    record = read_record(written)
    copy = write_record(record, tmp_path)
    assert copy == tmp_path / "runs" / f"{record.id}.json"
    assert copy.read_text() == written.read_text() and read_record(copy) == record


def test_vra_is_exact(written):
    record = read_record(written)
    result = record.result("36/255")
    assert record.vra("36/255") == float(Fraction(result.certified_correct, record.test.images))
    assert record.result("72/510") == result, "radii are compared by value"
    assert record.result("36/255", "executed") == result, "the strongest guarantee comes first"
    assert record.result("36/255", "executed", arithmetic="float32") is None
    assert record.vra("0.77") != record.vra("0.77"), "not measured is NaN"
    assert {r.guarantee for r in record.test.results} == {"nominal", "real", "executed", "estimated"}


WRONG = {
    "unknown field": lambda r: r.update(extra=1),
    "unknown nested field": lambda r: r["training"].update(extra=1),
    "missing field": lambda r: r.pop("data"),
    "unknown schema": lambda r: r.update(schema=2),
    "images are not steps x batch": lambda r: r["training"].update(images=5),
    "more certified than right": lambda r: r["test"]["results"][0].update(certified_correct=r["test"]["clean"] + 1),
    "more right than there are": lambda r: r["test"].update(clean=361),
    "test of another size": lambda r: r["test"].update(images=361),
    "negative count": lambda r: r["test"].update(clean=-1),
    "fraction of an image": lambda r: r["test"].update(clean=1.5),
    "unknown guarantee": lambda r: r["test"]["results"][0].update(guarantee="sure"),
    "NaN bound": lambda r: r["bounds"].update(upper=float("nan")),
    "lower above upper": lambda r: r["bounds"].update(lower=r["bounds"]["upper"] * 2),
    "bad hash": lambda r: r["model"].update(weights_sha256="abc"),
    "bad setting": lambda r: r["config"].update(depth=0),
    "unknown setting": lambda r: r["config"].update(dpeth=1),
    "id with a path": lambda r: r.update(id="../x"),
    "tested but stopped": lambda r: r["training"].update(status="stopped"),
    "radius that is none": lambda r: r["test"]["results"][0].update(radius="wide"),
}


@pytest.mark.parametrize("name", WRONG)
def test_inconsistent_records_are_refused(written, tmp_path, name):
    path = changed(written, tmp_path, WRONG[name])
    with pytest.raises(RecordError, match=r"changed\.json"):
        read_record(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '{"config": 1}', "{}"])
def test_files_that_are_no_records(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(RecordError, match=r"x\.json"):
        read_record(path)


def test_absent_record(tmp_path):
    with pytest.raises(RecordError, match="no record at"):
        read_record(tmp_path / "none.json")


def test_a_damaged_record_is_not_left_out_silently(mine):
    (mine.parent / "zzz.json").write_text("{")
    with pytest.raises(RecordError, match=r"zzz\.json"):
        load_records("local")


def test_find_by_beginning(mine):
    record = read_record(mine)
    assert find_record(record.id) == (record, local_dir())
    assert find_record("digits-lires")[0] == record
    longer = record.model_copy(update={"id": record.id + "x"})
    write_record(longer)
    assert find_record(record.id)[0] == record, "the exact id wins over longer ones"
    with pytest.raises(RecordError, match="several"):
        find_record("digits")
    with pytest.raises(RecordError, match="there are: digits"):
        find_record("cifar")


def test_publish_copies_record_curve_and_radii(mine):
    record = read_record(mine)
    path = publish(record.id)
    published = read_record(path)
    assert path == results_dir() / "runs" / f"{record.id}.json"
    kept = record.test.model_copy(update={"bundle": None})
    assert published.model.file is None and published.test == kept, "networks and bundles are shipped on request only"
    for name in (record.training.curve, record.test.radii):
        assert (results_dir() / name).read_bytes() == (local_dir() / name).read_bytes()
    assert load_records("published") == [published]
    assert publish(record.id) == path


def test_brief_publication_leaves_the_radii_out(mine):
    record = read_record(mine)
    published = read_record(publish(record.id, brief=True))
    assert published.test.radii is None and published.test.results == record.test.results
    assert not (results_dir() / "radii").exists() and (results_dir() / record.training.curve).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"validation": True}, "validation split"),
        ({"dirty": True}, "dirty=True"),
        ({"dirty": None}, "dirty=None"),
    ],
)
def test_unfit_runs_are_not_published(results, change, message):
    record = read_record(trained(results, **change))
    with pytest.raises(RecordError, match=message):
        publish(record.id)
    assert not (results_dir() / "runs").exists()


def test_a_bundle_of_some_images_is_not_shipped(mine):
    record = read_record(mine)
    claims = local_dir() / record.test.bundle / "certificate.json"
    whole = claims.read_text()
    claims.write_text(whole.replace('"images":360', '"images":7'))
    with pytest.raises(RecordError, match=r"counts.images=7: must be all 360 of the test split"):
        publish(record.id, model="small")
    assert not (results_dir() / "runs").exists() and not (results_dir() / "certificates").exists()
    claims.write_text(whole)
    assert read_record(publish(record.id, model="small")).test.bundle == "certificates/small"


def test_a_network_that_is_shipped_stays_shipped(mine):
    record = read_record(mine)
    write_record(record.model_copy(update={"provenance": record.provenance.model_copy(update={"dirty": False})}))
    publish(record.id, model="small")
    again = read_record(publish(record.id, brief=True))
    assert (again.model.file, again.test.bundle) == ("models/small.safetensors", "certificates/small")
    weights = record.model.model_copy(update={"weights_sha256": "0" * 64})
    write_record(record.model_copy(update={"model": weights}))
    assert read_record(publish(record.id)).model.file is None, "other weights"


def test_stopped_runs_are_not_published(mine):
    record = read_record(mine)
    training_part = record.training.model_copy(update={"status": "stopped"})
    write_record(record.model_copy(update={"training": training_part, "test": None, "bounds": None}))
    with pytest.raises(RecordError, match="only runs that finished or diverged"):
        publish(record.id)


def test_diverged_runs_are_published_without_a_network(mine):
    record = read_record(mine)
    kept = {
        "training": record.training.model_copy(update={"status": "diverged"}),
        "model": record.model.model_copy(update={"file": None}), "test": None, "bounds": None,
        "provenance": record.provenance.model_copy(update={"dirty": False}),
    }  # fmt: skip
    write_record(record.model_copy(update=kept))
    with pytest.raises(RecordError, match="no network to ship as 'small'"):
        publish(record.id, model="small")
    published = read_record(publish(record.id))
    assert published.training.status == "diverged" and (results_dir() / published.training.curve).exists()
    assert list(records_frame("published").index) == []


def test_frame_has_a_row_for_every_result(mine):
    record = read_record(mine)
    frame = records_frame("local")
    assert len(frame) == len(record.test.results) and set(frame.id) == {record.id}
    row = frame[(frame.radius == "36/255") & (frame.guarantee == "nominal")].iloc[0]
    assert row.vra == record.vra("36/255") and row.clean == record.clean_accuracy()


def test_frame_of_what_intervals_certify_and_of_two_methods(monkeypatch):
    """The study's own records: by intervals alone there are no constants; a linf_net is certified by both methods."""
    monkeypatch.setenv("LIPCERT_RESULTS", str(RESULTS))
    alone = [record.id for record in load_records() if record.bounds is None and record.test]
    frame = records_frame("published")
    assert alone and frame[frame.id.isin(alone)].lipschitz_upper.isna().all()
    assert frame[~frame.id.isin(alone)].lipschitz_upper.notna().all()
    keys = ["id", "radius", "guarantee", "arithmetic"]
    assert frame.duplicated(keys).any() and not frame.duplicated([*keys, "method", "norm"]).any()
