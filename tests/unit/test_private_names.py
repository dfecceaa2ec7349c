"""Private names of other packages: one module a package, and an upper bound on its version."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(path for package in ("dfer", "shards", "launch") for path in (ROOT / package).rglob("*.py"))

PRIVATE = {
    "dfer/torch_internals.py": ("torch", {"_foreach_mul_", "_new_shared", "_iterator", "_shutdown_workers"}),
    "dfer/multiprocessing_internals.py": ("python", {"_exit_function", "_on_queue_feeder_error"}),
    "dfer/training/deepspeed.py": ("deepspeed", {"_hp_mapping", "_release_process_group_references"}),
    "dfer/teacher/pretrained.py": ("transformers", {"_keep_in_fp32_modules_strict"}),
    "launch/slurm/submit.py": ("submitit", {"_make_sbatch_string", "_submitit_command_str"}),
}
DOCUMENTED = {"_exit", "_replace"}
"""Of `os` and of named tuples: part of Python's documentation, whatever they are called."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def defined(tree: ast.AST) -> set[str]:
    """Names that a module defines: functions, classes, variables, attributes that it assigns to `self` or `cls`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and of_self(node):
            found.add(node.attr)
    return found


def of_self(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def foreign(tree: ast.AST, everywhere: set[str]) -> set[str]:
    """Private names that a module takes from something else than itself, `self` being the heir of a class of ours.

    everywhere: names that any module of ours defines.
    """
    own, found = defined(tree), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            known = everywhere if of_self(node) else own
            found |= {node.attr} - known
        elif isinstance(node, ast.ImportFrom) and node.module and node.module != "__future__":
            found |= {part for part in node.module.split(".") if is_private(part)}
            found |= {alias.name for alias in node.names if is_private(alias.name)}
        elif isinstance(node, ast.Import):
            found |= {part for alias in node.names for part in alias.name.split(".") if is_private(part)}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "setattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant) and is_private(str(name.value)):
                found |= {str(name.value)} - own
    return found - DOCUMENTED


@pytest.mark.slow("reads the syntax trees of all modules")
def test_private_names_stand_behind_one_module_each() -> None:
    trees = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in MODULES}
    everywhere = set().union(*map(defined, trees.values()))
    found = {name: names for name, tree in trees.items() if (names := foreign(tree, everywhere))}
    assert found == {name: names for name, (_, names) in PRIVATE.items()}
    packages = [package for package, _ in PRIVATE.values()]
    assert len(set(packages)) == len(packages)


def test_their_packages_have_an_upper_bound() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [*project["dependencies"], *project["optional-dependencies"]["teacher"]]
    bounded = {re.split(r"[\[<>=]", line)[0] for line in listed if re.search(r",<\d", line)}
    assert {package for package, _ in PRIVATE.values()} - {"python"} <= bounded


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import torch\ntorch._thing()", {"_thing"}),
        ("from torch._C import x", {"_C"}),
        ("import torch._C.y", {"_C"}),
        ("from submitit import _make", {"_make"}),
        ("getattr(loader, '_iterator', None)", {"_iterator"}),
        ("class A(Executor):\n  def f(self): return self._command", {"_command"}),
        ("class A:\n  def f(self): self._x = 1; return self._x + other._x", set()),
        ("import os\nos._exit(1)\nx.__dict__", set()),
    ],
)
def test_uses_are_seen(source: str, names: set[str]) -> None:
    tree = ast.parse(source)
    assert foreign(tree, defined(tree)) == names
