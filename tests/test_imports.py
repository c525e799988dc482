"""The direction of imports: who may know whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ncu_hf"

# module (or package) -> what it may import of ncu_hf; every module may know `errors`.
ALLOWED = {
    "errors": set(),
    "citations": set(),
    "losses": {"partitions"},
    "transport": {"distributed", "partitions"},
    "selection": {"distributed", "partitions"},
    "partitions": {"distributed"},
    "mixture": set(),
    "distributed": set(),
    "adapters": set(),
    "low_rank": set(),
    "recommended": set(),
    "towers": {"low_rank", "modeling", "shared_prefix"},
    "lean_towers": set(),
    "shared_prefix": {"text_batches"},
    "text_batches": set(),
    "modeling": {"adapters", "low_rank", "shared_prefix", "text_batches"},
    "transfer": set(),
    "interpolation": set(),
    "config": set(),
    "cli": {"config", "distributed"},
    "checkpoint": set(),
    "pinning": {"data"},
    "callbacks": {"modeling"},
    "step_metrics": set(),
    "objectives": {"config", "distributed", "losses", "mixture", "partitions", "transport", "selection"},
    "step": {"distributed", "modeling"},
    "sharding": {"distributed", "modeling"},
    "parameters": {"adapters", "config", "modeling", "objectives"},
    "data": set(),
    "evaluation": {"citations", "data", "distributed", "selection"},
    "reporting": {"citations", "data", "evaluation", "selection"},
    "reference": set(),
    "opening": {"config", "data", "distributed", "evaluation", "reporting"},
    "environment": {"data", "distributed"},
    "loading": {"checkpoint", "config", "evaluation", "modeling", "pinning", "reference"},
    "assessment": {"config", "data", "distributed", "evaluation"},
    # A pass over all training pairs is encoded as an evaluation is; the trainer sees `samples.base` alone.
    "samples": {"callbacks", "data", "distributed", "evaluation", "losses", "modeling", "objectives", "step"},
    "forget_ratio": {"assessment", "checkpoint", "data", "distributed", "evaluation", "mixture", "run"},
    "trainer": {
        *("adapters", "callbacks", "checkpoint", "config", "data", "distributed", "lean_towers", "modeling"),
        *("objectives", "parameters", "samples", "sharding", "step", "step_metrics", "text_batches", "towers"),
        "transfer",
    },
    "publishing": {"checkpoint", "config", "data", "evaluation", "loading", "modeling", "reporting"},
    "workspace": {"checkpoint", "cli", "config", "data", "distributed"},
    "run": {"cli", "data", "distributed", "loading", "workspace"},
}
TORCH_ONLY = (
    *(
        "losses",
        "partitions",
        "transport",
        "selection",
        "mixture",
        "step_metrics",
        "distributed",
        "text_batches",
        "transfer",
    ),
)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} if node.module != "ncu_hf" else {f"ncu_hf.{alias.name}" for alias in node.names}
    return found


def files(module: str) -> list[Path]:
    return sorted((PACKAGE / module).rglob("*.py")) or [PACKAGE / f"{module}.py"]


@pytest.mark.parametrize("module", ALLOWED)
def test_modules_know_only_what_they_may(module):
    allowed = ALLOWED[module] | {module, "errors", "_version"}
    for path in files(module):
        known = {name.split(".")[1] for name in imports(path) if name.startswith("ncu_hf.")}
        assert known <= allowed, f"{path.relative_to(ROOT)} imports {sorted(known - allowed)}"


@pytest.mark.parametrize("module", TORCH_ONLY)
def test_numeric_modules_know_torch_only(module):
    standard = {
        "__future__",
        "copy",
        "gc",
        "itertools",
        "json",
        "math",
        "os",
        "time",
        "typing",
        "dataclasses",
        "enum",
        "collections",
        "contextlib",
    }
    for path in files(module):
        foreign = {name.split(".")[0] for name in imports(path)} - standard - {"torch", "ncu_hf"}
        assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}"


def test_nothing_in_the_package_imports_recipes_or_scripts():
    for path in PACKAGE.rglob("*.py"):
        assert not {"recipes", "scripts", "tests"} & {name.split(".")[0] for name in imports(path)}, path


def test_every_module_is_covered():
    top = {
        p.stem if p.is_file() else p.name
        for p in PACKAGE.iterdir()
        if p.suffix == ".py" or (p / "__init__.py").is_file()
    }
    drivers = {"__init__", "_version", "cards", "phases", "evidence", "planning", "recipe", "demo", "comparing"}
    drivers |= {"mixtures", "worker"}
    assert top - drivers == set(ALLOWED)


@pytest.mark.parametrize("path", sorted([*PACKAGE.rglob("*.py"), *(ROOT / "scripts").glob("*.py")]), ids=str)
def test_nothing_unpickles_or_evaluates(path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    names = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not names & {"eval", "exec", "compile", "__import__"}
    assert not imports(path) & {"pickle", "dill", "cloudpickle", "shelve", "marshal"}
    calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert not {"torch.load", "torch.save"} & set(calls)
    assert "trust_remote_code=True" not in text


def test_no_script_needs_the_library_that_one_of_them_is_named_after():
    """Python looks into `scripts/` first when it runs one of them, and finds `evaluate.py` there."""
    scripts = (ROOT / "scripts").glob("*.py")
    modules = sorted({name for path in scripts for name in imports(path) if name.startswith("ncu_hf.")})
    code = f"import sys, importlib\nfor name in {modules}: importlib.import_module(name)\n"
    code += "sys.exit(f'evaluate is {sys.modules[\"evaluate\"]}' if 'evaluate' in sys.modules else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
