"""Reading a stranger's store opens nothing outside it, and starts, imports and connects nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hostile_store import columns, forge, honest, plan_of

AUDIT = """
import json, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from hostile_store import refusal
import kdcache.store
seen, watching = [], False
def hook(event, arguments):
    if watching and event in (
        "open", "import", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "socket.connect",
        "socket.getaddrinfo", "pickle.find_class", "ctypes.dlopen", "exec", "compile",
    ):
        seen.append([event, str(arguments[0])])
refusal(Path(sys.argv[3]))  # whatever is imported late is imported here
sys.addaudithook(hook)
watching = True
error = refusal(Path(sys.argv[2]), False)
watching = False
print(json.dumps([type(error).__name__, seen]))
"""


@pytest.mark.parametrize("container", ["parquet", "hdf5"])
@pytest.mark.parametrize("kind", ["honest", "damaged", "names"])
def test_only_the_store_is_opened(tmp_path: Path, container: str, kind: str) -> None:
    plan = plan_of(container)
    forge(tmp_path / "first", plan, honest(plan))
    data = bytearray(honest(plan))
    if kind == "damaged":
        data[data.index(columns(plan)["logits"].tobytes()) + 20] ^= 0xFF
    forge(tmp_path / "s", plan, bytes(data))
    if kind == "names":  # every string that a store holds, as something that leads elsewhere
        file = tmp_path / "s" / "plan.json"
        text = file.read_text().replace("zoo:convnet", "os:system").replace('"example"', '"http://127.0.0.1:9/x"')
        file.write_text(text)
    command = [sys.executable, "-c", AUDIT, str(Path(__file__).parent), str(tmp_path / "s"), str(tmp_path / "first")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    kind_of_error, seen = json.loads(done.stdout)
    assert kind_of_error in ("NoneType", "StoreDamaged", "TrustError")
    assert (kind_of_error == "NoneType") == (kind == "honest")
    assert {event for event, _ in seen} <= {"open"}
    assert seen
    assert all(path.startswith(str(tmp_path / "s") + "/") for _, path in seen), seen
