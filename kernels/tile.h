/* kernels/tile.h: tiles of cached rows: their layout, rows in and out. Part of kernels.c, compiled once for
 * each instruction set on the vectors of simd.h. kernels.h describes the tiles; sixteen queries against them
 * are attention.h.
 *
 * Q8, Q6 and Q4 rows are read in the same way, as int8 with one scale for each part. A q6 or q4 row has
 * fewer different integers and is packed. The attention kernel reads units, four dimensions of sixteen rows
 * in 64 bytes; packed rows are kept and unpacked in groups of four units, by unpack() alone. */

#include <float.h>
#include <stdbool.h>

/* ---- layout --------------------------------------------------------------------------------- */

enum {
    SUB_ROWS = 16, /* rows of a sub-tile */
    UNIT = 64,     /* bytes: 4 dimensions of 16 rows, or of 16 lanes */
    GROUP = 16,    /* dimensions: four units */
    GROUP_BYTES = 4 * UNIT,
    Q6_GROUP = 3 * UNIT,
    Q4_GROUP = 2 * UNIT
};

/* The sixteen values of a q4 number: of all such sets with 127 as its largest, the one of least squared
 * error on groups of 16 normally distributed numbers whose number of largest magnitude is put at 127
 * (Lloyd's alternation of nearest values and means, then rounded). */
static const int8_t Q4_VALUES[16] = {-113, -91, -72, -55, -40, -26, -12, 1, 14, 27, 41, 55, 70, 86, 105, 127};

static inline bool is_int8(uint32_t type) { return type >= TILE_Q8; }
static inline bool is_packed(uint32_t type) { return type > TILE_Q8; }

static inline size_t units(size_t d) { return div_up(d, 4); }
static inline size_t all_units(const TileShape *s) { return units(s->d1) + units(s->d2); }
static inline size_t groups(size_t d) { return div_up(d, GROUP); }

/* Part 0 is a, part 1 is b. */
static inline size_t part_size(const TileShape *s, int part) { return part ? s->d2 : s->d1; }
static inline TileType packing(const TileShape *s, int part) { /* part b of a q4 row is not packed */
    return s->type == TILE_Q6 ? TILE_Q6 : s->type == TILE_Q4 && part == 0 ? TILE_Q4 : TILE_Q8;
}
static inline size_t group_bytes(const TileShape *s, int part) {
    return packing(s, part) == TILE_Q6 ? Q6_GROUP : packing(s, part) == TILE_Q4 ? Q4_GROUP : GROUP_BYTES;
}

/* Where a part begins in a sub-tile; behind both: the multipliers of a q4 sub-tile, then the scales. */
static inline size_t part_at(const TileShape *s, int part) {
    if (part == 0)
        return 0;
    return s->type == TILE_Q8 ? units(s->d1) * UNIT : groups(s->d1) * group_bytes(s, 0);
}
static inline size_t multipliers_at(const TileShape *s) {
    return part_at(s, 1) + (s->type == TILE_Q8 ? units(s->d2) * UNIT : groups(s->d2) * group_bytes(s, 1));
}
static inline size_t scales_at(const TileShape *s) {
    return multipliers_at(s) + (s->type == TILE_Q4 ? groups(s->d1) * SUB_ROWS : 0);
}
/* At the end of a sub-tile, for each part that there is: the rows' scales in f32, then for each the sums of
 * the integers, int32, in q8; the scales in f16 in q6 and q4. */
