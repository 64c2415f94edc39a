// vec_attend.h: attention over an f16 or int8 cache with a `vec`; contracts in kernels.h, layouts in attend.h. Include
// after a vec_*.h and its vec_quads_*.h.
//
// A block of query rows meets a chunk of keys: scores, the online softmax of Milakov & Gimelshein, 2018,
// arXiv:1805.02867, then weighted values. Scores (lanes are keys, the loop runs over dimensions) and values (lanes are
// dimensions, the loop runs over keys) are the same product: a vector of the cache times one number of each row. What
// is read from the cache is converted once for all rows of the block.
#ifndef ATTAR_VEC_ATTEND_H
#define ATTAR_VEC_ATTEND_H

#include "attend.h"
#include "vec_math.h"

enum { MOST_SUMS = 24 };  // of any blocking below

// Where number i of row r lies: i * step + r * row.
typedef struct {
    int64_t step, row;
} stride;

// The keys of a chunk that any row of a block sees, and the whole tiles that hold them.
typedef struct {
    int32_t begin, end, from, to;
} span;

static span whole_tiles(int32_t begin, int32_t end) {
    const int32_t tile = ATTAR_KEY_TILE;
    return (span){begin, end, begin / tile * tile, (end + tile - 1) / tile * tile};
}

static span keys_seen(const attar_queries *q) {
    int32_t begin = ATTAR_ATTEND_KEYS, end = 0;
    for (int32_t r = 0; r < q->rows; r++) {
        if (q->begin[r] >= q->end[r]) continue;
        if (q->begin[r] < begin) begin = q->begin[r];
        if (q->end[r] > end) end = q->end[r];
    }
    return whole_tiles(begin, end);
}

// Memory that is read after the current loop, `step` bytes for each of its rounds: the CPU's own prefetching starts anew
// in every page, and a tile of keys is half of one.
typedef struct {
    const uint8_t *data;
    int64_t step;
} ahead;

ATTAR_INLINE void fetch_ahead(ahead next, int32_t round, int32_t lines) {
    for (int32_t i = 0; i < lines; i++) __builtin_prefetch(next.data + round * next.step + i * 64);
}

// --- rounding -----------------------------------------------------------------------------------------------------

// vec_min and vec_max return their second operand where one is a NaN, so that it stays one.
static void vec_f32_to_f16(const float *x, uint16_t *y, int32_t n) {
    const vec high = vec_set1(65504.0f), low = vec_set1(-65504.0f);
    for (int32_t i = 0; i < n; i += LANES) {
        vec_store_f16(y + i, n - i, vec_max(low, vec_min(high, vec_load(x + i, n - i))));
    }
}

static float largest_magnitude(const float *x, int32_t n) {
    vec largest = vec_set1(0.0f);
    for (int32_t i = 0; i < n; i += LANES) largest = vec_max(largest, vec_abs(vec_load(x + i, n - i)));
    return vec_largest(largest);
}

static float vec_round_i16(const float *x, int16_t *y, int32_t n, float limit) {
    const float max = largest_magnitude(x, n);
    const vec inverse = vec_set1(max > ATTAR_ROUND_LEAST ? limit / max : 0.0f);
    for (int32_t i = 0; i < n; i += LANES) vec_store_i16(y + i, n - i, vec_mul(vec_load(x + i, n - i), inverse));
    return max / limit;
}

// --- the online softmax -------------------------------------------------------------------------------------------

static void fill(float *x, int32_t from, int32_t to, float value) {
    for (int32_t i = from; i < to; i++) x[i] = value;
}

// The sums so far are rescaled to a new maximum.
static void raise_max(attar_softmax *state, float max, float *sums, int32_t width) {
    const float shrink = expf(state->max - max);
    const vec factor = vec_set1(shrink);
    for (int32_t j = 0; j < width; j += LANES) vec_store(sums + j, LANES, vec_mul(factor, vec_load(sums + j, LANES)));
    *state = (attar_softmax){max, state->sum * shrink};
}

