// kernels_scalar.c: the specification of every kernel, in plain loops.
#include <math.h>
#include <string.h>

#include "attend_scalar.h"
#include "kernels.h"
#include "packed.h"

// --- activations ----------------------------------------------------------------------------------------------

// Where value i of a group lies: 16-bit ones lie 0, 2, 1, 3 in each four.
static int place(int32_t bits, int i) { return bits == 8 || i % 4 == 0 || i % 4 == 3 ? i : i ^ 3; }

static int32_t value_at(attar_act x, int64_t at) {
    return x.bits == 8 ? ((const int8_t *)x.q)[at] : ((const int16_t *)x.q)[at];
}

// The sum of 16 integers, as attar_act holds it.
static int32_t half_sum(int32_t bits, const int32_t *q) {
    int32_t first = 0, second = 0;  // of the values 0 and 1, 2 and 3 modulo 4
    for (int i = 0; i < ATTAR_GROUP / 2; i++) *(i % 4 < 2 ? &first : &second) += q[i];
    return bits == 8 ? (int32_t)((uint32_t)second << 16 | (uint16_t)first) : first + second;
}

// The largest size of a group's values and, with 8 bits, of the sums of neighbours 2i and 2i + 1 of one sign, so that
// both stay below 128 of what the group is counted in.
static float largest_size(const float *x, int32_t bits) {
    float max = 0.0f, pair = 0.0f;
    for (int i = 0; i < ATTAR_GROUP; i++) max = fmaxf(max, fabsf(x[i]));
    for (int i = 0; i < ATTAR_GROUP; i += 2) {
        pair = fmaxf(pair, fmaxf(x[i], 0.0f) + fmaxf(x[i + 1], 0.0f));
        pair = fmaxf(pair, fmaxf(-x[i], 0.0f) + fmaxf(-x[i + 1], 0.0f));
    }
    return bits == 8 ? fmaxf(max, pair * ATTAR_PAIR_SHARE) : max;
}

// x [32] -> group g of y.
static void quantize_group(const float *x, attar_act y, int64_t g) {
    const float limit = y.bits == 8 ? 127.0f : 32767.0f, max = largest_size(x, y.bits);
    const float inverse = max > ATTAR_ROUND_LEAST ? limit / max : 0.0f;
    int32_t q[ATTAR_GROUP];
    for (int i = 0; i < ATTAR_GROUP; i++) {
        const int64_t at = g * ATTAR_GROUP + place(y.bits, i);
        q[i] = (int32_t)lrintf(x[i] * inverse);  // to nearest even, as vcvtps2dq
        if (y.bits == 8)
            ((int8_t *)y.q)[at] = (int8_t)q[i];
        else
            ((int16_t *)y.q)[at] = (int16_t)q[i];
    }
    y.d[g] = max / limit;
    y.sum[2 * g] = half_sum(y.bits, q);
    y.sum[2 * g + 1] = half_sum(y.bits, q + ATTAR_GROUP / 2);
}

static void quantize(const float *x, attar_act y, int32_t n_tokens, int32_t cols) {
    const int64_t groups = (int64_t)n_tokens * cols / ATTAR_GROUP;
    for (int64_t g = 0; g < groups; g++) quantize_group(x + g * ATTAR_GROUP, y, g);
}

// --- integer matrix products ----------------------------------------------------------------------------------

// Values first .. first+n-1 of a group of weights times those of group g of the activations. Exact: |q| <= 128 and
// |a| <= 32767, so 32 products stay below 2^28.
static int32_t dot(const attar_group *w, attar_act x, int64_t g, int first, int n) {
    int32_t sum = 0;
    for (int i = first; i < first + n; i++) sum += w->q[i] * value_at(x, g * ATTAR_GROUP + place(x.bits, i));
    return sum;
}

