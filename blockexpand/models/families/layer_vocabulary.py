"""The tensors of a decoder layer that may be copied as they are: everything but the outputs.

Module paths as in `family.py`, grouped by the module that holds them (`-` holds nothing). A
tensor that is neither here nor an output of its family's row makes a checkpoint unknown: it could
belong to a further residual branch. Data only.
"""

from __future__ import annotations

from collections.abc import Mapping

_LINEAR_MIXER = """
    A_log b_proj dt_bias f_proj f_a_proj f_b_proj g_proj g_a_proj g_b_proj o_norm
    q_proj k_proj v_proj q_conv1d k_conv1d v_conv1d
"""

_STATE_SPACE = """
    A_log D b_layernorm c_layernorm dt_layernorm conv1d dt_bias dt_proj in_proj norm x_proj
    dt_proj_weight x_proj_weight
"""

_GATED = "gate_proj up_proj gate_up_proj"

_EXPERTS = f"{_GATED} fc1"

_HYPER = "hc_norm input_mix_weight_down input_mix_weight_up block_inject_weight"

_BY_MODULE: Mapping[str, str] = {
    # Norms before a branch, and factors that do not multiply the stream.
    "-": """
        input_layernorm post_attention_layernorm pre_feedforward_layernorm
        pre_feedforward_layernorm_2 post_feedforward_layernorm_1 post_feedforward_layernorm_2
        attention_layernorm feedforward_layernorm attention_layer_norm feedforward_layer_norm
        pre_ff_layernorm pre_mlp_layernorm attn_norm mlp_norm ffn_norm operator_norm
        self_attn_layer_norm final_layer_norm layernorm1 layernorm2 ln1 ln2 pre_ln ln_1 ln_2 ln_attn
        ln_mlp norm norm_1 norm_2 norm_ffn norm_mlstm temporal_pre_norm channel_pre_norm fc1
        cross_attn_attn_gate cross_attn_mlp_gate ff_norm ln LayerNorm
        attention_norm
    """,
    "input_layernorm": "norm W_down W_up {e}",
    "post_attention_layernorm": "norm W_down W_up {e}",
    "ada_rms_norm": "linear1 linear2",
    # Attention: what comes before its output projection.
    "self_attn": f"""
        q_proj k_proj v_proj qkv_proj query_key_value gate_proj g_proj
        q_norm k_norm q_layernorm k_layernorm query_layernorm key_layernorm
        to_q to_k to_v norm_q norm_k att_proj r_proj k_rope_only_layernorm
        attn_sub_norm inner_attn_ln
        q_a_proj q_b_proj q_a_layernorm kv_a_proj_with_mqa kv_a_layernorm kv_b_proj
        sinks attention_sink_bias softmax_offset gate_bias
        linear_gate learnable_sink_param index_q_proj index_k_proj index_q_norm index_k_norm
        lambda_q1 lambda_k1 lambda_q2 lambda_k2 A dt_proj {_LINEAR_MIXER}
    """,
    "self_attn.q_layernorm.norms": "{e}",
    "self_attn.k_layernorm.norms": "{e}",
    "self_attn.indexer": """
        wq_b wk k_norm weights_proj q_proj k_proj q_norm index_qk_proj q_layernorm k_layernorm
    """,
    "self_attn.rotary_emb": "inv_freq",
    "attn_hyper_connection": _HYPER,
    "mlp_hyper_connection": _HYPER,
    "hc_pre.hc_attn_layer": "hc_fn hc_base hc_scale",
    "hc_pre.hc_mlp_layer": "hc_fn hc_base hc_scale",
    "cross_attn": "q_proj k_proj v_proj q_norm k_norm",
    "attn": """
        c_attn q_attn q_proj k_proj v_proj qkv_proj Wqkv q_ln k_ln bias masked_bias causal_mask
    """,
    "attn.attention": "q_proj k_proj v_proj bias masked_bias",
    "attention": f"""
        query_key_value query_layernorm key_layernorm q_a_proj q_b_proj q_a_layernorm
        kv_a_proj_with_mqa kv_a_layernorm kv_b_proj LayerNorm {_LINEAR_MIXER}
        bias masked_bias
        key value receptance time_decay time_first time_mix_key time_mix_value time_mix_receptance
    """,
    "attention.self": "query key value",
    "self_attn.q_proj": "linear",
    "self_attn.k_proj": "linear",
    "self_attn.v_proj": "linear",
    # Short convolutions add their input, so that they keep what is zero.
    "attn_sconv": "conv1d",
    "mlp_sconv": "conv1d",
    "self_attn.k_sconv": "conv1d",
    "self_attn.v_sconv": "conv1d",
    "self_attn.rel_logits_proj": "proj",
    "attention.rotary_emb": "inv_freq",
    "self_attention": "query_key_value kv_proj",
    "self_attention.experts": "input_linear",
    "self_attention.experts.router": "layer",
    "multi_head_attention": "Wq Wk Wv",
    "self_att": "layernorm_before_attention",
    "self_att.self_attention": "project_q project_k project_v",
    "norm_attn_norm": "norm_1 norm_2",
    "norm_attn_norm.attn": "Wqkv",
    # State-space, recurrent, convolutional and linear mixers.
    "mamba": _STATE_SPACE,
    "mixer": f"{_STATE_SPACE} q_proj k_proj v_proj up_proj gate fc1_latent_proj",
    "mixer.gate": "e_score_correction_bias",
    "mixer.experts.{e}": "up_proj",
    "mixer.shared_experts": "up_proj",
    "linear_attn": f"""
        in_proj_a in_proj_b in_proj_ba in_proj_qkv in_proj_qkvz in_proj_z conv1d norm a_proj
        {_LINEAR_MIXER}
    """,
    "conv": "conv in_proj",
    "temporal_block": "conv_1d linear_x linear_y q_proj k_proj v_proj",
    "temporal_block.rg_lru": """
        input_gate_weight input_gate_bias recurrent_gate_weight recurrent_gate_bias recurrent_param
    """,
    "mlstm_layer": "q k v fgate_preact igate_preact ogate_preact multihead_norm",
    # MLPs, routers and experts: what comes before their output projection.
    "mlp": f"""
        {_GATED} ff_proj c_fc fc1 fc_in dense_h_to_4h input_linear Wi ffn_sub_norm
        gate router expert_bias e_score_correction_bias shared_expert_gate linear_gate
    """,
    "mlp.act_fn": "alpha_n alpha_p beta eps",
    "post_attention_residual_scale": "hidden_states_scale",
    "post_mlp_residual_scale": "hidden_states_scale",
    "self_attn.qk_norm": "temp",
    "self_attn.qkv_proj": """
        conv_qk_depthwise conv_qk_grouped k_proj q_proj v_proj_current v_proj_delayed
    """,
    "mlp.gate.router_mlp": "fc1 fc2 norm out_proj",
    "mlp.gate": """
        wg weight_1 balancing_biases down_proj router_states_scale e_score_correction_bias
        expert_bias
    """,
    "mlp.moe_statics": "e_score_correction_bias",
    "mlp.router": "gate layer",
    "mlp.experts": f"{_EXPERTS} e_score_correction_bias",
    "mlp.experts.{e}": _GATED,
    "mlp.shared_experts": f"{_GATED} linear_gate",
    "mlp.shared_expert": _GATED,
    "mlp.shared_mlp": _GATED,
    "moe": f"gate router_bias {_GATED}",
    "moe.router": "expert_bias",
    "share_expert": _GATED,
    "router": "proj scale per_expert_scale",
    "experts": _EXPERTS,
    "experts.{e}": _GATED,
    "block_sparse_moe": f"{_GATED} gate router input_linear e_score_correction_bias",
    "block_sparse_moe.gate": "e_score_correction_bias",
    "block_sparse_moe.router": "layer",
    "block_sparse_moe.experts": _GATED,
    "block_sparse_moe.experts.{e}": "w1 w3",
    "block_sparse_moe.shared_experts": _GATED,
    "shared_mlp": f"input_linear {_GATED}",
    "feed_forward": f"{_GATED} w1 w3 gate router expert_bias key receptance "
    "time_mix_key time_mix_receptance",
    "feed_forward.experts": _GATED,
    "feed_forward.experts.{e}": f"{_GATED} w1 w3",
    "feed_forward.shared_expert": _GATED,
    "mlp_block": _GATED,
    "ffn": "0 fc1 ffn_layernorm up_proj proj_up proj_up_gate layernorm_before_ffn",
    "ffn.experts.mlp": "w1 v1",
    "ffn.router": "layer",
    "ffn.ffn.w_in": "w_0 w_1",
    "intermediate": "dense LayerNorm",
}

COPIED: frozenset[str] = frozenset(
    leaf if module == "-" else f"{module}.{leaf}"
    for module, leaves in _BY_MODULE.items()
    for leaf in leaves.split()
)
