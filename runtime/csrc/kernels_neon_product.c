// kernels_neon_product.c: products of integer weights by the dot products of Armv8.2. Lanes are rows, four vectors make
// the 16 of a tile; sdot takes a quad of four rows times one quad of activations, chosen by lane from a vector of four.
//
// 16-bit activations are 256 h + l, h a signed and l an unsigned byte: two dot products, sdot with h, udot with l. A
// packed value u of at most 6 bits is both a signed and an unsigned byte; Q8_0's u - 128 is what sdot takes, u udot.
//     sum (u - bias) a = 256 sdot(u, h) + udot(u, l) - bias sum(a)
//     Q8_0:            = 256 sdot(u - 128, h) + udot(u, l) - 128 sum(l)
// A group joins the float sums as in vec_tile_avx2.h.
#include "neon_product.h"
#include "vec_neon.h"

// 4 tokens x 4 vectors of rows are 16 of the 32 registers; with two sums each, as 16 bits want, 2 tokens.
enum { MOST_TOKENS = 4, FEW_TOKENS = 2, ROW_VECTORS = 4 };

// --- activations ----------------------------------------------------------------------------------------------

// 32 int16 in the order 0, 2, 1, 3 of each four -> l [32], h [32] in order; returns the sum of each half's l.
ATTAR_INLINE void split_words(const int16_t *words, uint8_t *out, int32_t low_sums[2]) {
    static const uint8_t order[16] = {0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15};
    for (int i = 0; i < 2; i++) {
        const int16x8_t first = vld1q_s16(words + 16 * i), second = vld1q_s16(words + 16 * i + 8);
        const uint8x16_t low = vuzp1q_u8(vreinterpretq_u8_s16(first), vreinterpretq_u8_s16(second));
        const uint8x16_t high = vuzp2q_u8(vreinterpretq_u8_s16(first), vreinterpretq_u8_s16(second));
        vst1q_u8(out + 16 * i, vqtbl1q_u8(low, vld1q_u8(order)));
        vst1q_u8(out + 32 + 16 * i, vqtbl1q_u8(high, vld1q_u8(order)));
        low_sums[i] = (int32_t)vaddlvq_u8(low);
    }
}

// sums: of each half, what the bias is multiplied with.
ATTAR_INLINE attar_unit unit_of(uint32_t type, const int32_t sums[2], float d, float s) {
    const int32_t bias = attar_bias_of(type);
    if (attar_scales_of(type) == 2) return (attar_unit){{-bias * sums[0], -bias * sums[1]}, s, d};
    return (attar_unit){{-bias * (sums[0] + sums[1]), 0}, s, d};
}

// Contract of attar_prepare.
static attar_span prepare(const attar_weight *w, attar_act x, const attar_product *product, int32_t g0, int32_t n,
                          int32_t t0, int32_t tokens, attar_span_memory *memory) {
    const int64_t groups = w->cols / ATTAR_GROUP, first = t0 * groups + g0;
    uint8_t *split = (uint8_t *)memory->q;  // [tokens, n, 64]
    for (int32_t t = 0, block; t < tokens; t += block) {
        block = attar_block(product->blocks, tokens - t);
        for (int32_t i = 0; i < block * n; i++) {
            const int32_t token = t + i % block, g = i / block;
            const int64_t at = first + token * groups + g;
            int32_t sums[2] = {attar_act_sum(x.bits, x.sum[2 * at]), attar_act_sum(x.bits, x.sum[2 * at + 1])};
            const float s = x.d[at] * (float)(sums[0] + sums[1]);
            if (x.bits == 16) {
                int32_t low_sums[2];
                const int16_t *words = (const int16_t *)x.q + at * ATTAR_GROUP;
                split_words(words, split + 64 * (token * n + g), low_sums);
                if (w->type == ATTAR_Q8_0) memcpy(sums, low_sums, sizeof sums);
            }
            memory->unit[t * n + i] = unit_of(w->type, sums, x.d[at], s);
        }
    }
    if (x.bits == 16) return (attar_span){split, memory->unit, 64 * (int64_t)n, tokens, n};
    return (attar_span){(const uint8_t *)x.q + first * ATTAR_GROUP, memory->unit, w->cols, tokens, n};
}

