/* cli/info.c: --info. What the checkpoint is, what one token costs, and what a context costs in each cache
 * type beside attention without a latent. Everything is arithmetic on Config and the tensor table; no matrix
 * is touched. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cli/modes.h"
#include "cli/output.h"
#include "cli/template.h"
#include "engine/cache.h"
#include "engine/checkpoint.h"
#include "engine/cost.h"
#include "tokenizer.h"

/* ---- parameters, of `layers` layers; each one counted once, although W_uk is stored twice --- */

typedef struct {
    uint64_t total;
    /* that one token is multiplied with: without the other experts, and without an embedding that is only
     * looked up */
    uint64_t active;
} Parameters;

static uint64_t attention_parameters(const Config *cfg) {
    uint64_t D = cfg->hidden_size, H = cfg->num_attention_heads, n = cfg->qk_nope_head_dim,
             p = cfg->qk_rope_head_dim, v = cfg->v_head_dim;
    uint64_t r = cfg->kv_lora_rank, ql = cfg->q_lora_rank, q = H * (n + p), G = cfg->num_key_value_heads;
    uint64_t queries = ql ? ql * D + ql + q * ql : q * D;
    uint64_t gates = cfg->head_gate ? H * D : 0;
    if (G)
        return queries + G * (p + v) * D + D * H * v;
    return queries + (r + p) * D + r + H * (n + v) * r + D * H * v + gates;
}

static uint64_t kda_parameters(const Config *cfg) {
    uint64_t D = cfg->hidden_size, H = cfg->kda_heads, d = cfg->kda_head_dim, C = H * d, rank = cfg->kda_rank;
    uint64_t gate = rank ? rank * (D + C) : C * D; /* of the decay, and of the output */
    return 3 * C * (D + cfg->kda_taps) + 2 * gate + C + H + H * D + d + D * C;
}

static uint64_t index_parameters(const Config *cfg) {
    uint64_t D = cfg->hidden_size, Hi = cfg->index_n_heads, di = cfg->index_head_dim;
    uint64_t pools = cfg->index_kpool ? di * (D + cfg->index_kpool) : 0;
    return Hi * di * cfg->q_lora_rank + di * D + 2 * di + Hi * D + pools;
}

/* What makes compressed rows of d numbers: `w` numbers of each of `ratio` tokens. */
static uint64_t compressor_parameters(const Config *cfg, uint64_t ratio, uint64_t w, uint64_t d) {
    return 2 * w * cfg->hidden_size + ratio * w + d;
}

/* Attention of a model with sliding_window. */
static uint64_t window_parameters(const Config *cfg, uint32_t layer) {
    uint64_t D = cfg->hidden_size, H = cfg->num_attention_heads, ql = cfg->q_lora_rank, d = cfg->v_head_dim,
             Hi = cfg->index_n_heads, di = cfg->index_head_dim;
    uint64_t sum = ql * D + ql + H * d * ql + d * D + d + H; /* queries, rows, sinks */
    sum += cfg->o_lora_rank * (H * d + cfg->o_groups * D);
    if (layer_is_hca(cfg, layer))
        sum += compressor_parameters(cfg, cfg->hca_ratio, d, d);
    if (layer_is_csa(cfg, layer))
        sum += compressor_parameters(cfg, cfg->csa_ratio, 2 * d, d) + Hi * di * ql +
               compressor_parameters(cfg, cfg->csa_ratio, 2 * di, di) + Hi * D;
    return sum;
}

/* A layer without its MLPs. */
static uint64_t layer_parameters(const Config *cfg, uint32_t layer) {
    uint64_t D = cfg->hidden_size, S = cfg->hc_mult, outputs = S * (2 + S);
    uint64_t norms = (cfg->sandwich_norm ? 4 : 2) * D, hyper = S ? 2 * (outputs * (S * D + 1) + 3) : 0;
    if (cfg->sliding_window)
        return norms + hyper + window_parameters(cfg, layer);
    return norms + hyper + (layer_is_kda(cfg, layer) ? kda_parameters(cfg) : attention_parameters(cfg)) +
           (layer_has_indexer(cfg, layer) ? index_parameters(cfg) : 0);
}

/* Whether the routers have a correction bias. Where they have none it is all zeros; a file cut down to
 * dense layers does not show it. */
