"""``python -m pursuhint_lib COMMAND``; see ``cli``."""

import sys

from .cli import main
from .inherited import settle

if __name__ == "__main__":
    settle(sys.argv[1] if sys.argv[1:] else None)
    sys.exit(main(sys.argv[1:]))