// --- weights --------------------------------------------------------------------------------------------------

ATTAR_INLINE uint8x16_t shift_bytes(uint8x16_t v, int32_t left) { return vshlq_u8(v, vdupq_n_s8((int8_t)left)); }

// Quad p of rows 4r .. 4r+3 as bytes; layouts in packed.h.
ATTAR_INLINE uint8x16_t load_quad(uint32_t type, const uint8_t *group, int32_t p, int32_t r) {
    const uint8_t *rows = group + 16 * r;
    if (type == ATTAR_Q8_0) return vld1q_u8(rows + 64 * p);
    const uint8x16_t pair = vld1q_u8(rows + 64 * (p % 4));
    const uint8x16_t nibbles = p < 4 ? vandq_u8(pair, vdupq_n_u8(15)) : vshrq_n_u8(pair, 4);
    if (attar_value_bits(type) == 4) return nibbles;
    const bool five = attar_value_bits(type) == 5;
    const uint8x16_t more = vld1q_u8(rows + 64 * (five ? 4 : 4 + p / 4));
    const uint8x16_t moved = shift_bytes(more, five ? 4 - p : 4 - p % 4 * 2);
    return vorrq_u8(nibbles, vandq_u8(moved, vdupq_n_u8(five ? 0x10 : 0x30)));
}

// Packed bytes as sdot takes them.
ATTAR_INLINE int8x16_t signed_quad(uint32_t type, uint8x16_t quad) {
    return vreinterpretq_s8_u8(type == ATTAR_Q8_0 ? veorq_u8(quad, vdupq_n_u8(0x80)) : quad);
}

// --- scales ---------------------------------------------------------------------------------------------------

typedef struct {
    float32x4_t scale[2][ROW_VECTORS], offset[ROW_VECTORS];  // [scale of the group][4 rows each]
} group_scales;

ATTAR_INLINE float32x4_t load_4_u8(const uint8_t *p) {
    uint32_t four;
    memcpy(&four, p, sizeof four);
    const uint16x8_t words = vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four)));
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(words)));
}

ATTAR_INLINE float32x4_t load_4_i8(const uint8_t *p) {
    uint32_t four;
    memcpy(&four, p, sizeof four);
    const int16x8_t words = vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(four)));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(words)));
}

// Scales of group g, whose block's are at `block`.
ATTAR_INLINE void load_scales(uint32_t type, const uint8_t *block, int32_t g, group_scales *out) {
    for (int r = 0; r < ROW_VECTORS; r++) {
        const float32x4_t d = vec_load_f16(block + 8 * r, LANES);
        const uint8_t *pair = block + (type == ATTAR_Q6_K ? 32 : 64) + g % 8 * 32 + 4 * r;
        if (type == ATTAR_Q6_K) {
            for (int i = 0; i < 2; i++) out->scale[i][r] = vmulq_f32(d, load_4_i8(pair + 16 * i));
        } else if (attar_is_k(type)) {
            out->scale[0][r] = vmulq_f32(d, load_4_u8(pair));
            out->offset[r] = vnegq_f32(vmulq_f32(vec_load_f16(block + 32 + 8 * r, LANES), load_4_u8(pair + 16)));
        } else {
            out->scale[0][r] = d;
            if (attar_has_offset(type)) out->offset[r] = vec_load_f16(block + 32 + 8 * r, LANES);
        }
    }
}

// --- sums -----------------------------------------------------------------------------------------------------

// The lane must be a literal in the source, even where the caller's is a constant.
ATTAR_INLINE int32x4_t dot_signed(int32x4_t sum, int8x16_t w, int8x16_t x, int32_t lane) {
    switch (lane) {
        case 0: return vdotq_laneq_s32(sum, w, x, 0);
        case 1: return vdotq_laneq_s32(sum, w, x, 1);
        case 2: return vdotq_laneq_s32(sum, w, x, 2);
        default: return vdotq_laneq_s32(sum, w, x, 3);
    }
}

