// kernels_avx2.h: what the AVX2 files share. Only they include it: it needs -mavx2 -mfma -mf16c.
#ifndef ATTAR_KERNELS_AVX2_H
#define ATTAR_KERNELS_AVX2_H

#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "kernels.h"

#define ATTAR_INLINE static inline __attribute__((always_inline))

// Entries of the table, by file; contracts in kernels.h.
void attar_avx2_matmul(const attar_weight *w, int32_t row0, int32_t row1, attar_act x, int32_t n_tokens, float *y,
                       int64_t ldy);
void attar_avx2_matmul_f32(const attar_weight *w, int32_t row0, int32_t row1, const float *x, int32_t n_tokens,
                           float *y, int64_t ldy);
void attar_avx2_attend(const float *q, const uint16_t *k, const uint16_t *v, int64_t stride, int32_t n_keys,
                       int32_t n_heads, int32_t head_dim, float softcap, attar_softmax *state, float *acc,
                       float *scores);

// The first n lanes all ones, 0 <= n <= 8.
ATTAR_INLINE __m256i lane_mask(int32_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// The first n of 8 floats, the rest zero; reads nothing beyond them.
ATTAR_INLINE __m256 load_f32(const float *p, int32_t n) {
    return n >= 8 ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, lane_mask(n));
}

ATTAR_INLINE void store_f32(float *p, int32_t n, __m256 v) {
    if (n >= 8) {
        _mm256_storeu_ps(p, v);
    } else {
        _mm256_maskstore_ps(p, lane_mask(n), v);
    }
}

// The first n of 8 sixteen-bit values, the rest zero.
ATTAR_INLINE __m128i load_u16(const void *p, int32_t n) {
    if (n >= 8) return _mm_loadu_si128((const __m128i *)p);
    uint16_t lanes[8] = {0};
    memcpy(lanes, p, (size_t)n * sizeof *lanes);
    return _mm_loadu_si128((const __m128i *)lanes);
}

ATTAR_INLINE __m256 load_f16(const uint16_t *p, int32_t n) {
    return _mm256_cvtph_ps(load_u16(p, n));
}

ATTAR_INLINE float sum_lanes(__m256 v) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

ATTAR_INLINE float max_lanes(__m256 v) {
    __m128 max = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    max = _mm_max_ps(max, _mm_movehl_ps(max, max));
    return _mm_cvtss_f32(_mm_max_ss(max, _mm_movehdup_ps(max)));
}

// e^x within 2 ulp for -87.3 <= x <= 88.3, 0 below, held at the last value above.
// x = n ln 2 + r, |r| <= ln 2 / 2; e^r by its Taylor series to r^7 (remainder 5e-9); 2^n by the exponent field.
ATTAR_INLINE __m256 exp_f32(__m256 x) {
    const __m256 lowest = _mm256_set1_ps(-87.3f);
    const __m256 is_zero = _mm256_cmp_ps(x, lowest, _CMP_LT_OQ);
    x = _mm256_min_ps(_mm256_max_ps(x, lowest), _mm256_set1_ps(88.3f));
    const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
                                     _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.62e4p-1f), x);  // ln 2 in two parts: n * high is exact
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.7f7d1cp-20f), r);
    __m256 p = _mm256_set1_ps(1.0f / 5040);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 720));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 120));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 24));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 6));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    return _mm256_andnot_ps(is_zero, _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent)));
}

// tanh x = sign(x) (1 - e) / (1 + e) with e = exp(-2 |x|); absolute error about 1e-7.
ATTAR_INLINE __m256 tanh_f32(__m256 x) {
    const __m256 sign = _mm256_and_ps(x, _mm256_set1_ps(-0.0f));
    const __m256 e = exp_f32(_mm256_mul_ps(_mm256_or_ps(x, _mm256_set1_ps(-0.0f)), _mm256_set1_ps(2.0f)));
    const __m256 one = _mm256_set1_ps(1.0f);
    return _mm256_or_ps(sign, _mm256_div_ps(_mm256_sub_ps(one, e), _mm256_add_ps(one, e)));
}

#endif
