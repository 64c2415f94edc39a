// vec_quads_avx2.h: `ivec`, 8 int32, and `quads`, 8 times four int8, for vec_attend.h. Include after vec_avx2.h;
// vec_quads_avx512.h is the twin for vec_avx512.h.
#ifndef ATTAR_VEC_QUADS_AVX2_H
#define ATTAR_VEC_QUADS_AVX2_H

// As int32: with __m256i, which is int64 to gcc, it keeps two copies of every sum.
typedef int32_t ivec __attribute__((vector_size(32)));

// Bytes 0 and 2 of each four as int16, and bytes 1 and 3.
typedef struct {
    __m256i even, odd;
} quads;

ATTAR_INLINE ivec ivec_zero(void) { return (ivec){0}; }
ATTAR_INLINE vec ivec_to_vec(ivec v) { return _mm256_cvtepi32_ps((__m256i)v); }

ATTAR_INLINE quads quads_load(const int8_t *p) {
    const __m256i x = _mm256_loadu_si256((const __m256i *)p);
    return (quads){_mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8), _mm256_srai_epi16(x, 8)};
}

ATTAR_INLINE __m256i broadcast_pair(const int16_t *w) {
    int32_t pair;
    memcpy(&pair, w, sizeof pair);
    return _mm256_set1_epi32(pair);
}

// sum + the four int8 of each lane times w, which holds numbers 0, 2, 1, 3.
ATTAR_INLINE ivec quads_dot(ivec sum, quads x, const int16_t *w) {
    const __m256i even = _mm256_madd_epi16(x.even, broadcast_pair(w));
    const __m256i odd = _mm256_madd_epi16(x.odd, broadcast_pair(w + 2));
    return sum + (ivec)even + (ivec)odd;
}

// v rounded to nearest even, held at the limits of int16.
ATTAR_INLINE __m128i round_to_i16(vec v) {
    const __m256i rounded = _mm256_cvtps_epi32(v);
    return _mm_packs_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
}

ATTAR_INLINE void vec_store_i16(int16_t *p, int32_t n, vec v) {
    const __m128i rounded = round_to_i16(v);
    if (n >= LANES) {
        _mm_storeu_si128((__m128i *)p, rounded);
    } else {
        int16_t lanes[LANES];
        _mm_storeu_si128((__m128i *)lanes, rounded);
        memcpy(p, lanes, (size_t)n * sizeof *lanes);
    }
}

// The same for LANES values, each four in the order 0, 2, 1, 3.
ATTAR_INLINE void vec_store_quads(int16_t *p, vec v) {
    _mm_storeu_si128((__m128i *)p, _mm_shufflehi_epi16(_mm_shufflelo_epi16(round_to_i16(v), 0xD8), 0xD8));
}

#endif