static bool router_has_bias(const Model *m) {
    bool has = false;
    for (uint32_t l = 0; l < m->config.num_hidden_layers; l++) {
        if (!m->layers[l].experts || !m->layers[l].router_bias)
            continue;
        for (size_t e = 0; e < router_rows(&m->config); e++)
            has |= m->layers[l].router_bias[e] != 0;
        return has;
    }
    return m->config.scoring_func != SCORE_SOFTMAX;
}

static Parameters parameters(const Model *m, uint32_t layers) {
    const Config *cfg = &m->config;
    uint64_t D = cfg->hidden_size, vocabulary = cfg->vocab_size * D,
             matrices = cfg->hidden_act == ACT_RELU2 ? 2 : 3;
    uint64_t expert = matrices * D * cfg->moe_intermediate_size, choices = router_rows(cfg);
    bool biased = router_has_bias(m);
    uint64_t S = cfg->hc_mult, rest = D; /* the last norm, and what reads streams: with scale 0 their mean */
    if (S && m->head_hyper.scale[0] != 0)
        rest += S * (S * D + 1) + 1;
    Parameters sum = {vocabulary * (cfg->tie_word_embeddings ? 1 : 2) + rest, vocabulary + rest};
    for (uint32_t l = 0; l < layers; l++) {
        uint64_t all = layer_parameters(cfg, l);
        all += cfg->experts_out_norm && layer_is_moe(cfg, l) ? D : 0;
        uint64_t used = all;
        if (layer_is_moe(cfg, l)) {
            uint64_t every = D * choices + cfg->n_shared_experts * expert;
            every += biased && l >= cfg->num_hash_layers ? choices : 0; /* tables of tokens are no weights */
            all += every + cfg->n_routed_experts * expert;
            used += every + cfg->num_experts_per_tok * expert;
        }
        if (!layer_is_moe(cfg, l) || cfg->shortcut_moe) {
            all += matrices * D * cfg->intermediate_size;
            used += matrices * D * cfg->intermediate_size;
        }
        sum.total += all;
        sum.active += used;
    }
    return sum;
}

/* ---- printing ------------------------------------------------------------------------------- */

/* 15706484224 as "15,706,484,224" in text. */
static const char *grouped(char text[32], uint64_t number) {
    char digits[24];
    int n = snprintf(digits, sizeof digits, "%" PRIu64, number);
    char *out = text;
    for (int i = 0; i < n; i++) {
        if (i && (n - i) % 3 == 0)
            *out++ = ',';
        *out++ = digits[i];
    }
    *out = 0;
    return text;
}

static void print_number(const char *what, uint64_t number, const char *unit) {
    char text[32];
    output_print("%-20s %s%s\n", what, grouped(text, number), unit);
}

static void print_types(const Model *m) {
    static const char *const names[TYPE_COUNT] = {"vectors", "f32", "bf16", "q8", "q4"};
    uint64_t bytes[TYPE_COUNT] = {0};
    for (size_t i = 0; i < m->tensor_count; i++)
        bytes[m->tensors[i].type] += m->tensors[i].bytes;
    for (int type = 0; type < TYPE_COUNT; type++) {
        if (bytes[type]) {
            char label[32];
            snprintf(label, sizeof label, "  in %s", names[type]);
            print_number(label, bytes[type], " bytes");
        }
    }
}

static void print_window(const Config *cfg) {
    uint32_t layers = cfg->num_hidden_layers, csa = count_layers(cfg, layers, LAYER_CSA),
             hca = count_layers(cfg, layers, LAYER_HCA);
    output_print("%-20s %u heads of %u + %u rotated, keys and values one row of all heads, queries from %u\n",
                 "attention", cfg->num_attention_heads, cfg->qk_nope_head_dim, cfg->qk_rope_head_dim,
                 cfg->q_lora_rank);
    output_print("%-20s the last %u rows, in %u layers nothing else\n", "window", cfg->sliding_window,
                 layers - csa - hca);
    if (csa)
        output_print("%-20s a row for %u tokens in %u layers, of which an indexer chooses\n", "compressed",
                     cfg->csa_ratio, csa);
    if (hca)
        output_print("%-20s a row for %u tokens in %u layers\n", "compressed", cfg->hca_ratio, hca);
    output_print("%-20s in %u groups, %u numbers each\n", "output", cfg->o_groups, cfg->o_lora_rank);
}

