"""What runs in the sandbox reaches nothing and ends; where there is no sandbox, nothing runs."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import sandbox
from benchmarks.sandbox import TORCH_BYTES, run_sandboxed, run_sandboxed_json, why_no_sandbox
from corpora.errors import InputRefused

ONE_LINE = re.compile(r"[^\n\x1b]+: [^\n\x1b]+; expected [^\n\x1b]+; [^\n\x1b]+")
MIB = 1 << 20


def probe(
    code: str, *readable: Path, seconds: float = 20.0, memory_bytes: int = 256 * MIB, output_bytes: int = MIB
) -> str:
    """What a program prints in the sandbox. Where there is none, the refusal is checked and the test ends."""
    run = {"readable": readable, "seconds": seconds, "memory_bytes": memory_bytes, "output_bytes": output_bytes}
    command = [sys.executable, "-c", code]
    if why_no_sandbox() is None:
        return run_sandboxed(command, **run).decode()  # type: ignore[arg-type]
    with pytest.raises(
        InputRefused, match=r"sandbox: .*; expected .*; score a candidate that needs no code"
    ) as refusal:
        run_sandboxed(command, **run)  # type: ignore[arg-type]
    assert ONE_LINE.fullmatch(str(refusal.value))
    pytest.skip("no namespaces on this system: refused, as it must be")


def refused(code: str, *readable: Path, **limits: float) -> str:
    """Why a program was stopped, in one line."""
    with pytest.raises(InputRefused) as refusal:
        probe(code, *readable, **limits)  # type: ignore[arg-type]
    assert ONE_LINE.fullmatch(str(refusal.value)), str(refusal.value)
    return str(refusal.value)


def test_output_comes_back_and_named_paths_can_be_read_but_not_written(tmp_path: Path) -> None:
    folder = tmp_path / "a model's folder\nwith a line break"
    folder.mkdir()
    (folder / "config.json").write_text("told")
    path = str(folder / "config.json")
    assert probe(f"print(open({path!r}).read())", folder) == "told\n"
    assert "Read-only file system" in refused(f"open({path!r}, 'w')", folder)
    assert "Read-only file system" in refused(f"open({str(folder / 'new')!r}, 'w')", folder)
    (tmp_path / "link").symlink_to(folder)
    assert probe(f"print(open({str(tmp_path / 'link' / 'config.json')!r}).read())", tmp_path / "link") == "told\n"


def test_other_files_are_not_there(tmp_path: Path) -> None:
    secret = tmp_path / "id_rsa"
    secret.write_text("secret")
    home = Path.home() / ".ssh"
    code = f"import os; print([os.path.exists(path) for path in ({str(secret)!r}, {str(home)!r}, '/etc/passwd')])"
    assert probe(code) == "[False, False, False]\n"


@pytest.mark.parametrize(
    "path", ["/usr/evil", "/evil", "/proc/sys/kernel/core_pattern", "/dev/evil", sys.prefix + "/x"]
)
def test_a_file_outside_is_not_writable(path: str) -> None:
    assert re.search(r"Read-only file system|Permission denied", refused(f"open({path!r}, 'w')"))
    assert not path.endswith("evil") or not Path(path).exists()


def test_scratch_files_are_small_and_gone_afterwards() -> None:
    probe("open('/tmp/cuvee-scratch', 'w').write('x')")
    assert not Path("/tmp/cuvee-scratch").exists()
    assert "File too large" in refused("open('/tmp/big', 'wb').write(bytes(100 << 20))")
    assert "No space left" in refused("for name in 'ab': open(f'/tmp/{name}', 'wb').write(bytes(40 << 20))")


def test_nothing_can_be_reached() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    try:
        for host in ("127.0.0.1", "1.1.1.1"):
            code = f"import socket; socket.create_connection(({host!r}, {port}), 5)"
            assert re.search("unreachable|refused", refused(code))
    finally:
        listening.close()


def test_no_variable_and_no_open_file_of_ours_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "ANYTHING"):
        monkeypatch.setenv(name, "canary-token")
    code = "import os; print(dict(os.environ), os.listdir('/proc/self/fd'), open('/proc/1/environ').read())"
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        told = probe(code)
    assert "canary" not in told and "'0', '1', '2', '3']" in told


def test_no_capability_is_left_and_none_can_be_had() -> None:
    code = """
import ctypes, re
status = open("/proc/self/status").read()
print(re.findall(r"Cap(?:Prm|Eff|Bnd|Amb):\\s*0*\\n", status).__len__(), "NoNewPrivs:\\t1" in status)
libc = ctypes.CDLL(None)
print(libc.unshare(0x10000000), libc.mount(b"none", b"/tmp", b"tmpfs", 0, b""), libc.chroot(b"/tmp"))
"""
    assert probe(code) == "4 True\n-1 -1 -1\n"


def test_other_processes_are_not_seen() -> None:
    code = "import os; print([name for name in os.listdir('/proc') if name.isdigit()], os.getpid())"
    assert probe(code) == "['1'] 1\n"


def test_an_endless_loop_ends_with_everything_that_it_began() -> None:
    mark = f"mark-{os.getpid()}-{time.monotonic_ns()}"
    code = f"""
