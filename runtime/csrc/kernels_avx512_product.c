// kernels_avx512_product.c: products of integer weights by VNNI. One vector is a quad of 16 packed rows: vpdpbusd adds
// its four products with four broadcast 8-bit activations to 32 bits, vpdpwssd two products with two 16-bit ones.
//
// A group joins the float sums as in vec_tile_avx2.h: fma(scale * d, float(isum), sum), then fma(offset, s, sum), in
// the same order whatever the number of tokens. Every function takes type and bits as compile-time constants.
#include "vec_avx512.h"
#include "x86_product.h"

// 12 tokens x 16 rows: 12 integer and 12 float sums of the 32 registers, and 12 chains to hide a latency of 5 cycles on
// two ports. An activation is broadcast by the multiplication itself, one load each; two loads a cycle feed both ports.
enum { MOST_TOKENS = 12, FEW_TOKENS = 4 };

// --- weights --------------------------------------------------------------------------------------------------

ATTAR_INLINE __m512i load_line(const uint8_t *group, int32_t index) { return _mm512_loadu_si512(group + 64 * index); }

// Bits from .. of each byte, moved to bits to ..; `mask` is where they end.
ATTAR_INLINE __m512i move_bits(__m512i v, int32_t from, int32_t to, int32_t mask) {
    const __m512i moved = from > to ? _mm512_srli_epi16(v, from - to) : _mm512_slli_epi16(v, to - from);
    return _mm512_and_si512(from == to ? v : moved, _mm512_set1_epi8((int8_t)mask));
}

// Quad p of 16 rows as bytes; layouts in packed.h.
ATTAR_INLINE __m512i load_quad(uint32_t type, const uint8_t *group, int32_t p) {
    if (type == ATTAR_Q8_0) return load_line(group, p);
    const __m512i nibbles = move_bits(load_line(group, p % 4), p / 4 * 4, 0, 15);
    switch (attar_value_bits(type)) {
        case 5: return _mm512_or_si512(nibbles, move_bits(load_line(group, 4), p, 4, 0x10));
        case 6: return _mm512_or_si512(nibbles, move_bits(load_line(group, 4 + p / 4), p % 4 * 2, 4, 0x30));
        default: return nibbles;
    }
}

// --- scales ---------------------------------------------------------------------------------------------------

typedef struct {
    __m512 scale[2], offset;
} group_scales;

ATTAR_INLINE __m512 load_16_f16(const uint8_t *p) { return _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)p)); }

ATTAR_INLINE __m512 load_16_u8(const uint8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_load_si128((const __m128i *)p)));
}

ATTAR_INLINE __m512 load_16_i8(const uint8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_load_si128((const __m128i *)p)));
}

// Scales of group g, whose block's are at `block`.
ATTAR_INLINE void load_scales(uint32_t type, const uint8_t *block, int32_t g, group_scales *out) {
    const uint8_t *pair = block + (type == ATTAR_Q6_K ? 32 : 64) + g % 8 * 32;
    const __m512 d = load_16_f16(block);
    if (type == ATTAR_Q6_K) {
        for (int i = 0; i < 2; i++) out->scale[i] = _mm512_mul_ps(d, load_16_i8(pair + 16 * i));
    } else if (attar_is_k(type)) {
        out->scale[0] = _mm512_mul_ps(d, load_16_u8(pair));
        out->offset = vec_sub(vec_set1(0.0f), _mm512_mul_ps(load_16_f16(block + 32), load_16_u8(pair + 16)));
    } else {
        out->scale[0] = d;
        if (attar_has_offset(type)) out->offset = load_16_f16(block + 32);
    }
}

// --- sums -----------------------------------------------------------------------------------------------------

// A row of activations for each of a block's tokens: token t's is `stride` t % 3 after row[t / 3], an address that
// needs no instruction of its own. gcc 12 by itself adds up strides, as many instructions as there are multiplications.
typedef struct {
    const uint8_t *row[MOST_TOKENS / 3];
    int64_t stride;
} token_rows;

ATTAR_INLINE token_rows rows_of(const attar_span *x, int64_t offset, int32_t tokens) {
    token_rows rows = {.stride = x->q_stride};
    for (int32_t i = 0; i < (tokens + 2) / 3; i++) rows.row[i] = x->q + offset + 3 * i * x->q_stride;
    __asm__("" : "+r"(rows.stride));
    return rows;
}

