// kernels_avx2_words.c: packed values of any type times int16 activations by vpmaddwd, which adds two products to 32
// bits.
// 32 products |u a| <= 255 * 32767 stay below 2^28, the start of at most 128 * 32 * 32767 below 2^27.
#include "vec_tile_avx2.h"

enum { UNIT_BYTES = 64 };

// Adds the even or the odd half of a quad to the sums of one token.
ATTAR_INLINE void add_pair(__m256i sum[2], __m256i w0, __m256i w1, const uint8_t *x) {
    const __m256i a = broadcast_4(x);
    sum[0] = _mm256_add_epi32(sum[0], _mm256_madd_epi16(w0, a));
    sum[1] = _mm256_add_epi32(sum[1], _mm256_madd_epi16(w1, a));
    // As in kernels_avx2_bytes.c.
    __asm__ volatile("" : "+x"(sum[0]), "+x"(sum[1]));
}

// What the sums of one part of a group start with.
ATTAR_INLINE __m256i start_of(uint32_t type, int32_t part, const attar_unit *x) {
    return _mm256_set1_epi32(attar_bias_of(type) == 0 ? 0 : x->start[part]);
}

ATTAR_INLINE __m256i even_bytes(__m256i v) { return _mm256_and_si256(v, _mm256_set1_epi16(0xFF)); }
ATTAR_INLINE __m256i odd_bytes(__m256i v) { return _mm256_srli_epi16(v, 8); }

ATTAR_INLINE void add_words(uint32_t type, int32_t part, const uint8_t *group, const attar_span *x, int32_t g,
                            int32_t tokens, __m256i isum[MOST_TOKENS][2]) {
    const int32_t n = 8 / attar_scales_of(type);
    const attar_unit *unit = x->unit + g * tokens;
    for (int32_t t = 0; t < tokens; t++) isum[t][0] = isum[t][1] = start_of(type, part, unit + t);
#pragma GCC unroll 8
    for (int32_t p = part * n; p < (part + 1) * n; p++) {
        forget_loads();
        const __m256i w0 = load_quad(type, group, p, 0), w1 = load_quad(type, group, p, 1);
        const uint8_t *q = x->q + g * UNIT_BYTES + 8 * p;
        const __m256i even0 = even_bytes(w0), even1 = even_bytes(w1);
        for (int32_t t = 0; t < tokens; t++) add_pair(isum[t], even0, even1, q + t * x->q_stride);
        const __m256i odd0 = odd_bytes(w0), odd1 = odd_bytes(w1);
        for (int32_t t = 0; t < tokens; t++) add_pair(isum[t], odd0, odd1, q + 4 + t * x->q_stride);
    }
}

ATTAR_INLINE void add_stream_words(uint32_t type, int32_t part, const uint8_t *group, uint64_t stride,
                                   const attar_span *x, int32_t g, __m256i isum[ATTAR_STREAMS][2]) {
    const int32_t n = 8 / attar_scales_of(type);
    const attar_unit *unit = x->unit + g;
    for (int i = 0; i < ATTAR_STREAMS; i++) isum[i][0] = isum[i][1] = start_of(type, part, unit);
#pragma GCC unroll 8
    for (int32_t p = part * n; p < (part + 1) * n; p++) {
        forget_loads();
        const uint8_t *q = x->q + g * UNIT_BYTES + 8 * p;
        const __m256i even = broadcast_4(q), odd = broadcast_4(q + 4);
        for (int i = 0; i < 2 * ATTAR_STREAMS; i++) {
            const __m256i w = load_quad(type, group + (uint64_t)(i / 2) * stride, p, i % 2);
            const __m256i products =
                _mm256_add_epi32(_mm256_madd_epi16(even_bytes(w), even), _mm256_madd_epi16(odd_bytes(w), odd));
            __m256i *sum = &isum[i / 2][i % 2];
            *sum = _mm256_add_epi32(*sum, products);
            __asm__ volatile("" : "+x"(*sum));  // as in kernels_avx2_bytes.c
        }
    }
}

#define WORDS_PRODUCTS(name, type)                                                                                \
    static void name##_tile(const uint8_t *w, const attar_span *x, attar_tile_output out) {                       \
        multiply_tile(type, add_words, w, x, out);                                                                \
    }                                                                                                             \
    static void name##_stream(const uint8_t *w, uint64_t stride, const attar_span *x, float *y, int64_t y_stride, \
                              bool first) {                                                                       \
        multiply_stream(type, add_stream_words, w, stride, x, y, y_stride, first);                                \
    }

WORDS_PRODUCTS(q4_0, ATTAR_Q4_0)
WORDS_PRODUCTS(q4_1, ATTAR_Q4_1)
WORDS_PRODUCTS(q5_0, ATTAR_Q5_0)
WORDS_PRODUCTS(q8_0, ATTAR_Q8_0)
WORDS_PRODUCTS(q4_k, ATTAR_Q4_K)
WORDS_PRODUCTS(q5_k, ATTAR_Q5_K)
WORDS_PRODUCTS(q6_k, ATTAR_Q6_K)

#define PRODUCT(name) ((attar_product){attar_avx2_prepare, name##_tile, name##_stream, {MOST_TOKENS, FEW_TOKENS}})

attar_product attar_avx2_words(uint32_t type) {
    switch (type) {
        case ATTAR_Q4_0: return PRODUCT(q4_0);
        case ATTAR_Q4_1: return PRODUCT(q4_1);
        case ATTAR_Q5_0: return PRODUCT(q5_0);
        case ATTAR_Q8_0: return PRODUCT(q8_0);
        case ATTAR_Q4_K: return PRODUCT(q4_k);
        case ATTAR_Q5_K: return PRODUCT(q5_k);
        default: return PRODUCT(q6_k);
    }
}
