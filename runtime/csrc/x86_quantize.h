// x86_quantize.h: 32 floats in registers become a group of integer activations; bit for bit quantize_group of
// kernels_scalar.c.
#ifndef ATTAR_X86_QUANTIZE_H
#define ATTAR_X86_QUANTIZE_H

#include "kernels.h"
#include "x86_intrinsics.h"

ATTAR_INLINE float largest_size(const __m256 v[4]) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    const __m256 low = _mm256_max_ps(_mm256_andnot_ps(sign, v[0]), _mm256_andnot_ps(sign, v[1]));
    const __m256 high = _mm256_max_ps(_mm256_andnot_ps(sign, v[2]), _mm256_andnot_ps(sign, v[3]));
    const __m256 max = _mm256_max_ps(low, high);
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(max), _mm256_extractf128_ps(max, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

// The largest of `max` and the sums of neighbours of one sign; largest_size of kernels_scalar.c.
ATTAR_INLINE float with_pairs(const __m256 v[4], float max) {
    const __m256 zero = _mm256_setzero_ps(), sign = _mm256_set1_ps(-0.0f);
    __m256 pairs[4];
    for (int i = 0; i < 4; i++) {
        const __m256 up = _mm256_max_ps(v[i], zero), down = _mm256_max_ps(_mm256_xor_ps(v[i], sign), zero);
        pairs[i] = _mm256_max_ps(_mm256_add_ps(up, _mm256_permute_ps(up, 0xB1)),
                                 _mm256_add_ps(down, _mm256_permute_ps(down, 0xB1)));
    }
    const float pair = largest_size(pairs) * ATTAR_PAIR_SHARE;
    return pair > max ? pair : max;
}

// q [32], in order. The packing instructions work within 128-bit halves, the permutation restores the order.
ATTAR_INLINE void store_bytes(const __m256i r[4], int8_t *q) {
    const __m256i words = _mm256_packs_epi16(_mm256_packs_epi32(r[0], r[1]), _mm256_packs_epi32(r[2], r[3]));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256((__m256i *)q, _mm256_permutevar8x32_epi32(words, order));
}

// q [32], each four in the order 0, 2, 1, 3.
ATTAR_INLINE void store_words(const __m256i r[4], int16_t *q) {
    for (int i = 0; i < 2; i++) {
        const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(r[2 * i], r[2 * i + 1]), 0xD8);
        const __m256i ordered = _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(words, 0xD8), 0xD8);
        _mm256_storeu_si256((__m256i *)(q + 16 * i), ordered);
    }
}

// Sums of both halves of the group, as attar_act holds them.
ATTAR_INLINE void store_sums(int32_t bits, const __m256i r[4], int32_t sum[2]) {
    const __m256i first = _mm256_add_epi32(r[0], r[1]), second = _mm256_add_epi32(r[2], r[3]);
    __m256i v = _mm256_add_epi32(_mm256_permute2x128_si256(first, second, 0x20),
                                 _mm256_permute2x128_si256(first, second, 0x31));  // values modulo 4 of each half
    v = _mm256_add_epi32(v, _mm256_shuffle_epi32(v, 0xB1));
    const __m256i crossed = _mm256_shuffle_epi32(v, 0x4E);
    v = bits == 8 ? _mm256_blend_epi16(v, _mm256_slli_epi32(crossed, 16), 0xAA) : _mm256_add_epi32(v, crossed);
    sum[0] = _mm_cvtsi128_si32(_mm256_castsi256_si128(v));
    sum[1] = _mm_cvtsi128_si32(_mm256_extracti128_si256(v, 1));
}

// v [4] -> group g of y.
ATTAR_INLINE void quantize_vectors(const __m256 v[4], attar_act y, int64_t g) {
    const float limit = y.bits == 8 ? 127.0f : 32767.0f;
    float max = largest_size(v);
    if (y.bits == 8) max = with_pairs(v, max);
    const __m256 inverse = _mm256_set1_ps(max > ATTAR_ROUND_LEAST ? limit / max : 0.0f);
    __m256i rounded[4];
    for (int i = 0; i < 4; i++) rounded[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
    y.d[g] = max / limit;
    store_sums(y.bits, rounded, y.sum + 2 * g);
    if (y.bits == 8)
        store_bytes(rounded, (int8_t *)y.q + g * ATTAR_GROUP);
    else
        store_words(rounded, (int16_t *)y.q + g * ATTAR_GROUP);
}

#endif
