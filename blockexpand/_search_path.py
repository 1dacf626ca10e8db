"""Keep `python -m blockexpand` from running modules of the folder that it is started in.

Python looks there first, and that folder may be a checkpoint's, with a yaml.py of its own. Only
`os` and `sys` are imported here: both are loaded before any folder is searched.
"""

import os
import sys


def leave_current_folder() -> None:
    """Take the current folder off the search path where `python -m blockexpand` has put it there.

    Where this package itself lies in it, it is searched last instead, so that workers find the
    package too.
    """
    if not _is_started_as_module():
        return
    here = os.path.realpath(os.curdir)
    home = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))  # noqa: PTH120
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry or os.curdir) != here]
    if here == home:
        sys.path.append(here)


def _is_started_as_module() -> bool:
    # While the module is looked for its name is not known yet.
    if sys.argv[:1] != ["-m"]:
        return False
    words = sys.orig_argv
    follows = {words[index + 1] for index, word in enumerate(words[:-1]) if word.endswith("m")}
    return bool({"blockexpand", "blockexpand.__main__"} & follows) or "-mblockexpand" in words


def holds_modules(folder: str) -> bool:
    """Tell whether Python would find modules in a folder."""
    with os.scandir(folder) as entries:
        return any(
            entry.name.endswith((".py", ".pyc", ".so", ".pyd"))
            or os.path.isfile(os.path.join(entry.path, "__init__.py"))  # noqa: PTH113, PTH118
            for entry in entries
        )
