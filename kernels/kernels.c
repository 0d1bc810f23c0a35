/* kernels/kernels.c: all inner loops, compiled once for each instruction set (-DISA_portable, -DISA_avx2,
 * ...). Each compilation exports one pointer, kernels_portable, kernels_avx2, ...; dispatch.c chooses among
 * them at start.
 *
 *   simd.h       sixteen-lane vectors; in simd_*.h the instruction sets differ
 *   vector.h     norms, activations and their quantizing
 *   matmul.h     weights in panels times rows
 *   tile.h       tiles of cached rows: rows in and out
 *   attention.h  queries against tiles
 *   index.h      index queries against tiles of index keys
 *   delta.h      linear attention */
#include "kernels/kernels.h"

#include "kernels/simd.h"
#include "kernels/vector.h"
#include "kernels/matmul.h"
#include "kernels/tile.h"
#include "kernels/attention.h"
#include "kernels/index.h"
#include "kernels/delta.h"

#define TEXT_OF(name) #name
#define TEXT(name)    TEXT_OF(name)
#define JOIN_TO(a, b) a##b
#define JOIN(a, b)    JOIN_TO(a, b)

static const Kernels kernels = {
    .name = TEXT(ISA_NAME),
    .dot = dot,
    .axpy = axpy,
    .rmsnorm = rmsnorm,
    .swiglu = swiglu,
    .softmax = softmax,
    .sigmoid = sigmoid,
    .sqrt_softplus = sqrt_softplus,
    .exp_minus = exp_minus,
    .store_row = store_row,
    .gather = gather,
    .matmul = matmul,
    .many_rows = &many_rows,
    .from_memory = &from_memory,
    .read_row = read_row,
    .tile_store = tile_store,
    .tile_load = tile_load,
    .tile_copy = tile_copy,
    .tile_activations = tile_activations,
    .pack_query = pack_query,
    .attend = attend,
    .softmax_merge = softmax_merge,
    .softmax_finish = softmax_finish,
    .index_scores = index_scores,
    .convolve = convolve,
    .set_length = set_length,
    .decay = decay,
    .delta = delta,
};

extern const Kernels *JOIN(kernels_, ISA_NAME);
const Kernels *JOIN(kernels_, ISA_NAME) = &kernels;