// scores of the keys s become exp(score - new maximum), and next to nothing in the rest of their tiles.
static void softmax_step(float *scores, span s, float cap, attar_softmax *state, float *sums, int32_t width) {
    if (cap != 0.0f) vec_soft_cap(scores + s.from, cap, s.to - s.from);
    fill(scores, s.from, s.begin, -INFINITY);  // whatever lies in the cache there, a NaN included
    fill(scores, s.end, s.to, -INFINITY);
    vec largest = vec_set1(state->max);
    for (int32_t i = s.from; i < s.to; i += LANES) largest = vec_max(largest, vec_load(scores + i, LANES));
    const float max = vec_largest(largest);
    if (max > state->max) raise_max(state, max, sums, width);
    const vec offset = vec_set1(max);
    vec sum = vec_set1(0.0f);
    for (int32_t i = s.from; i < s.to; i += LANES) {
        const vec p = vec_exp_weight(vec_sub(vec_load(scores + i, LANES), offset));
        vec_store(scores + i, LANES, p);
        sum = vec_add(sum, p);
    }
    state->sum += vec_sum(sum);
}

// scores [rows, ATTAR_ATTEND_KEYS] become the rows' weights; 0 for keys that others see and a row does not.
static void softmax_rows(const attar_queries *q, span all, attar_softmax *state, float *sums, float *scores) {
    const int32_t width = attar_value_width(q->head_dim);
    for (int32_t r = 0; r < q->rows; r++) {
        float *row = scores + r * ATTAR_ATTEND_KEYS;
        const span own = whole_tiles(q->begin[r], q->end[r]);
        if (own.begin >= own.end) {
            fill(row, all.from, all.to, 0.0f);
            continue;
        }
        softmax_step(row, own, q->cap, state + r, sums + r * width, width);
        fill(row, all.from, own.from, 0.0f);
        fill(row, own.to, all.to, 0.0f);
    }
}

// --- f16 ----------------------------------------------------------------------------------------------------------

// Vectors that `rows` rows take at once: enough sums to hide the latency of their additions.
ATTAR_INLINE int32_t vectors_f16(int32_t rows) {
    return rows == 1 ? 8 : (rows <= 3 ? 4 : 2) * (LANES == 4 ? 2 : 1);  // NEON has twice the registers
}

// sum[r, c] += sum over i < n of w(i, r) times vector c of x + i * x_step; the vectors go by 16 lanes, x_set apart. The
// outer loop is over what is fewer than registers are left beside the sums: the compiler keeps the inner one's operands.
ATTAR_INLINE void add_products_f16(const uint16_t *x, int64_t x_step, int64_t x_set, int32_t n, const float *w,
                                   stride at, int32_t rows, int32_t vectors, ahead next, vec *sum) {
    for (int32_t i = 0; i < n; i++) {
        vec v[8];
        fetch_ahead(next, i, (vectors * LANES + 31) / 32);
        for (int32_t c = 0; c < vectors; c++) {
            v[c] = vec_load_f16(x + i * x_step + c * LANES / 16 * x_set + c * LANES % 16, LANES);
            for (int32_t r = 0; r < rows && rows < vectors; r++) {
                sum[r * vectors + c] = vec_fma(vec_set1(w[i * at.step + r * at.row]), v[c], sum[r * vectors + c]);
            }
        }
        for (int32_t r = 0; r < rows && rows >= vectors; r++) {
            const vec number = vec_set1(w[i * at.step + r * at.row]);
            for (int32_t c = 0; c < vectors; c++) sum[r * vectors + c] = vec_fma(number, v[c], sum[r * vectors + c]);
        }
    }
}

