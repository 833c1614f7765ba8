"""The command line: `python -m client "prompt"` prints the text as it arrives. `--help` lists all options."""

import os
import sys

from fiddler.running import interrupts

# gRPC would log, over several lines, what the error's one line says
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

with interrupts.quiet():
    from client._cli.app import EPILOG, chat, generate, main
    from fiddler.command_line import application

__all__ = ["chat_app", "generate_app", "main"]

generate_app = application(generate, epilog=EPILOG)
"""`fiddler generate`."""
chat_app = application(chat, epilog=EPILOG)
"""`fiddler chat`."""

if __name__ == "__main__":
    sys.exit(main())
