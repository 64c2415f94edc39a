// kernels_scalar.c: the specification of every kernel, in plain loops.
#include <math.h>
#include <string.h>

#include "kernels.h"

// --- integer matrix products ----------------------------------------------------------------------------------

static void quantize_group(const float *x, int16_t *q, float *d, float *s) {
    float max = 0.0f;
    for (int i = 0; i < ATTAR_GROUP; i++) max = fmaxf(max, fabsf(x[i]));
    const float inverse = max > 0.0f ? 32767.0f / max : 0.0f;
    int32_t sum = 0;
    for (int i = 0; i < ATTAR_GROUP; i++) {
        q[i] = (int16_t)lrintf(x[i] * inverse);  // to nearest even, as vcvtps2dq
        sum += q[i];
    }
    *d = max / 32767.0f;
    *s = *d * (float)sum;
}

static void quantize(const float *x, attar_act y, int32_t n_tokens, int32_t cols) {
    const int64_t groups = (int64_t)n_tokens * cols / ATTAR_GROUP;
    for (int64_t g = 0; g < groups; g++) {
        quantize_group(x + g * ATTAR_GROUP, y.q + g * ATTAR_GROUP, y.d + g, y.s + g);
    }
}

// Exact: |q| <= 128 and |a| <= 32767, so 32 products stay below 2^28.
static int32_t dot(const int8_t *q, const int16_t *a, int n) {
    int32_t sum = 0;
    for (int i = 0; i < n; i++) sum += q[i] * a[i];
    return sum;
}

// Adds one group to a running sum. Integer sums are exact and each float step is rounded separately, so every
// instruction set that takes the groups in order gets the same bits.
static float add_group(float sum, uint32_t type, const attar_group *group, const int16_t *a, float d, float s) {
    if (type == ATTAR_Q6_K) {
        sum += group->scale[0] * d * (float)dot(group->q, a, 16);
        return sum + group->scale[1] * d * (float)dot(group->q + 16, a + 16, 16);
    }
    sum += group->scale[0] * d * (float)dot(group->q, a, ATTAR_GROUP);
    return sum + group->offset * s;
}

static void matmul(const attar_weight *w, int32_t row0, int32_t row1, attar_act x, int32_t n_tokens, float *y,
                   int64_t ldy) {
    const int64_t groups = w->cols / ATTAR_GROUP;
    attar_group group;
    for (int32_t row = row0; row < row1; row++) {
        for (int32_t t = 0; t < n_tokens; t++) y[t * ldy + row] = 0.0f;
        for (int64_t g = 0; g < groups; g++) {
            attar_decode_group(w->type, w->data + (uint64_t)row * w->row_bytes, (uint64_t)g, &group);
            for (int32_t t = 0; t < n_tokens; t++) {
                const int64_t at = t * groups + g;
                float *out = y + t * ldy + row;
                *out = add_group(*out, w->type, &group, x.q + at * ATTAR_GROUP, x.d[at], x.s[at]);
            }
        }
    }
}

// --- float matrix products ------------------------------------------------------------------------------------

