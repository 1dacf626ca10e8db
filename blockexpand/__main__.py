"""`python -m blockexpand`, and the command `blockexpand`: the command line, from its first moment.

Little is imported before Ctrl-C ends in one line.
"""

import sys


def main() -> int:
    """Run the command line; return its exit status."""
    try:
        from .cli.app import main as run

        return run()
    except KeyboardInterrupt:
        sys.stderr.write("blockexpand: interrupted; the output was not made or changed\n")
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
