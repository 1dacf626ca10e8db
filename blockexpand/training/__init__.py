"""The new blocks, and nothing else, made trainable.

freezing.py does it to a loaded model, settings.py prints the settings of a trainer. It reads an
expansion's manifest and knows no weights. Start with freezing.py.
"""
