// kernels_avx2.c: vector operations and the table for CPUs with AVX2, FMA and F16C.
#include "kernels_avx2.h"

enum { LANES = 8 };

// --- activations ----------------------------------------------------------------------------------------------

ATTAR_INLINE __m256 absolute(__m256 v) {
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v);
}

// As quantize_group in kernels_scalar.c, bit for bit.
static void quantize_group(const float *x, int16_t *q, float *d, float *s) {
    __m256 v[4], max = _mm256_setzero_ps();
    for (int i = 0; i < 4; i++) {
        v[i] = _mm256_loadu_ps(x + i * LANES);
        max = _mm256_max_ps(max, absolute(v[i]));
    }
    const float largest = max_lanes(max);
    const __m256 inverse = _mm256_set1_ps(largest > 0.0f ? 32767.0f / largest : 0.0f);
    __m256i rounded[4];
    for (int i = 0; i < 4; i++) rounded[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
    for (int i = 0; i < 2; i++) {  // packs works within 128-bit halves; the permutation restores the order
        const __m256i packed = _mm256_packs_epi32(rounded[2 * i], rounded[2 * i + 1]);
        _mm256_storeu_si256((__m256i *)(q + 16 * i), _mm256_permute4x64_epi64(packed, 0xD8));
    }
    const __m256i sums = _mm256_add_epi32(_mm256_add_epi32(rounded[0], rounded[1]),
                                          _mm256_add_epi32(rounded[2], rounded[3]));
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4E));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xB1));
    *d = largest / 32767.0f;
    *s = *d * (float)_mm_cvtsi128_si32(sum);
}

static void quantize(const float *x, attar_act y, int32_t n_tokens, int32_t cols) {
    const int64_t groups = (int64_t)n_tokens * cols / ATTAR_GROUP;
    for (int64_t g = 0; g < groups; g++) {
        quantize_group(x + g * ATTAR_GROUP, y.q + g * ATTAR_GROUP, y.d + g, y.s + g);
    }
}

// --- vectors --------------------------------------------------------------------------------------------------

static float sum_of_squares(const float *x, int32_t n) {
    __m256 sum[4];
    for (int a = 0; a < 4; a++) sum[a] = _mm256_setzero_ps();
    for (int32_t i = 0; i < n; i += 4 * LANES) {
        for (int32_t a = 0; a < 4 && i + a * LANES < n; a++) {
            const __m256 v = load_f32(x + i + a * LANES, n - i - a * LANES);
            sum[a] = _mm256_fmadd_ps(v, v, sum[a]);
        }
    }
    return sum_lanes(_mm256_add_ps(_mm256_add_ps(sum[0], sum[1]), _mm256_add_ps(sum[2], sum[3])));
}

static void rms_norm(const float *x, const float *w, float *y, int32_t n, float eps) {
    const __m256 factor = _mm256_set1_ps(1.0f / sqrtf(sum_of_squares(x, n) / (float)n + eps));
    for (int32_t i = 0; i < n; i += LANES) {
        const __m256 scaled = _mm256_mul_ps(load_f32(x + i, n - i), factor);
        store_f32(y + i, n - i, _mm256_mul_ps(scaled, load_f32(w + i, n - i)));
    }
}

static void rope_halves(float *x, const float *cosines, const float *sines, int32_t half) {
    for (int32_t j = 0; j < half; j += LANES) {
        const int32_t n = half - j;
        const __m256 a = load_f32(x + j, n), b = load_f32(x + half + j, n);
        const __m256 c = load_f32(cosines + j, n), s = load_f32(sines + j, n);
        store_f32(x + j, n, _mm256_fmsub_ps(a, c, _mm256_mul_ps(b, s)));
        store_f32(x + half + j, n, _mm256_fmadd_ps(b, c, _mm256_mul_ps(a, s)));
    }
}

