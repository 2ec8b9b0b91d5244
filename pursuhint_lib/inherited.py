"""What a command inherits from the environment that it is started in: the one list of what is cleared, or
pointed elsewhere, for it and all steps that it starts.

Everything else is kept as it is given, ``CUDA_VISIBLE_DEVICES`` and numbers of threads for example. What
stands in the way of the shell or the interpreter itself is cleared before, in ``workflow/environment.sh``.
"""

import os
from fnmatch import fnmatchcase

from .paths import tool_folder

# Of another training, that of a shell under torchrun, of a pod or of mpirun: who finds them waits for others.
TRAINING = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "ROLE_*", "WORLD_SIZE", "*_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_*", "PET_*", "ACCELERATE_*", "FSDP_*"),
    *("OMPI_COMM_*", "PMI_*", "PMIX_*", "MV2_COMM_*"),
)
# Settings of the tools that are called, by which a step would be another one for every user.
TOOLS = (
    *("SNAKEMAKE_PROFILE", "SNAKEMAKE_OUTPUT_CACHE", "JUPYTER_*", "JPY_*", "IPYTHON*", "PAPERMILL_*"),
    *("MPLBACKEND", "MATPLOTLIBRC", "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"),
    *("PYTHONSTARTUP", "PYTHONOPTIMIZE", "PYTHONWARNINGS", "PYTHONINSPECT", "PYTHONBREAKPOINT"),
)
# Folders that tools have in the user's home, which may hold such settings, or refuse to be written to.
FOLDERS = (
    *("MPLCONFIGDIR", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"),
    *("XDG_CACHE_HOME", "XDG_CONFIG_HOME"),
)


def forget(*patterns: str) -> None:
    """Take variables out of the environment of this process and of those that it will start.

    **Arguments:** their names; ``*`` stands for anything.
    """
    for name in list(os.environ):
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            del os.environ[name]


def settle(command: str | None) -> None:
    """Clear and point elsewhere what a command of the study must not inherit; ``train`` alone is one of
    several processes and keeps what says which.
    """
    forget(*TOOLS, *(() if command == "train" else TRAINING))
    # The kernel python3 is that of this environment, also where the user has another one of that name.
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    for name in FOLDERS:
        os.environ[name] = str(tool_folder(name))