static inline size_t parts(const TileShape *s) { return s->d2 ? 2 : 1; }
static inline size_t sub_tile_bytes(const TileShape *s) {
    return scales_at(s) + parts(s) * SUB_ROWS * (s->type == TILE_Q8 ? 8 : sizeof(uint16_t));
}
static inline float *q8_scales(const TileShape *s, const uint8_t *sub, int part) {
    return (float *)(void *)(uintptr_t)(sub + scales_at(s)) + part * SUB_ROWS;
}
static inline int32_t *q8_sums(const TileShape *s, const uint8_t *sub, int part) {
    return (int32_t *)(void *)(uintptr_t)(sub + scales_at(s)) + ((int)parts(s) + part) * SUB_ROWS;
}
static inline float row_scale(const TileShape *s, const uint8_t *sub, int part, size_t row) {
    if (s->type == TILE_Q8)
        return q8_scales(s, sub, part)[row];
    return f32_from_f16(((const uint16_t *)(sub + scales_at(s)))[part * SUB_ROWS + (int)row]);
}

#ifdef ISA_portable /* the sizes are the same for all: once */
size_t tile_bytes(const TileShape *s) {
    size_t d = (size_t)s->d1 + s->d2;
    switch (s->type) {
    case TILE_F32: return TILE_ROWS * d * 4;
    case TILE_BF16: return TILE_ROWS * d * 2;
    default: return TILE_ROWS / SUB_ROWS * sub_tile_bytes(s);
    }
}
#endif

/* ---- rows in -------------------------------------------------------------------------------- */

/* max|x|; NaN if some x is infinite or NaN, which as integers would look like numbers. */
static float largest_of(const float *x, size_t n) {
    vf largest = vf_set1(0.0f), differences = vf_set1(0.0f);
    for (size_t i = 0; i < n; i += LANES) {
        vf v = load_up_to(x + i, n - i, 0.0f);
        largest = vf_max(vf_abs(v), largest);
        differences = vf_add(differences, vf_sub(v, v));
    }
    return vf_any_nan(differences) ? NAN : vf_largest(largest);
}

/* n numbers as int8 with one scale: q = x * (127 / max|x|), scale = max|x| / 127, NaN if one is not
 * finite. A part of zeros, or of numbers so small that 127 / max overflows, becomes zeros. Four numbers go
 * to each unit; `flip` 0x80 stores q + 128. Zeros past n. */
static void quantize_part(uint8_t *unit, const float *x, size_t n, uint8_t flip, float *scale, int32_t *sum) {
    float max = largest_of(x, n);
    bool zeros = max <= 1e-36f;
    vi total = vi_set1(0);
    for (size_t i = 0; i < n; i += LANES) {
        vi q = to_integers(load_up_to(x + i, n - i, 0.0f), zeros ? 0.0f : 127.0f / max, 127);
        total = vi_add(total, q);
        uint8_t bytes[LANES];
        vi_to_s8((int8_t *)bytes, q);
        for (size_t j = 0; j < LANES; j++)
            bytes[j] ^= flip;
        for (size_t j = 0; j < LANES && i + j < n; j += 4)
            memcpy(unit + (i + j) / 4 * UNIT, bytes + j, 4);
    }
    *scale = zeros ? 0.0f : max / 127.0f;
    *sum = vi_sum(total);
}

/* pack_*: sixteen numbers of a row, n and zeros, into a group, where the row has bytes 4 row .. 4 row + 3
 * of each 64. The scale is what is stored: rounded first, then the integers. */

static void pack_q8(uint8_t *group, size_t row, const float *x, size_t n, float scale) {
    int8_t q[GROUP];
    vi_to_s8(q, to_integers(vf_load_n(x, n, 0.0f), scale > 0 ? 1 / scale : 0.0f, 127));
    for (size_t u = 0; u < 4; u++)
        memcpy(group + u * UNIT + row * 4, q + u * 4, 4);
}

/* Integers 4q with q in -31 .. 31: six bits, on top of a byte. */
static void pack_q6(uint8_t *group, size_t row, const float *x, size_t n, float scale) {
    uint8_t q[GROUP];
    vi_to_s8((int8_t *)q,
             vi_shl(to_integers(vf_load_n(x, n, 0.0f), scale > 0 ? 1 / (4 * scale) : 0.0f, 31), 2));
    for (size_t j = 0; j < 4; j++) {
        group[row * 4 + j] = (uint8_t)(q[j] >> 4 | (q[4 + j] & 0xf0));
        group[UNIT + row * 4 + j] = (uint8_t)(q[8 + j] >> 4 | (q[12 + j] & 0xf0));
        group[2 * UNIT + row * 4 + j] =
            (uint8_t)((q[j] & 12) >> 2 | (q[4 + j] & 12) | (q[8 + j] & 12) << 2 | (q[12 + j] & 12) << 4);
    }
}

