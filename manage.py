#!/usr/bin/env python
"""Every command of the portal. `up` runs an installation; the others join the one that runs."""

import os
import sys

from decisioning.embedded import Home, NotStarted, join, keep_bytecode


def main() -> None:
    """Run the command that the arguments name."""
    keep_bytecode()
    command, *arguments = [*sys.argv[1:], ""][: max(len(sys.argv) - 1, 1)]
    if command == "up":
        from decisioning.up import main as up  # before Django, which wants the database that `up` starts

        sys.exit(up(arguments))
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "decisioning.settings")
    try:
        os.environ.update(join(Home(), command))
    except NotStarted as problem:
        sys.exit(str(problem))
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
