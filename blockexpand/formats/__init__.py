"""Bytes to values of one format, and back: safetensors headers, JSON, YAML, single elements.

It opens no file and knows no model, no checkpoint and no plan. The limits of what is accepted from
strangers stand beside each format. Start with safetensors.py.
"""
