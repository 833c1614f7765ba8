"""The command line: `python -m client "prompt"` prints the text as it arrives. `--help` lists all options."""

import sys

from client._cli.app import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
