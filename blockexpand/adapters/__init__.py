"""Block adapters: the trained new blocks of an expansion alone, and how they go onto their base.

format.py has the values and their JSON, extraction.py and application.py make plans that `writing`
writes like any other, in_memory.py puts blocks into a loaded model. Nothing here writes files,
and nothing trusts an adapter: names, shapes and digests are checked before they are used. Start
with format.py; docs/block-adapter.md describes the format for others.
"""
