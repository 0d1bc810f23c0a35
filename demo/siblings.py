"""Four models that differ in their attention alone: MHA, GQA, MQA and MLA, which doc/study.md compares.

    python demo/train.py stories.txt build/mha --attention mha --steps 1000

They are dense, with the demonstration model's tokens. What their attention saves in parameters, the MLP has
more in width, so that all have the same number of them within 1 %. The first three become directories of a
LlamaForCausalLM, the last one of a DeepseekV3ForCausalLM.
"""

from model import CONFIG

LAYERS, HEADS, SIZE = 4, 6, 32  # numbers of a head's key without rotation, and of its value

SHARED = {
    key: CONFIG[key]
    for key in (
        "vocab_size",
        "tie_word_embeddings",
        "max_position_embeddings",
        "rope_theta",
        "rope_scaling",
        "rms_norm_eps",
        "hidden_act",
        "attention_bias",
        "attention_dropout",
        "initializer_range",
        "torch_dtype",
        "use_cache",
        "bos_token_id",
        "eos_token_id",
    )
} | dict(
    hidden_size=HEADS * SIZE, num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_nextn_predict_layers=0
)


def ordinary(groups: int, width: int) -> dict:
    """`groups` (keys + values) are cached: 2 * 32 numbers each. width: of the MLP."""
    return SHARED | dict(
        architectures=["LlamaForCausalLM"],
        model_type="llama",
        num_key_value_heads=groups,
        head_dim=SIZE,
        mlp_bias=False,
        intermediate_size=width,
    )


def latent(numbers: int, rotated: int, width: int) -> dict:
    """A latent and a rotated key are cached."""
    return SHARED | dict(
        architectures=["DeepseekV3ForCausalLM"],
        model_type="deepseek_v3",
        num_key_value_heads=HEADS,
        q_lora_rank=None,
        kv_lora_rank=numbers,
        qk_nope_head_dim=SIZE,
        qk_rope_head_dim=rotated,
        v_head_dim=SIZE,
        first_k_dense_replace=LAYERS,  # no experts
        intermediate_size=width,
    )


SIBLINGS = {
    "mha": ordinary(HEADS, 512),
    "gqa": ordinary(2, 596),
    "mqa": ordinary(1, 620),
    # 96 + 32: as many numbers as GQA keeps, and as many of them rotated as in the others' keys
    "mla": latent(96, 32, 468),
}
