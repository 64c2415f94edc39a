// kernels_avx2_words.c: packed values of any type times int16 activations by vpmaddwd, which adds two products to 32
// bits: 16-bit activations, and 8-bit ones, widened, with Q8_0, whose products of bytes would not fit vpmaddubsw.
// 32 products |u a| <= 255 * 32767 stay below 2^28, the start of at most 128 * 32 * 32767 below 2^27.
#include "vec_tile_avx2.h"

// Adds the even or the odd half of a quad to the sums of one token.
ATTAR_INLINE void add_pair(__m256i sum[2], __m256i w0, __m256i w1, const uint8_t *x) {
    const __m256i a = broadcast_4(x);
    sum[0] = _mm256_add_epi32(sum[0], _mm256_madd_epi16(w0, a));
    sum[1] = _mm256_add_epi32(sum[1], _mm256_madd_epi16(w1, a));
    // As in kernels_avx2_bytes.c.
    __asm__ volatile("" : "+x"(sum[0]), "+x"(sum[1]));
}

ATTAR_INLINE void add_words(uint32_t type, int32_t part, const uint8_t *group, const attar_span *x, int32_t g,
                            int32_t tokens, __m256i isum[MOST_TOKENS][2]) {
    const int32_t n = 8 / attar_scales_of(type);
    const __m256i low = _mm256_set1_epi16(0xFF);
    for (int32_t t = 0; t < tokens; t++) {
        const int32_t start = attar_bias_of(type) == 0 ? 0 : x->start[2 * (t * x->n_groups + g) + part];
        isum[t][0] = isum[t][1] = _mm256_set1_epi32(start);
    }
#pragma GCC unroll 8
    for (int32_t p = part * n; p < (part + 1) * n; p++) {
        const __m256i w0 = load_quad(type, group, p, 0), w1 = load_quad(type, group, p, 1);
        const uint8_t *q = x->q + 2 * (g * ATTAR_GROUP + 4 * p);
        const __m256i even0 = _mm256_and_si256(w0, low), even1 = _mm256_and_si256(w1, low);
        for (int32_t t = 0; t < tokens; t++) add_pair(isum[t], even0, even1, q + t * x->q_stride);
        const __m256i odd0 = _mm256_srli_epi16(w0, 8), odd1 = _mm256_srli_epi16(w1, 8);
        for (int32_t t = 0; t < tokens; t++) add_pair(isum[t], odd0, odd1, q + 4 + t * x->q_stride);
    }
}

#define WORDS_PRODUCT(name, type)                                                     \
    static void name(attar_tile_span w, const attar_span *x, attar_tile_output out) { \
        multiply_tile(type, add_words, w, x, out);                                    \
    }

WORDS_PRODUCT(multiply_q4_0, ATTAR_Q4_0)
WORDS_PRODUCT(multiply_q4_1, ATTAR_Q4_1)
WORDS_PRODUCT(multiply_q5_0, ATTAR_Q5_0)
WORDS_PRODUCT(multiply_q8_0, ATTAR_Q8_0)
WORDS_PRODUCT(multiply_q4_k, ATTAR_Q4_K)
WORDS_PRODUCT(multiply_q5_k, ATTAR_Q5_K)
WORDS_PRODUCT(multiply_q6_k, ATTAR_Q6_K)

attar_tile_product attar_avx2_words(uint32_t type) {
    switch (type) {
        case ATTAR_Q4_0: return multiply_q4_0;
        case ATTAR_Q4_1: return multiply_q4_1;
        case ATTAR_Q5_0: return multiply_q5_0;
        case ATTAR_Q8_0: return multiply_q8_0;
        case ATTAR_Q4_K: return multiply_q4_k;
        case ATTAR_Q5_K: return multiply_q5_k;
        default: return multiply_q6_k;
    }
}
