"""Files of class names: what is accepted, and what is said of what is not."""

from __future__ import annotations

import json
import logging

import pytest

from ncu_hf.errors import InputError
from ncu_hf.evaluation.sets.class_names import checked, read_class_file, read_class_lines, read_text


def test_fields_and_duplicates(caplog):
    found = checked("x", ["sunglasses", "cat", "sunglasses"], ["a {}", "{c} {}", "{c}"])
    assert found.templates == ["a {c}", "{c} {}", "{c}"]
    assert found.note == "names of several classes: 'sunglasses'" and "sunglasses" in caplog.text
    caplog.clear()
    assert checked("x", ["a", "b"], ["{c}"]).note is None and caplog.text == ""


@pytest.mark.parametrize(
    ("classes", "templates", "message"),
    [
        ([], ["{c}"], "0 classes"),
        (["a"], [], "0 templates"),
        (["a"], ["a cat"], r"'a cat' has no field \{c\}"),
        (["a", " "], ["{c}"], "number 2 of 'classes'"),
        (["a"], [""], "number 1 of 'templates'"),
        (["a", 3], ["{c}"], "number 2 of 'classes'.*3"),
        ("ab", ["{c}"], "'classes' must be a list"),
        (["a"], {"{c}": 1}, "'templates' must be a list"),
        (["\ud800"], ["{c}"], "not Unicode"),
    ],
)
def test_unusable_names(classes, templates, message):
    with pytest.raises(InputError, match=rf"^where: .*{message}") as caught:
        checked("where", classes, templates)
    assert "\n" not in str(caught.value)


def test_json_and_python_files(tmp_path):
    with pytest.raises(InputError, match="neither exists"):
        read_class_file(tmp_path)
    (tmp_path / "classes.json").write_bytes(b"\xef\xbb\xbf" + b'{"classes": ["a"], "templates": ["{c}"], "more": 1}')
    assert read_class_file(tmp_path)[:2] == (["a"], ["{c}"])
    (tmp_path / "classes.py").write_text("{'classes': ['b'], 'templates': [lambda c: f'a {c}']}")
    with pytest.raises(InputError, match="both exist"):
        read_class_file(tmp_path)
    (tmp_path / "classes.json").unlink()
    assert read_class_file(tmp_path)[:2] == (["b"], ["a {c}"])


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 10**5, '{"classes": ["a"]}', '{"classes": 3, "templates": []}'])
def test_broken_json(tmp_path, text):
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(InputError, match=r"classes\.json: ") as caught:
        read_class_file(tmp_path)
    assert "\n" not in str(caught.value)


def test_lines(tmp_path):
    (tmp_path / "classnames.txt").write_bytes("café\r\nhot dog\r\n\n".encode())
    (tmp_path / "zeroshot_classification_templates.txt").write_bytes(b"a {x} {c} {{}}.\n{c} ")
    assert read_class_lines(tmp_path)[:2] == (["café", "hot dog"], ["a {x} {c} {{}}.", "{c} "])
    (tmp_path / "classnames.txt").write_bytes(b"a\n\nb\n")
    with pytest.raises(InputError, match="number 2 of 'classes'"):
        read_class_lines(tmp_path)
    (tmp_path / "classnames.txt").unlink()
    with pytest.raises(InputError, match=r"classnames\.txt: cannot be read"):
        read_class_lines(tmp_path)


def test_large_and_foreign_files(tmp_path):
    path = tmp_path / "names"
    path.write_bytes(b"a" * 11)
    assert read_text(path, limit=11) == "a" * 11
    with pytest.raises(InputError, match="larger than 10 bytes"):
        read_text(path, limit=10)
    path.write_bytes("a\né".encode("latin-1"))
    with pytest.raises(InputError, match="line 2: not UTF-8"):
        read_text(path)


def test_correct_files_are_silent(tmp_path, caplog):
    (tmp_path / "classes.json").write_text(json.dumps({"classes": ["a", "b"], "templates": ["{c}"]}))
    with caplog.at_level(logging.DEBUG):
        read_class_file(tmp_path)
    assert caplog.text == ""