// Adds group g of the activations times a group of weights to a running sum.
static float add_group(float sum, uint32_t type, const attar_group *w, attar_act x, int64_t g) {
    const float d = x.d[g];
    if (attar_scales_of(type) == 2) {
        sum += w->scale[0] * d * (float)dot(w, x, g, 0, ATTAR_GROUP / 2);
        return sum + w->scale[1] * d * (float)dot(w, x, g, ATTAR_GROUP / 2, ATTAR_GROUP / 2);
    }
    sum += w->scale[0] * d * (float)dot(w, x, g, 0, ATTAR_GROUP);
    if (!attar_has_offset(type)) return sum;
    return sum +
           w->offset * (d * (float)(attar_act_sum(x.bits, x.sum[2 * g]) + attar_act_sum(x.bits, x.sum[2 * g + 1])));
}

static void matmul(const attar_weight *w, int32_t row0, int32_t row1, attar_act x, int32_t n_tokens, float *y,
                   int64_t ldy) {
    const int32_t groups = w->cols / ATTAR_GROUP;
    const uint64_t tile_bytes = attar_tile_bytes(w->type, w->cols);
    attar_group group;
    for (int32_t row = row0; row < row1; row++) {
        const uint8_t *tile = w->data + (uint64_t)(row / ATTAR_TILE_ROWS) * tile_bytes;
        for (int32_t t = 0; t < n_tokens; t++) y[t * ldy + row] = 0.0f;
        for (int32_t g = 0; g < groups; g++) {
            attar_unpack_group(w->type, tile, row % ATTAR_TILE_ROWS, g, &group);
            for (int32_t t = 0; t < n_tokens; t++) {
                float *out = y + t * ldy + row;
                *out = add_group(*out, w->type, &group, x, (int64_t)t * groups + g);
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

static void rms_norm_quantize(const float *x, const float *w, float *y, attar_act act, int32_t n, float eps) {
    const float factor = 1.0f / sqrtf(dot_f32(x, x, n) / (float)n + eps);
    float group[ATTAR_GROUP];
    for (int32_t g = 0; g < n / ATTAR_GROUP; g++) {
        const int32_t at = g * ATTAR_GROUP;
        for (int32_t i = 0; i < ATTAR_GROUP; i++) group[i] = x[at + i] * factor * w[at + i];
        if (y) memcpy(y + at, group, sizeof group);
        quantize_group(group, act, g);
    }
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

static void silu_mul_quantize(const float *gate, const float *up, attar_act act, int32_t n) {
    float group[ATTAR_GROUP];
    for (int32_t g = 0; g < n / ATTAR_GROUP; g++) {
        silu_mul(gate + g * ATTAR_GROUP, up + g * ATTAR_GROUP, group, ATTAR_GROUP);
        quantize_group(group, act, g);
    }
}

static void gelu_mul_quantize(const float *gate, const float *up, attar_act act, int32_t n) {
    float group[ATTAR_GROUP];
    for (int32_t g = 0; g < n / ATTAR_GROUP; g++) {
        gelu_mul(gate + g * ATTAR_GROUP, up + g * ATTAR_GROUP, group, ATTAR_GROUP);
        quantize_group(group, act, g);
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

const attar_kernels attar_kernels_scalar = {
    .name = "scalar",
    .quantize = quantize,
    .matmul = matmul,
    .matmul_f32 = matmul_f32,
    .rms_norm = rms_norm,
    .rms_norm_quantize = rms_norm_quantize,
    .rope = rope,
    .attend = {attar_scalar_attend_f16, attar_scalar_attend_int8},
    .f32_to_f16 = attar_scalar_f32_to_f16,
    .round_i16 = attar_scalar_round_i16,
    .silu_mul = silu_mul,
    .gelu_mul = gelu_mul,
    .silu_mul_quantize = silu_mul_quantize,
    .gelu_mul_quantize = gelu_mul_quantize,
    .add = add,
    .scale = scale,
    .soft_cap = soft_cap,
};
