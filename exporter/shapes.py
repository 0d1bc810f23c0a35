"""Published configurations, for checkpoints with random weights: the shape and speed of a model without its download."""


def _deepseek(**keys):
    """What most of them share; the rest is given by name."""
    return {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "kv_lora_rank": 512, "q_lora_rank": None, "hidden_act": "silu",
            "attention_bias": False, "tie_word_embeddings": False, "rms_norm_eps": 1e-6, "rope_theta": 10000, "rope_scaling": None, **keys}


def _experts(count, width, shared, per_token, scaling, dense, groups=(1, 1), method="noaux_tc"):
    sigmoid = method == "noaux_tc"
    return {"n_routed_experts": count, "moe_intermediate_size": width, "n_shared_experts": shared, "num_experts_per_tok": per_token,
            "routed_scaling_factor": scaling, "first_k_dense_replace": dense, "moe_layer_freq": 1, "n_group": groups[0], "topk_group": groups[1],
            "topk_method": method, "scoring_func": "sigmoid" if sigmoid else "softmax", "norm_topk_prob": sigmoid}


def _yarn(factor, mscale, beta_fast=32, original=4096):
    return {"type": "yarn", "factor": factor, "beta_fast": beta_fast, "beta_slow": 1, "mscale": mscale, "mscale_all_dim": mscale,
            "original_max_position_embeddings": original}


def _mistral(factor, **keys):
    """Softmax router with normalised weights, queries that grow with the position."""
    rope = {**_yarn(factor, 1.0, original=8192), "rope_theta": 10000, "llama_4_scaling_beta": 0.1}
    return _deepseek(model_type="mistral4", rope_theta=None, rope_parameters=rope, vocab_size=131072, bos_token_id=1, eos_token_id=2,
                     norm_topk_prob=True, routed_scaling_factor=1.0, n_routed_experts=128, n_shared_experts=1, num_experts_per_tok=4, **keys)


# MiniCPM3's divisors of the rotary frequencies, the same for short and long contexts.
LONGROPE = [
    1.0591234137867171, 1.1241891283591912, 1.2596935748670968, 1.5380380402321725, 2.093982484148734, 3.1446935121267696, 4.937952647693647,
    7.524541999994549, 10.475458000005451, 13.062047352306353, 14.85530648787323, 15.906017515851266, 16.461961959767827, 16.740306425132907,
    16.87581087164081, 16.940876586213285]


def _glm5(**keys):
    return _deepseek(
        hidden_size=6144, num_hidden_layers=78, num_attention_heads=64, q_lora_rank=2048, qk_nope_head_dim=192, v_head_dim=256,
        intermediate_size=12288, vocab_size=154880, rms_norm_eps=1e-5, eos_token_id=[154820, 154827, 154829],
        **_experts(256, 2048, 1, 8, 2.5, 3), index_n_heads=32, index_head_dim=128, index_topk=2048, indexer_rope_interleave=True, **keys)


