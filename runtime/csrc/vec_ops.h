// vec_ops.h: the element-wise kernels over a `vec`. Include after vec_avx2.h or vec_avx512.h; contracts in kernels.h.
#ifndef ATTAR_VEC_OPS_H
#define ATTAR_VEC_OPS_H

#include "vec_math.h"

enum { GROUP_VECTORS = ATTAR_GROUP / LANES };

static void vec_quantize(const float *x, attar_act y, int32_t n_tokens, int32_t cols) {
    const int64_t groups = (int64_t)n_tokens * cols / ATTAR_GROUP;
    for (int64_t g = 0; g < groups; g++) {
        vec v[GROUP_VECTORS];
        for (int i = 0; i < GROUP_VECTORS; i++) v[i] = vec_load(x + g * ATTAR_GROUP + i * LANES, LANES);
        vec_quantize_group(v, y, g);
    }
}

// Four accumulators hide the latency of the additions.
static float vec_sum_of_squares(const float *x, int32_t n) {
    vec s0 = vec_set1(0.0f), s1 = s0, s2 = s0, s3 = s0;
    int32_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        const vec a = vec_load(x + i, LANES), b = vec_load(x + i + LANES, LANES);
        const vec c = vec_load(x + i + 2 * LANES, LANES), d = vec_load(x + i + 3 * LANES, LANES);
        s0 = vec_fma(a, a, s0);
        s1 = vec_fma(b, b, s1);
        s2 = vec_fma(c, c, s2);
        s3 = vec_fma(d, d, s3);
    }
    for (; i < n; i += LANES) {
        const vec a = vec_load(x + i, n - i);
        s0 = vec_fma(a, a, s0);
    }
    return vec_sum(vec_add(vec_add(s0, s1), vec_add(s2, s3)));
}

static void vec_rms_norm(const float *x, const float *w, float *y, int32_t n, float eps) {
    const vec factor = vec_set1(1.0f / sqrtf(vec_sum_of_squares(x, n) / (float)n + eps));
    for (int32_t i = 0; i < n; i += LANES) {
        vec_store(y + i, n - i, vec_mul(vec_mul(vec_load(x + i, n - i), factor), vec_load(w + i, n - i)));
    }
}

static void vec_rms_norm_quantize(const float *x, const float *w, float *y, attar_act act, int32_t n, float eps) {
    const vec factor = vec_set1(1.0f / sqrtf(vec_sum_of_squares(x, n) / (float)n + eps));
    for (int32_t g = 0; g < n / ATTAR_GROUP; g++) {
        vec v[GROUP_VECTORS];
        for (int i = 0; i < GROUP_VECTORS; i++) {
            const int32_t at = g * ATTAR_GROUP + i * LANES;
            v[i] = vec_mul(vec_mul(vec_load(x + at, LANES), factor), vec_load(w + at, LANES));
            if (y) vec_store(y + at, LANES, v[i]);
        }
        vec_quantize_group(v, act, g);
    }
}

static void vec_rope_halves(float *x, const float *cosines, const float *sines, int32_t half) {
    for (int32_t j = 0; j < half; j += LANES) {
        const int32_t n = half - j;
        const vec a = vec_load(x + j, n), b = vec_load(x + half + j, n);
        const vec c = vec_load(cosines + j, n), s = vec_load(sines + j, n);
        vec_store(x + j, n, vec_fnma(b, s, vec_mul(a, c)));
        vec_store(x + half + j, n, vec_fma(a, s, vec_mul(b, c)));
    }
}

// (a, b) c + (-b, a) s, with c and s repeated for both members of a pair.
static void vec_rope_pairs(float *x, const float *cosines, const float *sines, int32_t half) {
    for (int32_t j = 0; j < half; j += LANES / 2) {
        const int32_t n = half - j;
        const vec v = vec_load(x + 2 * j, 2 * n);
        const vec crossed = vec_mul(vec_swap_pairs(v), vec_load_twice(sines + j, n));
        vec_store(x + 2 * j, 2 * n, vec_fmaddsub(v, vec_load_twice(cosines + j, n), crossed));
    }
}

static void vec_rope(float *x, const float *cosines, const float *sines, int32_t head_dim, bool interleaved) {
    if (interleaved) {
        vec_rope_pairs(x, cosines, sines, head_dim / 2);
    } else {
        vec_rope_halves(x, cosines, sines, head_dim / 2);
    }
}

// g / (1 + e^-z) * u, the form of both gates.
ATTAR_INLINE vec vec_gated(vec g, vec z, vec u) {
    const vec e = vec_exp(vec_sub(vec_set1(0.0f), z));
    return vec_mul(vec_div(g, vec_add(vec_set1(1.0f), e)), u);
}

ATTAR_INLINE vec vec_silu(vec g, vec u) { return vec_gated(g, g, u); }

// 0.5 (1 + tanh z) = 1 / (1 + e^-2z), which keeps its relative precision where tanh z is near -1.
ATTAR_INLINE vec vec_gelu(vec g, vec u) {
    const vec twice = vec_set1(2.0f * 0.7978845608f), cubic = vec_set1(0.044715f);
    return vec_gated(g, vec_mul(twice, vec_fma(vec_mul(vec_mul(cubic, g), g), g, g)), u);
}

typedef vec (*vec_gate)(vec g, vec u);

ATTAR_INLINE void vec_gate_mul(vec_gate gated, const float *gate, const float *up, float *y, int32_t n) {
    for (int32_t i = 0; i < n; i += LANES) {
        vec_store(y + i, n - i, gated(vec_load(gate + i, n - i), vec_load(up + i, n - i)));
    }
}

ATTAR_INLINE void vec_gate_quantize(vec_gate gated, const float *gate, const float *up, attar_act act, int32_t n) {
    for (int32_t g = 0; g < n / ATTAR_GROUP; g++) {
        vec v[GROUP_VECTORS];
        for (int i = 0; i < GROUP_VECTORS; i++) {
            const int32_t at = g * ATTAR_GROUP + i * LANES;
            v[i] = gated(vec_load(gate + at, LANES), vec_load(up + at, LANES));
        }
        vec_quantize_group(v, act, g);
    }
}

static void vec_silu_mul(const float *gate, const float *up, float *y, int32_t n) {
    vec_gate_mul(vec_silu, gate, up, y, n);
}

static void vec_gelu_mul(const float *gate, const float *up, float *y, int32_t n) {
    vec_gate_mul(vec_gelu, gate, up, y, n);
}

static void vec_silu_mul_quantize(const float *gate, const float *up, attar_act act, int32_t n) {
    vec_gate_quantize(vec_silu, gate, up, act, n);
}

static void vec_gelu_mul_quantize(const float *gate, const float *up, attar_act act, int32_t n) {
    vec_gate_quantize(vec_gelu, gate, up, act, n);
}

static void vec_add_to(float *x, const float *y, int32_t n) {
    for (int32_t i = 0; i < n; i += LANES) {
        vec_store(x + i, n - i, vec_add(vec_load(x + i, n - i), vec_load(y + i, n - i)));
    }
}

static void vec_scale(float *x, float factor, int32_t n) {
    const vec f = vec_set1(factor);
    for (int32_t i = 0; i < n; i += LANES) vec_store(x + i, n - i, vec_mul(vec_load(x + i, n - i), f));
}

#endif
