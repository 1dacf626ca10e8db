from typing import ClassVar

from transformers import PretrainedConfig


class MixFormerConfig(PretrainedConfig):
    model_type = "mixformer-sequential"
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
    }

    def __init__(self, vocab_size=96, n_embd=32, n_layer=4, n_inner=None, n_head=4, **rest):
        self.vocab_size = vocab_size
        self.n_embd = n_embd
        self.n_layer = n_layer
        self.n_inner = n_inner
        self.n_head = n_head
        super().__init__(**rest)
