"""Bring an output to the Hub: a folder that is complete, or a plan whose shards lie there already.

It decides nothing that a plan says, changes no output, and knows nothing of how files are written.
Whatever it sends, others see at once and whole: one commit. Start with target.py: what is checked
before the first byte.
"""
