"""A command that is forked is what it would be as a process of its own, and nothing of it outlives a kill."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from process_state import gone

from pursuhint_lib.paths import ROOT

SERVER = """
import socket, sys
import ipykernel.kernelapp, papermill.cli
from pursuhint_lib.forks import serve

serve(socket.socket(fileno=int(sys.argv[1])))
"""
TELLS = """
import json, os, sys
print(json.dumps([sys.argv[1:], os.getcwd(), os.environ["COLOUR"], os.environ.get("SERVER"), __name__]))
print("spoken", file=sys.stderr)
sys.exit(7)
"""
TIMEOUT = 60


@pytest.fixture
def server(tmp_path):
    """A process that forks, at a socket in a folder whose name is longer than an address may be."""
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    (folder / "tells.py").write_text(TELLS)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        with contextlib.chdir(folder):
            listener.bind("forks")
        listener.listen()
        command = [sys.executable, "-c", SERVER, str(listener.fileno())]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{folder}", "SERVER": "yes"},
            pass_fds=[listener.fileno()],
        )
    with process:
        yield process, folder
        process.kill()


def ask(folder: Path, *module: str) -> subprocess.Popen:
    client = [sys.executable, "-I", "-S", str(ROOT / "workflow" / "forked.py"), str(folder / "forks")]
    told = {**os.environ, "PYTHONPATH": str(folder), "COLOUR": "grün"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*client, sys.executable, "-m", *module], env=told, cwd=folder, **pipes)


def test_a_fork_has_arguments_folder_environment_streams_and_status_of_its_command(server):
    _, folder = server
    forked = ask(folder, "tells", "a b", "$x")
    out, err = forked.communicate(timeout=TIMEOUT)
    assert json.loads(out) == [["a b", "$x"], str(folder), "grün", None, "__main__"]
    assert (err, forked.returncode) == ("spoken\n", 7)


def test_without_a_process_to_fork_from_the_command_runs_as_it_stands(server):
    process, folder = server
    process.kill()
    process.wait()
    plain = ask(folder, "tells", "a b", "$x")
    out, err = plain.communicate(timeout=TIMEOUT)
    assert json.loads(out) == [["a b", "$x"], str(folder), "grün", None, "__main__"]
    assert (err, plain.returncode) == ("spoken\n", 7)


def notebook(folder: Path, source: str) -> tuple[str, ...]:
    """The command that executes a notebook with one cell."""
    cells = [nbformat.v4.new_code_cell(source)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "in.ipynb")
    return ("papermill", "in.ipynb", "out.ipynb", "--no-progress-bar")


def test_a_notebook_is_executed_by_a_kernel_that_is_forked_too(server):
    process, folder = server
    source = "import os, sys; print(os.getppid(), 'papermill' in sys.modules, os.environ['COLOUR'])"
    step = ask(folder, *notebook(folder, source))
    _, err = step.communicate(timeout=TIMEOUT)
    assert step.returncode == 0, err
    (cell,) = nbformat.read(folder / "out.ipynb", 4).cells
    parent, imported, colour = cell.outputs[0].text.split()
    assert (imported, colour) == ("True", "grün")
    assert int(parent) not in (1, os.getpid(), process.pid)
    assert gone(int(parent))


@pytest.fixture
def waiting(server):
    """A step whose kernel is at work for ever, and the processes of step and kernel."""
    process, folder = server
    step = ask(folder, *notebook(folder, "import time\nopen('begun', 'w').close()\ntime.sleep(600)"))
    deadline = time.monotonic() + TIMEOUT
    while not (folder / "begun").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process, step, psutil.Process(process.pid).children(recursive=True)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, "stdin"])
def test_with_the_process_that_it_was_forked_from_a_step_ends_and_then_who_asked_for_it(end, waiting):
    process, step, forks = waiting
    assert len(forks) == 2
    process.stdin.close() if end == "stdin" else process.send_signal(end)
    _, err = step.communicate(timeout=TIMEOUT)
    assert step.returncode == 1, err
    assert "the same command goes on from there" in err
    assert all(gone(fork.pid) for fork in forks)


def test_a_kernel_that_is_killed_fails_its_step_and_no_other(waiting, server):
    process, step, forks = waiting
    kernel = max(forks, key=lambda fork: fork.pid)
    kernel.kill()
    _, err = step.communicate(timeout=TIMEOUT)
    # As papermill says it.
    assert step.returncode == 138, err
    assert err.strip().endswith("Kernel died")
    assert all(gone(fork.pid) for fork in forks)
    again = ask(server[1], "tells")
    again.communicate(timeout=TIMEOUT)
    assert (again.returncode, process.poll()) == (7, None)