static void print_attention(const Config *cfg) {
    if (cfg->num_key_value_heads) {
        output_print("%-20s %u heads: query and key %u rotated, value %u\n", "attention",
                     cfg->num_attention_heads, cfg->qk_rope_head_dim, cfg->v_head_dim);
        output_print("%-20s none: %u heads have keys and values\n", "latent", cfg->num_key_value_heads);
        return;
    }
    if (cfg->sliding_window) {
        print_window(cfg);
        return;
    }
    output_print("%-20s %u heads: query and key %u + %u rotated, value %u\n", "attention",
                 cfg->num_attention_heads, cfg->qk_nope_head_dim, cfg->qk_rope_head_dim, cfg->v_head_dim);
    if (cfg->q_lora_rank)
        output_print("%-20s keys and values %u, queries %u\n", "latent", cfg->kv_lora_rank, cfg->q_lora_rank);
    else
        output_print("%-20s keys and values %u, queries direct\n", "latent", cfg->kv_lora_rank);
    if (cfg->kda_heads)
        output_print("%-20s %u layers, %u heads of %u, instead of latents\n", "linear attention",
                     count_layers(cfg, cfg->num_hidden_layers, LAYER_KDA), cfg->kda_heads, cfg->kda_head_dim);
}

static void print_indexer(const Config *cfg) {
    if (!cfg->index_n_heads)
        return;
    output_print("%-20s %u heads of %u in %u layers choose %u rows to attend to", "indexer",
                 cfg->index_n_heads, cfg->index_head_dim, indexer_layers(cfg, cfg->num_hidden_layers),
                 cfg->index_topk);
    if (cfg->index_kpool)
        output_print(", in pools of %u", cfg->index_kpool);
    output_print("\n");
}

static void print_shape(const Model *m) {
    static const char *const scores[] = {"softmax", "sigmoid", "sqrt(softplus)"};
    const Config *cfg = &m->config;
    uint32_t moe = 0;
    for (uint32_t l = 0; l < cfg->num_hidden_layers; l++)
        moe += layer_is_moe(cfg, l);
    output_print("%-20s %u of the published model's %u: ", "layers", cfg->num_hidden_layers,
                 cfg->published_layers);
    if (cfg->shortcut_moe)
        output_print("%u pairs with shortcut experts\n", moe);
    else
        output_print("%u dense, %u with experts\n", cfg->num_hidden_layers - moe, moe);
    output_print("%-20s %u, ", "hidden size", cfg->hidden_size);
    if (moe < cfg->num_hidden_layers || cfg->shortcut_moe)
        output_print("dense MLP %u%s, ", cfg->intermediate_size,
                     cfg->hidden_act == ACT_RELU2 ? " (relu^2 without gate)" : "");
    output_print("vocabulary %u%s\n", cfg->vocab_size,
                 cfg->tie_word_embeddings ? " (head tied to embedding)" : "");
    if (cfg->embed_scale != 1)
        output_print("%-20s scaled by %g\n", "embedding", (double)cfg->embed_scale);
    if (cfg->sandwich_norm)
        output_print("%-20s before and after attention and MLP\n", "norms");
    if (cfg->hc_mult)
        output_print("%-20s %u, hyper-connections between them\n", "residual streams", cfg->hc_mult);
    print_attention(cfg);
    print_indexer(cfg);
    if (cfg->n_routed_experts) {
        output_print("%-20s %u of %u for each token, %u shared, width %u", "experts",
                     cfg->num_experts_per_tok, cfg->n_routed_experts, cfg->n_shared_experts,
                     cfg->moe_intermediate_size);
        if (cfg->zero_expert_num)
            output_print(", or any of %u zero experts (output = input)", cfg->zero_expert_num);
        output_print("\n");
        output_print("%-20s %s, %u of %u groups, scale %g", "router", scores[cfg->scoring_func],
                     cfg->topk_group, cfg->n_group, (double)cfg->routed_scaling_factor);
        if (cfg->num_hash_layers)
            output_print("; in the first %u layers a table of tokens", cfg->num_hash_layers);
        output_print("\n");
    }
    if (cfg->rope_theta > 0)
        output_print("%-20s theta %g, factor %g", "rope", (double)cfg->rope_theta, (double)cfg->rope_factor);
    else
        output_print("%-20s none: nothing is rotated", "rope");
    if (cfg->compress_rope_theta > 0)
        output_print(", theta %g with compressed rows", (double)cfg->compress_rope_theta);
    if (m->query_scale)
        output_print(", queries scaled anew every %u positions", cfg->query_scale_span);
    output_print("\n");
    output_print("%-20s %u\n", "longest context", cfg->max_position_embeddings);
}