ATTAR_INLINE uint32x4_t dot_unsigned(uint32x4_t sum, uint8x16_t w, uint8x16_t x, int32_t lane) {
    switch (lane) {
        case 0: return vdotq_laneq_u32(sum, w, x, 0);
        case 1: return vdotq_laneq_u32(sum, w, x, 1);
        case 2: return vdotq_laneq_u32(sum, w, x, 2);
        default: return vdotq_laneq_u32(sum, w, x, 3);
    }
}

typedef int32x4_t token_sums[ROW_VECTORS];

// Integer sums of one part of a group with int8 activations, q [tokens] of the group, `stride` apart.
ATTAR_INLINE void add_bytes(uint32_t type, int32_t part, const uint8_t *group, const uint8_t *q, int64_t stride,
                            const attar_unit *unit, int32_t tokens, token_sums *isum) {
    const int32_t n = 8 / attar_scales_of(type);
    for (int32_t t = 0; t < tokens; t++) {
        const int32_t start = type == ATTAR_Q8_0 ? 0 : unit[t].start[part];
        for (int r = 0; r < ROW_VECTORS; r++) isum[t][r] = vdupq_n_s32(start);
    }
#pragma GCC unroll 8
    for (int32_t p = part * n; p < (part + 1) * n; p++) {
        for (int r = 0; r < ROW_VECTORS; r++) {
            const int8x16_t w = signed_quad(type, load_quad(type, group, p, r));
            for (int32_t t = 0; t < tokens; t++) {
                const int8x16_t x = vld1q_s8((const int8_t *)q + t * stride + p / 4 * 16);
                isum[t][r] = dot_signed(isum[t][r], w, x, p % 4);
            }
        }
    }
}

// The same with int16 activations, split: q [tokens, 64].
ATTAR_INLINE void add_words(uint32_t type, int32_t part, const uint8_t *group, const uint8_t *q, int64_t stride,
                            const attar_unit *unit, int32_t tokens, token_sums *isum) {
    const int32_t n = 8 / attar_scales_of(type);
    uint32x4_t low[FEW_TOKENS][ROW_VECTORS];
    for (int32_t t = 0; t < tokens; t++) {
        for (int r = 0; r < ROW_VECTORS; r++) {
            isum[t][r] = vdupq_n_s32(0);
            low[t][r] = vreinterpretq_u32_s32(vdupq_n_s32(unit[t].start[part]));
        }
    }
#pragma GCC unroll 8
    for (int32_t p = part * n; p < (part + 1) * n; p++) {
        for (int r = 0; r < ROW_VECTORS; r++) {
            const uint8x16_t w = load_quad(type, group, p, r);
            for (int32_t t = 0; t < tokens; t++) {
                const uint8_t *x = q + t * stride + p / 4 * 16;
                low[t][r] = dot_unsigned(low[t][r], w, vld1q_u8(x), p % 4);
                isum[t][r] = dot_signed(isum[t][r], signed_quad(type, w), vld1q_s8((const int8_t *)x + 32), p % 4);
            }
        }
    }
    for (int32_t t = 0; t < tokens; t++) {
        for (int r = 0; r < ROW_VECTORS; r++) {
            isum[t][r] = vaddq_s32(vshlq_n_s32(isum[t][r], 8), vreinterpretq_s32_u32(low[t][r]));
        }
    }
}

// Adds group g to the float sums [tokens][16] of a block of tokens; they lie in memory, as the registers are full.
ATTAR_INLINE void add_group(uint32_t type, int32_t bits, const uint8_t *w, const attar_span *x, int32_t g,
                            int32_t tokens, float (*sum)[ATTAR_TILE_ROWS]) {
    const uint8_t *group = attar_quants_at(type, w, g), *q = x->q + g * ATTAR_GROUP * bits / 8;
    const attar_unit *unit = x->unit + g * tokens;
    group_scales scales;
    load_scales(type, attar_scales_at(type, w, g), g, &scales);
#pragma GCC unroll 2
    for (int32_t part = 0; part < attar_scales_of(type); part++) {
        token_sums isum[MOST_TOKENS];
        if (bits == 8)
            add_bytes(type, part, group, q, x->q_stride, unit, tokens, isum);
        else
            add_words(type, part, group, q, x->q_stride, unit, tokens, isum);
        for (int32_t t = 0; t < tokens; t++) {
            for (int r = 0; r < ROW_VECTORS; r++) {
                const float32x4_t factor = vmulq_n_f32(scales.scale[part][r], unit[t].d);
                float32x4_t v = vfmaq_f32(vld1q_f32(sum[t] + 4 * r), factor, vcvtq_f32_s32(isum[t][r]));
                if (attar_has_offset(type)) v = vfmaq_n_f32(v, scales.offset[r], unit[t].s);
                vst1q_f32(sum[t] + 4 * r, v);
            }
        }
    }
}

