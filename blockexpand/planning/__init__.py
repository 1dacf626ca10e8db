"""Headers and a recipe to a `Plan`: which bytes of every output file come from where. Pure.

No disk, no clock, no environment: the same headers and recipe give the same plan everywhere. Where
a zeroed tensor is decided: tensor_map.py. Where an offset is: shards.py. block_expansion.json is
written and read in manifest.py, the model card in card.py. Start with plan.py.
"""
