// kernels_avx2_bytes.c: packed values of at most 6 bits times 8-bit activations by vpmaddubsw, which adds two products
// to 16 bits. A lane's sum of all its quads stays in 16 bits once the bias is taken off, whatever it passes through:
//     |(u - bias) a| summed over 16 values (Q6_K: 8) <= 16 * 16 * 127 = 32512 (8 * 32 * 127, the same),
// so it starts at -bias times the sum of its own activations. Q4_1 and Q4_K, from 0: 16 * 15 * 127 = 30480.
#include "vec_tile_avx2.h"

// Adds one quad to the sums of one token.
ATTAR_INLINE void add_quad(__m256i sum[2], __m256i w0, __m256i w1, const uint8_t *x) {
    const __m256i a = broadcast_4(x);
    sum[0] = _mm256_add_epi16(sum[0], _mm256_maddubs_epi16(w0, a));
    sum[1] = _mm256_add_epi16(sum[1], _mm256_maddubs_epi16(w1, a));
    // Finishes this token before the next: gcc 12 otherwise starts all six at once and runs out of registers.
    __asm__ volatile("" : "+x"(sum[0]), "+x"(sum[1]));
}

ATTAR_INLINE void add_bytes(uint32_t type, int32_t part, const uint8_t *group, const attar_span *x, int32_t g,
                            int32_t tokens, __m256i isum[MOST_TOKENS][2]) {
    const int32_t n = 8 / attar_scales_of(type), pairs = x->n_groups;
    const bool from_zero = attar_has_offset(type) && type != ATTAR_Q5_K;
    for (int32_t t = 0; t < tokens; t++) {
        const int32_t start = from_zero ? 0 : x->start[2 * (t * pairs + g) + part];
        isum[t][0] = isum[t][1] = _mm256_set1_epi32(start);
    }
#pragma GCC unroll 8
    for (int32_t p = part * n; p < (part + 1) * n; p++) {
        const __m256i w0 = load_quad(type, group, p, 0), w1 = load_quad(type, group, p, 1);
        const uint8_t *q = x->q + g * ATTAR_GROUP + 4 * p;
        for (int32_t t = 0; t < tokens; t++) add_quad(isum[t], w0, w1, q + t * x->q_stride);
    }
    const __m256i ones = _mm256_set1_epi16(1);
    for (int32_t t = 0; t < tokens; t++) {
        for (int h = 0; h < 2; h++) {
            isum[t][h] = _mm256_madd_epi16(isum[t][h], ones);
            if (type != ATTAR_Q5_K) continue;
            const __m256i given_back = _mm256_set1_epi32(x->start[2 * (t * pairs + g) + 1]);
            isum[t][h] = _mm256_add_epi32(isum[t][h], given_back);
        }
    }
}

#define BYTES_PRODUCT(name, type)                                                     \
    static void name(attar_tile_span w, const attar_span *x, attar_tile_output out) { \
        multiply_tile(type, add_bytes, w, x, out);                                    \
    }

BYTES_PRODUCT(multiply_q4_0, ATTAR_Q4_0)
BYTES_PRODUCT(multiply_q4_1, ATTAR_Q4_1)
BYTES_PRODUCT(multiply_q5_0, ATTAR_Q5_0)
BYTES_PRODUCT(multiply_q4_k, ATTAR_Q4_K)
BYTES_PRODUCT(multiply_q5_k, ATTAR_Q5_K)
BYTES_PRODUCT(multiply_q6_k, ATTAR_Q6_K)

attar_tile_product attar_avx2_bytes(uint32_t type) {
    switch (type) {
        case ATTAR_Q4_0: return multiply_q4_0;
        case ATTAR_Q4_1: return multiply_q4_1;
        case ATTAR_Q5_0: return multiply_q5_0;
        case ATTAR_Q4_K: return multiply_q4_k;
        case ATTAR_Q5_K: return multiply_q5_k;
        default: return multiply_q6_k;
    }
}