// A block of tokens.
ATTAR_INLINE void multiply_tokens(uint32_t type, int32_t bits, const uint8_t *w, const attar_span *x, int32_t tokens,
                                  attar_tile_output out) {
    float sum[MOST_TOKENS][ATTAR_TILE_ROWS] = {{0}};
    const size_t bytes = (size_t)out.n_rows * sizeof(float);
    for (int32_t t = 0; t < tokens && !out.first; t++) memcpy(sum[t], out.y + t * out.ldy, bytes);
    for (int32_t g = 0; g < x->n_groups; g++) add_group(type, bits, w, x, g, tokens, sum);
    for (int32_t t = 0; t < tokens; t++) memcpy(out.y + t * out.ldy, sum[t], bytes);
}

// All tokens, a block at a time.
ATTAR_INLINE void multiply_tile(uint32_t type, int32_t bits, const uint8_t *w, const attar_span *x,
                                attar_tile_output out) {
    const attar_blocks blocks = {bits == 8 ? MOST_TOKENS : FEW_TOKENS, FEW_TOKENS};
    int32_t step;
    for (int32_t t = 0; t < x->tokens; t += step) {
        const attar_span from = attar_span_from(x, t);
        const attar_tile_output there = {out.y + t * out.ldy, out.ldy, out.n_rows, out.first};
        step = attar_block(blocks, x->tokens - t);
        if (bits == 8 && step == MOST_TOKENS) {
            multiply_tokens(type, bits, w, &from, MOST_TOKENS, there);
        } else if (step == FEW_TOKENS) {
            multiply_tokens(type, bits, w, &from, FEW_TOKENS, there);
        } else {
            multiply_tokens(type, bits, w, &from, 1, there);
        }
    }
}

// One token; see attar_stream_product.
ATTAR_INLINE void multiply_stream(uint32_t type, int32_t bits, const uint8_t *w, uint64_t stride, const attar_span *x,
                                  float *y, int64_t y_stride, bool first) {
    float sum[ATTAR_STREAMS][1][ATTAR_TILE_ROWS] = {{{0}}};
    for (int i = 0; i < ATTAR_STREAMS && !first; i++) memcpy(sum[i], y + i * y_stride, sizeof sum[i]);
    for (int32_t g = 0; g < x->n_groups; g++) {
        for (uint64_t i = 0; i < ATTAR_STREAMS; i++) {
            add_group(type, bits, w + i * stride, x, g, 1, sum[i]);
        }
    }
    for (int i = 0; i < ATTAR_STREAMS; i++) memcpy(y + i * y_stride, sum[i], sizeof sum[i]);
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

#define PRODUCT(name, most) ((attar_product){prepare, name##_tile, name##_stream, {most, FEW_TOKENS}})
#define EITHER(name) (bits == 8 ? PRODUCT(name##_8, MOST_TOKENS) : PRODUCT(name##_16, FEW_TOKENS))

static attar_product product_of(uint32_t type, int32_t bits) {
    switch (type) {
        case ATTAR_Q4_0: return EITHER(q4_0);
        case ATTAR_Q4_1: return EITHER(q4_1);
        case ATTAR_Q5_0: return EITHER(q5_0);
        case ATTAR_Q8_0: return EITHER(q8_0);
        case ATTAR_Q4_K: return EITHER(q4_k);
        case ATTAR_Q5_K: return EITHER(q5_k);
        default: return EITHER(q6_k);
    }
}

void attar_neon_matmul(const attar_weight *w, int32_t row0, int32_t row1, attar_act x, int32_t n_tokens, float *y,
                       int64_t ldy) {
    const attar_product product = product_of(w->type, x.bits);
    multiply_spans(w, row0, row1, x, n_tokens, y, ldy, &product);
}