// scores [rows, ATTAR_ATTEND_KEYS] of the keys from `key` on.
ATTAR_INLINE void score_f16(const attar_queries *q, attar_kv kv, int32_t key, int32_t rows, int32_t vectors,
                            float *scores) {
    vec sum[MOST_SUMS];
    const int64_t tile = (int64_t)q->head_dim * ATTAR_KEY_TILE;
    for (int32_t a = 0; a < rows * vectors; a++) sum[a] = vec_set1(0.0f);
    const uint16_t *k = (const uint16_t *)kv.k + key / ATTAR_KEY_TILE * tile + key % ATTAR_KEY_TILE;
    const int64_t value_bytes = attar_value_width(q->head_dim) * 2;
    const ahead values = {(const uint8_t *)kv.v + key * value_bytes, vectors * LANES * value_bytes / q->head_dim};
    add_products_f16(k, ATTAR_KEY_TILE, tile, q->head_dim, q->q, (stride){rows, 1}, rows, vectors, values, sum);
    for (int32_t r = 0; r < rows; r++) {
        for (int32_t c = 0; c < vectors; c++) {
            vec_store(scores + r * ATTAR_ATTEND_KEYS + key + c * LANES, LANES, sum[r * vectors + c]);
        }
    }
}

// sums [rows, width] from column 0 on += weights [rows, ATTAR_ATTEND_KEYS] of the first n keys times v [n, width].
ATTAR_INLINE void add_values_f16(const uint16_t *v, int32_t width, int32_t n, const float *weights, int32_t rows,
                                 int32_t vectors, ahead next, float *sums) {
    vec sum[MOST_SUMS];
    for (int32_t r = 0; r < rows; r++) {
        for (int32_t c = 0; c < vectors; c++) sum[r * vectors + c] = vec_load(sums + r * width + c * LANES, LANES);
    }
    add_products_f16(v, width, 16, n, weights, (stride){1, ATTAR_ATTEND_KEYS}, rows, vectors, next, sum);
    for (int32_t r = 0; r < rows; r++) {
        for (int32_t c = 0; c < vectors; c++) vec_store(sums + r * width + c * LANES, LANES, sum[r * vectors + c]);
    }
}

ATTAR_INLINE void attend_rows_f16(const attar_queries *q, attar_kv kv, int32_t rows, attar_softmax *state,
                                  float *sums) {
    const int32_t vectors = vectors_f16(rows), lanes = vectors * LANES, width = attar_value_width(q->head_dim);
    const span s = keys_seen(q);
    if (s.begin >= s.end) return;
    float scores[ATTAR_ATTEND_ROWS * ATTAR_ATTEND_KEYS];
    int32_t i = s.from;
    for (; i + lanes <= s.to; i += lanes) score_f16(q, kv, i, rows, vectors, scores);
    for (; i < s.to; i += 16) score_f16(q, kv, i, rows, 16 / LANES, scores);
    softmax_rows(q, s, state, sums, scores);
    const uint16_t *v = (const uint16_t *)kv.v + (int64_t)s.begin * width;
    const float *weights = scores + s.begin;
    const int32_t n = s.end - s.begin;
    for (i = 0; i + lanes <= width; i += lanes) {
        const ahead next = {(const uint8_t *)kv.next_k + i * ATTAR_ATTEND_KEYS * 2, lanes * 2};
        add_values_f16(v + i, width, n, weights, rows, vectors, next, sums + i);
    }
    for (; i < width; i += 16) {
        const ahead next = {(const uint8_t *)kv.next_k + i * ATTAR_ATTEND_KEYS * 2, 32};
        add_values_f16(v + i, width, n, weights, rows, 16 / LANES, next, sums + i);
    }
}

static void vec_attend_f16(const attar_queries *q, attar_kv kv, attar_softmax *state, float *sums) {
    switch (q->rows) {
        case 1: attend_rows_f16(q, kv, 1, state, sums); break;
        case 2: attend_rows_f16(q, kv, 2, state, sums); break;
        case 3: attend_rows_f16(q, kv, 3, state, sums); break;
        case 4: attend_rows_f16(q, kv, 4, state, sums); break;
        case 5: attend_rows_f16(q, kv, 5, state, sums); break;
        default: attend_rows_f16(q, kv, ATTAR_ATTEND_ROWS, state, sums); break;
    }
}

