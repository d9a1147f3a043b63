"""What fitting a student brings into a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SPY = """
import sys
import kdcache.student
assert "torch" not in sys.modules, "importing the package alone brings torch"
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from student_runs import small
small(Path(sys.argv[2]), Path(sys.argv[3]), steps=3)
print(" ".join(sorted(name for name in sys.modules if name.split(".")[0] in ("timm", "transformers")
                      or name.startswith("kdcache.teacher"))))
"""


def test_a_student_is_fitted_without_any_teacher(digits_store: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            SPY,
            str(Path(__file__).parent),
            str(digits_store),
            str(tmp_path / "run"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_the_door_is_what_it_says() -> None:
    import kdcache.student

    assert kdcache.student.__all__ == sorted(kdcache.student.__all__)
    for name in kdcache.student.__all__:
        assert getattr(kdcache.student, name).__module__.startswith("kdcache.student")
    assert callable(kdcache.student.fit), "the submodule of this name must not hide the function"
