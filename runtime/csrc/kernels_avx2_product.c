// kernels_avx2_product.c: the order in which integer products visit columns, tokens and tiles, and activations made
// ready for them; for the AVX2 and the AVX-512 table.
//
// A span of columns of some tokens is made ready once and then meets every tile of the row range: tiles stream by, the
// activations stay in the caches. Sums between spans pass through y, which loses nothing.
#include <string.h>

#include "x86_product.h"

// Room for a span.
typedef struct {
    _Alignas(64) int16_t words[ATTAR_SPAN_UNITS * ATTAR_GROUP];
    _Alignas(64) attar_unit unit[ATTAR_SPAN_UNITS];
} span_memory;

enum { UNITS_AT_ONCE = 4 };

// --- sums -----------------------------------------------------------------------------------------------------

// Each lane of a pair of lanes: the sum of both.
ATTAR_INLINE __m256i add_halves(__m256i v) { return _mm256_add_epi32(v, _mm256_shuffle_epi32(v, 0xB1)); }

// What the integer sums of 4 groups start with, from the sums of their halves.
ATTAR_INLINE __m256i starts_of(uint32_t type, attar_start kind, __m256i sums, __m256i lanes) {
    const bool both = attar_scales_of(type) == 1;
    if (kind == ATTAR_START_LANES) {
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
ATTAR_INLINE void prepare_four(uint32_t type, attar_start kind, int32_t bits, const int32_t *sum, const float *d,
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
ATTAR_INLINE void prepare_units(uint32_t type, attar_start kind, int32_t bits, const int32_t *sum, const float *d,
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

static void prepare_units_of(uint32_t type, attar_start kind, int32_t bits, const int32_t *sum, const float *d,
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

// n int8 (a multiple of 32) -> int16, each four in the order 0, 2, 1, 3.
static void widen(const int8_t *q, int32_t n, int16_t *words) {
    for (int32_t i = 0; i < n; i += 16) {
        const __m256i v = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(q + i)));
        const __m256i ordered = _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(v, 0xD8), 0xD8);
        _mm256_store_si256((__m256i *)(words + i), ordered);
    }
}

// Groups g0 .. g0+n-1 of tokens t0 .. t0+tokens-1.
static attar_span prepare_span(const attar_weight *w, attar_act x, attar_product product, int32_t g0, int32_t n,
                               int32_t t0, int32_t tokens, span_memory *memory) {
    const int64_t groups = w->cols / ATTAR_GROUP, first = t0 * groups + g0, value_bytes = x.bits / 8;
    for (int32_t t = 0, block; t < tokens; t += block) {
        block = attar_block(product.blocks, tokens - t);
        for (int32_t i = 0; i < block; i++) {
            const int64_t at = first + (t + i) * groups;
            prepare_units_of(w->type, product.start, x.bits, x.sum + 2 * at, x.d + at, n, memory->unit + t * n + i,
                             block);
        }
    }
    const uint8_t *q = (const uint8_t *)x.q + first * ATTAR_GROUP * value_bytes;
    if (!product.widen) return (attar_span){q, memory->unit, w->cols * value_bytes, tokens, n};
    const int32_t values = n * ATTAR_GROUP;
    for (int32_t t = 0; t < tokens; t++) {
        widen((const int8_t *)q + (int64_t)t * w->cols, values, memory->words + t * values);
    }
    return (attar_span){(const uint8_t *)memory->words, memory->unit, values * (int64_t)sizeof(int16_t), tokens, n};
}

// Groups in a span: all, if a few tokens' worth fits; else equal parts, multiples of 8 as K-quants need.
static int32_t span_groups(int32_t groups, int32_t n_tokens) {
    const int32_t most = ATTAR_SPAN_UNITS / (n_tokens < 12 ? n_tokens : 12);
    const int32_t parts = (groups + most - 1) / most;
    return parts == 1 ? groups : (groups / parts / 8 + 1) * 8;
}

// Part of a weight matrix: columns from group g0 on.
static attar_tile_span tile_span(const attar_weight *w, int32_t row, int32_t g0) {
    const uint8_t *tile = w->data + (uint64_t)(row / ATTAR_TILE_ROWS) * attar_tile_bytes(w->type, w->cols);
    const int32_t block = g0 / (attar_is_k(w->type) ? 8 : 1);
    return (attar_tile_span){
        tile + (int64_t)g0 * attar_group_bytes(w->type),
        tile + attar_tile_quant_bytes(w->type, w->cols) + (int64_t)block * attar_scale_bytes(w->type)};
}

// Whole tiles from row0 on, for one token: four streams of tiles, one after another each. Returns the first row left.
static int32_t multiply_streams(const attar_weight *w, int32_t row0, int32_t row1, const attar_span *x, int32_t g0,
                                attar_stream_product multiply, float *y) {
    const uint64_t tile_bytes = attar_tile_bytes(w->type, w->cols);
    const int32_t length = (row1 - row0) / ATTAR_TILE_ROWS / ATTAR_STREAMS;  // tiles of a stream
    for (int32_t i = 0; i < length; i++) {
        const int32_t row = row0 + i * ATTAR_TILE_ROWS;
        multiply(tile_span(w, row, g0), (uint64_t)length * tile_bytes, x, y + row, length * ATTAR_TILE_ROWS, g0 == 0);
    }
    return row0 + length * ATTAR_STREAMS * ATTAR_TILE_ROWS;
}

static void multiply_span(const attar_weight *w, int32_t row0, int32_t row1, const attar_span *x, int32_t g0,
                          attar_product product, float *y, int64_t ldy) {
    int32_t row = x->tokens == 1 ? multiply_streams(w, row0, row1, x, g0, product.stream, y) : row0;
    for (; row < row1; row += ATTAR_TILE_ROWS) {
        const int32_t left = row1 - row;
        product.multiply(tile_span(w, row, g0), x,
                         (attar_tile_output){y + row, ldy, left < ATTAR_TILE_ROWS ? left : ATTAR_TILE_ROWS, g0 == 0});
    }
}

void attar_x86_matmul(const attar_weight *w, int32_t row0, int32_t row1, attar_act x, int32_t n_tokens, float *y,
                      int64_t ldy, attar_product product) {
    const int32_t groups = w->cols / ATTAR_GROUP, n_groups = span_groups(groups, n_tokens);
    const int32_t most = ATTAR_SPAN_UNITS / n_groups;
    const int32_t n = most >= n_tokens ? n_tokens : most >= 12 ? most / 12 * 12 : most;
    span_memory memory;
    for (int32_t t = 0; t < n_tokens; t += n) {
        const int32_t tokens = n_tokens - t < n ? n_tokens - t : n;
        for (int32_t g = 0; g < groups; g += n_groups) {
            const int32_t left = groups - g;
            const attar_span span =
                prepare_span(w, x, product, g, left < n_groups ? left : n_groups, t, tokens, &memory);
            multiply_span(w, row0, row1, &span, g, product, y + t * ldy, ldy);
        }
    }
}

// --- the table's entry ----------------------------------------------------------------------------------------

void attar_avx2_matmul(const attar_weight *w, int32_t row0, int32_t row1, attar_act x, int32_t n_tokens, float *y,
                       int64_t ldy) {
    const bool words = x.bits == 16 || w->type == ATTAR_Q8_0;
    attar_x86_matmul(w, row0, row1, x, n_tokens, y, ldy,
                     words ? attar_avx2_words(w->type, x.bits) : attar_avx2_bytes(w->type));
}
