/* cli/info.c: --info. What the checkpoint is, what one token costs, and what a context costs in each cache
 * type beside attention without a latent. Everything is arithmetic on Config and the tensor table; no matrix
 * is touched. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cli/cost.h"
#include "cli/modes.h"
#include "cli/output.h"
#include "engine/cache.h"
#include "engine/checkpoint.h"
#include "tokenizer.h"

/* ---- parameters, of `layers` layers; each one counted once, although W_uk is stored twice --- */

typedef struct {
    uint64_t total;
    /* that one token is multiplied with: without the other experts, and without an embedding that is only
     * looked up */
    uint64_t active;
} Parameters;

static uint64_t attention_parameters(const Config *c) {
    uint64_t D = c->hidden_size, H = c->num_attention_heads, n = c->qk_nope_head_dim, p = c->qk_rope_head_dim,
             v = c->v_head_dim;
    uint64_t r = c->kv_lora_rank, ql = c->q_lora_rank, q = H * (n + p);
    uint64_t queries = ql ? ql * D + ql + q * ql : q * D;
    uint64_t norms = (c->sandwich_norm ? 4 : 2) * D + r;
    return queries + (r + p) * D + H * (n + v) * r + D * H * v + norms;
}

static uint64_t index_parameters(const Config *c) {
    uint64_t D = c->hidden_size, Hi = c->index_n_heads, di = c->index_head_dim;
    return Hi * di * c->q_lora_rank + di * D + 2 * di + Hi * D;
}

/* Have the routers a correction bias? Zeros stand where they have none; a file cut down to dense layers
 * does not tell. */
static bool router_has_bias(const Model *m) {
    bool has = false;
    for (uint32_t l = 0; l < m->config.num_hidden_layers; l++) {
        if (!m->layers[l].experts)
            continue;
        for (size_t e = 0; e < router_rows(&m->config); e++)
            has |= m->layers[l].router_bias[e] != 0;
        return has;
    }
    return m->config.scoring_func == SCORE_SIGMOID;
}

