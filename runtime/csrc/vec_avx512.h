// vec_avx512.h: `vec`, a vector of 16 floats; the twin of vec_avx2.h, which states the meaning of each function.
#ifndef ATTAR_VEC_AVX512_H
#define ATTAR_VEC_AVX512_H

#include <math.h>
#include <string.h>

#include "kernels.h"
#include "x86_quantize.h"

enum { LANES = 16 };
typedef __m512 vec;

ATTAR_INLINE __mmask16 lane_mask(int32_t n) { return (__mmask16)((1u << n) - 1u); }

ATTAR_INLINE vec vec_load(const float *p, int32_t n) {
    return n >= LANES ? _mm512_loadu_ps(p) : _mm512_maskz_loadu_ps(lane_mask(n), p);
}

ATTAR_INLINE void vec_store(float *p, int32_t n, vec v) {
    if (n >= LANES) {
        _mm512_storeu_ps(p, v);
    } else {
        _mm512_mask_storeu_ps(p, lane_mask(n), v);
    }
}

ATTAR_INLINE __m256i load_u16(const void *p, int32_t n) {
    if (n >= LANES) return _mm256_loadu_si256((const __m256i *)p);
    uint16_t lanes[LANES] = {0};
    memcpy(lanes, p, (size_t)n * sizeof *lanes);
    return _mm256_loadu_si256((const __m256i *)lanes);
}

ATTAR_INLINE vec vec_load_f16(const void *p, int32_t n) { return _mm512_cvtph_ps(load_u16(p, n)); }

ATTAR_INLINE vec vec_load_bf16(const void *p, int32_t n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_u16(p, n)), 16));
}

ATTAR_INLINE void vec_store_f16(uint16_t *p, int32_t n, vec v) {
    const __m256i h = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
    if (n >= LANES) {
        _mm256_storeu_si256((__m256i *)p, h);
    } else {
        uint16_t lanes[LANES];
        _mm256_storeu_si256((__m256i *)lanes, h);
        memcpy(p, lanes, (size_t)n * sizeof *lanes);
    }
}

ATTAR_INLINE vec vec_set1(float x) { return _mm512_set1_ps(x); }
ATTAR_INLINE vec vec_add(vec a, vec b) { return _mm512_add_ps(a, b); }
ATTAR_INLINE vec vec_sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
ATTAR_INLINE vec vec_mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
ATTAR_INLINE vec vec_div(vec a, vec b) { return _mm512_div_ps(a, b); }
ATTAR_INLINE vec vec_min(vec a, vec b) { return _mm512_min_ps(a, b); }
ATTAR_INLINE vec vec_max(vec a, vec b) { return _mm512_max_ps(a, b); }
ATTAR_INLINE vec vec_fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
ATTAR_INLINE vec vec_fnma(vec a, vec b, vec c) { return _mm512_fnmadd_ps(a, b, c); }
ATTAR_INLINE vec vec_fmaddsub(vec a, vec b, vec c) { return _mm512_fmaddsub_ps(a, b, c); }
ATTAR_INLINE vec vec_swap_pairs(vec v) { return _mm512_permute_ps(v, 0xB1); }

ATTAR_INLINE vec vec_round(vec v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

ATTAR_INLINE vec vec_scale2(vec v, vec n) {
    const __m512i exponent = _mm512_slli_epi32(_mm512_cvtps_epi32(n), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(v), exponent));
}

ATTAR_INLINE vec vec_keep_from(vec v, vec x, vec least) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, least, _CMP_GE_OQ), v);
}

ATTAR_INLINE vec vec_keep_first(vec v, int32_t n) { return n >= LANES ? v : _mm512_maskz_mov_ps(lane_mask(n), v); }

ATTAR_INLINE vec vec_abs(vec v) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7FFFFFFF)));
}

ATTAR_INLINE vec vec_copy_sign(vec size, vec sign) {
    const __m512i bits = _mm512_andnot_si512(_mm512_set1_epi32(0x7FFFFFFF), _mm512_castps_si512(sign));
    return _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(size), bits));
}

ATTAR_INLINE vec vec_load_twice(const float *p, int32_t n) {
    const __m512 v = vec_load(p, n < LANES / 2 ? n : LANES / 2);
    return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7), v);
}

ATTAR_INLINE float vec_sum(vec v) { return _mm512_reduce_add_ps(v); }

ATTAR_INLINE float vec_largest(vec v) { return _mm512_reduce_max_ps(v); }

ATTAR_INLINE void vec_quantize_group(const vec v[ATTAR_GROUP / LANES], attar_act y, int64_t g) {
    __m256 halves[4];
    for (int i = 0; i < 2; i++) {
        halves[2 * i] = _mm512_castps512_ps256(v[i]);
        halves[2 * i + 1] = _mm512_extractf32x8_ps(v[i], 1);
    }
    quantize_vectors(halves, y, g);
}

#endif
