"""`structalign <command>`, or `python -m structalign <command>`: what people run beside the pipeline."""

from __future__ import annotations

import ast
import sys
from importlib import import_module
from pathlib import Path

COMMANDS = Path(__file__).with_name("cli")
"""A command is a module in this folder: its name, the first line of its docstring, its `main`."""


def command_names() -> list[str]:
    """List the commands that there are."""
    return sorted(path.stem for path in COMMANDS.glob("*.py") if path.stem != "__init__")


def usage() -> str:
    """List every command with the first line of its docstring; no command is imported for it."""
    lines = ["usage: structalign <command> [arguments]", "", "commands:"]
    for name in command_names():
        docstring = ast.get_docstring(ast.parse((COMMANDS / f"{name}.py").read_text(encoding="utf-8"))) or ""
        lines.append(f"  {name:10} {docstring.splitlines()[0]}")
    return "\n".join([*lines, "", "`structalign <command> --help` explains one of them."])


def main() -> None:
    """Run the command that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(usage())
    elif name in command_names():
        sys.argv = [f"structalign {name}", *sys.argv[2:]]
        import_module(f"structalign.cli.{name}").main()
    else:
        sys.exit(f"structalign: no command {name!r}\n\n{usage()}")


if __name__ == "__main__":
    main()
