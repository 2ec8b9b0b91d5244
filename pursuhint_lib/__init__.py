"""PURSUhInT: which teacher layers should give the hints?

The library behind the notebooks. Modules form layers and import downward only:
``paths settings digits forks gradients`` → ``files`` → ``faults inherited progress similarity
clustering losses statistics`` → ``data models taps teachers plots`` → ``profiling attention distillers
records`` → ``training export`` → ``study`` → ``cli``.
"""

import os

# Threads that wait for each other give way soon. As torch has it they keep their cores busy, which beside
# other work are those that the other threads need. Both are read when torch is loaded; what the user has set
# counts.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "5500")

__version__ = "0.1.0"
