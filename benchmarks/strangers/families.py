"""The model families that a stranger's configuration may name, and for each of them every key that it may set.

Bounds are far above any model that fits the challenge, and low
enough that building one of these sizes on paper takes a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.strangers.rules import OFF, SWITCH, Rule, choice, letters, mapping, real, several, whole
from corpora.batch import Objective
from students.registry import ARCHITECTURES

LAYERS = whole(1, 128)
HEADS = whole(1, 256)
WIDTH = whole(1, 16_384)
FFN_WIDTH = whole(1, 65_536)
POSITIONS = whole(16, 131_072)
TOKEN_ID = whole(0, 1 << 20)
RATE = real(0, 0.99)  # dropout, which is off where models are judged
EPSILON = real(1e-15, 0.1)
ACTIVATION = choice("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "silu", "swish", "tanh")
TYPES = whole(1, 16)  # of tokens' segments

# true of every family
COMMON = {
    "vocab_size": whole(8, 1 << 20),
    "pad_token_id": TOKEN_ID,
    "bos_token_id": TOKEN_ID,
    "eos_token_id": TOKEN_ID,
    "tie_word_embeddings": SWITCH,
    "chunk_size_feed_forward": choice(0),
    "is_decoder": OFF,
    "is_encoder_decoder": OFF,
    "add_cross_attention": OFF,
}
_ENCODER = {  # BERT's names, which its descendants kept
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": FFN_WIDTH,
    "hidden_act": ACTIVATION,
    "hidden_dropout_prob": RATE,
    "attention_probs_dropout_prob": RATE,
    "max_position_embeddings": POSITIONS,
    "position_embedding_type": choice("absolute"),
    "type_vocab_size": TYPES,
    "layer_norm_eps": EPSILON,
}
_GPT = {  # GPT-2's names
    "n_positions": POSITIONS,
    "n_embd": WIDTH,
    "n_layer": LAYERS,
    "n_head": HEADS,
    "n_inner": FFN_WIDTH,
    "activation_function": ACTIVATION,
    "resid_pdrop": RATE,
    "embd_pdrop": RATE,
    "attn_pdrop": RATE,
    "layer_norm_epsilon": EPSILON,
}
_OUR_ENCODER = {  # BERT's names, as far as our own architectures have them
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": FFN_WIDTH,
    "max_position_embeddings": POSITIONS,
    "hidden_dropout_prob": RATE,
    "attention_probs_dropout_prob": RATE,
    "layer_norm_eps": EPSILON,
    "tie_word_embeddings": choice(True),
}
_LTG = _OUR_ENCODER | {"position_bucket_size": whole(4, 16_384), "masked_shift": whole(0, 1)}
_TWO_SEGMENTS = {"type_vocab_size": choice(2)}
_ROTARY_BASE = real(1, 1e9)
_ROTARY = {
    "rope_theta": _ROTARY_BASE,
    "rope_parameters": mapping(
        rope_type=choice("default"), rope_theta=_ROTARY_BASE, partial_rotary_factor=real(0.01, 1)
    ),
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture: its language model, and what a configuration may say."""

    network: str  # class name, as `architectures` gives it
    objective: Objective
    also: tuple[str, ...] = ()  # other classes whose folders hold the same weights under the same names
    keys: Mapping[str, Rule]  # of its own, beside COMMON
    stored_as: Mapping[str, str] = field(default_factory=dict)  # weights that files call by another name
    auto_map: Mapping[str, str] = field(default_factory=dict)  # modelling files that may be named: ours


FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        network="GPT2LMHeadModel",
        objective="causal",
        keys=_GPT
        | {
            "scale_attn_weights": SWITCH,
            "scale_attn_by_inverse_layer_idx": SWITCH,
            "reorder_and_upcast_attn": SWITCH,
        },
    ),
    "gptj": Family(network="GPTJForCausalLM", objective="causal", keys=_GPT | {"rotary_dim": whole(2, 16_384)}),
    "gpt_neox": Family(
        network="GPTNeoXForCausalLM",
        objective="causal",
        keys={
            "hidden_size": WIDTH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "intermediate_size": FFN_WIDTH,
            "hidden_act": ACTIVATION,
            "attention_dropout": RATE,
            "hidden_dropout": RATE,
            "max_position_embeddings": POSITIONS,
            "layer_norm_eps": EPSILON,
            "use_parallel_residual": SWITCH,
            "attention_bias": SWITCH,
            "rotary_pct": real(0.01, 1),
            "rotary_emb_base": _ROTARY_BASE,
            **_ROTARY,
        },
        stored_as={"lm_head.weight": "embed_out.weight"},
    ),
    "llama": Family(
        network="LlamaForCausalLM",
        objective="causal",
        keys={
            "hidden_size": WIDTH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": HEADS,
            "head_dim": whole(2, 1024),
            "intermediate_size": FFN_WIDTH,
            "hidden_act": ACTIVATION,
            "max_position_embeddings": POSITIONS,
            "rms_norm_eps": EPSILON,
            "attention_bias": SWITCH,
            "mlp_bias": SWITCH,
            "attention_dropout": RATE,
            "pretraining_tp": choice(1),
            **_ROTARY,
        },
    ),
    "opt": Family(
        network="OPTForCausalLM",
        objective="causal",
        keys={
            "hidden_size": WIDTH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "ffn_dim": FFN_WIDTH,
            "word_embed_proj_dim": WIDTH,
            "max_position_embeddings": POSITIONS,
            "activation_function": ACTIVATION,
            "do_layer_norm_before": SWITCH,
            "_remove_final_layer_norm": SWITCH,
            "enable_bias": SWITCH,
            "layer_norm_elementwise_affine": SWITCH,
            "dropout": RATE,
            "attention_dropout": RATE,
            "layerdrop": RATE,
        },
    ),
    "bert": Family(network="BertForMaskedLM", objective="masked", keys=_ENCODER),
    "roberta": Family(network="RobertaForMaskedLM", objective="masked", keys=_ENCODER),
    "electra": Family(
        network="ElectraForMaskedLM",
        objective="masked",
        keys=_ENCODER | {"embedding_size": WIDTH},
    ),
    "albert": Family(
        network="AlbertForMaskedLM",
        objective="masked",
        keys=_ENCODER | {"embedding_size": WIDTH, "num_hidden_groups": LAYERS, "inner_group_num": whole(1, 16)},
    ),
    "deberta-v2": Family(
        network="DebertaV2ForMaskedLM",
        objective="masked",
        keys=_ENCODER
        | {
            "type_vocab_size": whole(0, 16),
            "relative_attention": SWITCH,
            "max_relative_positions": whole(-1, 131_072),
            "position_buckets": whole(-1, 131_072),
            "norm_rel_ebd": choice("layer_norm", "none"),
            "share_att_key": SWITCH,
            "pos_att_type": several("p2c", "c2p"),
            "position_biased_input": SWITCH,
            "legacy": SWITCH,
        },
    ),
    "distilbert": Family(
        network="DistilBertForMaskedLM",
        objective="masked",
        keys={
            "dim": WIDTH,
            "n_layers": LAYERS,
            "n_heads": HEADS,
            "hidden_dim": FFN_WIDTH,
            "activation": choice("gelu", "relu"),
            "dropout": RATE,
            "attention_dropout": RATE,
            "max_position_embeddings": POSITIONS,
            "sinusoidal_pos_embds": OFF,
        },
    ),
    "elc_bert": Family(
        network="ElcBertForMaskedLM",
        objective="masked",
        keys=_LTG | {"variant": choice("base", "zero", "normalized", "weighted_output")},
        auto_map=ARCHITECTURES["elc_bert"].auto_map,
    ),
    "ltg_bert": Family(
        network="LtgBertForMaskedLM",
        objective="masked",
        keys=_LTG,
        auto_map=ARCHITECTURES["ltg_bert"].auto_map,
    ),
    "gpt_bert": Family(
        network="GptBertForMaskedLM",
        also=("GptBertForCausalLM",),
        objective="masked",
        keys=_LTG | {"attention_gate": SWITCH, "layer_average": SWITCH},
        auto_map=ARCHITECTURES["gpt_bert"].auto_map,
    ),
    "lv_bert": Family(
        network="LvBertForMaskedLM",
        objective="masked",
        keys=_OUR_ENCODER | _TWO_SEGMENTS | {"embedding_size": WIDTH, "layers": letters("DSF", 256)},
        auto_map=ARCHITECTURES["lv_bert"].auto_map,
    ),
    "share_bert": Family(
        network="ShareBertForMaskedLM",
        objective="masked",
        keys=_OUR_ENCODER
        | _TWO_SEGMENTS
        | {
            "factor_size": WIDTH,
            "encoder_ln_mode": choice("pre-ln", "post-ln"),
            "layer_norm_type": choice("pytorch", "rms_norm"),
            "tie_word_embeddings": OFF,
        },
        auto_map=ARCHITECTURES["share_bert"].auto_map,
    ),
}