static float dot_f32(const float *a, const float *b, int32_t n) {
    float sum = 0.0f;
    for (int32_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

enum { SPAN = 256 };  // weights decoded at once

static void matmul_f32(const attar_weight *w, int32_t row0, int32_t row1, const float *x, int32_t n_tokens, float *y,
                       int64_t ldy) {
    const uint64_t value_bytes = attar_type_get(w->type).block_bytes;
    float weights[SPAN];
    for (int32_t row = row0; row < row1; row++) {
        const uint8_t *data = w->data + (uint64_t)row * w->row_bytes;
        for (int32_t t = 0; t < n_tokens; t++) y[t * ldy + row] = 0.0f;
        for (int32_t c = 0; c < w->cols; c += SPAN) {
            const int32_t n = w->cols - c < SPAN ? w->cols - c : SPAN;
            attar_dequantize_row(w->type, data + (uint64_t)c * value_bytes, weights, (uint64_t)n);
            for (int32_t t = 0; t < n_tokens; t++) {
                y[t * ldy + row] += dot_f32(weights, x + (int64_t)t * w->cols + c, n);
            }
        }
    }
}

// --- vectors --------------------------------------------------------------------------------------------------

static void rms_norm(const float *x, const float *w, float *y, int32_t n, float eps) {
    const float factor = 1.0f / sqrtf(dot_f32(x, x, n) / (float)n + eps);
    for (int32_t i = 0; i < n; i++) y[i] = x[i] * factor * w[i];
}

static void rope(float *x, const float *cosines, const float *sines, int32_t head_dim, bool interleaved) {
    const int32_t half = head_dim / 2;
    for (int32_t j = 0; j < half; j++) {
        float *a = interleaved ? x + 2 * j : x + j;
        float *b = interleaved ? x + 2 * j + 1 : x + j + half;
        const float first = *a, second = *b;
        *a = first * cosines[j] - second * sines[j];
        *b = second * cosines[j] + first * sines[j];
    }
}

static void f32_to_f16(const float *x, uint16_t *y, int32_t n) {
    for (int32_t i = 0; i < n; i++) y[i] = attar_f32_to_f16(x[i]);
}

static void silu_mul(const float *gate, const float *up, float *y, int32_t n) {
    for (int32_t i = 0; i < n; i++) y[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

// Hendrycks & Gimpel, 2016, arXiv:1606.08415, section 2: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
static void gelu_mul(const float *gate, const float *up, float *y, int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        const float g = gate[i];
        y[i] = 0.5f * g * (1.0f + tanhf(0.7978845608f * (g + 0.044715f * g * g * g))) * up[i];
    }
}

static void add(float *x, const float *y, int32_t n) {
    for (int32_t i = 0; i < n; i++) x[i] += y[i];
}

static void scale(float *x, float factor, int32_t n) {
    for (int32_t i = 0; i < n; i++) x[i] *= factor;
}

static void soft_cap(float *x, float cap, int32_t n) {
    for (int32_t i = 0; i < n; i++) x[i] = cap * tanhf(x[i] / cap);
}

// --- attention ------------------------------------------------------------------------------------------------

static float dot_f16(const float *a, const uint16_t *b, int32_t n) {
    float sum = 0.0f;
    for (int32_t i = 0; i < n; i++) sum += a[i] * attar_f16_to_f32(b[i]);
    return sum;
}

// scores [n_keys] become exp(score - new maximum); acc [head_dim] and the sum so far are rescaled to that maximum.
static void softmax_step(float *scores, int32_t n_keys, attar_softmax *state, float *acc, int32_t head_dim) {
    float max = state->max;
    for (int32_t i = 0; i < n_keys; i++) max = fmaxf(max, scores[i]);
    const float shrink = expf(state->max - max);
    float sum = state->sum * shrink;
    for (int32_t i = 0; i < n_keys; i++) sum += scores[i] = expf(scores[i] - max);
    scale(acc, shrink, head_dim);
    *state = (attar_softmax){max, sum};
}

static void attend(const float *q, const uint16_t *k, const uint16_t *v, int64_t stride, int32_t n_keys,
                   int32_t n_heads, int32_t head_dim, float softcap, attar_softmax *state, float *acc, float *scores) {
    for (int32_t first = 0; first < n_keys; first += ATTAR_ATTEND_CHUNK) {
        const int32_t n = n_keys - first < ATTAR_ATTEND_CHUNK ? n_keys - first : ATTAR_ATTEND_CHUNK;
        for (int32_t h = 0; h < n_heads; h++) {
            for (int32_t i = 0; i < n; i++) {
                scores[i] = dot_f16(q + h * head_dim, k + (first + i) * stride, head_dim);
            }
            if (softcap != 0.0f) soft_cap(scores, softcap, n);
            float *out = acc + h * head_dim;
            softmax_step(scores, n, state + h, out, head_dim);
            for (int32_t i = 0; i < n; i++) {
                const uint16_t *value = v + (first + i) * stride;
                for (int32_t j = 0; j < head_dim; j++) out[j] += scores[i] * attar_f16_to_f32(value[j]);
            }
        }
    }
}

const attar_kernels attar_kernels_scalar = {
    .name = "scalar",
    .quantize = quantize,
    .matmul = matmul,
    .matmul_f32 = matmul_f32,
    .rms_norm = rms_norm,
    .rope = rope,
    .attend = attend,
    .f32_to_f16 = f32_to_f16,
    .silu_mul = silu_mul,
    .gelu_mul = gelu_mul,
    .add = add,
    .scale = scale,
    .soft_cap = soft_cap,
};
