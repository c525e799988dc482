"""The released `classes.py`: what is read of it agrees with what evaluating it gives, and nothing of it ever runs."""

from __future__ import annotations

import pytest

from ncu_hf.errors import InputError
from ncu_hf.evaluation.sets.classes_file import parse_classes
from ncu_hf.evaluation.zero_shot import class_texts

# Content of a file, and the texts that the released code, which evaluates it, makes of it.
READABLE = {
    "f-strings": (
        """{"classes": ["cat", "dog"], "templates": [lambda c: f'a photo of a {c}.', lambda s: f"{s}, {s}!"]}""",
        ["a photo of a cat.", "cat, cat!", "a photo of a dog.", "dog, dog!"],
    ),
    "assignment": (
        """'Names.'\nCLASSES: dict = {'classes': ('cat',), 'templates': (lambda c: f'a {c}.',)}  # fine""",
        ["a cat."],
    ),
    "indented": (
        """  {\n"classes": ["cat",\n"dog",], "templates": [\n\nlambda c: f"{c}",]}\n\n""",
        ["cat", "dog"],
    ),
    "concatenation": (
        """{"classes": ["c" "at", "d" + 'o' + "g"], "templates": [lambda c: 'a ' f'{c} ' + "x", lambda c: "a " + c]}""",
        ["a cat x", "a cat", "a dog x", "a dog"],
    ),
    "format": (
        """{"classes": ["a"], "templates": [lambda c: 'a {}.'.format(c), lambda c: '{{}} {x}'.format(x=c),
        lambda c: '{0}{0!s}'.format(c)]}""",
        ["a a.", "{} a", "aa"],
    ),
    "braces": (
        """{"classes": ["a {x}", "{}", "{{c}}"], "templates": [lambda c: f'{{{c}}} {{x}} {{}}']}""",
        ["{a {x}} {x} {}", "{{}} {x} {}", "{{{c}}} {x} {}"],
    ),
    "escapes": (
        r"""{"classes": ["l'avion \u00e9", r"a\d", "\x41"], "templates": [lambda c: f"a\t{c}\d"]}""",
        ["a\tl'avion é\\d", "a\ta\\d\\d", "a\tA\\d"],
    ),
    "conversion": (
        """{"classes": ["a"], "templates": [lambda c, /: f'{c!s}', lambda c: c]}""",
        ["a", "a"],
    ),
    "constant part": (
        """{"classes": [f"a"], "templates": [lambda c: f"{'a'} {c}"], "other": 1 + print("not looked at")}""",
        ["a a"],
    ),
}


@pytest.mark.parametrize("name", READABLE)
def test_what_is_read_is_what_evaluating_gives(name):
    text, expected = READABLE[name]
    content = parse_classes(text, "classes.py")
    assert class_texts(content["classes"], content["templates"]) == expected


def test_templates_that_are_texts_keep_their_field():
    content = parse_classes("""{"templates": ["a {c}", 'b {}'], "classes": []}""", "classes.py")
    assert content == {"classes": [], "templates": ["a {c}", "b {}"]}


