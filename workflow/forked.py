"""Run a Python module as a fork of the process that a run keeps for this, or by its command if there is none.

    forked.py SOCKET PYTHON -m MODULE [ARGUMENT …]

Every step calls it, so it imports next to nothing (with -I -S: a fiftieth of a second). The other side is
pursuhint_lib/forks.py.
"""

import json
import os
import socket
import sys

place, command = sys.argv[1], sys.argv[2:]
request = {"command": command[2:], "environment": {**os.environ}, "folder": os.getcwd()}
over, held = os.pipe()
told = []
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
    try:
        # By its name alone, for an address has 107 bytes at most.
        os.chdir(os.path.dirname(place))
        connection.connect(os.path.basename(place))
        socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2, held])
        # That it is forked, and its exit status.
        while answer := connection.recv(16):
            told.append(answer)
    except OSError:
        pass
if not told:
    os.chdir(request["folder"])
    os.execv(command[0], command)
if len(told) == 1:
    # The fork saves its state before it ends; another one must not begin before.
    os.close(held)
    os.read(over, 1)
    sys.exit("the process that this step was forked from has ended; the same command goes on from there")
status = int(told[1])
# A signal as a shell tells it.
sys.exit(status if status >= 0 else 128 - status)
