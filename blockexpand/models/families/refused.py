"""Models that cannot be expanded exactly whatever the layer map, with the reason. Data only."""

from __future__ import annotations

from collections.abc import Mapping

POST_NORM = (
    "each layer ends in a norm of the whole residual stream, so no choice of weights makes a "
    "layer the identity"
)

ENCODER_DECODER = "it is an encoder with a decoder, not a decoder-only model"

REFUSED: Mapping[str, str] = {
    **dict.fromkeys(
        (
            *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "distilbert"),
            *("electra", "ernie", "roberta", "rembert", "roc_bert", "roformer", "xlm"),
            *("xlm-roberta", "xmod", "openai-gpt", "albert", "deberta", "deberta-v2"),
            *("blip", "git"),
        ),
        POST_NORM,
    ),
    **dict.fromkeys(
        (
            *("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart"),
            *("mvp", "pegasus", "plbart", "prophetnet", "trocr", "whisper", "t5", "mt5", "umt5"),
            *("t5gemma", "t5gemma2", "encoder-decoder", "florence2", "fsmt", "led", "longt5"),
            *("m2m_100", "moonshine", "nllb-moe", "pegasus_x", "pix2struct", "seamless_m4t"),
            *("seamless_m4t_v2", "speech-encoder-decoder", "speech_to_text", "speecht5"),
            *("switch_transformers", "udop", "vision-encoder-decoder", "musicgen"),
            *("musicgen_melody", "pp_formulanet"),
        ),
        ENCODER_DECODER,
    ),
    "minimax": "the residual is taken from the output of a norm, so no layer can be the identity",
    "beam": "residual branches are scaled by the depth of the model",
    **dict.fromkeys(
        ("gemma3n_text", "gemma3n"),
        "each layer divides the sum of its stream and two branches by the root of 2 before it puts "
        "it back, so no weights make a layer the identity",
    ),
    "hrm_text": "two stacks of layers are run in turn, for a number of cycles set by the depth",
    **dict.fromkeys(
        ("deepseek_v4", "glm5_next"),
        "each layer mixes several residual streams by a matrix to which 'hc_eps' is added before "
        "it is normalised, so no weights make it the identity",
    ),
    "dory": "each layer puts the stream back onto the unit sphere, and layers are run in loops",
    **dict.fromkeys(
        ("inkling2", "inkling2_text", "inkling2_loop", "inkling2_loop_text"),
        "layers read the states of blocks of layers that are counted by number "
        "('n_layers_per_attn_res_block'), so a new layer moves the blocks behind it",
    ),
    "muse_spark": "a gate weighs the stream against each branch, so that a layer is the identity "
    "only where the gate is shut, and then it cannot learn",
    **dict.fromkeys(
        ("idefics", "evolla"),
        "further blocks stand beside every n-th layer, found by its number, so a new layer would "
        "move those behind it",
    ),
    **dict.fromkeys(
        ("gemma4_assistant", "gemma4_unified_assistant"),
        "it drafts tokens for another model, with the keys and values of that model's layers",
    ),
    "diffusion_gemma": "it has an encoder beside the decoder, layer by layer, and writes a block "
    "of tokens at a time",
    "pi0": "it makes actions, not tokens: its layers attend to the keys of another model's layers "
    "of the same number",
    "blt": "bytes and patches of them go through three stacks of layers, none of which is a "
    "decoder of its own",
    "longcat_flash": "its routers choose among experts that pass the input on, so that no weights "
    "silence the branch",
    "reformer": "the layers are reversible and work on two streams at once",
    "xlnet": POST_NORM,
}