SHAPES = {
    "deepseek-v2-lite": _deepseek(
        hidden_size=2048, num_hidden_layers=27, num_attention_heads=16, intermediate_size=10944, vocab_size=102400,
        max_position_embeddings=163840, rope_scaling=_yarn(40, 0.707), bos_token_id=100000, eos_token_id=100001,
        **_experts(64, 1408, 2, 6, 1.0, 1, method="greedy")),
    "deepseek-v2": _deepseek(
        hidden_size=5120, num_hidden_layers=60, num_attention_heads=128, q_lora_rank=1536, intermediate_size=12288, vocab_size=102400,
        max_position_embeddings=163840, rope_scaling=_yarn(40, 0.707), bos_token_id=100000, eos_token_id=100001,
        **_experts(160, 1536, 2, 6, 16.0, 1, (8, 3), "group_limited_greedy")),
    "deepseek-v3": _deepseek(
        hidden_size=7168, num_hidden_layers=61, num_attention_heads=128, q_lora_rank=1536, intermediate_size=18432, vocab_size=129280,
        max_position_embeddings=163840, rope_scaling=_yarn(40, 1.0), bos_token_id=0, eos_token_id=1, **_experts(256, 2048, 1, 8, 2.5, 3, (8, 4))),
    "deepseek-v3.2": _deepseek(
        hidden_size=7168, num_hidden_layers=61, num_attention_heads=128, q_lora_rank=1536, intermediate_size=18432, vocab_size=129280,
        max_position_embeddings=163840, rope_scaling=_yarn(40, 1.0), bos_token_id=0, eos_token_id=1, **_experts(256, 2048, 1, 8, 2.5, 3, (8, 4)),
        index_n_heads=64, index_head_dim=128, index_topk=2048),
    "moonlight": _deepseek(
        hidden_size=2048, num_hidden_layers=27, num_attention_heads=16, intermediate_size=11264, vocab_size=163840, max_position_embeddings=8192,
        rope_theta=50000, rms_norm_eps=1e-5, bos_token_id=163584, eos_token_id=163586, **_experts(64, 1408, 2, 6, 2.446, 1)),
    "kimi-k2": _deepseek(
        hidden_size=7168, num_hidden_layers=61, num_attention_heads=64, q_lora_rank=1536, intermediate_size=18432, vocab_size=163840,
        max_position_embeddings=131072, rope_theta=50000, rope_scaling=_yarn(32, 1.0, beta_fast=1), bos_token_id=163584, eos_token_id=163585,
        **_experts(384, 2048, 1, 8, 2.827, 1)),
    "kimi-k2.5": _deepseek(
        hidden_size=7168, num_hidden_layers=61, num_attention_heads=64, q_lora_rank=1536, intermediate_size=18432, vocab_size=163840,
        max_position_embeddings=262144, rope_theta=50000, rope_scaling=_yarn(64, 1.0), rms_norm_eps=1e-5, bos_token_id=163584, eos_token_id=163585,
        **_experts(384, 2048, 1, 8, 2.827, 1)),
    "glm-4.7-flash": _deepseek(
        hidden_size=2048, num_hidden_layers=47, num_attention_heads=20, q_lora_rank=768, qk_nope_head_dim=192, v_head_dim=256,
        intermediate_size=10240, vocab_size=154880, max_position_embeddings=202752, rope_theta=1000000, rms_norm_eps=1e-5,
        eos_token_id=[154820, 154827, 154829], **_experts(64, 1536, 1, 4, 1.8, 1)),
    "glm-5": _glm5(max_position_embeddings=202752, rope_theta=1000000),
    "glm-5.2": _glm5(max_position_embeddings=1048576, rope_theta=8000000, index_topk_freq=4, index_skip_topk_offset=3),
    "youtu-2b": _deepseek(
        hidden_size=2048, num_hidden_layers=32, num_attention_heads=16, q_lora_rank=1536, intermediate_size=6144, vocab_size=128256,
        max_position_embeddings=131072, rope_theta=1600000, tie_word_embeddings=True, bos_token_id=128000, eos_token_id=128001),
    "openseek-small": _deepseek(
        hidden_size=1280, num_hidden_layers=6, num_attention_heads=10, intermediate_size=7168, vocab_size=151851, max_position_embeddings=4096,
        rope_theta=1000000, **_experts(64, 896, 2, 6, 2.446, 1)),
    "minicpm3-4b": _deepseek(
        model_type="minicpm3", hidden_size=2560, num_hidden_layers=62, num_attention_heads=40, q_lora_rank=768, kv_lora_rank=256, qk_nope_head_dim=64,
        qk_rope_head_dim=32, v_head_dim=None, intermediate_size=6400, vocab_size=73448, max_position_embeddings=32768, rms_norm_eps=1e-5,
        rope_scaling={"type": "longrope", "short_factor": LONGROPE, "long_factor": LONGROPE, "original_max_position_embeddings": 32768},
        tie_word_embeddings=True, scale_emb=12, scale_depth=1.4, dim_model_base=256, bos_token_id=1, eos_token_id=[2, 73440]),
    "plm-1.8b": _deepseek(
        hidden_size=2048, num_hidden_layers=32, num_attention_heads=16, intermediate_size=8192, vocab_size=151936, max_position_embeddings=4096,
        rope_theta=100000, hidden_act="relu2", tie_word_embeddings=True, eos_token_id=[151643, 151645]),
    "mistral-large-3": _mistral(
        36, hidden_size=7168, num_hidden_layers=61, num_attention_heads=128, q_lora_rank=1536, intermediate_size=16384, moe_intermediate_size=4096,
        first_k_dense_replace=3, max_position_embeddings=294912),
    "mistral-small-4": _mistral(
        128, hidden_size=4096, num_hidden_layers=36, num_attention_heads=32, q_lora_rank=1024, kv_lora_rank=256, qk_nope_head_dim=64,
        intermediate_size=12288, moe_intermediate_size=2048, first_k_dense_replace=0, max_position_embeddings=1048576),
    "longcat-flash": _deepseek(
        model_type="longcat_flash", hidden_size=6144, num_layers=28, num_attention_heads=64, q_lora_rank=1536, ffn_hidden_size=12288,
        vocab_size=131072, max_position_embeddings=131072, rope_theta=1e7, rms_norm_eps=1e-5, mla_scale_q_lora=True, mla_scale_kv_lora=True,
        n_routed_experts=512, zero_expert_num=256, zero_expert_type="identity", moe_topk=12, expert_ffn_hidden_size=2048, routed_scaling_factor=6.0,
        bos_token_id=1, eos_token_id=2),
    "openpangu-ultra": _deepseek(
        model_type="pangu_ultra_moe", hidden_size=7680, num_hidden_layers=61, num_attention_heads=128, q_lora_rank=1536, intermediate_size=18432,
        vocab_size=153600, max_position_embeddings=131072, rope_theta=25600000, rms_norm_eps=1e-5, sandwich_norm=True, n_routed_experts=256,
        n_shared_experts=1, num_experts_per_tok=8, moe_intermediate_size=2048, first_k_dense_replace=3, norm_topk_prob=True,
        routed_scaling_factor=2.5, bos_token_id=0, eos_token_id=1),
}
