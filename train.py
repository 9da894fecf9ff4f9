"""Prune at initialisation, then train: `python train.py --config synflow_resnet20.yaml`.

Help and simple mistakes are answered before anything heavy is imported; `prunelab.cli` does the rest.
"""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("prunelab") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))
sys.path.append(str(Path.cwd()))  # for import paths of the user's own


def main(argv: list[str]) -> int:
    """Do what the command line `argv` asks for; returns the exit code."""
    try:
        from prunelab.command_line import Command, read_or_answer
        from prunelab.launcher import end_with_launcher
        from prunelab.memory import keep_freed_memory

        end_with_launcher()
        keep_freed_memory()
        command = read_or_answer(argv)
        if not isinstance(command, Command):
            return command
        from prunelab.cli import run_command
    except ModuleNotFoundError as error:
        print(f"train.py: error: {error}; `make` installs what is needed, see README.md", file=sys.stderr)
        return 2
    return run_command(command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
