import pytest

from ncu_hf.reporting.markdown import code, code_block, code_cell, hub_link, is_hub_id, plain, slug, table

HOSTILE = [
    "a|b",
    "a\\|b",
    "`code` ``x``",
    "two\nlines\r\n\n# heading",
    "# heading",
    "- item",
    "1. item",
    "> quote",
    "--- | ---",
    "<script>alert(1)</script>",
    "<!-- comment",
    "[text](javascript:x) ![x](y)",
    "**bold** _it_ ~~gone~~ \\*",
    "{{ 7 * 7 }} {% raw %}",
    "---\nkey: value\n---",
    "``` \nx",
    "`",
    "",
    " ",
    "x" * 5000,
    "\x00\x07\u202eabc\u2028def",
    "猫 žluťoučký 🙂",
]


@pytest.fixture(scope="module")
def rendered():
    """Another implementation of Markdown with tables: text -> tokens."""
    parser = pytest.importorskip("markdown_it", reason="needs markdown-it-py").MarkdownIt("commonmark")
    return parser.enable(["table", "strikethrough"]).parse


def flat(tokens):
    return [inner for token in tokens for inner in (token, *(token.children or ()))]


@pytest.mark.parametrize("text", HOSTILE)
def test_plain_text_stays_text(rendered, text):
    for document in (plain(text), f"- {plain(text)}"):
        kinds = {token.type for token in flat(rendered(document))}
        allowed = {"paragraph_open", "paragraph_close", "inline", "text", "text_special"}
        assert kinds <= allowed | {"bullet_list_open", "bullet_list_close", "list_item_open", "list_item_close"}
        shown = "".join(token.content for token in flat(rendered(document)) if token.type.startswith("text"))
        expected = "".join(letter for letter in " ".join(text.split()) if letter.isprintable())
        assert shown == (expected if len(expected) < 200 else expected[:199] + "…")


@pytest.mark.parametrize("text", HOSTILE)
def test_a_cell_stays_one_cell(rendered, text):
    for cell in (plain(text), code_cell(text)):
        tokens = rendered(table(("head", "n"), [(cell, "1"), ("last", "2")]))
        assert [token.type for token in tokens].count("td_open") == 4
        assert tokens[-1].type == "table_close"


@pytest.mark.parametrize("text", HOSTILE)
def test_code_stays_code(rendered, text):
    tokens = flat(rendered(f"before {code(text)} after"))
    assert [token.type for token in tokens if token.type not in ("paragraph_open", "paragraph_close", "inline")] == [
        *("text", "code_inline", "text")
    ]
    block = rendered(f"{code_block(text)}\n\nafter")
    assert [token.type for token in block] == ["fence", "paragraph_open", "inline", "paragraph_close"]


def test_a_block_keeps_its_lines_and_their_indent():
    assert code_block("a \\\n    --b\n") == "```\na \\\n    --b\n```"


def test_ordinary_text_is_left_alone():
    for text in ("mean_per_class, 5e-05 (-0.7)", "wds_vtab-cifar10", "text,vision", "R@1/5/10", "a + b = c", "-1"):
        assert plain(text) == text


def test_empty_columns_are_left_out():
    rows = [("a", "", "1"), ("b", "", "2")]
    assert table(("x", "y", "n"), rows) == "| x | n |\n| --- | ---: |\n| a | 1 |\n| b | 2 |"
    assert table(("x", "y"), []) == table(("x", "y"), [("", "")]) == ""


@pytest.mark.parametrize(
    ("name", "valid"),
    [
        ("me/model", True),
        ("model", True),
        ("a/b/c", False),
        ("../x", False),
        ("a b", False),
        ("", False),
        (None, False),
    ],
)
def test_hub_ids(name, valid):
    assert is_hub_id(name) == valid


def test_links_only_to_ids():
    assert hub_link("a/b") == "[a/b](https://huggingface.co/datasets/a/b)"
    assert hub_link("a/b", "main").endswith("/datasets/a/b/tree/main)")
    assert hub_link("a/b", "x) [y](z").endswith("/datasets/a/b)")
    assert hub_link("[x](y)") == "\\[x\\](y)"


def test_slugs():
    assert slug("Held-out Pairs") == "held-out-pairs"
    assert slug("mscoco_5k") == "mscoco_5k"
    assert slug("../../x") == "x"
    assert slug("猫") == "unnamed"
    assert len(slug("x" * 500)) == 96
