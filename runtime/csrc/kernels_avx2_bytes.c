// kernels_avx2_bytes.c: packed values times 8-bit activations by vpmaddubsw, which adds two products to 16 bits.
// With values of at most 6 bits, a lane's sum of all its quads stays in 16 bits once the bias is taken off, whatever it
// passes through:
//     |(u - bias) a| summed over 16 values (Q6_K: 8) <= 16 * 16 * 127 = 32512 (8 * 32 * 127, the same),
// so it starts at -bias times the sum of its own activations. Q4_1 and Q4_K, from 0: 16 * 15 * 127 = 30480.
// With Q8_0 two products alone stay in 16 bits, as activations of one sign are at most 128 together: 255 * 128 = 32640;
// each such sum is widened to 32 bits before the next.
#include "vec_tile_avx2.h"

enum { UNIT_BYTES = 32 };

// Adds one quad to the sums of one token.
ATTAR_INLINE void add_quad(__m256i sum[2], __m256i w0, __m256i w1, const uint8_t *x) {
    const __m256i a = broadcast_4(x);
    sum[0] = _mm256_add_epi16(sum[0], _mm256_maddubs_epi16(w0, a));
    sum[1] = _mm256_add_epi16(sum[1], _mm256_maddubs_epi16(w1, a));
    // Finishes this token before the next: gcc 12 otherwise starts all six at once and runs out of registers.
    __asm__ volatile("" : "+x"(sum[0]), "+x"(sum[1]));
}

// What the sums of one part of a group start with.
ATTAR_INLINE __m256i start_of(uint32_t type, int32_t part, const attar_unit *x) {
    const bool from_zero = attar_has_offset(type) && type != ATTAR_Q5_K;
    return _mm256_set1_epi32(from_zero ? 0 : x->start[part]);
}

// Sums of 16 bits become sums of 32, without any bias.
ATTAR_INLINE __m256i end_of(uint32_t type, const attar_unit *x, __m256i sum) {
    const __m256i lanes = _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
    if (type != ATTAR_Q5_K) return lanes;
    return _mm256_add_epi32(lanes, _mm256_set1_epi32(x->start[1]));
}

ATTAR_INLINE void add_bytes(uint32_t type, int32_t part, const uint8_t *group, const attar_span *x, int32_t g,
                            int32_t tokens, __m256i isum[MOST_TOKENS][2]) {
    const int32_t n = 8 / attar_scales_of(type);
    const attar_unit *unit = x->unit + g * tokens;
    for (int32_t t = 0; t < tokens; t++) isum[t][0] = isum[t][1] = start_of(type, part, unit + t);
#pragma GCC unroll 8
    for (int32_t p = part * n; p < (part + 1) * n; p++) {
        forget_loads();
        const __m256i w0 = load_quad(type, group, p, 0), w1 = load_quad(type, group, p, 1);
        const uint8_t *q = x->q + g * UNIT_BYTES + 4 * p;
        for (int32_t t = 0; t < tokens; t++) add_quad(isum[t], w0, w1, q + t * x->q_stride);
    }
    for (int32_t t = 0; t < tokens; t++) {
        for (int h = 0; h < 2; h++) isum[t][h] = end_of(type, unit + t, isum[t][h]);
    }
}

ATTAR_INLINE void add_stream_bytes(uint32_t type, int32_t part, const uint8_t *group, uint64_t stride,
                                   const attar_span *x, int32_t g, __m256i isum[ATTAR_STREAMS][2]) {
    const int32_t n = 8 / attar_scales_of(type);
    const attar_unit *unit = x->unit + g;
    for (int i = 0; i < ATTAR_STREAMS; i++) isum[i][0] = isum[i][1] = start_of(type, part, unit);
#pragma GCC unroll 8
    for (int32_t p = part * n; p < (part + 1) * n; p++) {
        forget_loads();
        const __m256i a = broadcast_4(x->q + g * UNIT_BYTES + 4 * p);
        for (int i = 0; i < 2 * ATTAR_STREAMS; i++) {
            const __m256i w = load_quad(type, group + (uint64_t)(i / 2) * stride, p, i % 2);
            __m256i *sum = &isum[i / 2][i % 2];
            *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(w, a));
            // Finishes this sum before the next: gcc 12 otherwise multiplies all quads first, and spills the products.
            __asm__ volatile("" : "+x"(*sum));
        }
    }
    for (int i = 0; i < 2 * ATTAR_STREAMS; i++) isum[i / 2][i % 2] = end_of(type, unit, isum[i / 2][i % 2]);
}

// Q8_0: adds one quad to the sums of one token, of 32 bits.
ATTAR_INLINE __m256i add_widened(__m256i sum, __m256i w, __m256i a) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(w, a), _mm256_set1_epi16(1)));
}

