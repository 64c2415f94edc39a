// kernels_avx2_matmul.c: products of integer weights with 16-bit activations.
//
// Lanes are rows: a vector of 8 floats holds the running sums of 8 rows for one token. Group by group, the exact integer
// sum of 32 (Q6_K: 16) products joins as  sum += (scale * d) * float(isum); sum += offset * s,  each step rounded alone.
// That order is kernels_scalar.c's, so the bits are too, whatever the path, the row range or the number of tokens.
//
// One token (matrix-vector, bound by memory): rows are read in place, 8 at a time; each row's 8 partial sums are
// reduced across lanes by a tree that ends with lanes = rows.
// More tokens (matrix-matrix, bound by arithmetic): a tile of 16 rows x up to 512 columns is decoded once, as pairs of
// values with the rows interleaved, and multiplied with 6 tokens at a time; no reduction is needed.
#include "kernels_avx2_decode.h"

enum {
    TILE_ROWS = 16,
    TILE_GROUPS = 16,  // 16 rows x 512 columns x 2 bytes: 16 KiB, half of the first-level cache
    TILE_TOKENS = 6,   // 6 tokens x 16 rows: 12 accumulators of the 16 registers
};

// sum += (scale * d) * float(isum), without fused rounding.
ATTAR_INLINE __m256 add_product(__m256 sum, __m256 scale, __m256 d, __m256i isum) {
    return _mm256_add_ps(sum, _mm256_mul_ps(_mm256_mul_ps(scale, d), _mm256_cvtepi32_ps(isum)));
}

// --- one token ------------------------------------------------------------------------------------------------

// Sums of neighbouring lanes: (a0+a1, b0+b1, a2+a3, b2+b3, ...). Blends leave the shuffle ports free.
ATTAR_INLINE __m256i add_pairs(__m256i a, __m256i b) {
    const __m256i crossed = _mm256_shuffle_epi32(_mm256_blend_epi32(a, b, 0x55), 0xB1);
    return _mm256_add_epi32(_mm256_blend_epi32(a, b, 0xAA), crossed);
}

// Of two results of add_pairs: (a, b, c, d) in each half.
ATTAR_INLINE __m256i add_quads(__m256i ab, __m256i cd) {
    const __m256i crossed = _mm256_shuffle_epi32(_mm256_blend_epi32(ab, cd, 0x33), 0x4E);
    return _mm256_add_epi32(_mm256_blend_epi32(ab, cd, 0xCC), crossed);
}

ATTAR_INLINE __m256i add_halves(__m256i abcd, __m256i efgh) {
    return _mm256_add_epi32(_mm256_blend_epi32(abcd, efgh, 0xF0), _mm256_permute2x128_si256(abcd, efgh, 0x21));
}

// Lane r: the sum of all lanes of v[r].
ATTAR_INLINE __m256i reduce_8(const __m256i v[LANES]) {
    return add_halves(add_quads(add_pairs(v[0], v[1]), add_pairs(v[2], v[3])),
                      add_quads(add_pairs(v[4], v[5]), add_pairs(v[6], v[7])));
}

// Activations of one token: q [cols], d and s [groups].
typedef struct {
    const int16_t *q;
    const float *d, *s;
} token_act;

// Adds group j of the block at `rows`, group g of the activations.
ATTAR_INLINE __m256 add_group_8(uint32_t type, __m256 sum, const rows_8 *rows, int32_t j, const block_scales *scales,
                                token_act x, int64_t g) {
    const __m256i low = _mm256_loadu_si256((const __m256i *)(x.q + g * ATTAR_GROUP));
    const __m256i high = _mm256_loadu_si256((const __m256i *)(x.q + g * ATTAR_GROUP + 16));
    const __m256 d = _mm256_broadcast_ss(x.d + g);
    __m256i first[LANES], second[LANES];
    for (int r = 0; r < LANES; r++) {
        const words q = load_words(type, rows->row[r], j);
        first[r] = _mm256_madd_epi16(q.low, low);
        second[r] = _mm256_madd_epi16(q.high, high);
        if (scales_of(type) == 1) first[r] = _mm256_add_epi32(first[r], second[r]);
    }
    sum = add_product(sum, scales->scale[scales_of(type) * j], d, reduce_8(first));
    if (scales_of(type) == 2) sum = add_product(sum, scales->scale[2 * j + 1], d, reduce_8(second));
    if (has_offset(type)) sum = _mm256_add_ps(sum, _mm256_mul_ps(scales->offset[j], _mm256_broadcast_ss(x.s + g)));
    return sum;
}

