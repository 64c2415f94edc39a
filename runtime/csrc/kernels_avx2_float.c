// kernels_avx2_float.c: products with float weights, and attention over an f16 cache.
#include "kernels_avx2.h"

enum { LANES = 8 };

// --- float weights --------------------------------------------------------------------------------------------
// Each (token, row) has one accumulator of 8 lanes, lane i taking columns i, i + 8, ..., whatever the block shape, so
// its result does not depend on the other tokens and rows. Blocks of at least 8 accumulators hide the FMA's latency.

// Columns c .. c+7 of a row of `type`, the first n of them.
ATTAR_INLINE __m256 load_weights(uint32_t type, const uint8_t *row, int64_t c, int32_t n) {
    if (type == ATTAR_F32) return load_f32((const float *)(const void *)row + c, n);
    const __m128i half = load_u16(row + 2 * c, n);
    if (type == ATTAR_F16) return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

// Columns c .. c+n-1 (n <= 8) of `rows` rows times `tokens` tokens.
ATTAR_INLINE void add_columns(uint32_t type, const uint8_t *const *data, const float *x, int64_t cols, int64_t c,
                              int32_t n, int32_t rows, int32_t tokens, __m256 sum[LANES * 2]) {
    __m256 values[4];
    for (int32_t t = 0; t < tokens; t++) values[t] = load_f32(x + t * cols + c, n);
    for (int32_t r = 0; r < rows; r++) {
        const __m256 weights = load_weights(type, data[r], c, n);
        for (int32_t t = 0; t < tokens; t++) {
            sum[r * tokens + t] = _mm256_fmadd_ps(weights, values[t], sum[r * tokens + t]);
        }
    }
}

ATTAR_INLINE void multiply_block(uint32_t type, const attar_weight *w, int32_t row, int32_t rows, const float *x,
                                 int32_t tokens, float *y, int64_t ldy) {
    const int64_t cols = w->cols;
    const uint8_t *data[LANES];
    __m256 sum[LANES * 2];
    for (int32_t r = 0; r < rows; r++) data[r] = w->data + (uint64_t)(row + r) * w->row_bytes;
    for (int32_t i = 0; i < rows * tokens; i++) sum[i] = _mm256_setzero_ps();
    int64_t c = 0;
    for (; c + LANES <= cols; c += LANES) add_columns(type, data, x, cols, c, LANES, rows, tokens, sum);
    if (c < cols) add_columns(type, data, x, cols, c, (int32_t)(cols - c), rows, tokens, sum);
    for (int32_t r = 0; r < rows; r++) {
        for (int32_t t = 0; t < tokens; t++) y[t * ldy + row + r] = sum_lanes(sum[r * tokens + t]);
    }
}

enum { BLOCK_ROWS = 4, BLOCK_TOKENS = 3 };

ATTAR_INLINE void multiply_rows(uint32_t type, const attar_weight *w, int32_t row, int32_t rows, const float *x,
                                int32_t n_tokens, float *y, int64_t ldy) {
    int32_t t = 0;
    for (; t + BLOCK_TOKENS <= n_tokens; t += BLOCK_TOKENS) {
        multiply_block(type, w, row, rows, x + (int64_t)t * w->cols, BLOCK_TOKENS, y + t * ldy, ldy);
    }
    for (; t < n_tokens; t++) multiply_block(type, w, row, rows, x + (int64_t)t * w->cols, 1, y + t * ldy, ldy);
}

ATTAR_INLINE void matmul_type(uint32_t type, const attar_weight *w, int32_t row0, int32_t row1, const float *x,
                              int32_t n_tokens, float *y, int64_t ldy) {
    int32_t row = row0;
    for (; n_tokens == 1 && row + LANES <= row1; row += LANES) multiply_block(type, w, row, LANES, x, 1, y, ldy);
    for (; row + BLOCK_ROWS <= row1; row += BLOCK_ROWS) {
        multiply_rows(type, w, row, BLOCK_ROWS, x, n_tokens, y, ldy);
    }
    for (; row < row1; row++) multiply_rows(type, w, row, 1, x, n_tokens, y, ldy);
}

void attar_avx2_matmul_f32(const attar_weight *w, int32_t row0, int32_t row1, const float *x, int32_t n_tokens,
                           float *y, int64_t ldy) {
    switch (w->type) {
        case ATTAR_F32: matmul_type(ATTAR_F32, w, row0, row1, x, n_tokens, y, ldy); break;
        case ATTAR_F16: matmul_type(ATTAR_F16, w, row0, row1, x, n_tokens, y, ldy); break;
        default: matmul_type(ATTAR_BF16, w, row0, row1, x, n_tokens, y, ldy); break;
    }
}

// --- attention ------------------------------------------------------------------------------------------------
// Query heads go in blocks of up to 4: each key and value row is converted to float once for a block.

enum { BLOCK_HEADS = 4 };

// The keys or values of one KV head: rows of head_dim f16, `stride` apart.
typedef struct {
    const uint16_t *data;
    int64_t stride;
    int32_t head_dim;
} cache_rows;

// scores[h * ATTAR_ATTEND_CHUNK + i] = q[h] . k[i] for `heads` heads and the next `keys` keys.
ATTAR_INLINE void score_keys(const float *q, cache_rows k, int32_t i, int32_t keys, int32_t heads, float *scores) {
    __m256 sum[LANES];
    for (int32_t a = 0; a < keys * heads; a++) sum[a] = _mm256_setzero_ps();
    for (int32_t j = 0; j < k.head_dim; j += LANES) {
        const int32_t n = k.head_dim - j;
        for (int32_t b = 0; b < keys; b++) {
            const __m256 key = load_f16(k.data + (i + b) * k.stride + j, n);
            for (int32_t h = 0; h < heads; h++) {
                sum[b * heads + h] = _mm256_fmadd_ps(load_f32(q + h * k.head_dim + j, n), key, sum[b * heads + h]);
            }
        }
    }
    for (int32_t b = 0; b < keys; b++) {
        for (int32_t h = 0; h < heads; h++) scores[h * ATTAR_ATTEND_CHUNK + i + b] = sum_lanes(sum[b * heads + h]);
    }
}

ATTAR_INLINE void score_chunk(const float *q, cache_rows k, int32_t n_keys, int32_t heads, float *scores) {
    const int32_t at_once = LANES / heads;
    int32_t i = 0;
    for (; i + at_once <= n_keys; i += at_once) score_keys(q, k, i, at_once, heads, scores);
    for (; i < n_keys; i++) score_keys(q, k, i, 1, heads, scores);
}

// acc[h] += sum over keys of scores[h][i] v[i], for `heads` heads and columns j .. j + 8 vectors.
ATTAR_INLINE void add_values(const float *scores, cache_rows v, int32_t n_keys, int32_t j, int32_t vectors,
                             int32_t heads, float *acc) {
    __m256 sum[LANES];
    const int32_t n = v.head_dim - j;
    for (int32_t h = 0; h < heads; h++) {
        for (int32_t c = 0; c < vectors; c++) {
            sum[h * vectors + c] = load_f32(acc + h * v.head_dim + j + c * LANES, n - c * LANES);
        }
    }
    for (int32_t i = 0; i < n_keys; i++) {
        for (int32_t c = 0; c < vectors; c++) {
            const __m256 value = load_f16(v.data + i * v.stride + j + c * LANES, n - c * LANES);
            for (int32_t h = 0; h < heads; h++) {
                const __m256 p = _mm256_broadcast_ss(scores + h * ATTAR_ATTEND_CHUNK + i);
                sum[h * vectors + c] = _mm256_fmadd_ps(p, value, sum[h * vectors + c]);
            }
        }
    }
    for (int32_t h = 0; h < heads; h++) {
        for (int32_t c = 0; c < vectors; c++) {
            store_f32(acc + h * v.head_dim + j + c * LANES, n - c * LANES, sum[h * vectors + c]);
        }
    }
}

ATTAR_INLINE void value_chunk(const float *scores, cache_rows v, int32_t n_keys, int32_t heads, float *acc) {
    const int32_t vectors = LANES / heads;
    int32_t j = 0;
    for (; j + vectors * LANES <= v.head_dim; j += vectors * LANES) {
        add_values(scores, v, n_keys, j, vectors, heads, acc);
    }
    for (; j < v.head_dim; j += LANES) add_values(scores, v, n_keys, j, 1, heads, acc);
}

static void cap_scores(float *scores, int32_t n, float cap) {
    const __m256 factor = _mm256_set1_ps(cap), inverse = _mm256_set1_ps(1.0f / cap);
    for (int32_t i = 0; i < n; i += LANES) {
        const __m256 v = load_f32(scores + i, n - i);
        store_f32(scores + i, n - i, _mm256_mul_ps(factor, tanh_f32(_mm256_mul_ps(v, inverse))));
    }
}

static float max_score(const float *scores, int32_t n, float max) {
    __m256 best = _mm256_set1_ps(max);
    int32_t i = 0;
    for (; i + LANES <= n; i += LANES) best = _mm256_max_ps(best, _mm256_loadu_ps(scores + i));
    max = max_lanes(best);
    for (; i < n; i++) max = scores[i] > max ? scores[i] : max;
    return max;
}

// scores [n] become exp(score - max); returns their sum.
static float exp_scores(float *scores, int32_t n, float max) {
    const __m256 offset = _mm256_set1_ps(max);
    __m256 sum = _mm256_setzero_ps();
    for (int32_t i = 0; i < n; i += LANES) {
        __m256 p = exp_f32(_mm256_sub_ps(load_f32(scores + i, n - i), offset));
        if (n - i < LANES) p = _mm256_and_ps(p, _mm256_castsi256_ps(lane_mask(n - i)));
        store_f32(scores + i, n - i, p);
        sum = _mm256_add_ps(sum, p);
    }
    return sum_lanes(sum);
}

// One head's step of the online softmax: acc [head_dim] and the sum so far are rescaled to the new maximum.
static void softmax_step(float *scores, int32_t n, attar_softmax *state, float *acc, int32_t head_dim) {
    const float max = max_score(scores, n, state->max);
    if (max > state->max) {
        const float shrink = expf(state->max - max);
        const __m256 factor = _mm256_set1_ps(shrink);
        for (int32_t j = 0; j < head_dim; j += LANES) {
            store_f32(acc + j, head_dim - j, _mm256_mul_ps(factor, load_f32(acc + j, head_dim - j)));
        }
        state->sum *= shrink;
        state->max = max;
    }
    state->sum += exp_scores(scores, n, max);
}

ATTAR_INLINE void attend_chunk(const float *q, cache_rows k, cache_rows v, int32_t n_keys, int32_t heads,
                               float softcap, attar_softmax *state, float *acc, float *scores) {
    score_chunk(q, k, n_keys, heads, scores);
    for (int32_t h = 0; h < heads; h++) {
        float *row = scores + h * ATTAR_ATTEND_CHUNK;
        if (softcap != 0.0f) cap_scores(row, n_keys, softcap);
        softmax_step(row, n_keys, state + h, acc + h * k.head_dim, k.head_dim);
    }
    value_chunk(scores, v, n_keys, heads, acc);
}

static void attend_heads(const float *q, cache_rows k, cache_rows v, int32_t n_keys, int32_t heads, float softcap,
                         attar_softmax *state, float *acc, float *scores) {
    switch (heads) {
        case 1: attend_chunk(q, k, v, n_keys, 1, softcap, state, acc, scores); break;
        case 2: attend_chunk(q, k, v, n_keys, 2, softcap, state, acc, scores); break;
        case 3: attend_chunk(q, k, v, n_keys, 3, softcap, state, acc, scores); break;
        default: attend_chunk(q, k, v, n_keys, BLOCK_HEADS, softcap, state, acc, scores); break;
    }
}

void attar_avx2_attend(const float *q, const uint16_t *k, const uint16_t *v, int64_t stride, int32_t n_keys,
                       int32_t n_heads, int32_t head_dim, float softcap, attar_softmax *state, float *acc,
                       float *scores) {
    for (int32_t first = 0; first < n_keys; first += ATTAR_ATTEND_CHUNK) {
        const int32_t n = n_keys - first < ATTAR_ATTEND_CHUNK ? n_keys - first : ATTAR_ATTEND_CHUNK;
        const cache_rows keys = {k + first * stride, stride, head_dim}, values = {v + first * stride, stride, head_dim};
        for (int32_t h = 0; h < n_heads; h += BLOCK_HEADS) {
            const int32_t heads = n_heads - h < BLOCK_HEADS ? n_heads - h : BLOCK_HEADS;
            attend_heads(q + h * head_dim, keys, values, n, heads, softcap, state + h, acc + h * head_dim,
                         scores + h * ATTAR_ATTEND_CHUNK);
        }
    }
}
