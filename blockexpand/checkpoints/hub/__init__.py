"""A Hub repository to a local folder, or its headers.

The commit is looked up once, at the start; every later request names it, so a branch that moves
meanwhile mixes nothing. It knows nothing of layers, writes to the Hub's cache only, and raises
HubError with one line, never a token in it. These names are its face; start with download.py.
"""

from .client import cache_folder, find_cached
from .download import (
    count_uncached,
    download_checkpoint,
    download_files,
    download_side_files,
)
from .files import RepoSnapshot, parse_repo_ref
from .headers import fetch_document, fetch_headers, fetch_states
from .history import is_in_history
from .pieces import stream_pieces
from .snapshot import list_tree, open_snapshot
from .stream import stream_shards

__all__ = [
    "RepoSnapshot",
    "cache_folder",
    "count_uncached",
    "download_checkpoint",
    "download_files",
    "download_side_files",
    "fetch_document",
    "fetch_headers",
    "fetch_states",
    "find_cached",
    "is_in_history",
    "list_tree",
    "open_snapshot",
    "parse_repo_ref",
    "stream_pieces",
    "stream_shards",
]