static Parameters parameters(const Model *m, uint32_t layers) {
    const Config *c = &m->config;
    uint64_t D = c->hidden_size, vocabulary = c->vocab_size * D,
             matrices = c->hidden_act == ACT_RELU2 ? 2 : 3;
    uint64_t expert = matrices * D * c->moe_intermediate_size, choices = router_rows(c);
    bool biased = router_has_bias(m);
    Parameters sum = {vocabulary * (c->tie_word_embeddings ? 1 : 2) + D, vocabulary + D};
    for (uint32_t l = 0; l < layers; l++) {
        uint64_t all = attention_parameters(c) + (layer_has_indexer(c, l) ? index_parameters(c) : 0),
                 used = all;
        if (layer_is_moe(c, l)) {
            uint64_t every = D * choices + c->n_shared_experts * expert;
            every += biased ? choices : 0;
            all += every + c->n_routed_experts * expert;
            used += every + c->num_experts_per_tok * expert;
        }
        if (!layer_is_moe(c, l) || c->shortcut_moe) {
            all += matrices * D * c->intermediate_size;
            used += matrices * D * c->intermediate_size;
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

static uint32_t indexers(const Config *c, uint32_t layers) {
    uint32_t count = 0;
    for (uint32_t l = 0; l < layers; l++)
        count += layer_has_indexer(c, l);
    return count;
}

static void print_shape(const Model *m) {
    const Config *c = &m->config;
    uint32_t moe = 0;
    for (uint32_t l = 0; l < c->num_hidden_layers; l++)
        moe += layer_is_moe(c, l);
    output_print("%-20s %u of the published model's %u: ", "layers", c->num_hidden_layers,
                 c->published_layers);
    if (c->shortcut_moe)
        output_print("%u pairs with shortcut experts\n", moe);
    else
        output_print("%u dense, %u with experts\n", c->num_hidden_layers - moe, moe);
    output_print("%-20s %u, dense MLP %u%s, vocabulary %u%s\n", "hidden size", c->hidden_size,
                 c->intermediate_size, c->hidden_act == ACT_RELU2 ? " (relu^2 without gate)" : "",
                 c->vocab_size, c->tie_word_embeddings ? " (head tied to embedding)" : "");
    if (c->embed_scale != 1)
        output_print("%-20s scaled by %g\n", "embedding", (double)c->embed_scale);
    if (c->sandwich_norm)
        output_print("%-20s before and after attention and MLP\n", "norms");
    output_print("%-20s %u heads: query and key %u + %u rotated, value %u\n", "attention",
                 c->num_attention_heads, c->qk_nope_head_dim, c->qk_rope_head_dim, c->v_head_dim);
    if (c->q_lora_rank)
        output_print("%-20s keys and values %u, queries %u\n", "latent", c->kv_lora_rank, c->q_lora_rank);
    else
        output_print("%-20s keys and values %u, queries direct\n", "latent", c->kv_lora_rank);
    if (c->index_n_heads)
        output_print("%-20s %u heads of %u in %u layers choose %u rows to attend to\n", "indexer",
                     c->index_n_heads, c->index_head_dim, indexers(c, c->num_hidden_layers), c->index_topk);
    if (c->n_routed_experts) {
        output_print("%-20s %u of %u for each token, %u shared, width %u", "experts", c->num_experts_per_tok,
                     c->n_routed_experts, c->n_shared_experts, c->moe_intermediate_size);
        if (c->zero_expert_num)
            output_print(", or any of %u that give back what they get", c->zero_expert_num);
        output_print("\n");
        output_print("%-20s %s, %u of %u groups, scale %g\n", "router",
                     c->scoring_func == SCORE_SIGMOID ? "sigmoid" : "softmax", c->topk_group, c->n_group,
                     (double)c->routed_scaling_factor);
    }
    output_print("%-20s theta %g, factor %g", "rope", (double)c->rope_theta, (double)c->rope_factor);
    if (m->query_scale)
        output_print(", queries scaled anew every %u positions", c->query_scale_span);
    output_print("\n");
    output_print("%-20s %u\n", "longest context", c->max_position_embeddings);
}

static void print_text(const Model *m) {
    const Config *c = &m->config;
    if (m->tokenizer)
        output_print("%-20s %zu tokens", "tokenizer", tokenizer_size(m->tokenizer));
    else
        output_print("%-20s none: prompts and text are token ids", "tokenizer");
    if (c->bos_token_id >= 0)
        output_print(", begin %d%s", c->bos_token_id, c->add_bos_token ? "" : " (not added by itself)");
    for (uint32_t i = 0; i < c->eos_tokens; i++)
        output_print(i ? " %d" : ", end %d", c->eos_token_id[i]);
    const char *damage = chat_damage(m);
    output_print("\n%-20s %s", "chat",
                 !m->chat_bytes || !m->tokenizer ? "no: the file has no chat template"
                 : damage                        ? "no: the chat template is damaged"
                 : chat_has_thoughts(m)          ? "yes, with thoughts before the answer"
                                                 : "yes");
    output_print("\n%-20s temperature %g, top-p %g, top-k %u", "sampling", (double)c->temperature,
                 (double)c->top_p, c->top_k);
    if (c->min_p > 0)
        output_print(", min-p %g", (double)c->min_p);
    if (c->repetition_penalty > 0)
        output_print(", repeat-penalty %g", (double)c->repetition_penalty);
    output_print("\n");
}

/* One line of the table: the numbers and bytes of a token in all published layers; what is saved of
 * `unit`, the bytes of keys and values of all heads at 2 bytes a number, or how many times as much it is. */
static void print_cost(const Config *c, const char *what, size_t numbers, size_t bytes, size_t unit) {
    char held[32], token[32], context[32], saved[32];
    double part = (double)bytes / (double)unit;
    snprintf(saved, sizeof saved, part > 1 ? "none, x %.1f" : "%.1f %%", part > 1 ? part : 100 - 100 * part);
    output_print("%-36s %12s %12s %20s %12s\n", what, grouped(held, numbers), grouped(token, bytes),
                 grouped(context, (uint64_t)bytes * c->max_position_embeddings), saved);
}

static void print_cache(const Config *c) {
    size_t H = c->num_attention_heads, n = c->qk_nope_head_dim, p = c->qk_rope_head_dim, v = c->v_head_dim,
           layers = c->published_layers;
    size_t full = layers * H * (n + p + v), latent = layers * (c->kv_lora_rank + p), unit = 2 * full;
    size_t keys = (size_t)indexers(c, c->published_layers) * c->index_head_dim;
    char what[64], context[48];
    snprintf(context, sizeof context, "%u tokens", c->max_position_embeddings);
    output_print("\n%-36s %12s %12s %20s %12s\n", "cache, a token:", "numbers", "bytes", context, "saved");
    for (int type = 0; type < CACHE_TYPES; type++) {
        snprintf(what, sizeof what, type == CACHE_FULL ? "-k %s (K and V of each head, f32)" : "-k %s",
                 cache_names[type]);
        print_cost(c, what, (type == CACHE_FULL ? full : latent) + keys,
                   cache_token_bytes(c, (CacheType)type, c->published_layers), unit);
    }
    output_print("without a latent, 2 bytes a number:\n");
    print_cost(c, "full K and V, H (n + p + v)", full, unit, unit);
    print_cost(c, "MHA, H (n + v)", layers * H * (n + v), 2 * layers * H * (n + v), unit);
    print_cost(c, "GQA-8, 8 (n + v)", 8 * layers * (n + v), 2 * 8 * layers * (n + v), unit);
    print_cost(c, "MQA, n + v", layers * (n + v), 2 * layers * (n + v), unit);
    output_print("(%zu layers, H = %zu, n = %zu, p = %zu, v = %zu; saved against full K and V of 2 bytes)\n",
                 layers, H, n, p, v);
}

int mode_info(const Model *m, const Options *o) {
    (void)o;
    const Config *c = &m->config;
    Parameters here = parameters(m, c->num_hidden_layers), published = parameters(m, c->published_layers);
    output_print("%-20s %s\n", "model", c->name);
    print_number("file", m->file_bytes, " bytes");
    print_types(m);
    print_number("parameters", here.total, "");
    print_number("  active per token", here.active, "");
    if (c->published_layers != c->num_hidden_layers) {
        print_number("  published model", published.total, "");
        print_number("  active per token", published.active, "");
    }
    print_number("read per token", weight_bytes(m, 1), " bytes of weights");
    print_shape(m);
    print_text(m);
    print_cache(c);
    output_flush();
    return DONE;
}