/* The number of largest magnitude is put at 127 of the values; the multiplier, which does that, may be
 * negative. */
static void pack_q4(uint8_t *group, size_t row, const float *x, size_t n, float scale, int8_t *multiplier) {
    vf v = vf_load_n(x, n, 0.0f), zero = vf_set1(0.0f);
    float top = vf_largest(vf_max(v, zero)), bottom = vf_largest(vf_max(vf_sub(zero, v), zero));
    float peak = top >= bottom ? top : -bottom;
    int8_t all[LANES];
    vi_to_s8(all, to_integers(vf_set1(peak), scale > 0 ? 128.0f / 127.0f / scale : 0.0f, 127));
    *multiplier = all[0];

    float one = scale * (float)*multiplier / 128, y[GROUP]; /* what a value of 1 is worth */
    vf_store(y, vf_mul(v, vf_set1(*multiplier ? 1 / one : 0.0f)));
    unsigned code[GROUP] = {0};
    for (size_t k = 0; k < 15; k++) { /* the nearest value has as many values below it as y has midpoints */
        float midpoint = (float)(Q4_VALUES[k] + Q4_VALUES[k + 1]) / 2;
        for (size_t i = 0; i < GROUP; i++)
            code[i] += y[i] > midpoint;
    }
    for (size_t j = 0; j < 4; j++) {
        group[row * 4 + j] = (uint8_t)(code[j] | code[4 + j] << 4);
        group[UNIT + row * 4 + j] = (uint8_t)(code[8 + j] | code[12 + j] << 4);
    }
}

static void put_packed(const TileShape *s, uint8_t *sub, size_t row, int part, const float *x) {
    size_t n = part_size(s, part);
    bool q6 = packing(s, part) == TILE_Q6, q4 = packing(s, part) == TILE_Q4;
    float largest_integer = q6 ? 4 * 31 : q4 ? (127 * 127 + 64) >> 7 : 127;
    uint16_t half = f16_from_f32(largest_of(x, n) / largest_integer);
    float scale = f32_from_f16(half);
    memcpy(sub + scales_at(s) + ((size_t)part * SUB_ROWS + row) * sizeof half, &half, sizeof half);
    for (size_t i = 0; i < n; i += GROUP) {
        uint8_t *group = sub + part_at(s, part) + i / GROUP * group_bytes(s, part);
        size_t here = min(n - i, GROUP);
        if (q6)
            pack_q6(group, row, x + i, here, scale);
        else if (q4)
            pack_q4(group, row, x + i, here, scale,
                    (int8_t *)sub + multipliers_at(s) + i / GROUP * SUB_ROWS + row);
        else
            pack_q8(group, row, x + i, here, scale);
    }
}

static void store_bf16(uint16_t *to, const float *x, size_t n) {
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        vf_to_bf16(to + i, vf_load(x + i));
    for (; i < n; i++)
        to[i] = bf16_from_f32(x[i]);
}

