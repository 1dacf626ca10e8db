"""A checkpoint as its headers tell it, and where it lies: a folder, or a repository of the Hub.

It reads headers and documents, fetches files, and uploads; it knows nothing of what layers mean and
writes nothing but the Hub's cache and what a caller names. Start with checkpoint.py (`Checkpoint`),
then sources.py (SRC as typed to a checkpoint); hub/ speaks with the Hub.
"""