ATTAR_INLINE __m512i broadcast_4(const token_rows *rows, int32_t t, int32_t at) {
    int32_t v;
    memcpy(&v, rows->row[t / 3] + t % 3 * rows->stride + at, sizeof v);
    return _mm512_set1_epi32(v);
}

// Adds quad p of a group to the integer sums of a block of tokens.
ATTAR_INLINE void add_quad(int32_t bits, __m512i w, const token_rows *rows, int32_t p, int32_t tokens, __m512i *isum) {
    if (bits == 8) {
        for (int32_t t = 0; t < tokens; t++) isum[t] = _mm512_dpbusd_epi32(isum[t], w, broadcast_4(rows, t, 4 * p));
        return;
    }
    const __m512i even = _mm512_and_si512(w, _mm512_set1_epi16(0xFF)), odd = _mm512_srli_epi16(w, 8);
    for (int32_t t = 0; t < tokens; t++) isum[t] = _mm512_dpwssd_epi32(isum[t], even, broadcast_4(rows, t, 8 * p));
    for (int32_t t = 0; t < tokens; t++) isum[t] = _mm512_dpwssd_epi32(isum[t], odd, broadcast_4(rows, t, 8 * p + 4));
}

// Adds group g to the float sums [tokens] of a block of tokens.
ATTAR_INLINE void add_group(uint32_t type, int32_t bits, const uint8_t *w, const attar_span *x, int32_t g,
                            int32_t tokens, __m512 *sum) {
    const uint8_t *group = attar_quants_at(type, w, g);
    const token_rows rows = rows_of(x, (int64_t)g * ATTAR_GROUP * bits / 8, tokens);
    const attar_unit *unit = x->unit + g * tokens;
    const int32_t n = 8 / attar_scales_of(type);
    group_scales scales;
    load_scales(type, attar_scales_at(type, w, g), g, &scales);
    ATTAR_UNROLL(2)
    for (int32_t part = 0; part < attar_scales_of(type); part++) {
        __m512i isum[MOST_TOKENS];
        for (int32_t t = 0; t < tokens; t++) {
            isum[t] = _mm512_set1_epi32(attar_bias_of(type) == 0 ? 0 : unit[t].start[part]);
        }
        ATTAR_UNROLL(8)
        for (int32_t p = part * n; p < (part + 1) * n; p++) {
            add_quad(bits, load_quad(type, group, p), &rows, p, tokens, isum);
        }
        for (int32_t t = 0; t < tokens; t++) {
            const __m512 factor = _mm512_mul_ps(scales.scale[part], _mm512_set1_ps(unit[t].d));
            sum[t] = _mm512_fmadd_ps(factor, _mm512_cvtepi32_ps(isum[t]), sum[t]);
        }
    }
    for (int32_t t = 0; attar_has_offset(type) && t < tokens; t++) {
        sum[t] = _mm512_fmadd_ps(scales.offset, _mm512_set1_ps(unit[t].s), sum[t]);
    }
}

// A few tokens, whose sums stay in registers.
ATTAR_INLINE void multiply_tokens(uint32_t type, int32_t bits, const uint8_t *w, const attar_span *x, int32_t tokens,
                                  attar_tile_output out) {
    __m512 sum[MOST_TOKENS];
    for (int32_t t = 0; t < tokens; t++) {
        sum[t] = out.first ? vec_set1(0.0f) : vec_load(out.y + t * out.ldy, out.n_rows);
    }
    for (int32_t g = 0; g < x->n_groups; g++) add_group(type, bits, w, x, g, tokens, sum);
    for (int32_t t = 0; t < tokens; t++) vec_store(out.y + t * out.ldy, out.n_rows, sum[t]);
}

// All tokens, a few at a time.
ATTAR_INLINE void multiply_tile(uint32_t type, int32_t bits, const uint8_t *w, const attar_span *x,
                                attar_tile_output out) {
    int32_t step;
    for (int32_t t = 0; t < x->tokens; t += step) {
        const attar_span from = attar_span_from(x, t);
        const attar_tile_output there = {out.y + t * out.ldy, out.ldy, out.n_rows, out.first};
        step = attar_block((attar_blocks){MOST_TOKENS, FEW_TOKENS}, x->tokens - t);
        if (step == MOST_TOKENS) {
            multiply_tokens(type, bits, w, &from, MOST_TOKENS, there);
        } else if (step == FEW_TOKENS) {
            multiply_tokens(type, bits, w, &from, FEW_TOKENS, there);
        } else {
            multiply_tokens(type, bits, w, &from, 1, there);
        }
    }
}

