"""mergekit's passthrough recipes: parsed, checked, and made into the same kind of plan.

It makes what mergekit makes, tensor for tensor, and refuses every other kind of merge. Start with
recipe.py (the values), then plan.py.
"""
