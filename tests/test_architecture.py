"""The order of the rooms: a module imports only from its own room and from those below it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From top to bottom; rooms on one line do not import each other. A room is a package, or a module.
ORDER = """
configs
train
train.tasks
train.data
train.engine
train.reporting
train.errors
replk_jax.__main__
replk_jax.cli.main
replk_jax.cli
replk_jax
replk_jax.inference
replk_jax.checkpoint
replk_jax.torch_import
replk_jax.pretrained
replk_jax.benchmark replk_jax.export replk_jax.segmentation replk_jax.detection
replk_jax.models
replk_jax.reparam
replk_jax.ops
replk_jax.vision replk_jax.compat
replk_jax.io
"""
LEVELS = {
    room: level
    for level, line in enumerate(reversed(ORDER.split("\n")[1:-1]))
    for room in line.split()
}


# Packages of which other modules import only the names that the package itself lists.
WITH_A_FACE = ("replk_jax.torch_import", "replk_jax.checkpoint")


def modules() -> dict[str, Path]:
    paths = [
        path for top in ("replk_jax", "train", "configs") for path in (ROOT / top).rglob("*.py")
    ]
    return {_module_name(path): path for path in paths}


def _module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = modules()


def imports(tree: ast.AST) -> Iterator[str]:
    """The modules of this repository that a module imports, wherever in it the import is."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in MODULES else node.module


def room_of(module: str) -> str:
    """The innermost room that a module is in.

    The programs in `train` share a room, and so do all of `configs`. Every other package, and every
    module directly in `replk_jax`, has to be in `ORDER`.
    """
    parts = module.split(".")
    prefixes = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    room = next((prefix for prefix in prefixes if prefix in LEVELS), "")
    most_parts = {"": 0, "replk_jax": 1, "train": 2}.get(room, len(parts))
    assert len(parts) <= most_parts, f"{module} is in no room: add it to ORDER."
    return room


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downwards(module):
    room = room_of(module)
    for imported in imports(ast.parse(MODULES[module].read_text())):
        other = room_of(imported)
        assert room == other or LEVELS[other] < LEVELS[room], f"{module} imports {imported}"


@pytest.mark.parametrize("module", MODULES)
def test_a_package_with_a_face_is_imported_by_it(module):
    for imported in imports(ast.parse(MODULES[module].read_text())):
        for package in WITH_A_FACE:
            inner = imported.startswith(f"{package}.")
            outside = module != package and not module.startswith(f"{package}.")
            assert not (inner and outside), f"{module} imports {imported}"


def test_every_room_is_there():
    """So that a room that was renamed is renamed in `ORDER`."""
    missing = set(LEVELS) - set(MODULES)
    assert not missing


def test_an_import_upwards_is_found():
    tree = ast.parse(
        "def f():\n    from replk_jax import cli, checkpoint\n    import replk_jax.io.files"
    )
    assert set(imports(tree)) == {"replk_jax.cli", "replk_jax.checkpoint", "replk_jax.io.files"}


@pytest.mark.parametrize("module", ["replk_jax.new", "replk_jax.new.part", "train.new.part", "new"])
def test_a_new_room_has_to_be_in_the_order(module):
    with pytest.raises(AssertionError, match=f"{module} is in no room"):
        room_of(module)


def test_rooms_of_modules():
    assert room_of("replk_jax.ops.depthwise.api") == "replk_jax.ops"
    assert room_of("replk_jax.cli.main") == "replk_jax.cli.main"
    assert room_of("train.main") == room_of("train") == "train"
    assert room_of("configs.segmentation.upernet") == "configs"
    assert room_of("replk_jax") == "replk_jax"
