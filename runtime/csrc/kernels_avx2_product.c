// kernels_avx2_product.c: activations made ready for the integer products of the AVX2 and the AVX-512 table, and the
// former's entry.
#include <string.h>

#include "x86_product.h"

enum { UNITS_AT_ONCE = 4 };

// What integer sums start with: one int32, or a pair of int16.
typedef enum { START_LANES, START_PAIRS } start_kind;

// --- sums -----------------------------------------------------------------------------------------------------

// Each lane of a pair of lanes: the sum of both.
ATTAR_INLINE __m256i add_halves(__m256i v) { return _mm256_add_epi32(v, _mm256_shuffle_epi32(v, 0xB1)); }

// What the integer sums of 4 groups start with, from the sums of their halves.
ATTAR_INLINE __m256i starts_of(uint32_t type, start_kind kind, __m256i sums, __m256i lanes) {
    const bool both = attar_scales_of(type) == 1;
    if (kind == START_LANES) {
        const __m256i minus_bias = _mm256_set1_epi32(-attar_bias_of(type));
        return _mm256_mullo_epi32(both ? add_halves(lanes) : lanes, minus_bias);
    }
    const __m256i total = _mm256_add_epi16(sums, _mm256_shuffle_epi32(sums, 0xB1));
    if (type != ATTAR_Q5_K) {
        return _mm256_mullo_epi16(both ? total : sums, _mm256_set1_epi16((int16_t)-attar_bias_of(type)));
    }
    // 16-bit sums of five-bit values need a bias of 16 to stay in range; the second start gives it back.
    const __m256i taken = _mm256_mullo_epi16(total, _mm256_set1_epi16(-16));
    return _mm256_blend_epi32(taken, _mm256_madd_epi16(total, _mm256_set1_epi16(16)), 0xAA);
}

// Four groups of a token: sum [8], d [4] -> unit[0], unit[step], unit[2 step], unit[3 step].
ATTAR_INLINE void prepare_four(uint32_t type, start_kind kind, int32_t bits, const int32_t *sum, const float *d,
                               attar_unit *unit, int32_t step) {
    const __m256i sums = _mm256_loadu_si256((const __m256i *)sum);
    const __m256i lanes = bits == 8 ? _mm256_madd_epi16(sums, _mm256_set1_epi16(1)) : sums;
    const __m256i starts = starts_of(type, kind, sums, lanes);
    const __m256i total = _mm256_permutevar8x32_epi32(add_halves(lanes), _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6));
    const __m128 scale = _mm_loadu_ps(d), s = _mm_mul_ps(_mm_cvtepi32_ps(_mm256_castsi256_si128(total)), scale);
    const __m128i low = _mm_castps_si128(_mm_unpacklo_ps(s, scale)), high = _mm_castps_si128(_mm_unpackhi_ps(s, scale));
    const __m128i first = _mm256_castsi256_si128(starts), second = _mm256_extracti128_si256(starts, 1);
    _mm_store_si128((__m128i *)unit, _mm_unpacklo_epi64(first, low));
    _mm_store_si128((__m128i *)(unit + step), _mm_unpackhi_epi64(first, _mm_unpackhi_epi64(low, low)));
    _mm_store_si128((__m128i *)(unit + 2 * step), _mm_unpacklo_epi64(second, high));
    _mm_store_si128((__m128i *)(unit + 3 * step), _mm_unpackhi_epi64(second, _mm_unpackhi_epi64(high, high)));
}

// n groups of a token, `step` units apart.
ATTAR_INLINE void prepare_units(uint32_t type, start_kind kind, int32_t bits, const int32_t *sum, const float *d,
                                int32_t n, attar_unit *unit, int32_t step) {
    int32_t i = 0;
    for (; i + UNITS_AT_ONCE <= n; i += UNITS_AT_ONCE) {
        prepare_four(type, kind, bits, sum + 2 * i, d + i, unit + i * step, step);
    }
    if (i == n) return;
    const size_t left = (size_t)(n - i);
    int32_t last_sum[2 * UNITS_AT_ONCE] = {0};
    float last_d[UNITS_AT_ONCE] = {0};
    attar_unit last[UNITS_AT_ONCE];
    memcpy(last_sum, sum + 2 * i, 2 * left * sizeof *sum);
    memcpy(last_d, d + i, left * sizeof *d);
    prepare_four(type, kind, bits, last_sum, last_d, last, 1);
    for (size_t k = 0; k < left; k++) unit[(i + (int32_t)k) * step] = last[k];
}

