"""The embedded data set: determinism, true labels, captions that say what is drawn, and the written file."""

from __future__ import annotations

import io
import random

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ncu_hf.data.scenes import ATTRIBUTES, BACKGROUND_PHRASES, COLORS, SHAPE_WORDS, SIZES, draw_scene, write_scenes
from ncu_hf.errors import InputError

# a naive reading of the captions: word -> (attribute, class)
SIZE_OF = {word: name for name, (words, _) in SIZES.items() for word in words}
COLOR_OF = {word: name for name, (words, _) in COLORS.items() for word in words}
SHAPE_OF = {word: name for name, words in SHAPE_WORDS.items() for word in words}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
RELATION_OF = {"left": "left of", "right": "right of", "above": "above", "over": "above", "below": "below"}
RELATION_OF["under"] = "below"


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(0, index, size=32) for index in range(400)]


def pixels(scene):
    return np.asarray(scene.image, dtype=np.int64)


def test_seed_and_index_determine_a_scene():
    first, again = draw_scene(5, 17), draw_scene(5, 17)
    assert (pixels(first) == pixels(again)).all()
    assert (first.caption, first.attributes, first.key) == (again.caption, again.attributes, again.key)
    assert first.key == "scene-0000017"
    assert first.image.mode == "RGB" and first.image.size == (64, 64)
    for other in (draw_scene(6, 17), draw_scene(5, 18)):
        assert (pixels(first) != pixels(other)).any()


def test_order_of_drawing_and_global_generators_do_not_matter():
    random.seed(1)
    np.random.seed(1)
    first = [draw_scene(2, index, 32).caption for index in (3, 4)]
    state = random.getstate(), np.random.get_state()[1].copy()
    second = [draw_scene(2, index, 32).caption for index in (4, 3)]
    assert first == second[::-1]
    assert random.getstate() == state[0] and (np.random.get_state()[1] == state[1]).all()


def test_size_changes_the_pixels_alone():
    small, large = draw_scene(0, 1, 32), draw_scene(0, 1, 96)
    assert small.image.size == (32, 32) and large.image.size == (96, 96)
    assert small.caption == large.caption and small.attributes == large.attributes
    shrunk = np.asarray(large.image.reduce(3), dtype=np.int64)
    assert np.abs(shrunk - pixels(small)).mean() < 12  # the same picture up to the sharpness of its edges


def test_every_attribute_is_labelled_with_a_known_class(scenes):
    for scene in scenes:
        assert set(scene.attributes) == set(ATTRIBUTES)
        for name, label in scene.attributes.items():
            assert label in ATTRIBUTES[name][0]
    for name, (classes, templates) in ATTRIBUTES.items():
        assert {scene.attributes[name] for scene in scenes} == set(classes)
        assert templates and all(template.count("{c}") == 1 for template in templates)


def test_zero_shot_prompts_use_no_word_that_captions_lack(scenes):
    known = set(" ".join(scene.caption for scene in scenes).replace(",", "").split())
    for classes, templates in ATTRIBUTES.values():
        for label in classes:
            for template in templates:
                assert set(template.format(c=label).replace(",", "").split()) <= known


def test_captions_are_short_and_seldom_repeated():
    captions = [draw_scene(1, index, 16).caption for index in range(4000)]
    lengths = [len(caption.split()) for caption in captions]
    assert min(lengths) >= 6 and max(lengths) <= 16
    assert len(set(captions)) > 0.98 * len(captions)
    assert not any("  " in caption or "{" in caption or caption.startswith(",") for caption in captions)


def test_captions_state_size_background_and_relation_of_the_scene(scenes):
    stated = {"size": 0, "background": 0}
    for scene in scenes:
        words = scene.caption.replace(",", "").split()
        sizes = [SIZE_OF[word] for word in words if word in SIZE_OF]
        assert sizes in ([], [scene.attributes["size"]]), scene.caption
        places = [
            name for name, phrases in BACKGROUND_PHRASES.items() if any(phrase in scene.caption for phrase in phrases)
        ]
        assert places in ([], [scene.attributes["background"]]), scene.caption
        stated["size"] += len(sizes)
        stated["background"] += len(places)
    assert all(count > len(scenes) / 2 for count in stated.values())


