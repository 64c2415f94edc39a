// x86_matvec.h: integer weights times one token, a loop bound by memory, for the AVX2 and the AVX-512 file (which
// defines ATTAR_VNNI first).
//
// Rows are read in place, 8 at a time. Each row's 8 partial integer sums of a group are added across lanes by a tree
// that ends with lanes = rows, and then join the running sums of the 8 rows.
#ifndef ATTAR_X86_MATVEC_H
#define ATTAR_X86_MATVEC_H

#include "x86_rows.h"
#include "x86_tile.h"

// sum += (scale * d) * float(isum), without fused rounding.
ATTAR_INLINE __m256 add_product(__m256 sum, __m256 scale, __m256 d, __m256i isum) {
    return _mm256_add_ps(sum, _mm256_mul_ps(_mm256_mul_ps(scale, d), _mm256_cvtepi32_ps(isum)));
}

// Sums of neighbouring lanes: (a0+a1, b0+b1, a2+a3, b2+b3, ...). Blends leave the shuffle ports free.
ATTAR_INLINE __m256i add_pairs(__m256i a, __m256i b) {
    const __m256i crossed = _mm256_shuffle_epi32(_mm256_blend_epi32(a, b, 0x55), 0xB1);
    return _mm256_add_epi32(_mm256_blend_epi32(a, b, 0xAA), crossed);
}

// Of two results of add_pairs: (a, b, c, d) in each half.
ATTAR_INLINE __m256i add_quads(__m256i ab, __m256i cd) {
    const __m256i crossed = _mm256_shuffle_epi32(_mm256_blend_epi32(ab, cd, 0x33), 0x4E);
    return _mm256_add_epi32(_mm256_blend_epi32(ab, cd, 0xCC), crossed);
}

ATTAR_INLINE __m256i add_halves(__m256i abcd, __m256i efgh) {
    return _mm256_add_epi32(_mm256_blend_epi32(abcd, efgh, 0xF0), _mm256_permute2x128_si256(abcd, efgh, 0x21));
}

// Lane r: the sum of all lanes of v[r].
ATTAR_INLINE __m256i reduce_8(const __m256i v[ROWS_8]) {
    return add_halves(add_quads(add_pairs(v[0], v[1]), add_pairs(v[2], v[3])),
                      add_quads(add_pairs(v[4], v[5]), add_pairs(v[6], v[7])));
}

// sum + the products of pairs of 16-bit integers.
ATTAR_INLINE __m256i multiply_add(__m256i sum, __m256i q, __m256i a) {
#if defined(ATTAR_VNNI)
    return _mm256_dpwssd_epi32(sum, q, a);
#else
    return _mm256_add_epi32(sum, _mm256_madd_epi16(q, a));
#endif
}

// Adds group j of the block at `rows`, group g of the activations. Integer sums start at -bias times the activations,
// which is cheaper than taking the bias from every row's values.
ATTAR_INLINE __m256 add_group_8(uint32_t type, __m256 sum, const rows_8 *rows, int32_t j, const block_scales *scales,
                                token_act x, int64_t g) {
    const __m256i low = _mm256_loadu_si256((const __m256i *)(x.q + g * ATTAR_GROUP));
    const __m256i high = _mm256_loadu_si256((const __m256i *)(x.q + g * ATTAR_GROUP + 16));
    const __m256i minus_bias = _mm256_set1_epi16((int16_t)-bias_of(type));
    const __m256i start_high = _mm256_madd_epi16(minus_bias, high), start_low = _mm256_madd_epi16(minus_bias, low);
    const __m256 d = _mm256_broadcast_ss(x.d + g);
    __m256i first[ROWS_8], second[ROWS_8];
    for (int r = 0; r < ROWS_8; r++) {
        const words q = load_words(type, rows->row[r], j);
        if (scales_of(type) == 1) {
            const __m256i start = _mm256_add_epi32(start_low, start_high);
            first[r] = multiply_add(multiply_add(start, q.low, low), q.high, high);
        } else {
            first[r] = multiply_add(start_low, q.low, low);
            second[r] = multiply_add(start_high, q.high, high);
        }
    }
    sum = add_product(sum, scales->scale[scales_of(type) * j], d, reduce_8(first));
    if (scales_of(type) == 2) sum = add_product(sum, scales->scale[2 * j + 1], d, reduce_8(second));
    if (has_offset(type)) sum = _mm256_add_ps(sum, _mm256_mul_ps(scales->offset[j], _mm256_broadcast_ss(x.s + g)));
    return sum;
}

// y [rows] = w x for rows row0 .. row1-1.
ATTAR_INLINE void matvec_type(uint32_t type, const attar_weight *w, int32_t row0, int32_t row1, token_act x, float *y) {
    const uint64_t block_bytes = attar_type_get(type).block_bytes;
    const int32_t per_block = groups_of(type), groups = w->cols / ATTAR_GROUP;
    const int32_t unroll = per_block == 1 ? 1 : 4;  // makes the K-quants' shifts constants
    for (int32_t row = row0; row < row1; row += ROWS_8) {
        rows_8 rows = rows_at(w, row, row1);
        __m256 sum = _mm256_setzero_ps();
        for (int32_t g = 0; g < groups; g += per_block) {
            block_scales scales;
            load_scales(type, &rows, &scales);
            for (int32_t j = 0; j < per_block; j += unroll) {
#pragma GCC unroll 4
                for (int32_t i = 0; i < unroll; i++) sum = add_group_8(type, sum, &rows, j + i, &scales, x, g + j + i);
            }
            advance(&rows, block_bytes);
        }
        vec_store(y + row, row1 - row, sum);
    }
}

ATTAR_INLINE void matvec(const attar_weight *w, int32_t row0, int32_t row1, token_act x, float *y) {
    switch (w->type) {  // each call is compiled for its type
        case ATTAR_Q4_0: matvec_type(ATTAR_Q4_0, w, row0, row1, x, y); break;
        case ATTAR_Q4_1: matvec_type(ATTAR_Q4_1, w, row0, row1, x, y); break;
        case ATTAR_Q5_0: matvec_type(ATTAR_Q5_0, w, row0, row1, x, y); break;
        case ATTAR_Q8_0: matvec_type(ATTAR_Q8_0, w, row0, row1, x, y); break;
        case ATTAR_Q4_K: matvec_type(ATTAR_Q4_K, w, row0, row1, x, y); break;
        case ATTAR_Q5_K: matvec_type(ATTAR_Q5_K, w, row0, row1, x, y); break;
        default: matvec_type(ATTAR_Q6_K, w, row0, row1, x, y); break;
    }
}

#endif
