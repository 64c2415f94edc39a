// vec_quads_avx512.h: the twin of vec_quads_avx2.h, which states the meaning of each function, for vec_avx512.h.
#ifndef ATTAR_VEC_QUADS_AVX512_H
#define ATTAR_VEC_QUADS_AVX512_H

typedef int32_t ivec __attribute__((vector_size(64)));

typedef struct {
    __m512i even, odd;
} quads;

ATTAR_INLINE ivec ivec_zero(void) { return (ivec){0}; }
ATTAR_INLINE vec ivec_to_vec(ivec v) { return _mm512_cvtepi32_ps((__m512i)v); }

ATTAR_INLINE quads quads_load(const int8_t *p) {
    const __m512i x = _mm512_loadu_si512(p);
    return (quads){_mm512_srai_epi16(_mm512_slli_epi16(x, 8), 8), _mm512_srai_epi16(x, 8)};
}

ATTAR_INLINE __m512i broadcast_pair(const int16_t *w) {
    int32_t pair;
    memcpy(&pair, w, sizeof pair);
    return _mm512_set1_epi32(pair);
}

ATTAR_INLINE ivec quads_dot(ivec sum, quads x, const int16_t *w) {
    const __m512i even = _mm512_dpwssd_epi32((__m512i)sum, x.even, broadcast_pair(w));
    return (ivec)_mm512_dpwssd_epi32(even, x.odd, broadcast_pair(w + 2));
}

ATTAR_INLINE __m256i round_to_i16(vec v) { return _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(v)); }

ATTAR_INLINE void vec_store_i16(int16_t *p, int32_t n, vec v) {
    const __m256i rounded = round_to_i16(v);
    if (n >= LANES) {
        _mm256_storeu_si256((__m256i *)p, rounded);
    } else {
        int16_t lanes[LANES];
        _mm256_storeu_si256((__m256i *)lanes, rounded);
        memcpy(p, lanes, (size_t)n * sizeof *lanes);
    }
}

ATTAR_INLINE void vec_store_quads(int16_t *p, vec v) {
    const __m256i rounded = round_to_i16(v);
    _mm256_storeu_si256((__m256i *)p, _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(rounded, 0xD8), 0xD8));
}

#endif
