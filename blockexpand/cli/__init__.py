"""The command line: arguments, terminal text, progress and exit status. No logic of its own.

A module per command holds its parser and its run; app.py chooses among them and turns every error
into one line. Texts of results are loaded only when there is a result. Start with app.py.
"""

from .app import main

__all__ = ["main"]
