"""Python commands as forks of a process that has imported what they need, and their kernels as forks of
theirs. Linux only.

A fork is what the command would be as a process of its own: environment, folder and streams are those of
``workflow/forked.py``, which asks for it and ends with its exit status. It is asked to end when the process
that it was forked from dies.
"""

import contextlib
import ctypes
import json
import os
import runpy
import select
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint

from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

# Bytes of a request at most.
REQUEST = 1 << 20
# Of Linux's prctl: the signal that a process gets when its parent dies.
PR_SET_PDEATHSIG = 1
NOTEBOOK, KERNEL = "papermill", "ipykernel_launcher"


def serve(listener: socket.socket) -> list[str]:
    """Fork for every request, as long as standard input is open.

    **Returns:** in a fork only, the module to run and its arguments.

    **Raises:** ``EOFError`` when standard input is closed.
    """
    running: dict[int, tuple[int, socket.socket]] = {}
    while True:
        ready, _, _ = select.select([sys.stdin, listener, *running], [], [])
        if sys.stdin in ready:
            raise EOFError("who started the process that steps are forked from is gone")
        for ended in running.keys() & {*ready}:
            pid, asked = running.pop(ended)
            os.close(ended)
            _, status = os.waitpid(pid, 0)
            with asked, contextlib.suppress(OSError):
                asked.send(b"%d" % os.waitstatus_to_exitcode(status))
        if listener in ready:
            asked, _ = listener.accept()
            # The last of them stays as it is: who asked sees it closed when the fork and its kernel are gone.
            request, streams, _, _ = socket.recv_fds(asked, REQUEST, 4)
            if not (pid := fork()):
                for other, (_, connection) in running.items():
                    os.close(other)
                    connection.close()
                listener.close()
                asked.close()
                return _become(json.loads(request), streams)
            for stream in streams:
                os.close(stream)
            asked.send(b"forked")
            running[os.pidfd_open(pid)] = pid, asked


def fork() -> int:
    """``os.fork``; the fork has a session of its own, and gets SIGTERM when its parent dies."""
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    if not (pid := os.fork()):
        os.setsid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            sys.exit(f"process {parent} is gone")
    return pid


def _become(request: Mapping, streams: Sequence[int] = ()) -> list[str]:
    """Take on environment, folder and streams of a request.

    **Returns:** its command.
    """
    for number, stream in enumerate(streams[:3]):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    return request["command"]


def run(command: Sequence[str]) -> None:
    """Run a module with its arguments, as ``python -m`` does. What executes a notebook gets a kernel that is
    a fork as well.

    **Raises:** what the module raises, and ``SystemExit`` with its exit status.
    """
    if command[0] == NOTEBOOK:
        mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Before there is anything that a kernel must not share: threads, sockets, an event loop.
        if pid := fork():
            its.close()
            _offer(Fork(pid), mine)
        else:
            mine.close()
            if not (request := its.recv(REQUEST)):
                return
            command = _become(json.loads(request))
    sys.argv[:] = command
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)


class Fork:
    """A child of this process, with those of ``subprocess.Popen``'s methods that a provisioner calls."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int):
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit status, once it has ended."""
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    # It is waited for once it has ended.
    wait = poll

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


class ForkedKernel(LocalProvisioner):
    """Provisions the first kernel by a fork that waits for its command, and others as usual."""

    waiting: tuple[Fork, socket.socket] | None = None

    async def launch_kernel(self, cmd, **kwargs):
        """Tell the waiting fork to be the kernel."""
        if self.waiting is None or cmd[1:3] != ["-m", KERNEL]:
            return await super().launch_kernel(cmd, **kwargs)
        (self.process, connection), ForkedKernel.waiting = self.waiting, None
        self.pid = self.pgid = self.process.pid
        self.cwd = os.path.abspath(kwargs.get("cwd") or ".")
        # By its environment a kernel would learn this when ipykernel is imported.
        command = [*cmd[2:], f"--IPKernelApp.parent_handle={os.getpid()}"]
        request = {"command": command, "environment": kwargs["env"], "folder": self.cwd}
        with connection:
            connection.send(json.dumps(request).encode())
        return self.connection_info


def _offer(process: Fork, connection: socket.socket) -> None:
    """Make a fork the next kernel of this process."""
    ForkedKernel.waiting = process, connection
    factory = KernelProvisionerFactory.instance()
    factory.default_provisioner_name = "forked"
    factory.provisioners["forked"] = EntryPoint("forked", f"{__name__}:ForkedKernel", factory.GROUP_NAME)
