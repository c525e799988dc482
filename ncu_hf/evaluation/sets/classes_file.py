"""The released `classes.py`, read without being executed.

The released code evaluates this file: a dict of `"classes"` (names) and `"templates"` (functions like
`lambda c: f"a photo of a {c}."`). Here its syntax tree is read. What is not a plain text or a function that puts its
argument into a text is refused, so that no file can do anything but name classes.
"""

from __future__ import annotations

import ast
import string
import warnings
from collections.abc import Iterator

from ncu_hf.errors import InputError
from ncu_hf.evaluation.zero_shot import FIELD

_EXPECTED = (
    'Expected {"classes": ["cat", ...], "templates": [lambda c: f"a photo of a {c}.", ...]}; the file is read, '
    "never executed"
)
# Stands for the argument in a list of parts of a text.
_ARGUMENT = None


class _Refused(Exception):
    """Something that is not read, and where."""

    def __init__(self, node: ast.AST, reason: str):
        super().__init__(reason)
        self.line, self.reason = getattr(node, "lineno", 1), reason


def parse_classes(text: str, where: str) -> dict[str, list[str]]:
    """Class names and templates of a `classes.py`.

    Args:
        text (`str`): Content of the file: a dict, or one assignment of it.
        where (`str`): Name of the file, for errors.

    Returns:
        `dict`: The lists `classes` and `templates` as far as they are there; templates have the field `{c}`.

    Raises:
        InputError: anything else; the message names the line.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an invalid escape in a name
            tree = ast.parse(text.lstrip(" \t"))
        return _content(_dict(tree))
    except SyntaxError as error:
        raise InputError(f"{where}, line {error.lineno or 1}: not Python ({error.msg}). {_EXPECTED}.") from error
    except ValueError as error:  # a zero byte, in some releases of Python
        raise InputError(f"{where}: not Python ({error}). {_EXPECTED}.") from error
    except _Refused as refused:
        raise InputError(f"{where}, line {refused.line}: {refused.reason}. {_EXPECTED}.") from refused
    except (RecursionError, MemoryError) as error:
        raise InputError(f"{where}: nested too deeply. {_EXPECTED}.") from error


def _dict(tree: ast.Module) -> ast.Dict:
    statements = tree.body
    if len(statements) > 1 and isinstance(statements[0], ast.Expr) and isinstance(statements[0].value, ast.Constant):
        statements = statements[1:]  # a docstring
    if len(statements) != 1:
        raise _Refused(statements[1] if statements else tree, f"{len(statements)} statements instead of one dict")
    value = statements[0].value if isinstance(statements[0], ast.Expr | ast.Assign | ast.AnnAssign) else None
    if not isinstance(value, ast.Dict):
        raise _Refused(statements[0], "not a dict")
    return value


def _content(node: ast.Dict) -> dict[str, list[str]]:
    readers = {"classes": _text, "templates": _template}
    content: dict[str, list[str]] = {}
    for key, value in zip(node.keys, node.values, strict=True):
        if not isinstance(key, ast.Constant):
            raise _Refused(key or value, "a key that is not a plain text")
        if key.value in readers:
            content[key.value] = [readers[key.value](item) for item in _items(value, key.value)]
    return content


def _items(node: ast.AST, what: str) -> list[ast.expr]:
    if not isinstance(node, ast.List | ast.Tuple):
        raise _Refused(node, f'"{what}" is not a list')
    return node.elts


def _text(node: ast.AST) -> str:
    """A text: one literal, several one after the other, or a sum of them."""
    return "".join(_known(node, None))


def _template(node: ast.AST) -> str:
    """A text with the field `{c}`: of a function of one argument, or written as such."""
    if not isinstance(node, ast.Lambda):
        return _text(node)
    arguments = node.args
    names = [*arguments.posonlyargs, *arguments.args]
    others = [*arguments.kwonlyargs, *arguments.defaults, arguments.vararg, arguments.kwarg]
    if len(names) != 1 or any(others):
        raise _Refused(node, "a function that has not just one argument")
    parts = list(_known(node.body, names[0].arg))
    template = "".join(FIELD if part is _ARGUMENT else part for part in parts)
    if not parts.count(_ARGUMENT):
        raise _Refused(node, "a function that does not use its argument")
    if template.count(FIELD) != parts.count(_ARGUMENT):
        raise _Refused(node, f"a template with the text {FIELD} in it, which stands for the class")
    return template


def _known(node: ast.AST, argument: str | None) -> Iterator[str | None]:
    """Parts of a text, `_ARGUMENT` where the argument of that name goes."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.Name) and node.id == argument:
        yield _ARGUMENT
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        yield from _known(node.left, argument)
        yield from _known(node.right, argument)
    elif isinstance(node, ast.JoinedStr):
        for part in node.values:
            yield from _known(part, argument)
    elif isinstance(node, ast.FormattedValue) and node.format_spec is None and node.conversion in (-1, ord("s")):
        yield from _known(node.value, argument)
    elif isinstance(node, ast.Call):
        yield from _formatted(node, argument)
    else:
        raise _Refused(node, f"{ast.unparse(node)!r:.60} is not a text that can be read")


def _formatted(node: ast.Call, argument: str | None) -> Iterator[str | None]:
    """Parts of `"a photo of a {}.".format(c)`, with a field without further instructions."""
    function, given = node.func, [*node.args, *(keyword.value for keyword in node.keywords)]
    text = function.value if isinstance(function, ast.Attribute) and function.attr == "format" else None
    if not isinstance(text, ast.Constant) or not isinstance(text.value, str) or len(given) != 1:
        raise _Refused(node, f"the call {ast.unparse(node)!r:.60}")
    if not isinstance(given[0], ast.Name) or given[0].id != argument:
        raise _Refused(node, f"the argument {ast.unparse(given[0])!r:.60}")
    names = [keyword.arg for keyword in node.keywords] or ["", "0"]
    try:
        fields = list(string.Formatter().parse(text.value))
    except ValueError as error:
        raise _Refused(node, f"a text that cannot be formatted ({error})") from error
    for literal, name, specification, conversion in fields:
        yield literal
        if name is not None:
            if name not in names or specification or conversion not in (None, "s"):
                raise _Refused(node, f"the field {name!r:.60}")
            yield _ARGUMENT
