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

double attention_work(const Model *m) {
    const Config *cfg = &m->config;
    WeightBytes w = weight_bytes(m);
    double experts = (double)w.expert_products * cfg->num_experts_per_tok * (double)expert_layers(cfg);
    double head = (double)cfg->qk_nope_head_dim + cfg->qk_rope_head_dim + cfg->v_head_dim;
    double row = head * cfg->num_attention_heads * latent_layers(cfg, cfg->num_hidden_layers);
    return row / ((double)w.always_products + experts);
}
