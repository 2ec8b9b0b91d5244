#!/usr/bin/env bash
# A SLURM of one node on loopback, for tests, with two CPUs and two GPUs that exist in its books only. Everything it writes lies under DIR; no
# system file is touched.
#
#   eval "$(tests/slurm_on_loopback.sh up DIR)"    starts it, waits until its node is idle, and prints what to export
#   tests/slurm_on_loopback.sh down DIR            cancels its jobs and ends its daemons
#
# It needs Debian's slurm-wlm and munge, but neither systemd nor cgroups. DIR is a new folder with a path of at most 90 letters, since
# munge's socket lies in it.
set -euo pipefail
# Where Debian keeps daemons, which a user's path leaves out.
PATH="$PATH:/usr/sbin"

fail() {
    echo "error: $1" >&2
    exit 2
}

require() {
    local missing=() program
    for program in "$@"; do
        command -v "$program" >/dev/null || missing+=("$program")
    done
    ((${#missing[@]} == 0)) || fail "not found: ${missing[*]}; install slurm-wlm and munge"
}

# Two TCP ports that nobody listens on.
free_ports() {
    python3 -c '
import socket
taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(each.getsockname()[1] for each in taken))'
}

configure() {
    local controller node
    read -r controller node < <(free_ports)
    cat >"$folder/slurm.conf" <<CONF
ClusterName=loopback
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$controller
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
# What a container has: processes are found through /proc, and nobody keeps accounts.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
# Ended jobs stay visible to squeue, also for whoever counts them after a test.
MinJobAge=3600
KillWait=5
NodeName=$(hostname -s) NodeAddr=127.0.0.1 Port=$node CPUs=2 $(slurmd -C | grep -o "RealMemory=[0-9]*") Gres=gpu:2 State=UNKNOWN
PartitionName=gpu Nodes=ALL Default=YES State=UP
CONF
    printf 'Name=gpu File=/dev/%s\n' null zero >"$folder/gres.conf"
    # Before 23.02 it cannot be switched off, but version 1 is then loaded and not used.
    local version
    version="$(slurmctld -V | grep -oE '[0-9]+\.[0-9]+' | head -n 1)"
    if [[ "$version" < 23.02 ]]; then echo "CgroupPlugin=cgroup/v1"; else echo "CgroupPlugin=disabled"; fi >"$folder/cgroup.conf"
    # Snakemake's SLURM plugin takes SLURM_CONF away from the srun inside its jobs.
    printf '#!/bin/sh\nSLURM_CONF=%q exec %q "$@"\n' "$SLURM_CONF" "$(command -v srun)" >"$folder/bin/srun"
    chmod +x "$folder/bin/srun"
}

up() {
    require munged mungekey slurmctld slurmd sinfo squeue scancel srun python3
    ((${#folder} <= 90)) || fail "the path $folder is too long for munge's socket"
    mkdir -m 755 "$folder" "$folder/bin" "$folder/state" "$folder/spool" 2>/dev/null || fail "$folder must be a new folder"
    trap down EXIT
    configure
    mungekey --create --keyfile="$folder/munge.key"
    # Forced: the folder's parents may be open to all, as /tmp is.
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
        --log-file="$folder/munged.log" --seed-file="$folder/munge.seed" 2>"$folder/munged.err" || fail "munged: see $folder/munged.log"
    slurmctld -f "$folder/slurm.conf" 2>"$folder/slurmctld.err" || fail "slurmctld: see $folder/slurmctld.log"
    slurmd -f "$folder/slurm.conf" 2>"$folder/slurmd.err" || fail "slurmd: see $folder/slurmd.log"
    local deadline=$((SECONDS + 60))
    while ((SECONDS < deadline)); do
        if [[ "$(timeout 5 sinfo --noheader --format=%T 2>/dev/null)" == idle ]]; then
            trap - EXIT
            printf 'export SLURM_CONF=%q PATH=%q:$PATH\n' "$SLURM_CONF" "$folder/bin"
            return
        fi
        sleep 0.5
    done
    fail "the node was not idle within a minute: see $folder/slurmctld.log and $folder/slurmd.log"
}

# End a daemon by its file, and wait until it is gone.
end() {
    local pid
    pid="$(cat "$folder/$1.pid" 2>/dev/null)" || return 0
    kill "$pid" 2>/dev/null || return 0
    for _ in {1..60}; do
        kill -0 "$pid" 2>/dev/null || return 0
        sleep 0.5
    done
    kill -KILL "$pid"
}

down() {
    timeout 5 scancel --quiet --user="$(id -un)" 2>/dev/null || true
    local deadline=$((SECONDS + 20))
    while ((SECONDS < deadline)) && [[ -n "$(timeout 5 squeue --noheader 2>/dev/null)" ]]; do
        sleep 0.5
    done
    end slurmd
    end slurmctld
    end munged
}

[[ $# -eq 2 && "$1" =~ ^(up|down)$ ]] || fail "usage: $0 up|down DIR"
folder="$(realpath -m "$2")"
export SLURM_CONF="$folder/slurm.conf"
"$1"