// Four pairs at a time: (a, b) c + (-b, a) s, with c and s repeated for both members.
static void rope_pairs(float *x, const float *cosines, const float *sines, int32_t half) {
    const __m256i repeat = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
    for (int32_t j = 0; j < half; j += LANES / 2) {
        const int32_t n = half - j < LANES / 2 ? half - j : LANES / 2;
        const __m256 v = load_f32(x + 2 * j, 2 * n);
        const __m256 c = _mm256_permutevar8x32_ps(load_f32(cosines + j, n), repeat);
        const __m256 s = _mm256_permutevar8x32_ps(load_f32(sines + j, n), repeat);
        const __m256 swapped = _mm256_permute_ps(v, 0xB1);
        store_f32(x + 2 * j, 2 * n, _mm256_fmaddsub_ps(v, c, _mm256_mul_ps(swapped, s)));
    }
}

static void rope(float *x, const float *cosines, const float *sines, int32_t head_dim, bool interleaved) {
    if (interleaved) {
        rope_pairs(x, cosines, sines, head_dim / 2);
    } else {
        rope_halves(x, cosines, sines, head_dim / 2);
    }
}

static void f32_to_f16(const float *x, uint16_t *y, int32_t n) {
    int32_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        _mm_storeu_si128((__m128i *)(y + i), _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
    }
    for (; i < n; i++) y[i] = attar_f32_to_f16(x[i]);
}

// g / (1 + e^-z) * u, the gate of both activations.
ATTAR_INLINE __m256 gated(__m256 g, __m256 z, __m256 u) {
    const __m256 e = exp_f32(_mm256_xor_ps(z, _mm256_set1_ps(-0.0f)));
    return _mm256_mul_ps(_mm256_div_ps(g, _mm256_add_ps(_mm256_set1_ps(1.0f), e)), u);
}

static void silu_mul(const float *gate, const float *up, float *y, int32_t n) {
    for (int32_t i = 0; i < n; i += LANES) {
        const __m256 g = load_f32(gate + i, n - i);
        store_f32(y + i, n - i, gated(g, g, load_f32(up + i, n - i)));
    }
}

// 0.5 (1 + tanh z) = 1 / (1 + e^-2z).
static void gelu_mul(const float *gate, const float *up, float *y, int32_t n) {
    const __m256 twice = _mm256_set1_ps(2.0f * 0.7978845608f), cubic = _mm256_set1_ps(0.044715f);
    for (int32_t i = 0; i < n; i += LANES) {
        const __m256 g = load_f32(gate + i, n - i);
        const __m256 bracket = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_mul_ps(cubic, g), g), g, g);
        store_f32(y + i, n - i, gated(g, _mm256_mul_ps(twice, bracket), load_f32(up + i, n - i)));
    }
}

static void add(float *x, const float *y, int32_t n) {
    for (int32_t i = 0; i < n; i += LANES) {
        store_f32(x + i, n - i, _mm256_add_ps(load_f32(x + i, n - i), load_f32(y + i, n - i)));
    }
}

static void scale(float *x, float factor, int32_t n) {
    const __m256 f = _mm256_set1_ps(factor);
    for (int32_t i = 0; i < n; i += LANES) store_f32(x + i, n - i, _mm256_mul_ps(load_f32(x + i, n - i), f));
}

static void soft_cap(float *x, float cap, int32_t n) {
    const __m256 factor = _mm256_set1_ps(cap), inverse = _mm256_set1_ps(1.0f / cap);
    for (int32_t i = 0; i < n; i += LANES) {
        const __m256 z = _mm256_mul_ps(load_f32(x + i, n - i), inverse);
        store_f32(x + i, n - i, _mm256_mul_ps(factor, tanh_f32(z)));
    }
}

const attar_kernels attar_kernels_avx2 = {
    .name = "avx2",
    .quantize = quantize,
    .matmul = attar_avx2_matmul,
    .matmul_f32 = attar_avx2_matmul_f32,
    .rms_norm = rms_norm,
    .rope = rope,
    .attend = attar_avx2_attend,
    .f32_to_f16 = f32_to_f16,
    .silu_mul = silu_mul,
    .gelu_mul = gelu_mul,
    .add = add,
    .scale = scale,
    .soft_cap = soft_cap,
};
