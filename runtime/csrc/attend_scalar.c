// attend_scalar.c: the specification of the attention kernels, in plain loops.
#include "attend_scalar.h"

#include <math.h>

#include "quants.h"

// --- rounding -----------------------------------------------------------------------------------------------------

void attar_scalar_f32_to_f16(const float *x, uint16_t *y, int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        const float low = x[i] > 65504.0F ? 65504.0F : x[i];  // a NaN passes both comparisons
        y[i] = attar_f32_to_f16(low < -65504.0F ? -65504.0F : low);
    }
}

float attar_scalar_round_i16(const float *x, int16_t *y, int32_t n, float limit) {
    float max = 0.0F;
    for (int32_t i = 0; i < n; i++) max = fmaxf(max, fabsf(x[i]));
    const float inverse = max > ATTAR_ROUND_LEAST ? limit / max : 0.0F;
    for (int32_t i = 0; i < n; i++) y[i] = (int16_t)lrintf(x[i] * inverse);
    return max / limit;
}

// --- the online softmax -------------------------------------------------------------------------------------------

// scores [begin, end) become exp(score - new maximum); sums [V] and the sum so far are rescaled to that maximum.
static void softmax_step(float *scores, int32_t begin, int32_t end, float cap, attar_softmax *state, float *sums,
                         int32_t width) {
    float max = state->max;
    for (int32_t i = begin; i < end; i++) {
        if (cap != 0.0F) scores[i] = cap * tanhf(scores[i] / cap);
        max = fmaxf(max, scores[i]);
    }
    const float shrink = expf(state->max - max);
    float sum = state->sum * shrink;
    for (int32_t i = begin; i < end; i++) sum += scores[i] = expf(scores[i] - max);
    for (int32_t j = 0; j < width; j++) sums[j] *= shrink;
    *state = (attar_softmax){max, sum};
}

// --- f16 ----------------------------------------------------------------------------------------------------------

static float score_f16(const attar_queries *q, const uint16_t *k, int32_t row, int32_t key) {
    const uint16_t *tile = k + (int64_t)(key / ATTAR_KEY_TILE) * q->head_dim * ATTAR_KEY_TILE + key % ATTAR_KEY_TILE;
    const float *query = (const float *)q->q + row;
    float sum = 0.0F;
    for (int32_t j = 0; j < q->head_dim; j++) sum += query[j * q->rows] * attar_f16_to_f32(tile[j * ATTAR_KEY_TILE]);
    return sum;
}

void attar_scalar_attend_f16(const attar_queries *q, attar_kv kv, attar_softmax *state, float *sums) {
    const int32_t width = attar_value_width(q->head_dim);
    float scores[ATTAR_ATTEND_KEYS];
    for (int32_t r = 0; r < q->rows; r++) {
        const int32_t begin = q->begin[r], end = q->end[r];
        if (begin >= end) continue;
        for (int32_t i = begin; i < end; i++) scores[i] = score_f16(q, kv.k, r, i);
        softmax_step(scores, begin, end, q->cap, state + r, sums + r * width, width);
        for (int32_t i = begin; i < end; i++) {
            const uint16_t *value = (const uint16_t *)kv.v + (int64_t)i * width;
            for (int32_t j = 0; j < width; j++) sums[r * width + j] += scores[i] * attar_f16_to_f32(value[j]);
        }
    }
}

// --- int8 ---------------------------------------------------------------------------------------------------------

// Four bytes times four int16 stored as 0, 2, 1, 3.
static int32_t dot_quad(const int8_t *x, const int16_t *w) { return x[0] * w[0] + x[2] * w[1] + x[1] * w[2] + x[3] * w[3]; }

static float score_int8(const attar_queries *q, attar_kv kv, int32_t row, int32_t key) {
    const int32_t quads = attar_quads(q->head_dim);
    const int8_t *tile = (const int8_t *)kv.k +
                         ((int64_t)(key / ATTAR_KEY_TILE) * quads * ATTAR_KEY_TILE + key % ATTAR_KEY_TILE) * 4;
    const int16_t *query = (const int16_t *)q->q + row * 4;
    int32_t sum = 0;
    for (int32_t i = 0; i < quads; i++) sum += dot_quad(tile + i * ATTAR_KEY_TILE * 4, query + i * q->rows * 4);
    return (float)sum * (q->scales[row] * kv.k_scale[key]);
}

// weights [begin, end) times the values' scales, rounded to int16 and laid out in quads; zero in the rest of a quad.
// Returns the scale of the integers.
static float round_weights(float *weights, const float *v_scale, int32_t begin, int32_t end, int16_t *rounded) {
    static const int32_t place[4] = {0, 2, 1, 3};
    int16_t plain[ATTAR_ATTEND_KEYS] = {0};
    for (int32_t i = begin; i < end; i++) weights[i] *= v_scale[i];
    const float scale = attar_scalar_round_i16(weights + begin, plain + begin, end - begin, ATTAR_QUAD_LIMIT);
    for (int32_t i = 0; i < ATTAR_ATTEND_KEYS; i++) rounded[i / 4 * 4 + place[i % 4]] = plain[i];
    return scale;
}

void attar_scalar_attend_int8(const attar_queries *q, attar_kv kv, attar_softmax *state, float *sums) {
    const int32_t width = attar_value_width(q->head_dim);
    float scores[ATTAR_ATTEND_KEYS];
    int16_t weights[ATTAR_ATTEND_KEYS];
    for (int32_t r = 0; r < q->rows; r++) {
        const int32_t begin = q->begin[r], end = q->end[r];
        if (begin >= end) continue;
        for (int32_t i = begin; i < end; i++) scores[i] = score_int8(q, kv, r, i);
        softmax_step(scores, begin, end, q->cap, state + r, sums + r * width, width);
        const float scale = round_weights(scores, kv.v_scale, begin, end, weights);
        for (int32_t j = 0; j < width; j++) {
            int32_t sum = 0;
            for (int32_t i = begin / 4; i < (end + 3) / 4; i++)
                sum += dot_quad((const int8_t *)kv.v + ((int64_t)i * width + j) * 4, weights + i * 4);
            sums[r * width + j] += scale * (float)sum;
        }
    }
}