ATTAR_INLINE void matvec(uint32_t type, const attar_weight *w, int32_t row0, int32_t row1, token_act x, float *y) {
    const uint64_t block_bytes = attar_type_get(type).block_bytes;
    const int32_t per_block = groups_of(type), groups = w->cols / ATTAR_GROUP;
    for (int32_t row = row0; row < row1; row += LANES) {
        rows_8 rows = rows_at(w, row, row1);
        __m256 sum = _mm256_setzero_ps();
        for (int32_t g = 0; g < groups; g += per_block) {
            block_scales scales;
            load_scales(type, &rows, &scales);
            for (int32_t j = 0; j < per_block; j++) sum = add_group_8(type, sum, &rows, j, &scales, x, g + j);
            advance(&rows, block_bytes);
        }
        store_f32(y + row, row1 - row, sum);
    }
}

// --- many tokens ----------------------------------------------------------------------------------------------

// A decoded tile. Pair p of group g and row r (values 2p, 2p + 1) is at q[g][p][r]; scales and offsets are [.][r].
typedef struct {
    _Alignas(64) int16_t q[TILE_GROUPS][ATTAR_GROUP / 2][TILE_ROWS][2];
    _Alignas(64) float scale[TILE_GROUPS][2][TILE_ROWS];
    _Alignas(64) float offset[TILE_GROUPS][TILE_ROWS];
} tile;

// Decodes group j of 8 rows into group g of the tile, rows r0 .. r0+7.
ATTAR_INLINE void decode_group(uint32_t type, const rows_8 *rows, int32_t j, tile *out, int32_t g, int32_t r0) {
    __m256i low[LANES], high[LANES];
    for (int r = 0; r < LANES; r++) {
        const words q = load_words(type, rows->row[r], j);
        low[r] = q.low;
        high[r] = q.high;
    }
    transpose_8x8(low);
    transpose_8x8(high);
    for (int p = 0; p < 8; p++) {
        _mm256_store_si256((__m256i *)out->q[g][p][r0], low[p]);
        _mm256_store_si256((__m256i *)out->q[g][p + 8][r0], high[p]);
    }
}

// Decodes groups g0 .. g0+n-1 of rows row .. row+7 (see rows_at).
ATTAR_INLINE void decode_rows(uint32_t type, const attar_weight *w, int32_t row, int32_t row1, int32_t g0, int32_t n,
                              tile *out, int32_t r0) {
    const uint64_t block_bytes = attar_type_get(type).block_bytes;
    const int32_t per_block = groups_of(type);
    rows_8 rows = rows_at(w, row, row1);
    advance(&rows, (uint64_t)(g0 / per_block) * block_bytes);
    for (int32_t g = 0; g < n; g += per_block) {
        block_scales scales;
        load_scales(type, &rows, &scales);
        for (int32_t j = 0; j < per_block; j++) {
            decode_group(type, &rows, j, out, g + j, r0);
            for (int i = 0; i < scales_of(type); i++) {
                _mm256_store_ps(out->scale[g + j][i] + r0, scales.scale[scales_of(type) * j + i]);
            }
            if (has_offset(type)) _mm256_store_ps(out->offset[g + j] + r0, scales.offset[j]);
        }
        advance(&rows, block_bytes);
    }
}

// Integer sums of `n` pairs from pair `p0` of tile group g: isum [tokens][2], lanes = rows. x: the group's first value
// of the first token; tokens are `cols` apart.
ATTAR_INLINE void dot_pairs(const tile *w, int32_t g, int32_t p0, int32_t n, const int16_t *x, int64_t cols,
                            int32_t tokens, __m256i isum[TILE_TOKENS][2]) {
    for (int32_t t = 0; t < tokens; t++) isum[t][0] = isum[t][1] = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int32_t p = p0; p < p0 + n; p++) {
        const __m256i w0 = _mm256_load_si256((const __m256i *)w->q[g][p][0]);
        const __m256i w1 = _mm256_load_si256((const __m256i *)w->q[g][p][LANES]);
        for (int32_t t = 0; t < tokens; t++) {
            int32_t pair;
            memcpy(&pair, x + t * cols + 2 * p, sizeof pair);
            const __m256i a = _mm256_set1_epi32(pair);
            isum[t][0] = _mm256_add_epi32(isum[t][0], _mm256_madd_epi16(w0, a));
            isum[t][1] = _mm256_add_epi32(isum[t][1], _mm256_madd_epi16(w1, a));
        }
    }
}

