/* engine/checkpoint.h: the file format of model.bin, byte by byte. This header is the truth; exporter/ writes
 * what it says.
 *
 *   offset 0            FileHeader, 64 bytes
 *   64                  Config (model.h), header.config_bytes: fields are added at its end
 *   round up to 64      tokenizer section (engine/section.h), header.tokenizer_bytes; 0 bytes: no tokenizer
 *   round up to 64      chat template (cli/template.h), header.chat_bytes; 0 bytes: no template
 *   round up to 64      TensorInfo[header.tensors]
 *   header.data_offset  the tensors, each on a multiple of 64, an expert's gate on a multiple of 4096 with
 *                       its up and down behind it; gaps are zero
 *   header.file_bytes   end of file
 *
 * Everything is little-endian. The file is mapped and used in place.
 *
 * Tensors, in exactly this order (the table is read with a cursor; a tensor that is missing, superfluous or
 * of another shape is named and refused). [rows, cols] are matrices in panels (kernels/kernels.h), "vector"
 * is plain f32. The sizes are:
 *
 *   D hidden_size          p qk_rope_head_dim   ql q_lora_rank            E n_routed_experts
 *   H num_attention_heads  v v_head_dim         I  intermediate_size      S n_shared_experts * M
 *   n qk_nope_head_dim     r kv_lora_rank       M  moe_intermediate_size  V vocab_size
 *
 *   embed                [V, D]
 *   head                 [V, D]              only if tie_word_embeddings is 0
 *   norm                 vector D
 *   inv_freq             vector p / 2        the angle of pair i at position m is the f32 product
 *                                            m * inv_freq[i]
 *   compress_inv_freq    vector p / 2        the same in CSA and HCA layers; only if there is one
 *   query_scale          vector              max_position_embeddings / query_scale_span numbers, rounded up;
 *                                            only if query_scale_span is not 0
 *   swiglu_limits        vector 2 * published_layers  of routed, then of shared experts, for each layer; 0:
 *                        none; only if swiglu_limits is not 0
 *   hc_head_fn           F32 [S, S D]        S hc_mult; these three only if it is not 0
 *   hc_head_base         vector S
 *   hc_head_scale        vector 1
 *   for each layer L = 0 .. num_hidden_layers - 1, names beginning with "layers.L.":
 *   attention_hc_fn      F32 [2 S + S S, S D]  these three only if hc_mult is not 0
 *   attention_hc_base    vector 2 S + S S
 *   attention_hc_scale   vector 3
 *   input_norm           vector D
 *   a layer of kda_layers, C kda_heads * kda_head_dim, K kda_taps, d' = d rounded up to 32:
 *     kda_q, _k, _v      [C, D]
 *     kda_q_filter, _k_filter, _v_filter  vector K * C  [taps][channels], the present row's tap last
 *     kda_f              [C, D]             if kda_rank is 0, else kda_f_a [rank, D] and kda_f_b [C, rank]
 *     kda_g              [C, D]             the same
 *     kda_rate           vector kda_heads
 *     kda_f_bias         vector C
 *     kda_beta           F32 [kda_heads, D]
 *     kda_norm           vector kda_head_dim
 *     o                  [D, kda_heads * d']
 *   if sliding_window is not 0, every layer that is not one of kda_layers, d = n + p, G o_groups:
 *     q_a, q_a_norm, q_b as below
 *     kv                 [d, D]              the last p rows are rotated
 *     kv_norm            vector d
 *     sinks              vector H
 *     a layer of csa_layers (w = 2 d, R = csa_ratio) or hca_layers (w = d, R = hca_ratio):
 *     compress_kv, compress_gate  [w, D]
 *     compress_ape       vector R * w        [R][w]
 *     compress_norm      vector d
 *     a layer of csa_layers, Hi index_n_heads, di index_head_dim:
 *     index_q            [Hi * di, ql]       within a head, di - p rows without position, then p rotated
 *     index_compress_kv, index_compress_gate  [2 di, D]
 *     index_compress_ape vector R * 2 di
 *     index_compress_norm  vector di
 *     index_weights      F32 [Hi, D]
 *     o_a                G matrices [o_lora_rank, H / G * d]  its output goes into o
 *     o                  [D, G * o_lora_rank]
 *   another layer:
 *   q                    [H * (n + p), D]    if q_lora_rank is 0, else these three:
 *     q_a                [ql, D]
 *     q_a_norm           vector ql
 *     q_b                [H * (n + p), ql]
 *   if num_key_value_heads is G and not 0, in place of kv_a .. w_uv these two:
 *     k                  [G * p, D]
 *     v                  [G * v, D]
 *   kv_a                 [r + p, D]
 *   kv_a_norm            vector r
 *   w_uk                 H matrices [n, r]   head h: no-position key = w_uk[h] c
 *   w_uk_t               H matrices [r, n]   the same, transposed; absorbed: the query in the latent space
 *                                            is w_uk_t[h] q
 *   w_uv                 H matrices [v, r]   value = w_uv[h] c
 *   head_gate            F32 [H, D]         if head_gate is 1
 *   o                    [D, H * v']         v' = v rounded up to 32: each head's columns begin a block,
 *                                            those past v meet zeros
 *   a layer with an indexer (layer_has_indexer), Hi index_n_heads, di index_head_dim:
 *     index_q            [Hi * di, ql]       within a head, di - p rows without position, then p rotated
 *     index_k            [di, D]             the same
 *     index_k_norm       vector di           weight and bias of a LayerNorm
 *     index_k_bias       vector di
 *     index_pool_gate    [di, D]             if index_kpool is R and not 0, as is
 *     index_pool_ape     vector R * di
 *     index_weights      F32 [Hi, D]
 *   attention_out_norm   vector D            if sandwich_norm is 1
 *   mlp_hc_fn, mlp_hc_base, mlp_hc_scale   as for attention, only if hc_mult is not 0
 *   post_norm            vector D
 *   a dense layer, or the first of a pair with shortcut_moe:
 *   gate, up             [I, D]              no gate if hidden_act is ACT_RELU2
 *   down                 [D, I]
 *   a mixture of experts (layer_is_moe), Z zero_expert_num:
 *   router               F32 [E + Z, D]
 *   router_bias          vector E + Z        zeros where the model has none; a layer below num_hash_layers
 *                        has in its place
 *   token_experts        vector V * num_experts_per_tok  [V][num_experts_per_tok] whole numbers below E
 *   shared.gate, .up     [S, D]              if n_shared_experts is not 0
 *   shared.down          [D, S]
 *   for each expert e:
 *     experts.e.gate, .up  [M, D]
 *     experts.e.down     [D, M]
 *   mlp_out_norm         vector D            if layer_norms_mlp() says so
 *   if mtp_layers is 1, with "mtp." in front:
 *     enorm, hnorm       vector D
 *     eh_proj            [D, 2 D]
 *     the tensors of one layer as above, of the kind that layer published_layers would have
 *     norm               vector D
 *
 * "H matrices" is one entry with count = H: H matrices of the same shape, one after the other, each padded
 * by itself. Rows of rotated parts (in q, q_b and kv_a) are in interleaved pairs: (x[2i], x[2i + 1]) is pair
 * i, in k, too; within a head the n no-position rows come first. */
