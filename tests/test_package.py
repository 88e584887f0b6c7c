from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

import scstate_lora

SOURCE = Path(scstate_lora.__file__).parent
HEAVY = ("anndata", "lightning", "matplotlib", "numpy", "pandas", "scanpy", "sklearn", "torch", "transformers")
SUBMODULES = ("config", "datasets", "losses", "metrics", "nn", "pl", "pp", "tl")


def modules_loaded_by(code: str) -> set[str]:
    """Top-level packages that a fresh interpreter has imported after running ``code``."""
    report = "; import sys; print(' '.join(sorted({m.partition('.')[0] for m in sys.modules})))"
    run = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def public_functions() -> list[tuple[str, object]]:
    owners = [("scstate_lora", scstate_lora)]
    owners += [(f"scstate_lora.{name}", importlib.import_module(f"scstate_lora.{name}")) for name in SUBMODULES]
    found = [(f"{path}.{name}", getattr(owner, name)) for path, owner in owners for name in owner.__all__]
    return [(path, value) for path, value in found if inspect.isfunction(value)]


def test_import_loads_nothing_heavy():
    loaded = modules_loaded_by("import scstate_lora")
    assert loaded.isdisjoint(HEAVY), sorted(loaded.intersection(HEAVY))


def test_version_and_dir_need_nothing_heavy():
    loaded = modules_loaded_by("import scstate_lora; scstate_lora.__version__; dir(scstate_lora)")
    assert loaded.isdisjoint(HEAVY), sorted(loaded.intersection(HEAVY))


def test_plots_do_not_load_torch():
    assert "torch" not in modules_loaded_by("import scstate_lora; scstate_lora.pl.loss_curves")


@pytest.mark.parametrize("name", scstate_lora.__all__)
def test_every_public_name_resolves(name):
    assert getattr(scstate_lora, name) is not None
    assert name in dir(scstate_lora)


@pytest.mark.parametrize("name", SUBMODULES)
def test_every_public_name_of_a_submodule_resolves(name):
    module = importlib.import_module(f"scstate_lora.{name}")
    assert module.__all__
    for public in module.__all__:
        assert getattr(module, public) is not None


def test_unknown_name_raises():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = scstate_lora.nothing


def test_public_functions_are_documented():
    functions = public_functions()
    assert len(functions) > 5
    for path, function in functions:
        doc = inspect.getdoc(function) or ""
        assert doc, f"{path} has no docstring"
        wanted = [p for p in inspect.signature(function).parameters if not p.startswith("_")]
        if wanted:
            assert "Parameters\n----------" in doc, f"{path} does not document its parameters"
        documented = {name.strip(" *") for line in doc.splitlines() for name in line.split(",")}  # "a, b" is one entry
        missing = [p for p in wanted if p not in documented]
        assert not missing, f"{path} does not document {missing}"


def test_files_below_a_subpackage_have_no_underscore():
    files = {str(file.relative_to(SOURCE)) for file in SOURCE.glob("*/**/_*.py")}
    assert files == {name for name in files if name.endswith(("__init__.py", "__main__.py"))}


def test_no_module_has_the_name_of_something_public_beside_it():
    """``scstate_lora.tl.embed`` is the function, whichever file was imported before."""
    packages = [info.name for info in pkgutil.walk_packages([str(SOURCE)], "scstate_lora.") if info.ispkg]
    for package in (scstate_lora, *map(importlib.import_module, packages)):
        modules = {info.name for info in pkgutil.iter_modules(package.__path__)}
        public = {name for name in getattr(package, "__all__", dir(package)) if not name.startswith("_")}
        clashes = {name for name in modules & public if not isinstance(getattr(package, name), ModuleType)}
        assert not clashes, f"{package.__name__}: {sorted(clashes)}"


def test_base_classes_have_two_users():
    """A class that one other class extends, and that nothing else names, is half a class."""
    trees = [ast.parse(file.read_text()) for file in SOURCE.rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    bases = Counter(_last_name(base) for node in classes for base in node.bases)
    named = Counter(_last_name(node) for node in nodes if isinstance(node, ast.Name | ast.Attribute))
    exported = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    for name in {node.name for node in classes} - exported:
        assert (bases[name], named[name]) != (1, 1), f"{name} has one subclass and no other user"


def _last_name(node: ast.expr) -> str:
    """Of a base such as ``dist.Store`` or ``Generic[T]``."""
    if isinstance(node, ast.Subscript):
        node = node.value
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