// One token; see attar_stream_product. The chains of sums of four tiles are independent, so their latencies overlap.
ATTAR_INLINE void multiply_stream(uint32_t type, int32_t bits, const uint8_t *w, uint64_t stride, const attar_span *x,
                                  float *y, int64_t y_stride, bool first) {
    __m512 sum[ATTAR_STREAMS];
    for (int i = 0; i < ATTAR_STREAMS; i++) sum[i] = first ? vec_set1(0.0f) : vec_load(y + i * y_stride, LANES);
    for (int32_t g = 0; g < x->n_groups; g++) {
        for (uint64_t i = 0; i < ATTAR_STREAMS; i++) {
            add_group(type, bits, w + i * stride, x, g, 1, &sum[i]);
        }
    }
    for (int i = 0; i < ATTAR_STREAMS; i++) vec_store(y + i * y_stride, LANES, sum[i]);
}

// --- the table's entry ----------------------------------------------------------------------------------------

#define PRODUCTS(name, type, bits)                                                                                 \
    static void name##_tile(const uint8_t *w, const attar_span *x, attar_tile_output out) {                       \
        multiply_tile(type, bits, w, x, out);                                                                      \
    }                                                                                                              \
    static void name##_stream(const uint8_t *w, uint64_t stride, const attar_span *x, float *y, int64_t y_stride, \
                              bool first) {                                                                        \
        multiply_stream(type, bits, w, stride, x, y, y_stride, first);                                             \
    }

PRODUCTS(q4_0_8, ATTAR_Q4_0, 8)
PRODUCTS(q4_1_8, ATTAR_Q4_1, 8)
PRODUCTS(q5_0_8, ATTAR_Q5_0, 8)
PRODUCTS(q8_0_8, ATTAR_Q8_0, 8)
PRODUCTS(q4_k_8, ATTAR_Q4_K, 8)
PRODUCTS(q5_k_8, ATTAR_Q5_K, 8)
PRODUCTS(q6_k_8, ATTAR_Q6_K, 8)
PRODUCTS(q4_0_16, ATTAR_Q4_0, 16)
PRODUCTS(q4_1_16, ATTAR_Q4_1, 16)
PRODUCTS(q5_0_16, ATTAR_Q5_0, 16)
PRODUCTS(q8_0_16, ATTAR_Q8_0, 16)
PRODUCTS(q4_k_16, ATTAR_Q4_K, 16)
PRODUCTS(q5_k_16, ATTAR_Q5_K, 16)
PRODUCTS(q6_k_16, ATTAR_Q6_K, 16)

#define PRODUCT(name) ((attar_product){attar_avx2_prepare, name##_tile, name##_stream, {MOST_TOKENS, FEW_TOKENS}})

static attar_product product_of(uint32_t type, int32_t bits) {
    switch (type) {
        case ATTAR_Q4_0: return bits == 8 ? PRODUCT(q4_0_8) : PRODUCT(q4_0_16);
        case ATTAR_Q4_1: return bits == 8 ? PRODUCT(q4_1_8) : PRODUCT(q4_1_16);
        case ATTAR_Q5_0: return bits == 8 ? PRODUCT(q5_0_8) : PRODUCT(q5_0_16);
        case ATTAR_Q8_0: return bits == 8 ? PRODUCT(q8_0_8) : PRODUCT(q8_0_16);
        case ATTAR_Q4_K: return bits == 8 ? PRODUCT(q4_k_8) : PRODUCT(q4_k_16);
        case ATTAR_Q5_K: return bits == 8 ? PRODUCT(q5_k_8) : PRODUCT(q5_k_16);
        default: return bits == 8 ? PRODUCT(q6_k_8) : PRODUCT(q6_k_16);
    }
}

void attar_avx512_matmul(const attar_weight *w, int32_t row0, int32_t row1, attar_act x, int32_t n_tokens, float *y,
                         int64_t ldy) {
    const attar_product product = product_of(w->type, x.bits);
    multiply_spans(w, row0, row1, x, n_tokens, y, ldy, &product);
}