// --- int8 ---------------------------------------------------------------------------------------------------------

// Fewer than for f16: integer additions take one cycle, and each vector, or its sum, is held in two parts.
ATTAR_INLINE int32_t vectors_int8(int32_t rows) {
    if (LANES == 4) return rows <= 3 ? 4 : 2;
    return (rows <= 2 ? 4 : rows <= 4 ? 2 : 1) * (LANES / 8);
}

// sum[r, c] += sum over i < n of quad w(i, r) times vector c of quads of x + i * x_step.
ATTAR_INLINE void add_products_int8(const int8_t *x, int64_t x_step, int64_t x_set, int32_t n, const int16_t *w,
                                    stride at, int32_t rows, int32_t vectors, ahead next, ivec *sum) {
    for (int32_t i = 0; i < n; i++) {
        fetch_ahead(next, i, (vectors * LANES + 15) / 16);
        for (int32_t c = 0; c < vectors; c++) {
            const quads v = quads_load(x + i * x_step + c * LANES / 16 * x_set + c * LANES % 16 * 4);
            for (int32_t r = 0; r < rows; r++) {
                sum[r * vectors + c] = quads_dot(sum[r * vectors + c], v, w + (i * at.step + r * at.row) * 4);
            }
        }
    }
}

ATTAR_INLINE void score_int8(const attar_queries *q, attar_kv kv, int32_t key, int32_t rows, int32_t vectors,
                             float *scores) {
    ivec sum[MOST_SUMS];
    const int32_t n = attar_quads(q->head_dim);
    const int64_t tile = (int64_t)n * ATTAR_KEY_TILE * 4;
    const int8_t *k = (const int8_t *)kv.k + key / ATTAR_KEY_TILE * tile + key % ATTAR_KEY_TILE * 4;
    for (int32_t a = 0; a < rows * vectors; a++) sum[a] = ivec_zero();
    const int64_t value_bytes = attar_value_width(q->head_dim);
    const ahead values = {(const uint8_t *)kv.v + key * value_bytes, vectors * LANES * value_bytes / n};
    add_products_int8(k, ATTAR_KEY_TILE * 4, tile, n, q->q, (stride){rows, 1}, rows, vectors, values, sum);
    for (int32_t c = 0; c < vectors; c++) {
        const vec k_scale = vec_load(kv.k_scale + key + c * LANES, LANES);
        for (int32_t r = 0; r < rows; r++) {
            const vec scale = vec_mul(vec_set1(q->scales[r]), k_scale);
            vec_store(scores + r * ATTAR_ATTEND_KEYS + key + c * LANES, LANES,
                      vec_mul(ivec_to_vec(sum[r * vectors + c]), scale));
        }
    }
}

// sums [rows, width] from column 0 on += scales[r] times weights [rows, ATTAR_ATTEND_KEYS / 4, 4] of the first n quads
// of positions times v [n, width, 4].
ATTAR_INLINE void add_values_int8(const int8_t *v, int32_t width, int32_t n, const int16_t *weights,
                                  const float *scales, int32_t rows, int32_t vectors, ahead next, float *sums) {
    ivec sum[MOST_SUMS];
    for (int32_t a = 0; a < rows * vectors; a++) sum[a] = ivec_zero();
    add_products_int8(v, width * 4, 64, n, weights, (stride){1, ATTAR_ATTEND_KEYS / 4}, rows, vectors, next, sum);
    for (int32_t r = 0; r < rows; r++) {
        for (int32_t c = 0; c < vectors; c++) {
            float *out = sums + r * width + c * LANES;
            const vec value = ivec_to_vec(sum[r * vectors + c]);
            vec_store(out, LANES, vec_fma(vec_set1(scales[r]), value, vec_load(out, LANES)));
        }
    }
}