ATTAR_INLINE void add_wide_quad(__m256i sum[2], __m256i w0, __m256i w1, const uint8_t *x) {
    const __m256i a = broadcast_4(x);
    sum[0] = add_widened(sum[0], w0, a);
    sum[1] = add_widened(sum[1], w1, a);
    __asm__ volatile("" : "+x"(sum[0]), "+x"(sum[1]));  // as in add_quad
}

ATTAR_INLINE void add_wide(uint32_t type, int32_t part, const uint8_t *group, const attar_span *x, int32_t g,
                           int32_t tokens, __m256i isum[MOST_TOKENS][2]) {
    const attar_unit *unit = x->unit + g * tokens;
    for (int32_t t = 0; t < tokens; t++) isum[t][0] = isum[t][1] = _mm256_set1_epi32(unit[t].start[part]);
#pragma GCC unroll 8
    for (int32_t p = 0; p < 8; p++) {
        forget_loads();
        const __m256i w0 = load_quad(type, group, p, 0), w1 = load_quad(type, group, p, 1);
        const uint8_t *q = x->q + g * UNIT_BYTES + 4 * p;
        for (int32_t t = 0; t < tokens; t++) add_wide_quad(isum[t], w0, w1, q + t * x->q_stride);
    }
}

ATTAR_INLINE void add_stream_wide(uint32_t type, int32_t part, const uint8_t *group, uint64_t stride,
                                  const attar_span *x, int32_t g, __m256i isum[ATTAR_STREAMS][2]) {
    const attar_unit *unit = x->unit + g;
    for (int i = 0; i < ATTAR_STREAMS; i++) isum[i][0] = isum[i][1] = _mm256_set1_epi32(unit->start[part]);
#pragma GCC unroll 8
    for (int32_t p = 0; p < 8; p++) {
        forget_loads();
        const __m256i a = broadcast_4(x->q + g * UNIT_BYTES + 4 * p);
        for (int i = 0; i < 2 * ATTAR_STREAMS; i++) {
            const __m256i w = load_quad(type, group + (uint64_t)(i / 2) * stride, p, i % 2);
            __m256i *sum = &isum[i / 2][i % 2];
            *sum = add_widened(*sum, w, a);
            __asm__ volatile("" : "+x"(*sum));  // as in add_stream_bytes
        }
    }
}

#define BYTES_PRODUCTS(name, type, tile, stream)                                                                  \
    static void name##_tile(const uint8_t *w, const attar_span *x, attar_tile_output out) {                       \
        multiply_tile(type, tile, w, x, out);                                                                     \
    }                                                                                                             \
    static void name##_stream(const uint8_t *w, uint64_t stride, const attar_span *x, float *y, int64_t y_stride, \
                              bool first) {                                                                       \
        multiply_stream(type, stream, w, stride, x, y, y_stride, first);                                          \
    }

BYTES_PRODUCTS(q4_0, ATTAR_Q4_0, add_bytes, add_stream_bytes)
BYTES_PRODUCTS(q4_1, ATTAR_Q4_1, add_bytes, add_stream_bytes)
BYTES_PRODUCTS(q5_0, ATTAR_Q5_0, add_bytes, add_stream_bytes)
BYTES_PRODUCTS(q8_0, ATTAR_Q8_0, add_wide, add_stream_wide)
BYTES_PRODUCTS(q4_k, ATTAR_Q4_K, add_bytes, add_stream_bytes)
BYTES_PRODUCTS(q5_k, ATTAR_Q5_K, add_bytes, add_stream_bytes)
BYTES_PRODUCTS(q6_k, ATTAR_Q6_K, add_bytes, add_stream_bytes)

#define PRODUCT(prepare, name) ((attar_product){prepare, name##_tile, name##_stream, {MOST_TOKENS, FEW_TOKENS}})

attar_product attar_avx2_bytes(uint32_t type) {
    switch (type) {
        case ATTAR_Q8_0: return PRODUCT(attar_avx2_prepare, q8_0);
        case ATTAR_Q4_0: return PRODUCT(attar_avx2_prepare_pairs, q4_0);
        case ATTAR_Q4_1: return PRODUCT(attar_avx2_prepare_pairs, q4_1);
        case ATTAR_Q5_0: return PRODUCT(attar_avx2_prepare_pairs, q5_0);
        case ATTAR_Q4_K: return PRODUCT(attar_avx2_prepare_pairs, q4_k);
        case ATTAR_Q5_K: return PRODUCT(attar_avx2_prepare_pairs, q5_k);
        default: return PRODUCT(attar_avx2_prepare_pairs, q6_k);
    }
}
