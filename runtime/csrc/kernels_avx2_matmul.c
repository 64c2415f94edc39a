// kernels_avx2_matmul.c: products of integer weights with 16-bit activations.
//
// Lanes are rows: a vector of 8 floats holds the running sums of 8 rows for one token. Group by group, the exact
// integer sum of 32 (Q6_K: 16) products joins as  sum += (scale * d) * float(isum); sum += offset * s,  each step
// rounded alone. That order is kernels_scalar.c's, so the bits are too, whatever the path, the row range or the number
// of tokens.
#include "x86_matvec.h"

enum { TILE_TOKENS = 6 };  // 6 tokens x 16 rows: 12 accumulators of the 16 registers

// --- decoding -------------------------------------------------------------------------------------------------

// Decodes group j of 8 rows into group g of the tile, rows r0 .. r0+7.
ATTAR_INLINE void decode_group(uint32_t type, const rows_8 *rows, int32_t j, attar_tile *out, int32_t g, int32_t r0) {
    const __m256i bias = _mm256_set1_epi16(bias_of(type));
    __m256i low[ROWS_8], high[ROWS_8];
    for (int r = 0; r < ROWS_8; r++) {
        const words q = load_words(type, rows->row[r], j);
        low[r] = _mm256_sub_epi16(q.low, bias);
        high[r] = _mm256_sub_epi16(q.high, bias);
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
                              attar_tile *out, int32_t r0) {
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

ATTAR_INLINE void decode_tile(uint32_t type, const attar_weight *w, int32_t row, int32_t row1, int32_t g,
                              attar_tile *out) {
    out->parts = scales_of(type);
    out->has_offset = has_offset(type);
    decode_rows(type, w, row, row1, g, out->n, out, 0);
    decode_rows(type, w, row + ROWS_8, row1, g, out->n, out, ROWS_8);
}

static void decode_any_tile(const attar_weight *w, int32_t row, int32_t row1, int32_t g, attar_tile *out) {
    switch (w->type) {  // each call is compiled for its type
        case ATTAR_Q4_0: decode_tile(ATTAR_Q4_0, w, row, row1, g, out); break;
        case ATTAR_Q4_1: decode_tile(ATTAR_Q4_1, w, row, row1, g, out); break;
        case ATTAR_Q5_0: decode_tile(ATTAR_Q5_0, w, row, row1, g, out); break;
        case ATTAR_Q8_0: decode_tile(ATTAR_Q8_0, w, row, row1, g, out); break;
        case ATTAR_Q4_K: decode_tile(ATTAR_Q4_K, w, row, row1, g, out); break;
        case ATTAR_Q5_K: decode_tile(ATTAR_Q5_K, w, row, row1, g, out); break;
        default: decode_tile(ATTAR_Q6_K, w, row, row1, g, out); break;
    }
}

void attar_avx2_matmul_tiles(const attar_weight *w, int32_t row0, int32_t row1, attar_act x, int32_t n_tokens, float *y,
                             int64_t ldy, attar_multiply_tile multiply) {
    const int32_t groups = w->cols / ATTAR_GROUP;
    attar_tile tile;
    for (int32_t row = row0; row < row1; row += TILE_ROWS) {
        const int32_t n_rows = row1 - row < TILE_ROWS ? row1 - row : TILE_ROWS;
        for (int32_t g = 0; g < groups; g += TILE_GROUPS) {
            tile.n = groups - g < TILE_GROUPS ? groups - g : TILE_GROUPS;
            decode_any_tile(w, row, row1, g, &tile);
            const token_act act = {x.q + g * ATTAR_GROUP, x.d + g, x.s + g};
            multiply(&tile, act, w->cols, n_tokens, (attar_tile_output){y + row, ldy, n_rows, g == 0});
        }
    }
}

// --- multiplying ----------------------------------------------------------------------------------------------

// Adds one pair of values to the integer sums of one token and 16 rows, [2] vectors of 8.
ATTAR_INLINE void add_pair(__m256i sum[2], __m256i w0, __m256i w1, const int16_t *x) {
    int32_t pair;
    memcpy(&pair, x, sizeof pair);
    const __m256i a = _mm256_set1_epi32(pair);
    sum[0] = _mm256_add_epi32(sum[0], _mm256_madd_epi16(w0, a));
    sum[1] = _mm256_add_epi32(sum[1], _mm256_madd_epi16(w1, a));
    // Finishes this token before the next: gcc 12 otherwise starts all six at once and runs out of registers, at 2/3 of
    // the speed.
    __asm__ volatile("" : "+x"(sum[0]), "+x"(sum[1]));
}

// Integer sums of `n` pairs of a tile, w [n][16 rows][2], with a few tokens, `cols` apart in x.
ATTAR_INLINE void dot_pairs(const int16_t (*w)[TILE_ROWS][2], int32_t n, const int16_t *x, int64_t cols, int32_t tokens,
                            __m256i isum[TILE_TOKENS][2]) {
    for (int32_t t = 0; t < tokens; t++) isum[t][0] = isum[t][1] = _mm256_setzero_si256();
    for (int32_t p = 0; p < n; p++) {
        const __m256i w0 = _mm256_load_si256((const __m256i *)w[p][0]);
        const __m256i w1 = _mm256_load_si256((const __m256i *)w[p][ROWS_8]);
        for (int32_t t = 0; t < tokens; t++) add_pair(isum[t], w0, w1, x + t * cols + 2 * p);
    }
}

// Adds a group's integer sums, and its offset where the format has one, to 8 running sums in memory.
ATTAR_INLINE void add_group(float *sum, __m256i isum, const float *scale, float d, bool has_offset, const float *offset,
                            float s) {
    __m256 v = add_product(_mm256_load_ps(sum), _mm256_load_ps(scale), _mm256_set1_ps(d), isum);
    if (has_offset) v = _mm256_add_ps(v, _mm256_mul_ps(_mm256_load_ps(offset), _mm256_set1_ps(s)));
    _mm256_store_ps(sum, v);
}

// Adds a tile to sum [tokens][16]. x: the tile's first activation group of the first token.
ATTAR_INLINE void add_tile(const attar_tile *w, int32_t parts, bool offset, token_act x, int64_t cols, int32_t tokens,
                           float sum[TILE_TOKENS][TILE_ROWS]) {
    const int64_t groups = cols / ATTAR_GROUP;
    const int32_t pairs = ATTAR_GROUP / 2 / parts;
    for (int32_t g = 0; g < w->n; g++) {
        for (int32_t i = 0; i < parts; i++) {
            __m256i isum[TILE_TOKENS][2];
            dot_pairs(w->q[g] + i * pairs, pairs, x.q + g * ATTAR_GROUP + 2 * i * pairs, cols, tokens, isum);
            for (int32_t t = 0; t < tokens; t++) {
                const float d = x.d[t * groups + g], s = x.s[t * groups + g];
                for (int32_t h = 0; h < 2; h++) {
                    const int32_t r = h * ROWS_8;
                    add_group(sum[t] + r, isum[t][h], w->scale[g][i] + r, d, offset, w->offset[g] + r, s);
                }
            }
        }
    }
}

// A few tokens, whose sums stay in registers and the first-level cache.
ATTAR_INLINE void multiply_tokens(const attar_tile *w, int32_t parts, bool offset, token_act x, int64_t cols,
                                  int32_t tokens, attar_tile_output out) {
    _Alignas(64) float sum[TILE_TOKENS][TILE_ROWS];
    for (int32_t t = 0; t < tokens; t++) {
        for (int32_t r = 0; r < TILE_ROWS; r += ROWS_8) {
            const bool read = !out.first && r < out.n_rows;
            const __m256 before = read ? vec_load(out.y + t * out.ldy + r, out.n_rows - r) : _mm256_setzero_ps();
            _mm256_store_ps(sum[t] + r, before);
        }
    }
    add_tile(w, parts, offset, x, cols, tokens, sum);
    for (int32_t t = 0; t < tokens; t++) {
        for (int32_t r = 0; r < out.n_rows; r += ROWS_8) {
            vec_store(out.y + t * out.ldy + r, out.n_rows - r, _mm256_load_ps(sum[t] + r));
        }
    }
}

// All tokens, a few at a time; `parts` and `offset` are the tile's, as constants.
ATTAR_INLINE void multiply_kind(const attar_tile *w, int32_t parts, bool offset, token_act x, int64_t cols,
                                int32_t n_tokens, attar_tile_output out) {
    int32_t step;
    for (int32_t t = 0; t < n_tokens; t += step) {
        const int64_t at = t * cols;
        const token_act here = {x.q + at, x.d + at / ATTAR_GROUP, x.s + at / ATTAR_GROUP};
        const attar_tile_output there = {out.y + t * out.ldy, out.ldy, out.n_rows, out.first};
        if (n_tokens - t >= TILE_TOKENS) {
            multiply_tokens(w, parts, offset, here, cols, step = TILE_TOKENS, there);
        } else if (n_tokens - t >= 2) {
            multiply_tokens(w, parts, offset, here, cols, step = 2, there);
        } else {
            multiply_tokens(w, parts, offset, here, cols, step = 1, there);
        }
    }
}

static void multiply_tile(const attar_tile *w, token_act x, int64_t cols, int32_t n_tokens, attar_tile_output out) {
    if (w->parts == 2) {
        multiply_kind(w, 2, false, x, cols, n_tokens, out);
    } else if (w->has_offset) {
        multiply_kind(w, 1, true, x, cols, n_tokens, out);
    } else {
        multiply_kind(w, 1, false, x, cols, n_tokens, out);
    }
}

void attar_avx2_matmul(const attar_weight *w, int32_t row0, int32_t row1, attar_act x, int32_t n_tokens, float *y,
                       int64_t ldy) {
    if (n_tokens == 1) {
        matvec(w, row0, row1, (token_act){x.q, x.d, x.s}, y);
    } else {
        attar_avx2_matmul_tiles(w, row0, row1, x, n_tokens, y, ldy, multiply_tile);
    }
}