static const char *chat_line(const Model *m) {
    Template t;
    if (!m->chat_bytes || !m->tokenizer)
        return "no: the file has no chat template";
    if (template_open(m, &t, FORM_DEFAULT))
        return "no: the chat template is damaged";
    if (t.forms > 1)
        return "yes, with thoughts before the answer, which --think switches";
    return t.piece[THINK_END].text.bytes ? "yes, with thoughts before the answer" : "yes";
}

static void print_text(const Model *m) {
    const Config *cfg = &m->config;
    if (m->tokenizer)
        output_print("%-20s %zu tokens", "tokenizer", tokenizer_size(m->tokenizer));
    else
        output_print("%-20s none: prompts and text are token ids", "tokenizer");
    if (cfg->bos_token_id >= 0)
        output_print(", begin %d%s", cfg->bos_token_id, cfg->add_bos_token ? "" : " (not added by itself)");
    for (uint32_t i = 0; i < cfg->eos_tokens; i++)
        output_print(i ? " %d" : ", end %d", cfg->eos_token_id[i]);
    output_print("\n%-20s %s", "chat", chat_line(m));
    output_print("\n%-20s temperature %g, top-p %g, top-k %u", "sampling", (double)cfg->temperature,
                 (double)cfg->top_p, cfg->top_k);
    if (cfg->min_p > 0)
        output_print(", min-p %g", (double)cfg->min_p);
    if (cfg->repetition_penalty > 0)
        output_print(", repeat-penalty %g", (double)cfg->repetition_penalty);
    output_print("\n");
}

/* One line of the table: the numbers and bytes of a token in all published layers; what is saved of
 * `unit`, the bytes of keys and values of all heads at 2 bytes a number, or how many times as much it is. */
static void print_cost(const Config *cfg, const char *what, size_t numbers, size_t bytes, size_t unit) {
    char held[32], token[32], context[32], saved[32];
    double part = (double)bytes / (double)unit;
    snprintf(saved, sizeof saved, part > 1 ? "none, x %.1f" : "%.1f %%", part > 1 ? part : 100 - 100 * part);
    output_print("%-36s %12s %12s %20s %12s\n", what, grouped(held, numbers), grouped(token, bytes),
                 grouped(context, (uint64_t)bytes * cfg->max_position_embeddings), saved);
}

/* Numbers that a token adds to the cache in the first `layers` layers, with index keys; of compressed rows
 * the part that falls to a token. */
static size_t token_numbers(const Config *cfg, CacheType type, uint32_t layers) {
    size_t key = (size_t)cfg->qk_nope_head_dim + cfg->qk_rope_head_dim, groups = cache_groups(cfg, type),
           di = cfg->index_head_dim, csa = count_layers(cfg, layers, LAYER_CSA),
           hca = count_layers(cfg, layers, LAYER_HCA);
    if (cfg->sliding_window)
        return (csa ? csa * (key + di) / cfg->csa_ratio : 0) + (hca ? hca * key / cfg->hca_ratio : 0);
    size_t row =
        groups ? groups * (key + cfg->v_head_dim) : (size_t)cfg->kv_lora_rank + cfg->qk_rope_head_dim;
    return attention_layers(cfg, layers) * row + indexer_layers(cfg, layers) * di / max(cfg->index_kpool, 1);
}

/* Attention without a latent, at 2 bytes a number: this model's, where it has none, and others with heads of
 * the same size. The rotated part is left out where it stands apart, as other models have none of it. */
static void print_others(const Config *cfg, size_t unit) {
    bool window = cfg->sliding_window, grouped_heads = cfg->num_key_value_heads;
    size_t H = cfg->num_attention_heads, layers = attention_layers(cfg, cfg->published_layers),
           head = (window          ? cfg->v_head_dim
                   : grouped_heads ? cfg->qk_rope_head_dim
                                   : cfg->qk_nope_head_dim) +
                  (size_t)cfg->v_head_dim;
    const char *sizes = window ? "n + p + v" : grouped_heads ? "p + v" : "n + v";
    char what[64];
    if (!grouped_heads && !window)
        print_cost(cfg, "full K and V, H (n + p + v)", unit / 2, unit, unit);
    snprintf(what, sizeof what, "MHA, H (%s)", sizes);
    print_cost(cfg, what, layers * H * head, 2 * layers * H * head, unit);
    snprintf(what, sizeof what, "GQA-8, 8 (%s)", sizes);
    print_cost(cfg, what, 8 * layers * head, 2 * 8 * layers * head, unit);
    snprintf(what, sizeof what, "MQA, %s", sizes);
    print_cost(cfg, what, layers * head, 2 * layers * head, unit);
}