static void tile_store(const TileShape *s, void *tile, size_t row, const float *a, const float *b) {
    size_t at = row * ((size_t)s->d1 + s->d2);
    if (s->type == TILE_F32) {
        memcpy((float *)tile + at, a, s->d1 * sizeof *a);
        if (s->d2)
            memcpy((float *)tile + at + s->d1, b, s->d2 * sizeof *b);
    } else if (s->type == TILE_BF16) {
        store_bf16((uint16_t *)tile + at, a, s->d1);
        store_bf16((uint16_t *)tile + at + s->d1, b, s->d2);
    } else {
        uint8_t *sub = (uint8_t *)tile + row / SUB_ROWS * sub_tile_bytes(s);
        size_t r = row % SUB_ROWS;
        if (is_packed(s->type)) {
            put_packed(s, sub, r, 0, a);
            if (s->d2)
                put_packed(s, sub, r, 1, b);
            return;
        }
        quantize_part(sub + r * 4, a, s->d1, 0, q8_scales(s, sub, 0) + r, q8_sums(s, sub, 0) + r);
        if (s->d2)
            quantize_part(sub + part_at(s, 1) + r * 4, b, s->d2, 0, q8_scales(s, sub, 1) + r,
                          q8_sums(s, sub, 1) + r);
    }
}

/* ---- rows out ------------------------------------------------------------------------------- */

/* Four units of 4q: their upper nibbles lie in two units, two bits more of all four in a third. */
OP void unpack_q6(int8_t *to, const uint8_t *group) {
    vi nibble = vi_set1((int32_t)0xf0f0f0f0), rest = vi_set1(0x0c0c0c0c);
    vi x = vi_load((const int32_t *)group), y = vi_load((const int32_t *)(group + UNIT)),
       z = vi_load((const int32_t *)(group + 2 * UNIT));
    vi_store((int32_t *)to, vi_add(vi_and(vi_shl(x, 4), nibble), vi_and(vi_shl(z, 2), rest)));
    vi_store((int32_t *)(to + UNIT), vi_add(vi_and(x, nibble), vi_and(z, rest)));
    vi_store((int32_t *)(to + 2 * UNIT), vi_add(vi_and(vi_shl(y, 4), nibble), vi_and(vi_sar(z, 2), rest)));
    vi_store((int32_t *)(to + 3 * UNIT), vi_add(vi_and(y, nibble), vi_and(vi_sar(z, 4), rest)));
}

OP void unpack_q4(int8_t *to, const uint8_t *group, const int8_t *multipliers, vt values) {
    vi multiplier = vi_from_s8(multipliers);
    UNROLL for (int i = 0; i < 2; i++) {
        vb low, high;
        vb_q4(&low, &high, group + i * UNIT, values);
        vb_store_times(to + 2 * i * UNIT, low, multiplier);
        vb_store_times(to + (2 * i + 1) * UNIT, high, multiplier);
    }
}

/* Four units of a part that is packed as in `type`, a constant. multipliers: the group's [16], of q4. */
OP void unpack(const TileType type, int8_t *to, const uint8_t *group, const int8_t *multipliers) {
    if (type == TILE_Q6)
        unpack_q6(to, group);
    else if (type == TILE_Q4)
        unpack_q4(to, group, multipliers, vt_load(Q4_VALUES));
    else
        memcpy(to, group, GROUP_BYTES);
}

/* Group `group` of a part of a sub-tile, as four q8 units; dimensions past the part's end are 0. */
static void unpack_group(const TileShape *s, const uint8_t *sub, int part, size_t group,
                         int8_t to[GROUP_BYTES]) {
    const uint8_t *from = sub + part_at(s, part) + group * group_bytes(s, part);
    const int8_t *multipliers = (const int8_t *)sub + multipliers_at(s) + group * SUB_ROWS;
    if (packing(s, part) == TILE_Q6)
        unpack(TILE_Q6, to, from, NULL);
    else if (packing(s, part) == TILE_Q4)
        unpack(TILE_Q4, to, from, multipliers);
    else
        memcpy(to, from, min(units(part_size(s, part)) - group * 4, 4) * UNIT);
    for (size_t d = part_size(s, part); d < (group + 1) * GROUP; d++)
        for (size_t row = 0; row < SUB_ROWS; row++)
            to[d % GROUP / 4 * UNIT + row * 4 + d % 4] = 0;
}

