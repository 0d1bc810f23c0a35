/* tests/test_attention.c: tiles of cached rows and sixteen queries against them (kernels/attention.h).
 *
 * Two judges. A softmax attention in double precision, written here as the textbook has it, judges the
 * portable build: on the numbers themselves (f32), on the numbers rounded to bf16 by this file, and on the
 * integers and scales that the tile holds (q8, q6, q4, read back here by the layout that kernels.h
 * documents). The portable build then judges every other instruction set that this machine runs: byte for
 * byte.
 *
 * Prints `ok NAME` or `FAIL NAME why` for each check; exit status 1 if one failed. With the argument `once`
 * every shape is taken once, not again with other numbers: builds with sanitizers are slow. */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"

enum { TILES = 3, MAX_ROWS = TILES * TILE_ROWS };

/* One attention: TILES pages of keys, values of their own or the keys' part a, sixteen lanes. */
typedef struct {
    TileShape keys, values;
    bool own_values;
    size_t rows; /* in all tiles together */
    /* rows that a lane attends to, counted from the first tile; may be negative or above rows */
    int32_t limit[LANES];
    bool empty[LANES]; /* lanes without a query */
    uint16_t *mask;    /* [rows] lanes that attend to a row; NULL: all */
    float scale;
    float *key, *value; /* [rows][d1 + d2], [rows][dv] */
    float *query;       /* [LANES][d1 + d2] */
} Case;

/* What a build makes of it; everything that is compared. */
typedef struct {
    uint8_t *keys, *values, *query;
    size_t keys_bytes, values_bytes, query_bytes;
    Softmax part[2]; /* first tile; the others */
    Softmax all;     /* both, merged */
    float *out;      /* [LANES][dv] */
} Result;

static int failures;

static void report(bool ok, const char *name, const char *why) {
    if (ok)
        printf("ok %s\n", name);
    else
        printf("FAIL %s %s\n", name, why);
    failures += !ok;
}