#ifndef CHECKPOINT_H
#define CHECKPOINT_H

#include "engine/crc32.h"
#include "model.h"

#define CHECKPOINT_MAGIC "MLA.C\r\n\032" /* eight bytes; damaged by any transfer in text mode */

enum {
    CHECKPOINT_VERSION = 2,
    EXPERT_ALIGN = 4096,
    OLDEST_CONFIG_BYTES = offsetof(Config, min_p), /* of the first files of this version */
};

typedef struct {
    char magic[8];
    uint32_t version;
    uint32_t checksum; /* CRC-32 (zlib's) of bytes 0 .. data_offset - 1 with this field zero */
    uint64_t file_bytes;
    uint64_t data_offset;  /* a multiple of 4096 */
    uint32_t config_bytes; /* without new fields at the end that are 0 */
    uint32_t tokenizer_bytes;
    uint32_t tensors;
    uint32_t chat_bytes;
    uint32_t reserved[4]; /* 0 */
} FileHeader;

typedef struct TensorInfo {
    char name[56];        /* NUL-padded */
    uint64_t offset;      /* from the start of the file */
    uint64_t bytes;       /* count * panels * bytes of a panel, or 4 * rows for a vector */
    uint32_t type;        /* Type in kernels.h */
    uint32_t count;       /* matrices in this entry, 1 or H */
    uint32_t rows, cols;  /* of each; a vector has cols = 1 */
    float scale;          /* Matrix.scale; 1 for VECTOR, F32, BF16 */
    uint32_t checksum;    /* CRC-32 of the tensor's bytes */
    int8_t codebook[16];  /* Q4, else zeros */
    uint32_t reserved[4]; /* 0 */
} TensorInfo;

_Static_assert(sizeof(FileHeader) == 64 && sizeof(TensorInfo) == 128, "the structs are the file format");

/* Maps the checkpoint at `path` and fills m. Checks the header, the checksum of header and tables, and
 * every field before it is used. False: one line in err. No allocation is proportional to the weights. A
 * file that is cut short while it is mapped ends the program, at whatever read finds it, with one line and
 * status 1. */
bool model_open(Model *m, const char *path, char *err, size_t err_bytes);
void model_close(Model *m);

#endif