/* How far ahead memory is asked for: the next sub-tile, while this one is used. */
enum { UNPACK_AHEAD = 8192 };

/* n whole groups; returns the sum of each row's integers, where dot4 needs it. */
OP vi unpack_groups(const TileType type, int8_t *to, const uint8_t *group, size_t bytes,
                    const int8_t *multipliers, size_t n) {
    vi sum[4]; /* four chains, because one would wait for itself */
    UNROLL for (int k = 0; k < 4; k++) sum[k] = vi_set1(0);
    for (size_t g = 0; g < n; g++) {
        for (size_t i = 0; i < bytes; i += UNIT)
            PREFETCH(group + g * bytes + i + UNPACK_AHEAD);
        unpack(type, to + g * GROUP_BYTES, group + g * bytes, multipliers + g * SUB_ROWS);
        if (DOT4_NEEDS_SUM)
            UNROLL for (int k = 0; k < 4; k++) sum[k] = vi_add_bytes(sum[k], to + g * GROUP_BYTES + k * UNIT);
    }
    return vi_add(vi_add(sum[0], sum[1]), vi_add(sum[2], sum[3]));
}

static vi unpack_part(const TileShape *s, const uint8_t *sub, int part, int8_t *to) {
    const uint8_t *group = sub + part_at(s, part);
    const int8_t *multipliers = (const int8_t *)sub + multipliers_at(s);
    size_t n = part_size(s, part) / GROUP, bytes = group_bytes(s, part);
    vi sum = packing(s, part) == TILE_Q6   ? unpack_groups(TILE_Q6, to, group, bytes, multipliers, n)
             : packing(s, part) == TILE_Q4 ? unpack_groups(TILE_Q4, to, group, bytes, multipliers, n)
                                           : unpack_groups(TILE_Q8, to, group, bytes, multipliers, n);
    if (part_size(s, part) % GROUP) {
        unpack_group(s, sub, part, n, to + n * GROUP_BYTES);
        for (size_t k = 0; k < 4; k++)
            sum = vi_add_bytes(sum, to + n * GROUP_BYTES + k * UNIT);
    }
    return sum;
}

/* A sub-tile of a q6 or q4 tile as one of q8: same integers and scales. */
static void unpack_sub_tile(const TileShape *s, const uint8_t *from, uint8_t *sub) {
    TileShape q8 = {TILE_Q8, s->d1, s->d2};
    vi sum[2];
    /* a's last group may reach into b's place, b's into the scales', and where there is no b, a's into the
     * next sub-tile's: each is filled later */
    for (int part = 0; part < (int)parts(s); part++)
        sum[part] = unpack_part(s, from, part, (int8_t *)sub + part_at(&q8, part));
    for (int part = 0; part < (int)parts(s); part++) {
        vi_store(q8_sums(&q8, sub, part), sum[part]);
        vf_store(q8_scales(&q8, sub, part),
                 vf_from_f16(from + scales_at(s) + (size_t)part * SUB_ROWS * sizeof(uint16_t)));
    }
}

/* n numbers of a part of a row, from number `from` on. */
static void tile_read(const TileShape *s, const void *tile, size_t row, int part, size_t from, size_t n,
                      float *out) {
    size_t at = row * ((size_t)s->d1 + s->d2) + (part ? s->d1 : 0) + from;
    if (s->type == TILE_F32) {
        memcpy(out, (const float *)tile + at, n * sizeof *out);
    } else if (s->type == TILE_BF16) {
        const uint16_t *h = (const uint16_t *)tile + at;
        for (size_t i = 0; i < n; i++)
            out[i] = f32_from_bf16(h[i]);
    } else {
        const uint8_t *sub = (const uint8_t *)tile + row / SUB_ROWS * sub_tile_bytes(s);
        size_t r = row % SUB_ROWS, unpacked = SIZE_MAX;
        float scale = row_scale(s, sub, part, r);
        int8_t q[GROUP_BYTES];
        for (size_t i = from; i < from + n; i++) {
            if (i / GROUP != unpacked) {
                unpacked = i / GROUP;
                unpack_group(s, sub, part, unpacked, q);
            }
            out[i - from] = (float)q[i % GROUP / 4 * UNIT + r * 4 + i % 4] * scale;
        }
    }
}

