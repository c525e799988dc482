"""From what a user names to sets: names, suites, ids and paths; nothing is downloaded before all is checked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ncu_hf.errors import InputError
from ncu_hf.evaluation.sets import BENCHMARK_SETS, SUITES, open_set, open_suite
from ncu_hf.evaluation.sets import webdataset as layout
from ncu_hf.evaluation.sets.open import find

LABELS = "image,label\n0.png,2\n1.png,0\n"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub of folders by id; what is fetched is noted in `asked`. Without folder, any use of the network fails."""
    folders, asked = {}, []

    def fetch(repo, patterns, revision=None):
        asked.append((repo, patterns, revision))
        return folders[repo]

    monkeypatch.setattr(layout, "fetch", fetch)
    return folders, asked


def test_registry_holds_the_sets_of_the_paper():
    assert len(SUITES["paper"]) == 16 and SUITES["paper"][0] == "caltech101" and SUITES["paper"][-1] == "imagenet1k"
    assert SUITES["retrieval"] == ["flickr30k_1k", "mscoco_5k", "mscoco_5k_all_captions"]
    assert set(SUITES["probe"]) < set(SUITES["paper"])
    assert set(SUITES["paper"]) | set(SUITES["retrieval"]) == set(BENCHMARK_SETS)
    assert not set(SUITES) & set(BENCHMARK_SETS)
    for known in BENCHMARK_SETS.values():
        labelled = known.classes is not None
        assert labelled == (known.templates is not None) == (known.captions is None)
        assert known.hub_id.startswith("clip-benchmark/wds_") and known.primary in ("accuracy", "mean_per_class")
    mean = {name for name, known in BENCHMARK_SETS.items() if known.primary == "mean_per_class"}
    assert mean == {"caltech101", "fgvc_aircraft", "flowers102", "oxford_pets"}


def test_names_ids_and_revisions():
    food = find("Food101@v1", None)
    assert (food.hub_id, food.revision, food.benchmark.name) == ("clip-benchmark/wds_food101", "v1", "food101")
    assert find("clip-benchmark/wds_food101", "v1").identity == food.identity
    other = find("me/wds_x@abc")
    assert (other.hub_id, other.revision, other.benchmark) == ("me/wds_x", "abc", None)
    # An id stands for all captions, the convention that leaves nothing out.
    assert find("clip-benchmark/wds_mscoco_captions").benchmark.name == "mscoco_5k_all_captions"
    with pytest.raises(InputError, match="names the revision 'a', but 'b'"):
        find("food101@a", "b")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("fod101", r"'fod101': no set.* Did you mean 'food101'\?"),
        ("papers", r"Did you mean 'paper'\?"),
        ("", "no set, suite, file"),
        ("sets/pets/labels.csv", r"no such file or folder"),
        ("/nowhere/at/all", "no such file or folder"),
        ("a b/c", "no such file or folder"),
        ("https://example.com/x.tar", "download it"),
    ],
)
def test_unknown(spec, message, hub):
    for call in (open_set, lambda spec: open_suite(["food101", spec])):
        with pytest.raises(InputError, match=message) as caught:
            call(spec)
        assert "\n" not in str(caught.value)
    assert hub[1] == []


def test_a_suite_is_not_a_set(hub):
    with pytest.raises(InputError, match="suite of 16 sets"):
        open_set("paper")


def test_a_folder_that_holds_nothing(tmp_path):
    with pytest.raises(InputError, match=r"neither labels\.csv, nor the layout of clip-benchmark, nor pairs"):
        open_set(str(tmp_path))


def test_revision_of_a_folder(tmp_path, make_labelled):
    with pytest.raises(InputError, match="is on this machine"):
        open_set(str(make_labelled(tmp_path / "x", LABELS)), revision="main")


def test_a_name_goes_before_a_folder(tmp_path, make_labelled, make_wds, monkeypatch, hub, caplog):
    make_labelled(tmp_path / "stl10", LABELS)
    hub[0]["clip-benchmark/wds_stl10"] = make_wds(tmp_path / "c0ffee", test=[[0]])
    monkeypatch.chdir(tmp_path)
    assert len(open_set("stl10").images) == 1 and "write ./stl10" in caplog.text
    assert len(open_set("./stl10").images) == 2


