"""Read again and compare: an output with its plan, two checkpoints, logits, toy models.

It imports nothing that writes checkpoints: what proves an output may share no fault with what made
it. Start with output.py (`verify`) or preflight.py (`--check`).
"""
