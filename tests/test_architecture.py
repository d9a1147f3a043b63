"""The house's rules: imports only fall, one door per room, torch stays out of the store, one place touches files."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "kdcache"

# From the top down: a room may import from rooms below it (and from itself), never from one above or beside it.
FLOORS = [
    {"recipe"},
    {"report"},
    {"teacher", "student"},
    {"loader"},
    {"objectives", "metrics"},
    {"codecs"},
    {"store"},
    {"taps", "sources", "views"},
    {"models"},
    {"zoo"},
    {"recipe_students"},
    {"recipe_file"},
    {"config"},
    {"interrupt", "keyed", "near_misses"},
    {"arrays", "fingerprint", "files"},
    {"errors"},
]
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(path: Path) -> list[tuple[str, int, bool]]:
    """(module, line, only for type checkers) of every import in a file, those inside functions too."""
    tree = ast.parse(path.read_text())
    guarded = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno, node in guarded) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [(node.module, node.lineno, node in guarded)]
    return found


def test_imports_only_fall() -> None:
    wrong = []
    for path in modules():
        room = room_of(path)
        if room == "__init__":
            continue
        for module, line, _ in imports(path):
            parts = module.split(".")
            if parts[0] != "kdcache" or len(parts) == 1:
                continue
            other = parts[1]
            assert other in LEVEL, f"{path.relative_to(ROOT)}:{line}: {module} stands on no floor; add it to FLOORS"
            if other != room and LEVEL[other] <= LEVEL[room]:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {room} imports {other}, which is not below it")
    assert not wrong, "\n".join(wrong)


def test_every_room_stands_on_a_floor() -> None:
    assert {room_of(path) for path in modules()} - {"__init__"} == set(LEVEL)


@pytest.mark.parametrize("room", ["store", "sources", "recipe", "report"])
def test_room_needs_no_torch(room: str) -> None:
    code = f"import sys, kdcache.{room}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_student_and_loader_never_load_the_teacher() -> None:
    code = (
        "import sys, kdcache.student.fit, kdcache.student.evaluate, kdcache.loader, kdcache.objectives\n"
        "bad = [m for m in sys.modules if m.startswith(('kdcache.teacher', 'timm', 'transformers'))]\n"
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_kdcache_is_quick_and_loads_no_heavy_library() -> None:
    heavy = ("torch", "pyarrow", "h5py", "matplotlib", "accelerate", "pydantic")
    code = f"import sys, kdcache; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_doors_are_declared_and_true(path: Path) -> None:
    if not path.read_text().strip():
        return
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    module = importlib.import_module(name)
    assert hasattr(module, "__all__"), f"{name} has no __all__"
    for entry in module.__all__:
        assert getattr(module, entry) is not None, f"{name}.{entry}"


def test_only_files_py_publishes_files() -> None:
    forbidden = {"rename", "replace", "link", "fsync", "renames", "symlink"}
    wrong = []
    for path in modules():
        if path.name == "files.py" and path.parent == PACKAGE:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id in ("os", "shutil")
                and node.attr in forbidden | {"move"}
            ):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: os.{node.attr}")
    assert not wrong, "\n".join(wrong)


def test_nothing_runs_code_from_data() -> None:
    banned = {("torch", "load"), ("pickle", "load"), ("pickle", "loads"), ("yaml", "load"), ("os", "system")}
    wrong = []
    for path in [*modules(), *sorted((ROOT / "cli").glob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                function = node.func
                if isinstance(function, ast.Name) and function.id in ("eval", "exec"):
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {function.id}")
                if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
                    called = (function.value.id, function.attr)
                    if called in banned or function.attr == "extractall":
                        wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {'.'.join(called)}")
                for keyword in node.keywords:
                    value = keyword.value
                    if keyword.arg in ("allow_pickle", "shell") and not (
                        isinstance(value, ast.Constant) and value.value is False
                    ):
                        wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {keyword.arg}")
    assert not wrong, "\n".join(wrong)


def test_files_are_small_and_have_names() -> None:
    vague = {"utils", "helpers", "common", "core", "manager", "engine", "misc"}
    for path in [*modules(), *sorted((ROOT / "cli").glob("*.py"))]:
        assert path.stem not in vague, f"{path.relative_to(ROOT)}: name it for what it does"
        lines = len(path.read_text().splitlines())
        assert lines <= 300, f"{path.relative_to(ROOT)} has {lines} lines: two rooms?"


def test_tests_mirror_the_packages() -> None:
    folders = {
        path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and not path.name.startswith(("_", "."))
    }
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and not path.name.startswith("_")}
    assert rooms <= folders, f"rooms without tests: {sorted(rooms - folders)}"
    assert folders <= rooms | {"benchmarks", "cli", "golden", "hostile"}, "a folder of tests for no room"