// The formats differ here only in this.
typedef struct {
    int32_t parts;  // scales in a group
    bool offset;
} tile_kind;

// sum [tokens][16] += offset * s for group g.
ATTAR_INLINE void add_offsets(const float offset[TILE_ROWS], const float *s, int64_t groups, int32_t tokens,
                              float sum[TILE_TOKENS][TILE_ROWS]) {
    for (int32_t t = 0; t < tokens; t++) {
        const __m256 factor = _mm256_broadcast_ss(s + t * groups);
        for (int32_t r = 0; r < TILE_ROWS; r += LANES) {
            const __m256 product = _mm256_mul_ps(_mm256_load_ps(offset + r), factor);
            _mm256_store_ps(sum[t] + r, _mm256_add_ps(_mm256_load_ps(sum[t] + r), product));
        }
    }
}

// Adds n groups of a tile to sum [tokens][16]. x: the tile's first activation group of the first token.
ATTAR_INLINE void add_tile(tile_kind kind, const tile *w, int32_t n, token_act x, int64_t cols, int32_t tokens,
                           float sum[TILE_TOKENS][TILE_ROWS]) {
    const int64_t groups = cols / ATTAR_GROUP;
    const int32_t pairs = ATTAR_GROUP / 2 / kind.parts;
    for (int32_t g = 0; g < n; g++) {
        for (int32_t i = 0; i < kind.parts; i++) {
            __m256i isum[TILE_TOKENS][2];
            dot_pairs(w, g, i * pairs, pairs, x.q + g * ATTAR_GROUP, cols, tokens, isum);
            for (int32_t t = 0; t < tokens; t++) {
                const __m256 d = _mm256_broadcast_ss(x.d + t * groups + g);
                for (int32_t h = 0; h < 2; h++) {
                    float *out = sum[t] + h * LANES;
                    const __m256 scale = _mm256_load_ps(w->scale[g][i] + h * LANES);
                    _mm256_store_ps(out, add_product(_mm256_load_ps(out), scale, d, isum[t][h]));
                }
            }
        }
        if (kind.offset) add_offsets(w->offset[g], x.s + g, groups, tokens, sum);
    }
}

// Where a tile's results go: columns 0 .. n_rows-1 of y [tokens, ldy]; `first` starts from zero.
typedef struct {
    float *y;
    int64_t ldy;
    int32_t n_rows;
    bool first;
} tile_output;

ATTAR_INLINE void multiply_tokens(tile_kind kind, const tile *w, int32_t n, token_act x, int64_t cols, int32_t tokens,
                                  tile_output out) {
    _Alignas(64) float sum[TILE_TOKENS][TILE_ROWS];
    for (int32_t t = 0; t < tokens; t++) {
        for (int32_t r = 0; r < TILE_ROWS; r += LANES) {
            const bool read = !out.first && r < out.n_rows;
            const __m256 before = read ? load_f32(out.y + t * out.ldy + r, out.n_rows - r) : _mm256_setzero_ps();
            _mm256_store_ps(sum[t] + r, before);
        }
    }
    add_tile(kind, w, n, x, cols, tokens, sum);
    for (int32_t t = 0; t < tokens; t++) {
        for (int32_t r = 0; r < out.n_rows; r += LANES) {
            store_f32(out.y + t * out.ldy + r, out.n_rows - r, _mm256_load_ps(sum[t] + r));
        }
    }
}

// Multiplies a tile of n groups with all tokens, a few at a time so that their sums stay in registers.
ATTAR_INLINE void multiply_tile(tile_kind kind, const tile *w, int32_t n, token_act x, int64_t cols, int32_t n_tokens,
                                tile_output out) {
    for (int32_t t = 0; t < n_tokens; t += TILE_TOKENS) {
        switch (n_tokens - t) {
            case 1: multiply_tokens(kind, w, n, x, cols, 1, out); break;
            case 2: multiply_tokens(kind, w, n, x, cols, 2, out); break;
            case 3: multiply_tokens(kind, w, n, x, cols, 3, out); break;
            case 4: multiply_tokens(kind, w, n, x, cols, 4, out); break;
            case 5: multiply_tokens(kind, w, n, x, cols, 5, out); break;
            default: multiply_tokens(kind, w, n, x, cols, TILE_TOKENS, out); break;
        }
        x.q += TILE_TOKENS * cols;
        x.d += TILE_TOKENS * (cols / ATTAR_GROUP);
        x.s += TILE_TOKENS * (cols / ATTAR_GROUP);
        out.y += TILE_TOKENS * out.ldy;
    }
}

