"""Imports run downwards, from the scripts to the ground floor, and no two rooms import each other."""

import ast
from pathlib import Path

import train_classifier

REPOSITORY = Path(train_classifier.__file__).parent
# From the ground up; rooms of one floor may use one another in one direction.
FLOORS = [
    {"base"},
    {"dataset_scripts"},
    {"engine", "data"},
    {"fairness", "classifier", "diffusion", "explain"},
    {"hub"},
    {"scripts", "benchmarks", "release"},
]


def room(name: str) -> str | None:
    """The room of a module; None for modules of others."""
    parts = name.split(".")
    if parts[0] == "melanoma_fair_xai":
        return parts[1] if len(parts) > 1 else None
    if parts[0] in ("explain", "generate", "train_classifier", "train_diffusion"):
        return "scripts"
    return parts[0] if parts[0] in ("dataset_scripts", "benchmarks", "release") else None


def imports() -> dict[tuple[str, str], str]:
    """(room, imported room) with a file that imports so, wherever the import stands."""
    found = {}
    folders = ("melanoma_fair_xai", "dataset_scripts", "benchmarks", "release")
    for path in [*REPOSITORY.glob("*.py"), *(p for name in folders for p in (REPOSITORY / name).rglob("*.py"))]:
        parts = path.relative_to(REPOSITORY).with_suffix("").parts
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                package = ".".join(parts[: -node.level]) if node.level else ""
                module = ".".join(filter(None, (package, node.module)))
                # from melanoma_fair_xai import data
                names = [f"{module}.{alias.name}" for alias in node.names] if "." not in module else [module]
            else:
                continue
            for name in names:
                pair = (room(".".join(parts)), room(name))
                if None not in pair and pair[0] != pair[1]:
                    found[pair] = str(path.relative_to(REPOSITORY))
    return found


def test_imports_run_downwards():
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    found = imports()
    assert len(found) > 20
    upwards = {pair: path for pair, path in found.items() if floor[pair[0]] < floor[pair[1]]}
    assert not upwards


def test_no_two_rooms_import_each_other():
    found = imports()
    assert not {pair: (path, found[pair[::-1]]) for pair, path in found.items() if pair[::-1] in found}
