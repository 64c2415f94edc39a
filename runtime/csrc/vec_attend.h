// vec_attend.h: attention over an f16 cache with a `vec`. Include after vec_avx2.h or vec_avx512.h.
//
// The online softmax of Milakov & Gimelshein, 2018, arXiv:1805.02867, a chunk of keys at a time: scores, running
// maximum, exponentials, weighted values. Query heads go in blocks of up to 4, so that each key and value row is read
// and converted once for a block.
#ifndef ATTAR_VEC_ATTEND_H
#define ATTAR_VEC_ATTEND_H

#include "vec_math.h"

enum { BLOCK_HEADS = 4, ATTEND_SUMS = 8 };

// The keys or values of one KV head: rows of head_dim f16, `stride` apart.
typedef struct {
    const uint16_t *data;
    int64_t stride;
    int32_t head_dim;
} cache_rows;

// scores[h * ATTAR_ATTEND_CHUNK + i] = q[h] . k[i] for `heads` heads and the next `keys` keys.
ATTAR_INLINE void score_keys(const float *q, cache_rows k, int32_t i, int32_t keys, int32_t heads, float *scores) {
    vec sum[ATTEND_SUMS];
    for (int32_t a = 0; a < keys * heads; a++) sum[a] = vec_set1(0.0f);
    for (int32_t j = 0; j < k.head_dim; j += LANES) {
        const int32_t n = k.head_dim - j;
        for (int32_t b = 0; b < keys; b++) {
            const vec key = vec_load_f16(k.data + (i + b) * k.stride + j, n);
            for (int32_t h = 0; h < heads; h++) {
                sum[b * heads + h] = vec_fma(vec_load(q + h * k.head_dim + j, n), key, sum[b * heads + h]);
            }
        }
    }
    for (int32_t b = 0; b < keys; b++) {
        for (int32_t h = 0; h < heads; h++) scores[h * ATTAR_ATTEND_CHUNK + i + b] = vec_sum(sum[b * heads + h]);
    }
}

ATTAR_INLINE void score_chunk(const float *q, cache_rows k, int32_t n_keys, int32_t heads, float *scores) {
    const int32_t at_once = ATTEND_SUMS / heads;
    int32_t i = 0;
    for (; i + at_once <= n_keys; i += at_once) score_keys(q, k, i, at_once, heads, scores);
    for (; i < n_keys; i++) score_keys(q, k, i, 1, heads, scores);
}

// acc[h] += sum over keys of scores[h][i] v[i], for `heads` heads and columns j .. j + 8 vectors.
ATTAR_INLINE void add_values(const float *scores, cache_rows v, int32_t n_keys, int32_t j, int32_t vectors,
                             int32_t heads, float *acc) {
    vec sum[ATTEND_SUMS];
    const int32_t n = v.head_dim - j;
    for (int32_t h = 0; h < heads; h++) {
        for (int32_t c = 0; c < vectors; c++) {
            sum[h * vectors + c] = vec_load(acc + h * v.head_dim + j + c * LANES, n - c * LANES);
        }
    }
    for (int32_t i = 0; i < n_keys; i++) {
        for (int32_t c = 0; c < vectors; c++) {
            const vec value = vec_load_f16(v.data + i * v.stride + j + c * LANES, n - c * LANES);
            for (int32_t h = 0; h < heads; h++) {
                const vec p = vec_set1(scores[h * ATTAR_ATTEND_CHUNK + i]);
                sum[h * vectors + c] = vec_fma(p, value, sum[h * vectors + c]);
            }
        }
    }
    for (int32_t h = 0; h < heads; h++) {
        for (int32_t c = 0; c < vectors; c++) {
            vec_store(acc + h * v.head_dim + j + c * LANES, n - c * LANES, sum[h * vectors + c]);
        }
    }
}

ATTAR_INLINE void value_chunk(const float *scores, cache_rows v, int32_t n_keys, int32_t heads, float *acc) {
    const int32_t vectors = ATTEND_SUMS / heads;
    int32_t j = 0;
    for (; j + vectors * LANES <= v.head_dim; j += vectors * LANES) {
        add_values(scores, v, n_keys, j, vectors, heads, acc);
    }
    for (; j < v.head_dim; j += LANES) add_values(scores, v, n_keys, j, 1, heads, acc);
}

static float max_score(const float *scores, int32_t n, float max) {
    vec best = vec_set1(max);
    int32_t i = 0;
    for (; i + LANES <= n; i += LANES) best = vec_max(best, vec_load(scores + i, LANES));
    max = vec_largest(best);
    for (; i < n; i++) max = scores[i] > max ? scores[i] : max;
    return max;
}

// scores [n] become exp(score - max); returns their sum.
static float exp_scores(float *scores, int32_t n, float max) {
    const vec offset = vec_set1(max);
    vec sum = vec_set1(0.0f);
    for (int32_t i = 0; i < n; i += LANES) {
        const vec p = vec_keep_first(vec_exp(vec_sub(vec_load(scores + i, n - i), offset)), n - i);
        vec_store(scores + i, n - i, p);
        sum = vec_add(sum, p);
    }
    return vec_sum(sum);
}

// One head's step of the online softmax: acc [head_dim] and the sum so far are rescaled to the new maximum.
static void softmax_step(float *scores, int32_t n, attar_softmax *state, float *acc, int32_t head_dim) {
    const float max = max_score(scores, n, state->max);
    if (max > state->max) {
        const float shrink = expf(state->max - max);
        const vec factor = vec_set1(shrink);
        for (int32_t j = 0; j < head_dim; j += LANES) {
            vec_store(acc + j, head_dim - j, vec_mul(factor, vec_load(acc + j, head_dim - j)));
        }
        state->sum *= shrink;
        state->max = max;
    }
    state->sum += exp_scores(scores, n, max);
}

ATTAR_INLINE void attend_chunk(const float *q, cache_rows k, cache_rows v, int32_t n_keys, int32_t heads, float softcap,
                               attar_softmax *state, float *acc, float *scores) {
    score_chunk(q, k, n_keys, heads, scores);
    for (int32_t h = 0; h < heads; h++) {
        float *row = scores + h * ATTAR_ATTEND_CHUNK;
        if (softcap != 0.0f) vec_soft_cap(row, softcap, n_keys);
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

static void vec_attend(const float *q, const uint16_t *k, const uint16_t *v, int64_t stride, int32_t n_keys,
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

#endif
