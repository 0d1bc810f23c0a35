/* engine/config.c: which configurations a model can have. A checkpoint may come from anywhere: each field is
 * checked before anything is computed from it, and what the program cannot do is refused by the name of a
 * field. The fields themselves: model.h; those of linear attention: engine/kda.c. */
#include "engine/config.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "engine/cache.h"
#include "engine/kda.h"

/* The comparisons are written so that NaN fails them. */
static const char *float_error(const Config *cfg) {
    struct {
        const char *name;
        float value, least, most;
    } fields[] = {
        {"softmax_scale", cfg->softmax_scale, FLT_TRUE_MIN, FLT_MAX},
        {"rms_norm_eps", cfg->rms_norm_eps, FLT_TRUE_MIN, FLT_MAX},
        {"latent_norm_eps", cfg->latent_norm_eps, FLT_TRUE_MIN, FLT_MAX},
        {"embed_scale", cfg->embed_scale, -FLT_MAX, FLT_MAX},
        {"temperature", cfg->temperature, 0, FLT_MAX},
        {"top_p", cfg->top_p, FLT_TRUE_MIN, 1},
        {"min_p", cfg->min_p, 0, 1},
        {"repetition_penalty", cfg->repetition_penalty != 0 ? cfg->repetition_penalty : 1, 0.01f, 100},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (!(fields[i].value >= fields[i].least && fields[i].value <= fields[i].most))
            return fields[i].name;
    return NULL;
}

/* Limits far above any published model, so that no product of two fields comes near overflowing. */
static const char *shape_error(const Config *cfg) {
    uint32_t window = cfg->sliding_window != 0, latent = !cfg->num_key_value_heads && !window;
    struct {
        const char *name;
        uint32_t value, least, most;
    } fields[] = {
        {"hidden_size", cfg->hidden_size, 1, 1 << 17},
        {"num_hidden_layers", cfg->num_hidden_layers, 1, MAX_LAYERS},
        {"published_layers", cfg->published_layers, cfg->num_hidden_layers, MAX_LAYERS},
        {"num_attention_heads", cfg->num_attention_heads, 1, 1 << 12},
        {"q_lora_rank", cfg->q_lora_rank, window, (latent | window) << 17},
        {"num_key_value_heads", cfg->num_key_value_heads, 0, window ? 0 : cfg->num_attention_heads},
        {"kv_lora_rank", cfg->kv_lora_rank, latent, latent << 14}, /* without a latent: none of it */
        {"qk_nope_head_dim", cfg->qk_nope_head_dim, latent, (latent | window) << 12},
        {"qk_rope_head_dim", cfg->qk_rope_head_dim, latent ? 0 : 2, 1 << 12},
        {"v_head_dim", cfg->v_head_dim, 1, 1 << (12 + window)},
        {"intermediate_size", cfg->intermediate_size, 1, 1 << 20},
        {"hidden_act", cfg->hidden_act, ACT_SILU, ACT_RELU2},
        {"sandwich_norm", cfg->sandwich_norm, 0, 1},
        {"vocab_size", cfg->vocab_size, 1, 1 << 24},
        {"max_position_embeddings", cfg->max_position_embeddings, 1, 1 << 24},
        {"tie_word_embeddings", cfg->tie_word_embeddings, 0, 1},
        {"n_routed_experts", cfg->n_routed_experts, 0, MAX_EXPERTS},
        {"zero_expert_num", cfg->zero_expert_num, 0,
         cfg->n_routed_experts ? MAX_EXPERTS - cfg->n_routed_experts : 0},
        {"shortcut_moe", cfg->shortcut_moe, 0, cfg->n_routed_experts ? 1 : 0},
        {"mtp_layers", cfg->mtp_layers, 0, !window && !cfg->hc_mult},
        {"experts_out_norm", cfg->experts_out_norm, 0, cfg->n_routed_experts ? 1 : 0},
        {"swiglu_limits", cfg->swiglu_limits, 0, cfg->n_routed_experts ? LIMIT_GATE : LIMIT_NONE},
        {"num_hash_layers", cfg->num_hash_layers, 0, cfg->n_routed_experts ? MAX_LAYERS : 0},
        {"head_gate", cfg->head_gate, 0, !window},
        {"add_bos_token", cfg->add_bos_token, 0, cfg->bos_token_id >= 0},
        {"bos_token_id", (uint32_t)cfg->bos_token_id + 1, 0, cfg->vocab_size},
        {"eos_tokens", cfg->eos_tokens, 0, 8},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (fields[i].value < fields[i].least || fields[i].value > fields[i].most)
            return fields[i].name;
    if (cfg->qk_rope_head_dim % 2)
        return "qk_rope_head_dim";
    if (cfg->num_key_value_heads && cfg->num_attention_heads % cfg->num_key_value_heads)
        return "num_key_value_heads";
    for (uint32_t i = 0; i < cfg->eos_tokens; i++)
        if (cfg->eos_token_id[i] < 0 || (uint32_t)cfg->eos_token_id[i] >= cfg->vocab_size)
            return "eos_token_id";
    if (!memchr(cfg->name, 0, sizeof cfg->name))
        return "name";
    return NULL;
}

static const char *moe_error(const Config *cfg) {
    uint32_t E = cfg->n_routed_experts;
    if (!E) /* State has rows for chosen experts by this number */
        return cfg->num_experts_per_tok ? "num_experts_per_tok" : NULL;
    if (cfg->n_group < 1 || cfg->n_group > MAX_GROUPS || E % cfg->n_group ||
        (cfg->n_group > 1 && cfg->zero_expert_num))
        return "n_group";
    if (cfg->topk_group < 1 || cfg->topk_group > cfg->n_group)
        return "topk_group";
    if (cfg->num_experts_per_tok < 1 ||
        cfg->num_experts_per_tok > E / cfg->n_group * cfg->topk_group + cfg->zero_expert_num)
        return "num_experts_per_tok";
    if (cfg->moe_intermediate_size < 1 || cfg->moe_intermediate_size > 1 << 17)
        return "moe_intermediate_size";
    if (cfg->n_shared_experts > 64)
        return "n_shared_experts";
    if (cfg->moe_layer_freq < 1)
        return "moe_layer_freq";
    if (cfg->scoring_func > SCORE_SQRT_SOFTPLUS)
        return "scoring_func";
    if (cfg->group_score > GROUP_TOP2_SUM)
        return "group_score";
    if (cfg->norm_topk_prob > 1)
        return "norm_topk_prob";
    /* pairs of layers, the first with experts; what waits for the end of a pair has one buffer, and so has
     * what waits for its norm */
    if (cfg->shortcut_moe &&
        (cfg->num_hidden_layers % 2 || cfg->published_layers % 2 || cfg->first_k_dense_replace ||
         cfg->moe_layer_freq != 2 || cfg->n_shared_experts || cfg->sandwich_norm))
        return "shortcut_moe";
    if (cfg->experts_out_norm > (!cfg->sandwich_norm && !cfg->shortcut_moe))
        return "experts_out_norm";
    return isfinite(cfg->routed_scaling_factor) ? NULL : "routed_scaling_factor";
}

static const char *hyper_error(const Config *cfg) {
    if (!cfg->hc_mult)
        return NULL;
    if (cfg->hc_mult > MAX_STREAMS)
        return "hc_mult";
    if (cfg->hc_sinkhorn_iters < 1 || cfg->hc_sinkhorn_iters > 1000)
        return "hc_sinkhorn_iters";
    if (!(cfg->hc_eps >= 0 && cfg->hc_eps <= 1))
        return "hc_eps";
    /* what a branch gives is spread over the streams: it has the buffer that these would use */
    if (cfg->shortcut_moe)
        return "shortcut_moe";
    if (cfg->sandwich_norm)
        return "sandwich_norm";
    return cfg->experts_out_norm ? "experts_out_norm" : NULL;
}

/* A layer may be of one kind, and the file's layers alone have one. */
static const char *kinds_error(const Config *cfg) {
    bool csa = false, hca = false, kda = false;
    for (uint32_t l = 0; l < MAX_LAYERS; l++) {
        csa |= layer_is_csa(cfg, l);
        hca |= layer_is_hca(cfg, l);
        kda |= layer_is_kda(cfg, l);
        if (layer_is_csa(cfg, l) && l >= cfg->published_layers)
            return "csa_layers";
        if (layer_is_hca(cfg, l) && (l >= cfg->published_layers || layer_is_csa(cfg, l)))
            return "hca_layers";
    }
    if (kda && cfg->sliding_window)
        return "kda_layers";
    if (csa ? cfg->csa_ratio < 1 || cfg->csa_ratio > MAX_CSA_RATIO : cfg->csa_ratio != 0)
        return "csa_ratio";
    if (hca ? cfg->hca_ratio < 1 || cfg->hca_ratio > MAX_HCA_RATIO : cfg->hca_ratio != 0)
        return "hca_ratio";
    if (cache_page_rows(cfg) > MAX_PAGE_ROWS) /* ratios with few common factors */
        return "hca_ratio";
    if (cfg->sliding_window && csa != (cfg->index_n_heads != 0)) /* the indexer is that of CSA layers */
        return "index_n_heads";
    return NULL;
}

static const char *window_error(const Config *cfg) {
    if (!cfg->sliding_window)
        return cfg->csa_ratio ? "csa_ratio" : cfg->hca_ratio ? "hca_ratio" : kinds_error(cfg);
    if (cfg->sliding_window > 1 << 14)
        return "sliding_window";
    if (cfg->v_head_dim != cfg->qk_nope_head_dim + cfg->qk_rope_head_dim)
        return "v_head_dim";
    if (cfg->o_groups < 1 || cfg->num_attention_heads % cfg->o_groups)
        return "o_groups";
    if (cfg->o_lora_rank < 1 || cfg->o_lora_rank > 1 << 17)
        return "o_lora_rank";
    if (cfg->query_scale_span)
        return "query_scale_span";
    if (cfg->sandwich_norm)
        return "sandwich_norm";
    return kinds_error(cfg);
}

static const char *index_error(const Config *cfg) {
    if (cfg->index_kpool > (cfg->index_n_heads && !cfg->sliding_window ? MAX_KPOOL : 0))
        return "index_kpool";
    if (!cfg->index_n_heads)
        return NULL;
    if (cfg->index_n_heads > 1 << 12 || !cfg->q_lora_rank) /* index queries come from the compressed ones */
        return "index_n_heads";
    if (cfg->index_head_dim < cfg->qk_rope_head_dim || cfg->index_head_dim > 1 << 12)
        return "index_head_dim";
    if (cfg->index_topk < 1 || cfg->index_topk % max(cfg->index_kpool, 1))
        return "index_topk";
    if (cfg->sliding_window) /* CSA layers have one each */
        return NULL;
    if (cfg->index_topk_freq < 1 || (cfg->index_kpool && cfg->index_topk_freq > 1)) /* each has pools */
        return "index_topk_freq";
    /* the first layer has none before it to share with */
    return cfg->index_kpool || layer_has_indexer(cfg, 0) ? NULL : "index_skip_topk_offset";
}

const char *config_error(const Config *cfg) {
    static const char *(*const checks[])(const Config *) = {
        shape_error, float_error, moe_error, hyper_error, window_error, index_error, kda_config_error};
    const char *bad = NULL;
    for (size_t i = 0; !bad && i < sizeof checks / sizeof *checks; i++)
        bad = checks[i](cfg);
    return bad;
}