CANARY = "open(r'CANARY', 'w')"
REFUSED = {
    "call": """{"classes": ["a"],\n "templates": [RUN]}""",
    "class name": """{"classes": ["a",\n RUN], "templates": []}""",
    "list": """{"classes":\n RUN, "templates": []}""",
    "statement": """RUN\n{"classes": [], "templates": []}""",
    "import": """import os\nx = {"classes": [], "templates": []}""",
    "second statement": """{"classes": [], "templates": []}\nRUN""",
    "key": """{"classes": [],\n RUN: []}""",
    "unpacked": """{"classes": [],\n **RUN}""",
    "starred": """{"classes": [],\n "templates": [*RUN]}""",
    "in an f-string": """{"classes": [],\n "templates": [lambda c: f"{RUN} {c}"]}""",
    "in a specification": """{"classes": [],\n "templates": [lambda c: f"{c:{RUN}}"]}""",
    "default": """{"classes": [],\n "templates": [lambda c=RUN: f"{c}"]}""",
    "keyword default": """{"classes": [],\n "templates": [lambda c, *, d=RUN: f"{c}"]}""",
    "two arguments": """{"classes": [],\n "templates": [lambda c, d: f"{c}"]}""",
    "any arguments": """{"classes": [],\n "templates": [lambda *c: f"{c}"]}""",
    "attribute": """{"classes": [],\n "templates": [lambda c: c.upper()]}""",
    "attribute in a field": """{"classes": [],\n "templates": [lambda c: '{0.__class__}'.format(c)]}""",
    "nested field": """{"classes": [],\n "templates": [lambda c: '{:{}}'.format(c)]}""",
    "open field": """{"classes": [],\n "templates": [lambda c: '{'.format(c)]}""",
    "other format": """{"classes": [],\n "templates": [lambda c: (RUN).format(c)]}""",
    "repr": """{"classes": [],\n "templates": [lambda c: f"{c!r}"]}""",
    "width": """{"classes": [],\n "templates": [lambda c: f"{c:>10}"]}""",
    "no field": """{"classes": [],\n "templates": [lambda c: 'a cat {}']}""",
    "field as text": """{"classes": [],\n "templates": [lambda c: f'{{c}} {c}']}""",
    "other name": """{"classes": [],\n "templates": [lambda c: f'{d}']}""",
    "number": """{"classes": [\n 3], "templates": []}""",
    "bytes": """{"classes": [\n b'a'], "templates": []}""",
    "product": """{"classes": [\n 'a' * 10**9], "templates": []}""",
    "comprehension": """{"classes": [],\n "templates": [t for t in RUN]}""",
    "walrus": """{"classes": [],\n "templates": [(x := RUN)]}""",
}


@pytest.mark.parametrize("name", REFUSED)
def test_all_else_is_refused_and_nothing_runs(name, tmp_path):
    canary = tmp_path / "canary"
    text = REFUSED[name].replace("RUN", CANARY.replace("CANARY", str(canary)))
    line = 1 if text.startswith(("open", "import")) else 2
    # Of two statements the second is the one too many.
    line = 2 if name in ("statement", "import") else line
    with pytest.raises(InputError, match=rf"^f, line {line}: .* never executed\.$"):
        parse_classes(text, "f")
    assert not canary.exists()


@pytest.mark.parametrize(
    "text",
    ["", "# nothing", "[]", "'text'", "{'classes'", "x = 1", "def f(): pass", "a\0b", "{'classes': [lambda: 0]}"],
    ids=repr,
)
def test_what_is_no_dict_is_one_line(text):
    with pytest.raises(InputError, match=r"^f[:,].*\.$") as caught:
        parse_classes(text, "f")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "(" * 10**5,
        "[" * 10**5,
        "-" * 10**5 + "1",
        "1+" * 10**5 + "1",
        "a" + ".b" * 10**5,
        "lambda:" * 10**5 + "1",
        "f'{" * 10**4,
        "{'classes': [" + "+".join(["1"] * 10**5) + "]}",
        "{'classes': [" + "+".join(["b"] * 700) + "]}",
    ],
    ids=lambda text: text[:16],
)
def test_deep_nesting_is_an_error_and_not_a_crash(text):
    with pytest.raises(InputError):
        parse_classes(text, "f")


def test_a_long_sum_is_read_or_refused():
    text = "{'classes': [" + " + ".join(["'a'"] * 900) + "], 'templates': []}"
    try:
        assert parse_classes(text, "f")["classes"] == ["a" * 900]
    except InputError as error:
        assert "nested too deeply" in str(error)


def test_many_classes_are_read_quickly():
    names = [f"class {i}" for i in range(21_000)]
    assert parse_classes(f"{{'classes': {names}, 'templates': []}}", "f")["classes"] == names
