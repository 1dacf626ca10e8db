"""The new blocks, and nothing else, made trainable.

freezing.py does it to a loaded model, settings.py prints what a trainer must be told. It reads an
expansion's manifest and knows no weights. Start with freezing.py.
"""