static void tile_load(const TileShape *s, const void *tile, size_t row, float *a, float *b) {
    if (a)
        tile_read(s, tile, row, 0, 0, s->d1, a);
    if (b && s->d2) /* else it has no scale either */
        tile_read(s, tile, row, 1, 0, s->d2, b);
}

/* The bytes of a row are every 16th of an array of rows, `size` bytes each time. */
static void copy_column(uint8_t *to, size_t to_row, const uint8_t *from, size_t from_row, size_t begin,
                        size_t end, size_t size) {
    for (size_t at = begin; at < end; at += SUB_ROWS * size)
        memcpy(to + at + to_row * size, from + at + from_row * size, size);
}

static void tile_copy(const TileShape *s, void *to, size_t to_row, const void *from, size_t from_row) {
    if (!is_int8(s->type)) {
        size_t bytes = tile_bytes(s) / TILE_ROWS;
        memcpy((uint8_t *)to + to_row * bytes, (const uint8_t *)from + from_row * bytes, bytes);
        return;
    }
    uint8_t *out = (uint8_t *)to + to_row / SUB_ROWS * sub_tile_bytes(s);
    const uint8_t *in = (const uint8_t *)from + from_row / SUB_ROWS * sub_tile_bytes(s);
    to_row %= SUB_ROWS;
    from_row %= SUB_ROWS;
    copy_column(out, to_row, in, from_row, 0, multipliers_at(s), 4);
    copy_column(out, to_row, in, from_row, multipliers_at(s), scales_at(s), 1);
    copy_column(out, to_row, in, from_row, scales_at(s), sub_tile_bytes(s), s->type == TILE_Q8 ? 4 : 2);
}

/* Part a of a sub-tile's rows, from x's row `first` on, to the int8 form of activations. A row's one scale
 * serves every block of 32. */
static void sub_tile_acts(const TileShape *s, const uint8_t *sub, Activations *x, size_t first) {
    size_t rows = min(x->rows - first, SUB_ROWS), blocks = x->stride / 32;
    for (size_t block = 0; block < blocks; block++) {
        int8_t units_of[2 * GROUP_BYTES] = {0};
        for (size_t g = 0; g < 2; g++)
            if (2 * block + g < groups(s->d1))
                unpack_group(s, sub, 0, 2 * block + g, units_of + g * GROUP_BYTES);
        for (size_t r = 0; r < rows; r++) {
            size_t at = first * blocks + block * rows + r;
            int8_t *q = x->q + at * 32;
            for (size_t u = 0; u < 8; u++)
                memcpy(q + u * 4, units_of + u * UNIT + r * 4, 4);
            x->scale[at] = row_scale(s, sub, 0, r);
            x->start[at] = -128 * vi_sum(vi_add(vi_from_s8(q), vi_from_s8(q + 16)));
        }
    }
}

static void tile_activations(const TileShape *s, const void *tile, Activations *x) {
    enum { AT_ONCE = 256 }; /* a multiple of 32, as store_row() wants it */
    float part[AT_ONCE];
    if (is_int8(s->type) && !x->f) {
        for (size_t row = 0; row < x->rows; row += SUB_ROWS)
            sub_tile_acts(s, (const uint8_t *)tile + row / SUB_ROWS * sub_tile_bytes(s), x, row);
        return;
    }
    for (size_t row = 0; row < x->rows; row++) {
        for (size_t i = 0; i < s->d1; i += AT_ONCE) {
            size_t n = min(s->d1 - i, AT_ONCE);
            tile_read(s, tile, row, 0, i, n, part);
            store_row(x, row, i, part, n);
        }
    }
}
