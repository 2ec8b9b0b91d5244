#!/usr/bin/env bash
# Train one (pair, method) of a profile with `accelerate launch` on several machines that share work/ and results/.
#
#   workflow/many_hosts.sh PROFILE PAIR METHOD MACHINES NUMBER ADDRESS [GPUS_EACH]
#
# on every machine, NUMBER counting from 0 (in a SLURM job: srun knows it, then leave it as "-") and ADDRESS that of machine 0:
#
#   srun --ntasks-per-node=1 workflow/many_hosts.sh imagenet torchvision_resnet34-torchvision_resnet18 at "$SLURM_NNODES" - "$(hostname)"
#
# Steps 01 and 02 come first (./run_all.sh PROFILE on one machine); afterwards ./run_all.sh PROFILE draws what was trained here.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
unset CDPATH
if [ $# -lt 6 ]; then
    echo "usage: $0 PROFILE PAIR METHOD MACHINES NUMBER ADDRESS [GPUS_EACH]" >&2
    exit 2
fi
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$here/environment.sh"
profile=$1 pair=$2 method=$3 machines=$4 address=$6
number=$5
if [ "$number" = - ]; then
    number=${SLURM_NODEID:?"NUMBER is -, but this is no task of a SLURM job"}
fi
gpus=${7:-$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')}
exec "$PYTHON" -m accelerate.commands.launch --config_file "$here/accelerate.yaml" \
    --num_machines "$machines" --machine_rank "$number" --num_processes "$((machines * gpus))" \
    --main_process_ip "$address" --main_process_port "${MASTER_PORT:-29500}" \
    -m pursuhint_lib train "$profile" "$pair" "$method"
