// vec_avx2.h: `vec`, a vector of 8 floats, for the vec_*.h kernels. vec_avx512.h is its 16-lane twin.
//
// Loads and stores take the number n of values that are left and touch only those; missing lanes read as zero.
#ifndef ATTAR_VEC_AVX2_H
#define ATTAR_VEC_AVX2_H

#include <math.h>
#include <string.h>

#include "kernels.h"
#include "x86_quantize.h"

enum { LANES = 8 };
typedef __m256 vec;

// The first n lanes all ones, 0 <= n <= 8.
ATTAR_INLINE __m256i lane_mask(int32_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

ATTAR_INLINE vec vec_load(const float *p, int32_t n) {
    return n >= LANES ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, lane_mask(n));
}

ATTAR_INLINE void vec_store(float *p, int32_t n, vec v) {
    if (n >= LANES) {
        _mm256_storeu_ps(p, v);
    } else {
        _mm256_maskstore_ps(p, lane_mask(n), v);
    }
}

// 16-bit values in a file need not be aligned.
ATTAR_INLINE __m128i load_u16(const void *p, int32_t n) {
    if (n >= LANES) return _mm_loadu_si128((const __m128i *)p);
    uint16_t lanes[LANES] = {0};
    memcpy(lanes, p, (size_t)n * sizeof *lanes);
    return _mm_loadu_si128((const __m128i *)lanes);
}

ATTAR_INLINE vec vec_load_f16(const void *p, int32_t n) { return _mm256_cvtph_ps(load_u16(p, n)); }

ATTAR_INLINE vec vec_load_bf16(const void *p, int32_t n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_u16(p, n)), 16));
}

ATTAR_INLINE void vec_store_f16(uint16_t *p, int32_t n, vec v) {
    const __m128i h = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
    if (n >= LANES) {
        _mm_storeu_si128((__m128i *)p, h);
    } else {
        uint16_t lanes[LANES];
        _mm_storeu_si128((__m128i *)lanes, h);
        memcpy(p, lanes, (size_t)n * sizeof *lanes);
    }
}

ATTAR_INLINE vec vec_set1(float x) { return _mm256_set1_ps(x); }
ATTAR_INLINE vec vec_add(vec a, vec b) { return _mm256_add_ps(a, b); }
ATTAR_INLINE vec vec_sub(vec a, vec b) { return _mm256_sub_ps(a, b); }
ATTAR_INLINE vec vec_mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
ATTAR_INLINE vec vec_div(vec a, vec b) { return _mm256_div_ps(a, b); }
ATTAR_INLINE vec vec_min(vec a, vec b) { return _mm256_min_ps(a, b); }
ATTAR_INLINE vec vec_max(vec a, vec b) { return _mm256_max_ps(a, b); }
ATTAR_INLINE vec vec_fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }          // a b + c
ATTAR_INLINE vec vec_fnma(vec a, vec b, vec c) { return _mm256_fnmadd_ps(a, b, c); }        // c - a b
ATTAR_INLINE vec vec_fmaddsub(vec a, vec b, vec c) { return _mm256_fmaddsub_ps(a, b, c); }  // a b -+ c: even -, odd +
ATTAR_INLINE vec vec_swap_pairs(vec v) { return _mm256_permute_ps(v, 0xB1); }               // (v1, v0, v3, v2, ...)

ATTAR_INLINE vec vec_round(vec v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

// v 2^n for whole n, where both v and the result are normal.
ATTAR_INLINE vec vec_scale2(vec v, vec n) {
    const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(v), exponent));
}

// v where x >= least, else zero.
ATTAR_INLINE vec vec_keep_from(vec v, vec x, vec least) {
    return _mm256_and_ps(v, _mm256_cmp_ps(x, least, _CMP_GE_OQ));
}

ATTAR_INLINE vec vec_keep_first(vec v, int32_t n) {
    return n >= LANES ? v : _mm256_and_ps(v, _mm256_castsi256_ps(lane_mask(n)));
}

ATTAR_INLINE vec vec_abs(vec v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }

ATTAR_INLINE vec vec_copy_sign(vec size, vec sign) {
    return _mm256_or_ps(size, _mm256_and_ps(sign, _mm256_set1_ps(-0.0f)));
}

// The next LANES / 2 values of p (n of them left), each twice.
ATTAR_INLINE vec vec_load_twice(const float *p, int32_t n) {
    const __m256 v = vec_load(p, n < LANES / 2 ? n : LANES / 2);
    return _mm256_permutevar8x32_ps(v, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
}

ATTAR_INLINE float vec_sum(vec v) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

ATTAR_INLINE float vec_largest(vec v) {
    __m128 max = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    max = _mm_max_ps(max, _mm_movehl_ps(max, max));
    return _mm_cvtss_f32(_mm_max_ss(max, _mm_movehdup_ps(max)));
}

// 32 values -> group g of y.
ATTAR_INLINE void vec_quantize_group(const vec v[ATTAR_GROUP / LANES], attar_act y, int64_t g) {
    quantize_vectors(v, y, g);
}

#endif
