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
            *("switch_transformers", "udop", "vision-encoder-decoder"),
        ),
        ENCODER_DECODER,
    ),
    "minimax": "the residual is taken from the output of a norm, so no layer can be the identity",
    "beam": "residual branches are scaled by the depth of the model",
    "gpt_neox_japanese": "only the last layer has a bias ('dense_bias'), found by its number",
    "gemma3n_text": "it has embeddings for every layer, and layers that share keys and values",
    "gemma3n": "it has embeddings for every layer, and layers that share keys and values",
    "zamba": "its hybrid layers share one transformer block, found by the layers' numbers",
    "zamba2": "its hybrid layers share transformer blocks with an adapter for every one of them",
    "hrm_text": "two stacks of layers are run in turn, for a number of cycles set by the depth",
    "deepseek_v4": "each layer mixes several residual streams, so zeroed outputs are no identity",
    "longcat_flash": "its routers choose among experts that pass the input on, so that no weights "
    "silence the branch",
    "reformer": "the layers are reversible and work on two streams at once",
    "xlnet": POST_NORM,
}