static void prepare_units_of(uint32_t type, start_kind kind, int32_t bits, const int32_t *sum, const float *d,
                             int32_t n, attar_unit *unit, int32_t step) {
    switch (type) {  // each call is compiled for its type
        case ATTAR_Q4_0: prepare_units(ATTAR_Q4_0, kind, bits, sum, d, n, unit, step); break;
        case ATTAR_Q5_0: prepare_units(ATTAR_Q5_0, kind, bits, sum, d, n, unit, step); break;
        case ATTAR_Q8_0: prepare_units(ATTAR_Q8_0, kind, bits, sum, d, n, unit, step); break;
        case ATTAR_Q5_K: prepare_units(ATTAR_Q5_K, kind, bits, sum, d, n, unit, step); break;
        case ATTAR_Q6_K: prepare_units(ATTAR_Q6_K, kind, bits, sum, d, n, unit, step); break;
        default: prepare_units(ATTAR_Q4_K, kind, bits, sum, d, n, unit, step); break;  // and Q4_1: no bias
    }
}

// --- spans ----------------------------------------------------------------------------------------------------

// Units of `tokens` tokens from token t0 on, each block's side by side.
static void prepare_blocks(const attar_weight *w, attar_act x, const attar_product *product, start_kind kind,
                           int32_t g0, int32_t n, int32_t t0, int32_t tokens, attar_unit *unit) {
    const int64_t groups = w->cols / ATTAR_GROUP;
    for (int32_t t = 0, block; t < tokens; t += block) {
        block = attar_block(product->blocks, tokens - t);
        for (int32_t i = 0; i < block; i++) {
            const int64_t at = (t0 + t + i) * groups + g0;
            prepare_units_of(w->type, kind, x.bits, x.sum + 2 * at, x.d + at, n, unit + t * n + i, block);
        }
    }
}

// The activations as they are, from token t0 and group g0 on.
static attar_span span_in_place(const attar_weight *w, attar_act x, int32_t g0, int32_t n, int32_t t0, int32_t tokens,
                                const attar_unit *unit) {
    const int64_t row_bytes = (int64_t)w->cols * x.bits / 8;
    return (attar_span){(const uint8_t *)x.q + t0 * row_bytes + (int64_t)g0 * ATTAR_GROUP * x.bits / 8, unit, row_bytes,
                        tokens, n};
}

attar_span attar_avx2_prepare(const attar_weight *w, attar_act x, const attar_product *product, int32_t g0, int32_t n,
                              int32_t t0, int32_t tokens, attar_span_memory *memory) {
    prepare_blocks(w, x, product, START_LANES, g0, n, t0, tokens, memory->unit);
    return span_in_place(w, x, g0, n, t0, tokens, memory->unit);
}

attar_span attar_avx2_prepare_pairs(const attar_weight *w, attar_act x, const attar_product *product, int32_t g0,
                                    int32_t n, int32_t t0, int32_t tokens, attar_span_memory *memory) {
    prepare_blocks(w, x, product, START_PAIRS, g0, n, t0, tokens, memory->unit);
    return span_in_place(w, x, g0, n, t0, tokens, memory->unit);
}

// --- the table's entry ----------------------------------------------------------------------------------------

void attar_avx2_matmul(const attar_weight *w, int32_t row0, int32_t row1, attar_act x, int32_t n_tokens, float *y,
                       int64_t ldy) {
    const attar_product product = x.bits == 16 ? attar_avx2_words(w->type) : attar_avx2_bytes(w->type);
    multiply_spans(w, row0, row1, x, n_tokens, y, ldy, &product);
}
