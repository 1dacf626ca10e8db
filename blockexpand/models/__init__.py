"""What is known of model families: names, shapes and config fields. Never data, never files.

families/ is the table, a row for each decoder. decoder.py finds a checkpoint's layers with it,
surgery.py says what a layer map does to them and to the config. Nothing here opens a file, but for
loading.py, through which `transformers` loads a whole folder. Start with decoder.py.
"""