static uint64_t random_state = 1;
static uint64_t random_bits(void) { /* splitmix64 */
    uint64_t z = (random_state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
static size_t below(size_t n) { return (size_t)(random_bits() % n); }
static float normal(void) { /* nearly: the sum of four uniform numbers, variance 1 */
    double s = 0;
    for (int i = 0; i < 4; i++)
        s += (double)(random_bits() >> 11) * 0x1p-53 - 0.5;
    return (float)(s * 1.7320508);
}

static void *allocate(size_t bytes) {
    void *p = aligned_alloc(64, round_up(bytes ? bytes : 1, 64));
    if (!p) {
        fprintf(stderr, "test_attention: out of memory\n");
        exit(1);
    }
    return p;
}
static float *normals(size_t n, float spread) {
    float *x = allocate(n * 4);
    for (size_t i = 0; i < n; i++)
        x[i] = normal() * spread;
    return x;
}

/* ---- cases ---------------------------------------------------------------------------------- */

static Case make_case(TileType type, uint32_t d1, uint32_t d2, uint32_t own_dv, float spread) {
    Case c = {.keys = {type, d1, d2},
              .values = {type, own_dv ? own_dv : d1, own_dv ? 0 : d2},
              .own_values = own_dv > 0};
    c.rows = 1 + below(MAX_ROWS);
    c.scale = 1.0f / sqrtf((float)(d1 + d2));
    for (int i = 0; i < LANES; i++) {
        c.limit[i] = below(3) ? (int32_t)below(c.rows + 1) : (int32_t)c.rows + 5;
        c.empty[i] = below(8) == 0;
    }
    c.limit[3] = 0; /* attends to nothing at all */
    c.limit[4] = -2;
    if (below(2)) /* every lane attends to every row, as in decode */
        for (int i = 0; i < LANES; i++)
            c.limit[i] = (int32_t)c.rows;
    if (below(2)) {
        c.mask = allocate(c.rows * sizeof *c.mask);
        /* a tile of none */
        for (size_t i = 0; i < c.rows; i++)
            c.mask[i] = i / TILE_ROWS == 1 ? 0 : (uint16_t)(random_bits() & random_bits());
    }
    c.key = normals(c.rows * (d1 + d2), 1);
    c.value = own_dv ? normals(c.rows * own_dv, 1) : NULL;
    c.query = normals((size_t)LANES * (d1 + d2), spread);
    if (c.rows > 2) /* a row of zeros has a scale of zero */
        memset(c.key + (d1 + d2), 0, (d1 + d2) * 4);
    return c;
}

static void free_case(Case *c) {
    free(c->key);
    free(c->value);
    free(c->query);
    free(c->mask);
}

static bool attends(const Case *c, int lane, size_t row) {
    return (int64_t)row < c->limit[lane] && (!c->mask || c->mask[row] >> lane & 1);
}

/* Sends the case through a build. Tiles are full of `garbage` before rows are written: what is not a row
 * must not matter. */
static Result run_case(const Kernels *ops, const Case *c, int garbage) {
    size_t d = c->keys.d1 + c->keys.d2, dv = c->values.d1;
    size_t key_tile = tile_bytes(&c->keys), value_tile = tile_bytes(&c->values);
    Result r = {.keys_bytes = TILES * key_tile,
                .values_bytes = c->own_values ? TILES * value_tile : 0,
                .query_bytes = query_bytes(&c->keys)};
    r.keys = allocate(r.keys_bytes);
    r.values = c->own_values ? allocate(r.values_bytes) : r.keys;
    r.query = allocate(r.query_bytes);
    r.out = allocate(LANES * dv * 4);
    memset(r.keys, garbage, r.keys_bytes);
    memset(r.values, garbage, c->own_values ? r.values_bytes : r.keys_bytes);
    memset(r.query, garbage, r.query_bytes);
    for (size_t i = 0; i < c->rows; i++) {
        const float *key = c->key + i * d;
        ops->tile_store(&c->keys, r.keys + i / TILE_ROWS * key_tile, i % TILE_ROWS, key, key + c->keys.d1);
        if (c->own_values)
            ops->tile_store(&c->values, r.values + i / TILE_ROWS * value_tile, i % TILE_ROWS,
                            c->value + i * dv, NULL);
    }
    const float *a[LANES], *b[LANES];
    for (int i = 0; i < LANES; i++) {
        a[i] = c->empty[i] ? NULL : c->query + (size_t)i * d;
        b[i] = c->empty[i] ? NULL : c->query + (size_t)i * d + c->keys.d1;
    }
    ops->pack_query(&c->keys, r.query, a, b);

    Softmax *s[3] = {&r.part[0], &r.part[1], &r.all};
    for (int i = 0; i < 3; i++) {
        s[i]->out = allocate(dv * LANES * 4);
        memset(s[i]->out, garbage, dv * LANES * 4); /* a first tile finds whatever was there */
        for (int lane = 0; lane < LANES; lane++) {
            s[i]->max[lane] = -INFINITY;
            s[i]->sum[lane] = 0;
        }
    }
    size_t of_keys = attend_scratch_bytes(&c->keys), of_values = attend_scratch_bytes(&c->values);
    void *scratch = allocate(of_keys > of_values ? of_keys : of_values);
    for (size_t t = 0; t * TILE_ROWS < c->rows; t++) {
        size_t rows = c->rows - t * TILE_ROWS < TILE_ROWS ? c->rows - t * TILE_ROWS : TILE_ROWS;
        int32_t limit[LANES];
        for (int i = 0; i < LANES; i++)
            limit[i] = c->limit[i] - (int32_t)(t * TILE_ROWS);
        ops->attend(&c->keys, r.query, r.keys + t * key_tile, &c->values, r.values + t * value_tile, rows,
                    limit, c->mask ? c->mask + t * TILE_ROWS : NULL, c->scale, s[t > 0], scratch);
    }
    free(scratch);
    for (int i = 0; i < 2; i++)
        ops->softmax_merge(&r.all, &r.part[i], dv);
    ops->softmax_finish(r.out, dv, &r.all, dv, LANES);
    return r;
}

static void free_result(Result *r, const Case *c) {
    free(r->keys);
    if (c->own_values)
        free(r->values);
    free(r->query);
    free(r->out);
    free(r->part[0].out);
    free(r->part[1].out);
    free(r->all.out);
}

/* ---- the judge: softmax(scale * q k^T) v in double precision -------------------------------- */

static float to_bf16(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    u = (u + 0x7fff + (u >> 16 & 1)) & 0xffff0000u;
    memcpy(&x, &u, 4);
    return x;
}

static bool is_int8(uint32_t type) { return type != TILE_F32 && type != TILE_BF16; }

static float f16_at(const uint8_t *p) {
    unsigned h = p[0] | (unsigned)p[1] << 8, exponent = h >> 10 & 31, fraction = h & 1023;
    if (exponent == 31)
        return fraction ? NAN : INFINITY;
    /* scales have no sign */
    return exponent ? ldexpf((float)(1024 + fraction), (int)exponent - 25) : ldexpf((float)fraction, -24);
}

/* Element `dim` of row `row` of a q8, q6 or q4 tile by the layout in kernels.h: *scale is its part's. */
static int int8_element(const TileShape *s, const uint8_t *tile, size_t row, size_t dim, float *scale) {
    static const int values[16] = {-113, -91, -72, -55, -40, -26, -12, 1, 14, 27, 41, 55, 70, 86, 105, 127};
    bool b = dim >= s->d1;
    size_t i = b ? dim - s->d1 : dim, lane = row % 16, byte = lane * 4 + i % 4, unit = i / 4, u = unit % 4,
           group = i / 16;
    size_t parts = s->d2 ? 2 : 1, ua = div_up(s->d1, 4), ub = div_up(s->d2, 4), ga = div_up(s->d1, 16),
           gb = div_up(s->d2, 16);
    if (s->type == TILE_Q8) {
        const uint8_t *sub = tile + row / 16 * ((ua + ub) * 64 + parts * 128);
        memcpy(scale, sub + (ua + ub) * 64 + b * 64 + lane * 4, 4);
        return (int8_t)sub[((b ? ua : 0) + unit) * 64 + byte];
    }
    size_t a_bytes = ga * (s->type == TILE_Q6 ? 192 : 128), b_bytes = gb * (s->type == TILE_Q6 ? 192 : 256);
    size_t scales = a_bytes + b_bytes + (s->type == TILE_Q4 ? ga * 16 : 0);
    const uint8_t *sub = tile + row / 16 * (scales + parts * 32), *part = sub + (b ? a_bytes : 0);
    *scale = f16_at(sub + scales + b * 32 + lane * 2);
    if (s->type == TILE_Q4 && b)
        return (int8_t)part[unit * 64 + byte];
    const uint8_t *in = part + group * (s->type == TILE_Q6 ? 192 : 128);
    int nibble = in[u / 2 * 64 + byte] >> u % 2 * 4 & 15;
    if (s->type == TILE_Q6)
        return (int8_t)(nibble << 4 | (in[128 + byte] >> 2 * u & 3) << 2);
    return (int)floor((values[nibble] * (int8_t)sub[a_bytes + b_bytes + group * 16 + lane] + 64) / 128.0);
}
static double int8_number(const TileShape *s, const uint8_t *tile, size_t row, size_t dim) {
    float scale;
    int integer = int8_element(s, tile, row, dim, &scale);
    return (double)integer * (double)scale;
}

/* What the row's number is once it has been through the tile. */
static double stored(const TileShape *s, const uint8_t *tiles, const float *original, size_t row,
                     size_t dim) {
    float x = original[row * (s->d1 + s->d2) + dim];
    if (s->type == TILE_F32)
        return (double)x;
    if (s->type == TILE_BF16)
        return (double)to_bf16(x);
    return int8_number(s, tiles + row / TILE_ROWS * tile_bytes(s), row % TILE_ROWS, dim);
}

/* Keys that are one part alone, as ordinary attention has them: queries and weights of 16 bits. */
static bool is_fine(const Case *c) { return is_int8(c->keys.type) && !c->keys.d2; }

/* The query as an int8 attention has it: both parts rounded to 127 steps of their largest number; of a fine
 * one the rounding counts as error. */
static double quantized_query(const Case *c, int lane, size_t dim) {
    size_t d1 = c->keys.d1, d = d1 + c->keys.d2, from = dim < d1 ? 0 : d1, to = dim < d1 ? d1 : d;
    const float *q = c->query + (size_t)lane * d;
    if (!is_int8(c->keys.type) || is_fine(c))
        return (double)q[dim];
    float largest = 0;
    for (size_t i = from; i < to; i++)
        largest = fabsf(q[i]) > largest ? fabsf(q[i]) : largest;
    return rint((double)q[dim] * 127 / (double)largest) * (double)largest / 127;
}

/* Largest error of a lane's output: norm of the difference over norm of sum p |v|, what the sum is made
 * of. (Over the norm of sum p v, a sum that happens to come out near zero would count as wrong.) */
static double error_of(const Case *c, const Result *r) {
    size_t d = c->keys.d1 + c->keys.d2, dv = c->values.d1;
    double worst = 0, *score = allocate(c->rows * sizeof *score), *q = allocate(d * sizeof *q);
    double *sum = allocate(dv * sizeof *sum), *mass = allocate(dv * sizeof *mass);
    for (int lane = 0; lane < LANES; lane++) {
        double max = -INFINITY, total = 0, difference = 0, norm = 0;
        for (size_t j = 0; j < d; j++)
            q[j] = c->empty[lane] ? 0 : quantized_query(c, lane, j);
        for (size_t i = 0; i < c->rows; i++) {
            double dot = 0;
            for (size_t j = 0; j < d; j++)
                dot += q[j] * stored(&c->keys, r->keys, c->key, i, j);
            score[i] = attends(c, lane, i) ? dot * (double)c->scale : -INFINITY;
            max = fmax(max, score[i]);
        }
        for (size_t j = 0; j < dv; j++)
            sum[j] = mass[j] = 0;
        for (size_t i = 0; i < c->rows && max > -INFINITY; i++) {
            double p = exp(score[i] - max);
            total += p;
            for (size_t j = 0; j < dv; j++) {
                double v = c->own_values ? stored(&c->values, r->values, c->value, i, j)
                                         : stored(&c->keys, r->keys, c->key, i, j);
                sum[j] += p * v;
                mass[j] += p * fabs(v);
            }
        }
        if (total == 0)
            total = 1; /* a lane without a row gives zeros */
        for (size_t j = 0; j < dv; j++) {
            double error = (double)r->out[(size_t)lane * dv + j] - sum[j] / total;
            difference += error * error;
            norm += mass[j] / total * (mass[j] / total);
        }
        double error = sqrt(difference) / (norm > 0 ? sqrt(norm) : 1);
        if (!(error <= worst))
            worst = error; /* NaN is the worst */
    }
    free(score);
    free(sum);
    free(mass);
    free(q);
    return worst;
}

/* ---- checks --------------------------------------------------------------------------------- */

static bool same_softmax(const Softmax *a, const Softmax *b, size_t dv) {
    for (int i = 0; i < LANES; i++) { /* of a lane that has attended to no row, `out` means nothing */
        if (memcmp(&a->max[i], &b->max[i], 4) || memcmp(&a->sum[i], &b->sum[i], 4))
            return false;
        for (size_t j = 0; j < dv && a->sum[i] > 0; j++)
            if (memcmp(&a->out[j * LANES + i], &b->out[j * LANES + i], 4))
                return false;
    }
    return true;
}

static bool same_result(const Case *c, const Result *a, const Result *b, bool tiles_too) {
    size_t dv = c->values.d1;
    bool same = !memcmp(a->query, b->query, a->query_bytes) && !memcmp(a->out, b->out, LANES * dv * 4);
    same = same && same_softmax(&a->part[0], &b->part[0], dv) && same_softmax(&a->part[1], &b->part[1], dv) &&
           same_softmax(&a->all, &b->all, dv);
    if (tiles_too)
        same = same && !memcmp(a->keys, b->keys, a->keys_bytes) &&
               (!c->own_values || !memcmp(a->values, b->values, a->values_bytes));
    return same;
}

/* d1, d2, and dv of values of their own (0: the keys' part a, as in the absorbed form). */
static const uint32_t shapes[][3] = {{512, 64, 0},  {128, 64, 128}, {192, 64, 256}, {48, 16, 0},
                                     {40, 5, 0},    {5, 3, 7},      {1, 1, 0},      {16, 0, 0},
                                     {100, 20, 33}, {64, 32, 96},   {3, 0, 2},      {256, 8, 0},
                                     {128, 0, 128}, {32, 0, 32},    {24, 0, 40},    {200, 0, 1}};
enum { SHAPES = sizeof shapes / sizeof *shapes };

static bool once; /* every shape once, not several times with other numbers */

static int rounds(int n) { return once ? 1 : n; }

/* Every build gives the portable build's bytes, and unwritten rows and excluded rows change nothing. */
static void check_bytes(const Kernels *portable, const Kernels *ops, TileType type, const char *type_name) {
    char name[64], why[128] = "";
    bool same = true;
    random_state = 7;
    for (int i = 0; i < rounds(4) * SHAPES && same; i++) {
        const uint32_t *d = shapes[i % SHAPES];
        Case c = make_case(type, d[0], d[1], d[2], i % 3 ? 1 : 30);
        Result a = run_case(portable, &c, 0xff), b = run_case(ops, &c, 0xff), g = run_case(ops, &c, 0x80);
        same = same_result(&c, &a, &b, true);
        if (!same)
            snprintf(why, sizeof why, "differs at shape %u+%u, values %u, rows %zu", d[0], d[1], d[2],
                     c.rows);
        if (same && !same_result(&c, &b, &g, false)) {
            same = false;
            snprintf(why, sizeof why, "unwritten rows matter at shape %u+%u, values %u, rows %zu", d[0], d[1],
                     d[2], c.rows);
        }
        free_result(&a, &c);
        free_result(&b, &c);
        free_result(&g, &c);
        free_case(&c);
    }
    snprintf(name, sizeof name, "attention_bytes %s %s", ops->name, type_name);
    report(same, name, why);
}

/* The portable build computes softmax attention. `spread` 1: scores of ordinary size; 30: almost one row
 * takes it all, and scores of about 100 carry a rounding error of several 1e-6, which the exponential
 * turns into a relative one. Fine attention must be FINER. */
enum { FINER = 15 }; /* so many times nearer */
static void check_values(const Kernels *portable, TileType type, const char *type_name, float spread,
                         double tolerance) {
    char name[64], why[128] = "";
    double worst = 0;
    random_state = 11;
    for (int i = 0; i < rounds(3) * SHAPES; i++) {
        const uint32_t *d = shapes[i % SHAPES];
        Case c = make_case(type, d[0], d[1], d[2], spread);
        Result r = run_case(portable, &c, 0xff);
        double error = error_of(&c, &r) * (is_fine(&c) ? FINER : 1);
        if (!(error <= worst)) {
            worst = error;
            snprintf(why, sizeof why, "error %.2e, allowed %.0e, at shape %u+%u, values %u, rows %zu", error,
                     tolerance, d[0], d[1], d[2], c.rows);
        }
        free_result(&r, &c);
        free_case(&c);
    }
    snprintf(name, sizeof name, "attention_values %s, query x%.0f", type_name, (double)spread);
    report(worst <= tolerance, name, why);
}

/* How far a number may be from what the tile gives back, with the largest magnitudes of its part and of
 * its sixteen dimensions. q8, q6: half a step of 127 or 31, and 2 % of it for f16 scales. q4: as far as
 * the values are from -127, and a step and a half of the row's for the multiplier and the rounding. */
static float allowed(TileType type, bool b, float part, float group) {
    if (type == TILE_Q8)
        return part / 127 * 0.50001f;
    if (type == TILE_Q6)
        return part / 31 * 0.51f;
    return b ? part / 127 * 0.57f : group * 14 / 127 + part / 126 * 1.5f;
}

/* A row comes back as it was (f32), rounded to nearest even (bf16), or as near as its bits allow; a part
 * for which NULL is given is not written. A copy gives what the row gives. */
static void check_put_get(const Kernels *ops, TileType type, const char *type_name) {
    char name[64];
    bool good = true;
    random_state = 13;
    for (int i = 0; i < SHAPES; i++) {
        TileShape s = {type, shapes[i][0], shapes[i][1]};
        size_t d = s.d1 + s.d2;
        uint8_t *tile = allocate(tile_bytes(&s)), *copy = allocate(tile_bytes(&s));
        float *x = normals(TILE_ROWS * d, 3), *y = allocate(d * 4), *z = allocate(d * 4);
        for (size_t row = 0; row < TILE_ROWS; row++)
            ops->tile_store(&s, tile, row, x + row * d, x + row * d + s.d1);
        for (size_t row = 0; row < TILE_ROWS; row++)
            ops->tile_copy(&s, copy, row * 37 % TILE_ROWS, tile, row);
        for (size_t row = 0; row < TILE_ROWS; row++) {
            ops->tile_load(&s, copy, row * 37 % TILE_ROWS, z, z + s.d1);
            ops->tile_load(&s, tile, row, y, NULL);
            ops->tile_load(&s, tile, row, NULL, y + s.d1);
            good = good && !memcmp(y, z, d * 4);
            float max[2] = {0, 0};
            for (size_t j = 0; j < d; j++)
                max[j >= s.d1] = fmaxf(max[j >= s.d1], fabsf(x[row * d + j]));
            for (size_t j = 0; j < d; j++) {
                float original = x[row * d + j];
                if (type == TILE_F32)
                    good = good && y[j] == original;
                if (type == TILE_BF16)
                    good = good && y[j] == to_bf16(original);
                if (!is_int8(type))
                    continue;
                bool b = j >= s.d1;
                float group = 0;
                for (size_t g = j / 16 * 16; !b && g < s.d1 && g < j / 16 * 16 + 16; g++)
                    group = fmaxf(group, fabsf(x[row * d + g]));
                good = good && fabsf(y[j] - original) <= allowed(type, b, max[b], group);
                good = good && y[j] == (float)int8_number(&s, tile, row, j);
            }
        }
        free(tile);
        free(copy);
        free(x);
        free(y);
        free(z);
    }
    snprintf(name, sizeof name, "tile_put_get %s %s", ops->name, type_name);
    report(good, name, "a row does not come back");
}

/* A tile's part a as activations: the integers and scales of an int8 row are carried over, not rounded a
 * second time. */
static void check_acts(const Kernels *ops, TileType type, const char *type_name) {
    char name[64];
    bool good = true;
    random_state = 17;
    for (int i = 0; i < rounds(3) * SHAPES; i++) {
        TileShape s = {type, shapes[i % SHAPES][0], shapes[i % SHAPES][1]};
        size_t d = s.d1 + s.d2, rows = 1 + below(TILE_ROWS), stride = round_up(s.d1, 64),
               blocks = stride / 32;
        uint8_t *tile = allocate(tile_bytes(&s));
        float *x = normals(rows * d, 3), *f = allocate(rows * stride * 4),
              *scale = allocate(rows * blocks * 4);
        int8_t *q = allocate(rows * stride);
        int32_t *start = allocate(rows * blocks * 4);
        memset(tile, 0x80, tile_bytes(&s));
        for (size_t row = 0; row < rows; row++)
            ops->tile_store(&s, tile, row, x + row * d, x + row * d + s.d1);
        Activations acts = {.rows = (uint32_t)rows, .cols = s.d1, .stride = (uint32_t)stride};
        if (is_int8(type)) {
            acts.q = q;
            acts.scale = scale;
            acts.start = start;
        } else {
            acts.f = f;
        }
        ops->tile_activations(&s, tile, &acts);
        for (size_t row = 0; row < rows; row++) {
            size_t group = row / 16, in_group = rows - group * 16 < 16 ? rows - group * 16 : 16;
            for (size_t j = 0; j < stride; j++) {
                if (!is_int8(type)) {
                    good =
                        good && f[row * stride + j] == (j < s.d1 ? (float)stored(&s, tile, x, row, j) : 0.0f);
                    continue;
                }
                size_t at = group * 16 * blocks + j / 32 * in_group + row % 16;
                double want = j < s.d1 ? int8_number(&s, tile, row, j) : 0;
                good = good && (float)((double)q[at * 32 + j % 32] * (double)scale[at]) == (float)want;
                if (j % 32 == 0) {
                    int32_t total = 0;
                    for (size_t u = 0; u < 32; u++)
                        total += q[at * 32 + u];
                    good = good && start[at] == -128 * total;
                }
            }
        }
        free(tile);
        free(x);
        free(f);
        free(scale);
        free(q);
        free(start);
    }
    snprintf(name, sizeof name, "tile_activations %s %s", ops->name, type_name);
    report(good, name, "activations are not the tile's rows");
}

/* Numbers that no model should produce end in some number, never in a write out of bounds (build with ASan
 * and UBSan to see one). */
static void check_hostile(const Kernels *ops, TileType type, const char *type_name) {
    static const float bad[] = {NAN, INFINITY, -INFINITY, 3e38f, -3e38f, 1e-45f, 0};
    char name[64];
    random_state = 19;
    for (int i = 0; i < rounds(2) * SHAPES; i++) {
        const uint32_t *d = shapes[i % SHAPES];
        Case c = make_case(type, d[0], d[1], d[2], 1);
        for (size_t j = 0; j < c.rows * (d[0] + d[1]); j += 1 + below(40))
            c.key[j] = bad[below(7)];
        for (size_t j = 0; j < LANES * (size_t)(d[0] + d[1]); j += 1 + below(200))
            c.query[j] = bad[below(7)];
        Result r = run_case(ops, &c, 0xff);
        free_result(&r, &c);
        free_case(&c);
    }
    snprintf(name, sizeof name, "hostile_numbers %s %s", ops->name, type_name);
    report(true, name, "");
}

/* n numbers, rounded to 127 steps of the largest. */
static void round_to_int8(float *x, size_t n) {
    float largest = 0;
    for (size_t i = 0; i < n; i++)
        largest = fmaxf(largest, fabsf(x[i]));
    for (size_t i = 0; i < n; i++)
        x[i] = rintf(x[i] * (127.0f / largest)) * (largest / 127.0f);
}

/* Scores of index keys: the portable build's beside sums in double precision, and every build's beside the
 * portable one's, byte for byte. */
static void check_index(const Kernels *portable, const Kernels *ops, TileType type, const char *type_name) {
    /* heads, dimensions */
    static const uint32_t index_shapes[][2] = {{64, 128}, {32, 128}, {18, 16}, {9, 20}, {1, 2}, {16, 33}};
    char name[64];
    bool near = true, same = true;
    random_state = 29;
    for (int i = 0; i < 18; i++) {
        size_t heads = index_shapes[i % 6][0], d = index_shapes[i % 6][1], rows = 1 + below(TILE_ROWS),
               groups = div_up(heads, 16);
        TileShape s = {type, (uint32_t)d, 0};
        float *key = normals(rows * d, 1), *query = normals(heads * d, 1), *weight = normals(groups * 16, 1),
              *scratch = allocate(16 * d * 4);
        float score[2][TILE_ROWS];
        uint8_t *tile = allocate(tile_bytes(&s)), *packed = allocate(groups * query_bytes(&s));
        memset(tile, 0xff, tile_bytes(&s));
        for (int build = 0; build < 2; build++) {
            const Kernels *by = build ? ops : portable;
            for (size_t row = 0; row < rows; row++)
                by->tile_store(&s, tile, row, key + row * d, NULL);
            for (size_t g = 0; g < groups; g++) {
                const float *lanes[LANES];
                for (size_t lane = 0; lane < LANES; lane++)
                    lanes[lane] = g * 16 + lane < heads ? query + (g * 16 + lane) * d : NULL;
                by->pack_query(&s, packed + g * query_bytes(&s), lanes, lanes);
            }
            by->index_scores(score[build], &s, packed, weight, heads, tile, rows, scratch);
        }
        same = same && !memcmp(score[0], score[1], rows * 4);
        for (size_t h = 0; h < heads && type == TILE_Q8; h++) /* from here on as q8 has it */
            round_to_int8(query + h * d, d);
        for (size_t row = 0; row < rows; row++) {
            double sum = 0, mass = 0;
            for (size_t h = 0; h < heads; h++) {
                double dot = 0;
                for (size_t j = 0; j < d; j++)
                    dot += (double)query[h * d + j] * stored(&s, tile, key, row, j);
                sum += (double)weight[h] * fmax(dot, 0);
                mass += fabs((double)weight[h]) * sqrt((double)d);
            }
            near = near && fabs((double)score[0][row] - sum) <= 1e-6 * mass;
        }
        free(key);
        free(query);
        free(weight);
        free(scratch);
        free(tile);
        free(packed);
    }
    snprintf(name, sizeof name, "index_scores %s %s", ops->name, type_name);
    report(near && same, name, same ? "not the sums of the formula" : "not the portable build's bytes");
}

/* The bytes of a row that the cache types promise, and what q4 makes of normally distributed numbers: the
 * multiplier of a group and the uneven values must beat an even grid of fifteen values with a scale of its
 * own for every sixteen numbers. */
static void check_sizes_and_error(const Kernels *ops) {
    TileShape q6 = {TILE_Q6, 512, 64}, q4 = {TILE_Q4, 512, 64};
    report(tile_bytes(&q6) == TILE_ROWS * 436 && tile_bytes(&q4) == TILE_ROWS * 356, "row_bytes q6, q4",
           "not as documented");
    random_state = 23;
    uint8_t *tile = allocate(tile_bytes(&q4));
    float *x = normals(TILE_ROWS * 576, 1), a[512];
    double error = 0, even = 0;
    for (size_t row = 0; row < TILE_ROWS; row++) {
        const float *latent = x + row * 576;
        ops->tile_store(&q4, tile, row, latent, latent + 512);
        ops->tile_load(&q4, tile, row, a, NULL);
        for (size_t i = 0; i < 512; i += 16) {
            double max = 0;
            for (size_t j = i; j < i + 16; j++)
                max = fmax(max, fabs((double)latent[j]));
            for (size_t j = i; j < i + 16; j++) {
                double v = (double)latent[j];
                error += pow((double)a[j] - v, 2);
                even += pow(rint(v / max * 7) * max / 7 - v, 2);
            }
        }
    }
    report(error < 0.8 * even, "q4_error", "no better than an even grid");
    free(tile);
    free(x);
}

int main(int argc, char **argv) {
    static const char *const names[] = {"portable", "avx2", "avxvnni", "avx512", "neon"}, *const types[] = {
                                                                                              "f32", "bf16",
                                                                                              "q8", "q6",
                                                                                              "q4"};
    /* int8: the weights of the value sum are rounded to 255 steps of the largest one in a tile; the rest
     * is exact or f32. */
    static const double ordinary[] = {1e-6, 1e-6, 1.2e-2, 1.2e-2, 1.2e-2},
                        peaked[] = {5e-5, 5e-5, 1e-2, 1e-2, 1e-2};
    const Kernels *portable = NULL;
    once = argc > 1 && !strcmp(argv[1], "once");
    for (size_t n = 0; n < sizeof names / sizeof *names; n++) {
        const char *why = NULL;
        setenv("MLA_ISA", names[n], 1);
        const Kernels *ops = kernels_choose(&why);
        if (!ops) {
            if (n == 0) {
                printf("FAIL portable %s\n", why ? why : "");
                return 1;
            }
            printf("not here: %s\n", names[n]);
            continue;
        }
        if (n == 0)
            portable = ops;
        if (n == 0)
            check_sizes_and_error(ops);
        for (int type = 0; type < TILE_COUNT; type++) {
            if (n == 0)
                check_values(ops, (TileType)type, types[type], 1, ordinary[type]);
            if (n == 0)
                check_values(ops, (TileType)type, types[type], 30, peaked[type]);
            check_bytes(portable, ops, (TileType)type, types[type]);
            check_put_get(ops, (TileType)type, types[type]);
            check_acts(ops, (TileType)type, types[type]);
            check_hostile(ops, (TileType)type, types[type]);
            if (type <= TILE_Q8)
                check_index(portable, ops, (TileType)type, types[type]);
        }
    }
    return failures > 0;
}