// weights [s.from, s.to) times the values' scales as int16 in the order of quads; returns the scale of those.
static float round_weights(float *weights, const float *v_scale, span own, span all, int16_t *rounded) {
    for (int32_t i = all.from; i < all.to; i += LANES) {
        vec_store(weights + i, LANES, vec_mul(vec_load(weights + i, LANES), vec_load(v_scale + i, LANES)));
    }
    fill(weights, all.from, own.begin, 0.0f);  // scales of rows that were never written may be anything
    fill(weights, own.end, all.to, 0.0f);
    const float max = largest_magnitude(weights + all.from, all.to - all.from);
    const vec inverse = vec_set1(max > ATTAR_ROUND_LEAST ? ATTAR_QUAD_LIMIT / max : 0.0f);
    for (int32_t i = all.from; i < all.to; i += LANES) {
        vec_store_quads(rounded + i, vec_mul(vec_load(weights + i, LANES), inverse));
    }
    return max / ATTAR_QUAD_LIMIT;
}

ATTAR_INLINE void attend_rows_int8(const attar_queries *q, attar_kv kv, int32_t rows, attar_softmax *state,
                                   float *sums) {
    const int32_t vectors = vectors_int8(rows), lanes = vectors * LANES, width = attar_value_width(q->head_dim);
    const span s = keys_seen(q);
    if (s.begin >= s.end) return;
    float scores[ATTAR_ATTEND_ROWS * ATTAR_ATTEND_KEYS], scales[ATTAR_ATTEND_ROWS];
    int16_t rounded[ATTAR_ATTEND_ROWS * ATTAR_ATTEND_KEYS];
    int32_t i = s.from;
    for (; i + lanes <= s.to; i += lanes) score_int8(q, kv, i, rows, vectors, scores);
    for (; i < s.to; i += 16) score_int8(q, kv, i, rows, 16 / LANES, scores);
    softmax_rows(q, s, state, sums, scores);
    for (int32_t r = 0; r < rows; r++) {
        const span own = q->begin[r] < q->end[r] ? whole_tiles(q->begin[r], q->end[r]) : whole_tiles(s.to, s.to);
        scales[r] = round_weights(scores + r * ATTAR_ATTEND_KEYS, kv.v_scale, own, s, rounded + r * ATTAR_ATTEND_KEYS);
    }
    const int8_t *v = (const int8_t *)kv.v + (int64_t)s.from * width;
    const int32_t n = (s.to - s.from) / 4;
    for (i = 0; i + lanes <= width; i += lanes) {
        const ahead next = {(const uint8_t *)kv.next_k + i * ATTAR_ATTEND_KEYS, lanes * 4};
        add_values_int8(v + i * 4, width, n, rounded + s.from, scales, rows, vectors, next, sums + i);
    }
    for (; i < width; i += 16) {
        const ahead next = {(const uint8_t *)kv.next_k + i * ATTAR_ATTEND_KEYS, 64};
        add_values_int8(v + i * 4, width, n, rounded + s.from, scales, rows, 16 / LANES, next, sums + i);
    }
}

static void vec_attend_int8(const attar_queries *q, attar_kv kv, attar_softmax *state, float *sums) {
    switch (q->rows) {
        case 1: attend_rows_int8(q, kv, 1, state, sums); break;
        case 2: attend_rows_int8(q, kv, 2, state, sums); break;
        case 3: attend_rows_int8(q, kv, 3, state, sums); break;
        case 4: attend_rows_int8(q, kv, 4, state, sums); break;
        case 5: attend_rows_int8(q, kv, 5, state, sums); break;
        default: attend_rows_int8(q, kv, ATTAR_ATTEND_ROWS, state, sums); break;
    }
}

#endif