def test_files_here_are_opened_before_anything_is_fetched(tmp_path, make_labelled, hub):
    bad = make_labelled(tmp_path / "bad", "image,label\n0.png,9\n")
    with pytest.raises(InputError, match="label 9"):
        open_suite(["paper", str(bad)])
    assert hub[1] == []


def test_a_suite_of_many(tmp_path, make_labelled, make_wds, hub):
    folders, asked = hub
    folders["me/wds_x"] = make_wds(tmp_path / "c0ffee", test=[[0, 1]], train=[[2]])
    here = make_labelled(tmp_path / "pets", LABELS)
    there = make_labelled(tmp_path / "other" / "pets", LABELS)
    third = make_labelled(tmp_path / "more" / "pets", LABELS)
    sets = open_suite([str(here), "me/wds_x@v1", str(there), str(here), str(third), "me/wds_x@v1"])
    assert [found.origin.name for found in sets] == ["pets", "wds_x", "pets-2", "pets-3"]
    assert sets[1].origin.to_dict()["hub_id"] == "me/wds_x" and sets[1].origin.revision == "c0ffee"
    assert [revision for _, _, revision in asked] == ["v1", "c0ffee"]
    # Tars of the training split are fetched when they are asked for.
    assert not any("train/*.tar" in patterns for _, patterns, _ in asked)
    assert sets[1].train().labels.tolist() == [2] and "train/*.tar" in asked[-1][1]


def test_stamp_of_a_hub_set_is_its_commit(tmp_path, make_wds, hub):
    hub[0]["me/x"] = make_wds(tmp_path / "commit1", test=[[0]])
    first = open_set("me/x").origin
    (hub[0]["me/x"] / "test" / "0.tar").touch()
    assert open_set("me/x").origin == first
    hub[0]["me/x"] = (tmp_path / "commit1").rename(tmp_path / "commit2")
    second = open_set("me/x").origin
    assert second.stamp != first.stamp and second.fingerprint == first.fingerprint


def test_another_layout_is_refused_before_its_tars_are_fetched(tmp_path, hub):
    hub[0]["me/other"] = tmp_path
    with pytest.raises(InputError, match="me/other: not in the layout of clip-benchmark"):
        open_set("me/other")
    assert len(hub[1]) == 1 and not any(pattern.endswith(".tar") for pattern in hub[1][0][1])


def test_a_copy_that_differs_is_told_and_noted(tmp_path, make_wds, hub, caplog):
    hub[0]["clip-benchmark/wds_vtab-caltech101"] = make_wds(tmp_path / "c0ffee", test=[[0, 1]])
    found = open_set("caltech101")
    assert (found.origin.name, found.primary) == ("caltech101", "mean_per_class")
    message = "2 images instead of 6085, 3 classes instead of 102, 2 templates instead of 34"
    assert message in caplog.text and message in found.origin.note and "other copies have" in found.origin.note


def test_a_whole_copy_is_silent(tmp_path, make_wds, hub, caplog, monkeypatch):
    small = replace(BENCHMARK_SETS["stl10"], images=2, classes=3, templates=2)
    monkeypatch.setitem(BENCHMARK_SETS, "stl10", small)
    hub[0]["clip-benchmark/wds_stl10"] = make_wds(tmp_path / "c0ffee", test=[[0, 1]])
    assert open_set("stl10").origin.note is None and caplog.text == ""


@pytest.mark.parametrize(("name", "kept"), [("mscoco_5k", 5), ("mscoco_5k_all_captions", 7)])
def test_both_conventions_of_captions(tmp_path, make_wds, hub, name, kept):
    captions = ["\n".join(f"{i} {j}" for j in range(count)) for i, count in enumerate((7, 5, 2))]
    hub[0]["clip-benchmark/wds_mscoco_captions"] = make_wds(tmp_path / "c0ffee", retrieval=True, test=[captions])
    found = open_set(name)
    assert found.captions == [f"{i} {j}" for i, count in enumerate((7, 5, 2)) for j in range(min(kept, count))]
    assert ("the first 5 captions of each image" in found.origin.note) == (kept == 5)
    assert found.origin.name == name


def test_a_local_copy_of_a_known_set(tmp_path, make_wds):
    found = open_set(str(make_wds(tmp_path / "wds_vtab-pets", test=[[0, 1]])))
    assert (found.origin.name, found.primary) == ("oxford_pets", "mean_per_class")
    assert found.origin.hub_id is None and "2 images instead of 3669" in found.origin.note
