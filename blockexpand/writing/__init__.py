"""A `Plan` to files: the only writer of checkpoints. It decides nothing.

All is written to a staging folder beside the output and published by one rename. The order of use
is writer, tasks, shard, chunks, then `fs`. Start with writer.py.
"""
