"""The operating system's files: open, read, write, sync, share blocks, walk paths, run threads.

It knows no checkpoint, no output folder and no plan, and every failure becomes one line here. Start
with io.py, then sharing.py (reflink and its kin) and reading.py.
"""
