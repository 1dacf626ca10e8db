"""One public function for each thing that a user asks for: open, plan, write, prove.

`expand`, `merge`, `verify`, `diff` and `expand_batch` live here, and what they share. Nothing here
prints or parses a command line, and nothing decides what a plan already says. The modules have noun
names, since a module called `verify` would replace the function `blockexpand.verify` as soon as it
is imported. Start with expansion.py, then pipeline.py.
"""