import os, sys
mark = {mark!r}
if os.fork():
    os.setsid()
while True:
    pass
"""
    begun = time.monotonic()
    assert "did not end in 1 seconds" in refused(code, seconds=1)
    assert time.monotonic() - begun < 10
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if readable_now(path)]
    assert not [line for line in lines if mark.encode() in line and b"pytest" not in line]


def readable_now(path: Path) -> bool:
    """Whether a process is still there to be read."""
    try:
        path.read_bytes()
    except OSError:
        return False
    return True


def test_one_that_closes_its_outputs_and_goes_on_ends() -> None:
    assert "did not end" in refused("import os, time; os.close(1); os.close(2); time.sleep(60)", seconds=1)


def test_processes_are_counted() -> None:
    code = """
import os, time
begun = 0
while True:
    try:
        if os.fork() == 0:
            time.sleep(60)
        begun += 1
    except OSError:
        print(begun, flush=True)
        os._exit(0)
"""
    assert int(probe(code)) < 400


def test_memory_is_limited() -> None:
    assert "MemoryError" in refused("bytearray(1 << 30)")
    assert probe("print(len(bytearray(100 << 20)))") == f"{100 * MIB}\n"


def test_endless_output_is_cut() -> None:
    begun = time.monotonic()
    code = "import os\nfor _ in range(1 << 14): os.write(1, bytes(1 << 16))"  # 1 GiB
    assert "more than 1,048,576 bytes of output" in refused(code)
    assert time.monotonic() - begun < 10
    endless_errors = "import os\nfor _ in range(1000): os.write(2, b'x' * (1 << 16))\nprint('done')"
    assert probe(endless_errors) == "done\n"


def test_what_fails_says_so_without_escapes() -> None:
    told = refused("import sys; print('\\x1b[2J\\x07oops', file=sys.stderr); sys.exit(3)")
    assert r"status 3 (\x1b[2J\x07oops)" in told
    assert "status" in refused("import os; os.kill(os.getpid(), 9) or os.abort()")


def test_results_are_read_strictly() -> None:
    if why_no_sandbox() is not None:
        probe("")

    def result(text: str) -> object:
        command = [sys.executable, "-c", f"print({text!r})"]
        return run_sandboxed_json(command, readable=[], seconds=20, memory_bytes=256 * MIB, output_bytes=1000)

    assert result('{"accuracy": 0.5, "ties": 0}') == {"accuracy": 0.5, "ties": 0}
    for text in ('{"accuracy": NaN}', '{"a": 1, "a": 2}', "[1]", "", "[" * 900, '{"a": 1} x'):
        with pytest.raises(InputRefused, match=r"sandbox: output: .*; expected .*; "):
            result(text)


def test_torch_and_the_toolkit_start_inside() -> None:
    code = "import torch, benchmarks.stats; print(torch.ones(100, 100).matmul(torch.ones(100, 1)).sum().item())"
    assert probe(code, memory_bytes=TORCH_BYTES, seconds=60) == "10000.0\n"


def test_inside_a_sandbox_there_is_none_and_nothing_runs_bare() -> None:
    code = """
from benchmarks.sandbox import run_sandboxed
from corpora.errors import InputRefused
import sys
try:
    command = [sys.executable, "-c", "print('bare')"]
    print(run_sandboxed(command, readable=[], seconds=9, memory_bytes=1 << 28, output_bytes=9))
except InputRefused as refusal:
    print(refusal)
"""
    told = probe(code)
    assert "cannot be made here" in told and "bare" not in told and ONE_LINE.fullmatch(told.strip())


def test_without_unshare_nothing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    sentinel = tmp_path / "ran"
    limits = {"seconds": 5.0, "memory_bytes": 256 * MIB, "output_bytes": 9}
    with pytest.raises(InputRefused, match="sandbox: no unshare; expected Linux"):
        run_sandboxed([sys.executable, "-c", f"open({str(sentinel)!r}, 'w')"], readable=[], **limits)  # type: ignore[arg-type]
    assert not sentinel.exists()


def test_what_is_to_be_read_must_exist(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="missing; expected a file or folder"):
        run_sandboxed(["/bin/true"], readable=[tmp_path / "no"], seconds=1, memory_bytes=MIB, output_bytes=1)


def test_the_child_refuses_to_work_outside_namespaces(tmp_path: Path) -> None:
    plan = {"root": str(tmp_path), "readable": [], "argv": ["/bin/true"], "uid": 0}
    command = [sys.executable, "-I", "-S", sandbox.sandbox_child.__file__, json.dumps(plan)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert finished.returncode == sandbox.sandbox_child.FAILED
    assert finished.stderr == "sandbox: not in namespaces of its own\n"