// Not inlined: the types share three versions of this large loop.
__attribute__((noinline)) static void multiply_plain(const tile *w, int32_t n, token_act x, int64_t cols,
                                                     int32_t n_tokens, tile_output out) {
    multiply_tile((tile_kind){1, false}, w, n, x, cols, n_tokens, out);
}

__attribute__((noinline)) static void multiply_offset(const tile *w, int32_t n, token_act x, int64_t cols,
                                                      int32_t n_tokens, tile_output out) {
    multiply_tile((tile_kind){1, true}, w, n, x, cols, n_tokens, out);
}

__attribute__((noinline)) static void multiply_halves(const tile *w, int32_t n, token_act x, int64_t cols,
                                                      int32_t n_tokens, tile_output out) {
    multiply_tile((tile_kind){2, false}, w, n, x, cols, n_tokens, out);
}

ATTAR_INLINE void matmat(uint32_t type, const attar_weight *w, int32_t row0, int32_t row1, attar_act x,
                         int32_t n_tokens, float *y, int64_t ldy) {
    const int32_t groups = w->cols / ATTAR_GROUP;
    tile decoded;
    for (int32_t row = row0; row < row1; row += TILE_ROWS) {
        const int32_t n_rows = row1 - row < TILE_ROWS ? row1 - row : TILE_ROWS;
        for (int32_t g = 0; g < groups; g += TILE_GROUPS) {
            const int32_t n = groups - g < TILE_GROUPS ? groups - g : TILE_GROUPS;
            decode_rows(type, w, row, row1, g, n, &decoded, 0);
            decode_rows(type, w, row + LANES, row1, g, n, &decoded, LANES);
            const token_act act = {x.q + g * ATTAR_GROUP, x.d + g, x.s + g};
            const tile_output out = {y + row, ldy, n_rows, g == 0};
            if (scales_of(type) == 2) {
                multiply_halves(&decoded, n, act, w->cols, n_tokens, out);
            } else if (has_offset(type)) {
                multiply_offset(&decoded, n, act, w->cols, n_tokens, out);
            } else {
                multiply_plain(&decoded, n, act, w->cols, n_tokens, out);
            }
        }
    }
}

ATTAR_INLINE void matmul(uint32_t type, const attar_weight *w, int32_t row0, int32_t row1, attar_act x,
                         int32_t n_tokens, float *y, int64_t ldy) {
    if (n_tokens == 1) {
        matvec(type, w, row0, row1, (token_act){x.q, x.d, x.s}, y);
    } else {
        matmat(type, w, row0, row1, x, n_tokens, y, ldy);
    }
}

void attar_avx2_matmul(const attar_weight *w, int32_t row0, int32_t row1, attar_act x, int32_t n_tokens, float *y,
                       int64_t ldy) {
    switch (w->type) {  // each call is compiled for its type
        case ATTAR_Q4_0: matmul(ATTAR_Q4_0, w, row0, row1, x, n_tokens, y, ldy); break;
        case ATTAR_Q4_1: matmul(ATTAR_Q4_1, w, row0, row1, x, n_tokens, y, ldy); break;
        case ATTAR_Q5_0: matmul(ATTAR_Q5_0, w, row0, row1, x, n_tokens, y, ldy); break;
        case ATTAR_Q8_0: matmul(ATTAR_Q8_0, w, row0, row1, x, n_tokens, y, ldy); break;
        case ATTAR_Q4_K: matmul(ATTAR_Q4_K, w, row0, row1, x, n_tokens, y, ldy); break;
        case ATTAR_Q5_K: matmul(ATTAR_Q5_K, w, row0, row1, x, n_tokens, y, ldy); break;
        default: matmul(ATTAR_Q6_K, w, row0, row1, x, n_tokens, y, ldy); break;
    }
}
