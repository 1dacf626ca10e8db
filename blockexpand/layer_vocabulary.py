"""The tensors of a decoder layer that may be copied as they are: everything but the outputs.

Module paths as in `family.py`. A tensor that is neither here nor an output of its family's row
makes a checkpoint unknown: it could belong to a further residual branch. Data only.
"""

from __future__ import annotations

COPIED: frozenset[str] = frozenset(
    """
    input_layernorm post_attention_layernorm pre_feedforward_layernorm post_feedforward_layernorm
    self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.q_norm self_attn.k_norm
    self_attn.rotary_emb.inv_freq
    mlp.gate_proj mlp.up_proj
    """.split()
)
