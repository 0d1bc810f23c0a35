/* engine/cost.c: what a call of forward reads (cost.h), from the table of tensors alone. What it keeps in the
 * cache is arithmetic on Config: engine/cache.h. */
#include "engine/cost.h"

#include <string.h>

#include "engine/cache.h"
#include "engine/checkpoint.h"
#include "engine/util.h"

size_t expert_layers(const Config *cfg) {
    size_t n = 0;
    for (uint32_t l = 0; l < cfg->num_hidden_layers; l++)
        n += layer_is_moe(cfg, l);
    return n;
}

WeightBytes weight_bytes(const Model *m) {
    const Config *cfg = &m->config;
    uint64_t always = 0, experts = 0, always_products = 0, expert_products = 0;
    for (size_t i = 0; i < m->tensor_count; i++) {
        const TensorInfo *t = &m->tensors[i];
        size_t length = strnlen(t->name, sizeof t->name);
        bool lookup = !strcmp(t->name, "embed") && !cfg->tie_word_embeddings;
        bool decompression = length > 5 && !memcmp(t->name + length - 5, ".w_uk", 5);
        if (lookup || decompression || !strncmp(t->name, "mtp.", 4))
            continue;
        bool expert = strstr(t->name, ".experts.");
        uint64_t products = t->cols > 1 ? (uint64_t)t->count * t->rows * t->cols : 0; /* a vector has one */
        *(expert ? &experts : &always) += t->bytes;
        *(expert ? &expert_products : &always_products) += products;
    }
    size_t count = cfg->n_routed_experts * expert_layers(cfg);
    return (WeightBytes){always, count ? experts / count : 0, always_products,
                         count ? expert_products / count : 0};
}

/* Compressed rows that a token with `rows` cached ones attends to, in all layers. */
static double far_rows(const Config *cfg, size_t rows, bool all) {
    double csa = count_layers(cfg, cfg->num_hidden_layers, LAYER_CSA),
           hca = count_layers(cfg, cfg->num_hidden_layers, LAYER_HCA);
    size_t closed = cfg->csa_ratio ? rows / cfg->csa_ratio : 0;
    return csa * (double)(all ? closed : min(closed, cfg->index_topk)) +
           hca * (double)(cfg->hca_ratio ? rows / cfg->hca_ratio : 0);
}

/* Index keys that it scores, in all layers. */
static double scored_keys(const Config *cfg, size_t rows) {
    return (double)indexer_layers(cfg, cfg->num_hidden_layers) *
           (double)(rows / max(max(cfg->csa_ratio, cfg->index_kpool), 1));
}

double cache_read_bytes(const Model *m, CacheType type, size_t rows, bool all) {
    const Config *cfg = &m->config;
    uint32_t layers = cfg->num_hidden_layers;
    TileShape key = cache_index_shape(cfg, type);
    double row = (double)cache_row_bytes(cfg, type), keys = (double)tile_bytes(&key) / TILE_ROWS,
           constant = 2 * (double)constant_bytes(cfg, type, layers);
    double attended = cfg->sliding_window
                          ? far_rows(cfg, rows, all)
                          : (double)attention_layers(cfg, layers) *
                                (double)(all || !cfg->index_n_heads ? rows : min(rows, cfg->index_topk));
    return attended * row + scored_keys(cfg, rows) * keys + constant;
}

double attention_products(const Model *m, size_t rows) {
    const Config *cfg = &m->config;
    double H = cfg->num_attention_heads, layers = attention_layers(cfg, cfg->num_hidden_layers),
           d = (double)cfg->qk_nope_head_dim + cfg->qk_rope_head_dim,
           index = scored_keys(cfg, rows) * cfg->index_n_heads * cfg->index_head_dim;
    if (cfg->sliding_window)
        return 2 * d * H * (layers * (double)min(rows, cfg->sliding_window) + far_rows(cfg, rows, false)) +
               index;
    double row = cfg->kv_lora_rank ? 2.0 * cfg->kv_lora_rank + cfg->qk_rope_head_dim : d + cfg->v_head_dim;
    return row * H * layers * (double)(cfg->index_n_heads ? min(rows, cfg->index_topk) : rows) + index;
}

double attention_work(const Model *m) {
    const Config *cfg = &m->config;
    WeightBytes w = weight_bytes(m);
    double experts = (double)w.expert_products * cfg->num_experts_per_tok * (double)expert_layers(cfg);
    double head = (double)cfg->qk_nope_head_dim + cfg->qk_rope_head_dim + cfg->v_head_dim;
    double layers = attention_layers(cfg, cfg->num_hidden_layers);
    if (cfg->sliding_window) { /* a row is what an indexer chooses from, or a token */
        double csa = count_layers(cfg, cfg->num_hidden_layers, LAYER_CSA),
               hca = count_layers(cfg, cfg->num_hidden_layers, LAYER_HCA);
        layers = csa + (cfg->hca_ratio ? hca * (cfg->csa_ratio ? cfg->csa_ratio : 1) / cfg->hca_ratio : 0);
    }
    return head * cfg->num_attention_heads * layers / ((double)w.always_products + experts);
}