/* Memory of a sequence where not all of it grows: the constant part and the cache, in bytes. The last rows of
 * windows are of the cache's type. */
static void print_sequence(const Config *cfg) {
    static const size_t contexts[] = {32768, 1 << 20};
    uint32_t layers = cfg->published_layers;
    size_t numbers = constant_floats(cfg, layers), rows = ring_tiles(cfg) * TILE_ROWS,
           last = rows * cfg->v_head_dim * attention_layers(cfg, layers);
    char text[2][32];
    output_print("\n%-36s %12s %12s\n", "constant part of a sequence, f32", grouped(text[0], numbers),
                 grouped(text[1], numbers * sizeof(float)));
    if (rows)
        output_print("%-36s %12s\n", "  and its last rows", grouped(text[0], last));
    output_print("%-36s %20s %20s\n", "constant part and cache, bytes:", "32,768 tokens", "1,048,576 tokens");
    for (int i = 0; i < CACHE_TYPES; i++) {
        CacheType type = (CacheType)i;
        size_t token = cache_token_bytes(cfg, type, layers);
        for (int k = 0; k < 2; k++)
            grouped(text[k], constant_bytes(cfg, type, layers) + contexts[k] * token);
        if (cache_fits(cfg, type))
            output_print("-k %-33s %20s %20s\n", cache_names[type], text[0], text[1]);
    }
}

static void print_cache(const Config *cfg) {
    size_t n = cfg->qk_nope_head_dim, p = cfg->qk_rope_head_dim, v = cfg->v_head_dim,
           layers = attention_layers(cfg, cfg->published_layers),
           unit = 2 * layers * cfg->num_attention_heads * (n + p + v);
    char what[64], context[48];
    snprintf(context, sizeof context, "%u tokens", cfg->max_position_embeddings);
    output_print("\n%-36s %12s %12s %20s %12s\n", "cache, a token:", "numbers", "bytes", context, "saved");
    for (int i = 0; i < CACHE_TYPES; i++) {
        CacheType type = (CacheType)i;
        if (!cache_fits(cfg, type))
            continue;
        snprintf(what, sizeof what, type == CACHE_FULL ? "-k %s (K and V of each head, f32)" : "-k %s",
                 cache_names[type]);
        print_cost(cfg, what, token_numbers(cfg, type, cfg->published_layers),
                   cache_token_bytes(cfg, type, cfg->published_layers), unit);
    }
    output_print("without a latent, 2 bytes a number:\n");
    print_others(cfg, unit);
    output_print("(%zu layers%s, H = %u", layers, cfg->kda_heads ? " with latents" : "",
                 cfg->num_attention_heads);
    if (cfg->num_key_value_heads)
        output_print(", G = %u, p = %zu, v = %zu", cfg->num_key_value_heads, p, v);
    else
        output_print(", n = %zu, p = %zu, v = %zu", n, p, v);
    output_print("; saved against full K and V of 2 bytes)\n");
    if (constant_bytes(cfg, CACHE_F32, cfg->published_layers))
        print_sequence(cfg);
}

int mode_info(const Model *m, const Options *o) {
    (void)o;
    const Config *cfg = &m->config;
    Parameters here = parameters(m, cfg->num_hidden_layers), published = parameters(m, cfg->published_layers);
    output_print("%-20s %s\n", "model", cfg->name);
    print_number("file", m->file_bytes, " bytes");
    print_types(m);
    print_number("parameters", here.total, "");
    print_number("  active per token", here.active, "");
    if (cfg->published_layers != cfg->num_hidden_layers) {
        print_number("  published model", published.total, "");
        print_number("  active per token", published.active, "");
    }
    WeightBytes bytes = weight_bytes(m);
    print_number("read per token",
                 bytes.always + bytes.expert * expert_layers(&m->config) * m->config.num_experts_per_tok,
                 " bytes of weights");
    print_shape(m);
    print_text(m);
    print_cache(cfg);
    output_flush();
    return DONE;
}