def test_relation_reads_from_the_main_object(scenes):
    """The phrase with the size word is the main object: the relation holds from there, in either order."""
    checked = 0
    for scene in scenes:
        words = scene.caption.replace(",", "").split()
        where = [i for i, word in enumerate(words) if word in SIZE_OF]
        relation = [i for i, word in enumerate(words) if word in RELATION_OF]
        assert len(relation) == 1, scene.caption
        said = RELATION_OF[words[relation[0]]]
        if where and words[-1] != "it" and "with" not in words and "is" not in words:
            expected = said if where[0] < relation[0] else OPPOSITE[said]
            assert scene.attributes["relation"] == expected, scene.caption
            checked += 1
        elif "with" in words or "is" in words:
            assert scene.attributes["relation"] == said, scene.caption
            checked += 1
    assert checked > len(scenes) / 2


def test_color_and_shape_follow_the_size_word(scenes):
    checked = 0
    for scene in scenes:
        words = scene.caption.replace(",", "").split()
        for place in [i for i, word in enumerate(words) if word in SIZE_OF]:
            rest = words[place + 1 : place + 3]
            colors = [COLOR_OF[word] for word in rest if word in COLOR_OF]
            shapes = [SHAPE_OF[word] for word in rest if word in SHAPE_OF]
            assert colors in ([], [scene.attributes["color"]]), scene.caption
            assert shapes in ([], [scene.attributes["shape"]]), scene.caption
            checked += len(colors) + len(shapes)
    assert checked > len(scenes)


def test_main_object_is_where_and_as_large_as_stated():
    """Count the pixels near the main colour: more of them on the stated side, more of them in big than in small."""
    areas = {"big": [], "small": []}
    for index in range(300):
        scene = draw_scene(3, index)
        if scene.attributes["background"] != "snow" or scene.attributes["color"] not in ("red", "green", "blue"):
            continue
        color = np.array(COLORS[scene.attributes["color"]][1])
        rows, columns = np.nonzero(np.abs(pixels(scene) - color).max(axis=-1) <= 30)
        x, y = columns.mean() - 31.5, rows.mean() - 31.5
        side = {"left of": -x, "right of": x, "above": -y, "below": y}[scene.attributes["relation"]]
        assert side > 3, scene.caption
        areas[scene.attributes["size"]].append(len(rows))
    assert min(len(area) for area in areas.values()) > 3
    assert np.mean(areas["big"]) > 1.8 * np.mean(areas["small"])


def test_too_small_an_image_is_refused():
    with pytest.raises(InputError, match="at least 16"):
        draw_scene(0, 0, size=15)


def test_written_file_holds_the_scenes_and_the_truth(tmp_path):
    path = write_scenes(tmp_path / "new" / "folder", 60, seed=4, size=32, noise_share=0.25, noise_seed=9)
    assert path == tmp_path / "new" / "folder" / "scenes.parquet"
    rows = pq.read_table(path).to_pylist()
    assert list(rows[0]) == ["key", "image", "caption", "mismatched", *ATTRIBUTES]
    clean = [draw_scene(4, index, 32) for index in range(60)]
    for row, scene in zip(rows, clean, strict=True):
        image = Image.open(io.BytesIO(row["image"]))
        assert image.mode == "RGB" and (np.asarray(image) == pixels(scene)).all()
        assert row["key"] == scene.key and row["mismatched"] == (row["caption"] != scene.caption)
        assert {name: row[name] for name in ATTRIBUTES} == scene.attributes
    assert sum(row["mismatched"] for row in rows) == 15
    assert sorted(row["caption"] for row in rows) == sorted(scene.caption for scene in clean)


def test_noise_seed_moves_the_noise_and_nothing_else(tmp_path):
    tables = [
        pq.read_table(write_scenes(tmp_path / str(i), 40, seed=1, size=16, noise_share=0.5, noise_seed=noise_seed))
        for i, noise_seed in enumerate((1, 1, None, 2))
    ]
    assert tables[0].equals(tables[1]) and tables[0].equals(tables[2])
    assert tables[0]["image"].equals(tables[3]["image"]) and tables[0]["key"].equals(tables[3]["key"])
    assert not tables[0]["caption"].equals(tables[3]["caption"])


def test_no_noise_unless_asked(tmp_path):
    table = pq.read_table(write_scenes(tmp_path, 10, seed=0, size=16))
    assert not any(table["mismatched"].to_pylist())


def test_bad_counts_and_shares_are_refused(tmp_path):
    with pytest.raises(InputError, match="at least 1"):
        write_scenes(tmp_path, 0, seed=0)
    with pytest.raises(InputError, match="outside"):
        write_scenes(tmp_path, 4, seed=0, noise_share=1.5)
    assert not list(tmp_path.iterdir())
