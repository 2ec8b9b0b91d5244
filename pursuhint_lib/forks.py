"""Python commands as forks of a process that has imported what they need, and their kernels as forks of
theirs. Linux only.

A fork is what the command would be as a process of its own: environment, folder and streams are those of
``workflow/forked.py``, which asks for it and ends with its exit status. It is asked to end when the process
that it was forked from dies.
"""

import contextlib
import ctypes
import gc
import json
import multiprocessing
import os
import runpy
import signal
import socket
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from multiprocessing.connection import wait

from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

# Bytes of a request at most.
REQUEST = 1 << 20
# Of Linux's prctl: the signal that a process gets when its parent dies.
PR_SET_PDEATHSIG = 1
NOTEBOOK, KERNEL = "papermill", "ipykernel_launcher"
# Its processes leave without taking apart what they have imported, which would copy all of its memory.
FORK = multiprocessing.get_context("fork")


def serve(listener: socket.socket) -> None:
    """Fork for every request, as long as standard input is open; then end what is forked."""
    # What is there by now stays. A fork that looked through it for garbage would copy its memory.
    gc.freeze()
    running: dict[int, tuple] = {}
    while True:
        ready = wait([sys.stdin, listener, *running])
        if sys.stdin in ready:
            for process, _ in running.values():
                process.terminate()
            return
        for ended in running.keys() & {*ready}:
            process, asked = running.pop(ended)
            process.join()
            with asked, contextlib.suppress(OSError):
                asked.send(b"%d" % process.exitcode)
        if listener in ready:
            asked, _ = listener.accept()
            # The last of them stays as it is: who asked sees it closed when the fork and its kernel are gone.
            request, streams, _, _ = socket.recv_fds(asked, REQUEST, 4)
            others = [listener, asked, *(connection for _, connection in running.values())]
            process = FORK.Process(target=_forked, args=(request, streams, others))
            process.start()
            for stream in streams:
                os.close(stream)
            asked.send(b"forked")
            running[process.sentinel] = process, asked


def _forked(request: bytes, streams: Sequence[int], others: Sequence[socket.socket]) -> None:
    """In a fork: take on the session, environment, folder and streams of a request, and run its command."""
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != multiprocessing.parent_process().pid:
        sys.exit("the process that this was forked from is gone")
    for connection in others:
        connection.close()
    for number, stream in enumerate(streams[:3]):
        os.dup2(stream, number)
        os.close(stream)
    told = json.loads(request)
    os.environ.clear()
    os.environ.update(told["environment"])
    os.chdir(told["folder"])
    _run(told["command"])


def _run(command: Sequence[str]) -> None:
    """Run a module with its arguments, as ``python -m`` does. What executes a notebook gets a kernel that is
    a fork as well.
    """
    if command[0] == NOTEBOOK:
        _offer_kernel()
    sys.argv[:] = command
    try:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    finally:
        if ForkedKernel.waiting:
            ForkedKernel.waiting[1].close()


def _offer_kernel() -> None:
    """Fork what will be the first kernel of this process: before there is anything that a kernel must not
    share, such as threads, sockets and an event loop.
    """
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = FORK.Process(target=_wait_to_be_kernel, args=(its, mine))
    process.start()
    its.close()
    ForkedKernel.waiting = Fork(process), mine
    factory = KernelProvisionerFactory.instance()
    factory.default_provisioner_name = "forked"
    factory.provisioners["forked"] = EntryPoint("forked", f"{__name__}:ForkedKernel", factory.GROUP_NAME)


def _wait_to_be_kernel(connection: socket.socket, other: socket.socket) -> None:
    other.close()
    if request := connection.recv(REQUEST):
        _forked(request, (), [connection])


class Fork:
    """A child of this process, with those of ``subprocess.Popen``'s methods that a provisioner calls."""

    stdin = stdout = stderr = None

    def __init__(self, process):
        self.process, self.pid = process, process.pid

    def poll(self) -> int | None:
        """Its exit status, once it has ended."""
        return self.process.exitcode

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
