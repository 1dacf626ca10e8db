"""Headers and a recipe to a `Plan`: which bytes of every output file come from where. Pure.

No disk, no clock, no environment: the same headers and recipe give the same plan everywhere. That a
tensor is zeroed is decided in plan.py, where it lies in shards.py; tensor_map.py names it.
block_expansion.json is written and read in manifest.py alone, the model card in card.py. Start with
plan.py.
"""
