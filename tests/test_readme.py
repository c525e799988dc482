"""The README's commands parse, its files exist, its links lead somewhere."""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ncu_hf.cli import parse_arguments
from ncu_hf.demo import SceneArguments

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands(start: str) -> list[str]:
    """Shell commands of the README that contain `start`, continuation lines joined."""
    shell = "\n".join(text for language, text in BLOCKS if language == "bash").replace("\\\n", " ")
    lines = (line.split(" #")[0].strip() for line in shell.splitlines())
    return [line for line in lines if start in line]


@pytest.mark.parametrize("command", commands("recipes/"))
def test_recipe_commands_parse(command, tmp_path, monkeypatch):
    for name, text in re.findall(r"^cat > (\S+) <<'END'\n(.*?)^END$", README, flags=re.MULTILINE | re.DOTALL):
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)
    position = next(i for i, word in enumerate(words) if word.startswith("recipes/"))
    recipe, flags = words[position], [word for word in words[position + 1 :] if word != "..."]
    assert (ROOT / recipe).is_file()
    # bf16 needs a GPU to pass the arguments' own check
    flags = [*flags, "--use_cpu", "true"]
    parse_arguments(flags, extra=SceneArguments if recipe.endswith("demo.py") else None)


@functools.cache
def help_of(*words: str) -> str:
    return subprocess.run(
        [sys.executable, *words, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.slow
@pytest.mark.parametrize("command", commands("scripts/"))
def test_scripts_exist_and_know_the_flags(command):
    words = shlex.split(command)
    script = next(word for word in words if word.startswith("scripts/"))
    arguments = words[words.index(script) + 1 :]
    subcommand = (arguments[0],) if arguments and script.endswith("benchmark.py") else ()
    shown = help_of(script, *subcommand)
    assert [word for word in arguments if word.startswith("--") and word.split("=")[0] not in shown] == []


@pytest.mark.parametrize("command", commands("make "))
def test_make_targets_exist(command):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    words = shlex.split(command)
    assert words[words.index("make") + 1] in targets


def test_named_files_exist():
    named = re.findall(r"`((?:ncu_hf|recipes|scripts|tests|docs)/[\w/.]*)`", README)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_module_is_in_the_map():
    missing = []
    for path in sorted((ROOT / "ncu_hf").iterdir()):
        name = f"{path.name}/" if path.is_dir() else path.name
        if not name.startswith(("__", "_version")) and name not in README:
            missing.append(name)
    assert missing == []


def test_relative_links_and_pictures_exist():
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", README)
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_python_examples_compile():
    examples = [text for language, text in BLOCKS if language == "python"]
    assert examples
    for text in examples:
        compile(text, "README.md", "exec")
