"""What is known of quantised checkpoints: one row per scheme, as data. Never tensor data, no files.

`scheme.py` says what a row is; `find.py` lists the rows, and finds the one of a checkpoint
and its modules; `skip_lists.py` edits the lists of the config that say what is not quantised, and
`renumbering.py` reads them back with `matchers.py`, as transformers, vLLM and SGLang do. Families
know nothing of any of it.
"""
