// vec_tile_avx2.h: the product of 16 packed rows with a few tokens, for kernels_avx2_bytes.c and kernels_avx2_words.c.
//
// Lanes are rows: two vectors of 8. For each group, and for each of its quads, one or two steps multiply a vector of
// weights with a broadcast of activations and add to integer sums; then these join the float sums as
//     sum = fma(scale * d, float(isum), sum);  sum = fma(offset, s, sum)
// in the same order whatever the number of tokens. Every function takes the type as a compile-time constant.
#ifndef ATTAR_VEC_TILE_AVX2_H
#define ATTAR_VEC_TILE_AVX2_H

#include "vec_avx2.h"
#include "x86_product.h"

enum {
    MOST_TOKENS = 6,  // times two vectors: 12 of the 16 registers hold integer sums
    FEW_TOKENS = 2,
    HALF = 32,  // bytes of 8 rows of a quad
};

// --- weights --------------------------------------------------------------------------------------------------

ATTAR_INLINE __m256i load_line(const uint8_t *group, int32_t index, int32_t half) {
    return _mm256_load_si256((const __m256i *)(group + 64 * index + HALF * half));
}

// Bits from .. from+n-1 of each byte, moved to bits to .. to+n-1; `mask` is where they end.
ATTAR_INLINE __m256i move_bits(__m256i v, int32_t from, int32_t to, int32_t mask) {
    const __m256i moved = from > to ? _mm256_srli_epi16(v, from - to) : _mm256_slli_epi16(v, to - from);
    return _mm256_and_si256(moved, _mm256_set1_epi8((int8_t)mask));
}

// Makes the compiler load a line again for each quad that lies in it: loads are free here, while gcc 12 keeps lines in
// registers it does not have, and spills.
ATTAR_INLINE void forget_loads(void) { __asm__ volatile("" ::: "memory"); }

// Quad p of 8 rows as bytes; layouts in packed.h.
ATTAR_INLINE __m256i load_quad(uint32_t type, const uint8_t *group, int32_t p, int32_t half) {
    if (type == ATTAR_Q8_0) return load_line(group, p, half);
    const __m256i nibbles = move_bits(load_line(group, p % 4, half), p / 4 * 4, 0, 15);
    switch (attar_value_bits(type)) {
        case 5: return _mm256_or_si256(nibbles, move_bits(load_line(group, 4, half), p, 4, 0x10));
        case 6: return _mm256_or_si256(nibbles, move_bits(load_line(group, 4 + p / 4, half), p % 4 * 2, 4, 0x30));
        default: return nibbles;
    }
}

// --- scales ---------------------------------------------------------------------------------------------------

typedef struct {
    __m256 scale[2][2], offset[2];  // [scale of the group][8 rows], [8 rows]
} group_scales;

ATTAR_INLINE __m256 load_8_f16(const uint8_t *p) { return _mm256_cvtph_ps(_mm_load_si128((const __m128i *)p)); }

ATTAR_INLINE __m256 load_8_u8(const uint8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}

ATTAR_INLINE __m256 load_8_i8(const uint8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}

// Scales of group g, whose block's are at `block`.
ATTAR_INLINE void load_scales(uint32_t type, const uint8_t *block, int32_t g, group_scales *out) {
    for (int h = 0; h < 2; h++) {
        const __m256 d = load_8_f16(block + 16 * h);
        const uint8_t *pair = block + (type == ATTAR_Q6_K ? 32 : 64) + g % 8 * 32 + 8 * h;
        if (type == ATTAR_Q6_K) {
            for (int i = 0; i < 2; i++) out->scale[i][h] = _mm256_mul_ps(d, load_8_i8(pair + 16 * i));
        } else if (attar_is_k(type)) {
            out->scale[0][h] = _mm256_mul_ps(d, load_8_u8(pair));
            const __m256 dmin = load_8_f16(block + 32 + 16 * h);
            out->offset[h] = vec_sub(vec_set1(0.0f), _mm256_mul_ps(dmin, load_8_u8(pair + 16)));
        } else {
            out->scale[0][h] = d;
            if (attar_has_offset(type)) out->offset[h] = load_8_f16(block + 32 + 16 * h);
        }
    }
}

// --- sums -----------------------------------------------------------------------------------------------------

ATTAR_INLINE __m256i broadcast_4(const uint8_t *p) {
    int32_t v;
    memcpy(&v, p, sizeof v);
    return _mm256_set1_epi32(v);
}

// Adds the integer sums of one scale of a group to the float sums of one token and 16 rows, which lie in memory: the
// registers are full.
ATTAR_INLINE void add_group(uint32_t type, int32_t part, const group_scales *w, const attar_unit *x,
                            const __m256i isum[2], float *sum) {
    __asm__("" : "+r"(sum));  // keeps gcc 12 from holding the sums of all groups in registers, and spilling others
    for (int h = 0; h < 2; h++) {
        const __m256 factor = _mm256_mul_ps(w->scale[part][h], _mm256_broadcast_ss(&x->d));
        __m256 v = _mm256_fmadd_ps(factor, _mm256_cvtepi32_ps(isum[h]), _mm256_load_ps(sum + 8 * h));
        if (attar_has_offset(type)) v = _mm256_fmadd_ps(w->offset[h], _mm256_broadcast_ss(&x->s), v);
        _mm256_store_ps(sum + 8 * h, v);
    }
}

// Integer sums of one part of a group with a block of `tokens` tokens.
typedef void (*add_quads)(uint32_t type, int32_t part, const uint8_t *group, const attar_span *x, int32_t g,
                          int32_t tokens, __m256i isum[MOST_TOKENS][2]);

ATTAR_INLINE void multiply_tokens(uint32_t type, add_quads quads, const uint8_t *w, const attar_span *x,
                                  int32_t tokens, attar_tile_output out) {
    _Alignas(32) float sum[MOST_TOKENS][16];
    for (int32_t t = 0; t < tokens; t++) {
        for (int32_t r = 0; r < 16; r += 8) {
            const bool read = !out.first && r < out.n_rows;
            _mm256_store_ps(sum[t] + r, read ? vec_load(out.y + t * out.ldy + r, out.n_rows - r) : vec_set1(0.0f));
        }
    }
    for (int32_t g = 0; g < x->n_groups; g++) {
        group_scales scales;
#pragma GCC unroll 2
        for (int32_t part = 0; part < attar_scales_of(type); part++) {
            __m256i isum[MOST_TOKENS][2];
            quads(type, part, attar_quants_at(type, w, g), x, g, tokens, isum);
            if (part == 0) load_scales(type, attar_scales_at(type, w, g), g, &scales);
            for (int32_t t = 0; t < tokens; t++) {
                add_group(type, part, &scales, x->unit + g * tokens + t, isum[t], sum[t]);
            }
        }
    }
    for (int32_t t = 0; t < tokens; t++) {
        for (int32_t r = 0; r < out.n_rows; r += 8) {
            vec_store(out.y + t * out.ldy + r, out.n_rows - r, _mm256_load_ps(sum[t] + r));
        }
    }
}

// All tokens, a few at a time.
ATTAR_INLINE void multiply_tile(uint32_t type, add_quads quads, const uint8_t *w, const attar_span *x,
                                attar_tile_output out) {
    int32_t step;
    for (int32_t t = 0; t < x->tokens; t += step) {
        const attar_span from = attar_span_from(x, t);
        const attar_tile_output there = {out.y + t * out.ldy, out.ldy, out.n_rows, out.first};
        step = attar_block((attar_blocks){MOST_TOKENS, FEW_TOKENS}, x->tokens - t);
        if (step == MOST_TOKENS) {
            multiply_tokens(type, quads, w, &from, MOST_TOKENS, there);
        } else if (step == FEW_TOKENS) {
            multiply_tokens(type, quads, w, &from, FEW_TOKENS, there);
        } else {
            multiply_tokens(type, quads, w, &from, 1, there);
        }
    }
}

// --- one token ------------------------------------------------------------------------------------------------

// Integer sums of one part of a group of each tile, with one token.
typedef void (*add_stream_quads)(uint32_t type, int32_t part, const uint8_t *group, uint64_t stride,
                                 const attar_span *x, int32_t g, __m256i isum[ATTAR_STREAMS][2]);

ATTAR_INLINE void multiply_stream(uint32_t type, add_stream_quads quads, const uint8_t *w, uint64_t stride,
                                  const attar_span *x, float *y, int64_t y_stride, bool first) {
    _Alignas(32) float sum[ATTAR_STREAMS][16];
    for (int i = 0; i < ATTAR_STREAMS; i++) {
        for (int32_t r = 0; r < 16; r += 8) {
            _mm256_store_ps(sum[i] + r, first ? vec_set1(0.0f) : vec_load(y + i * y_stride + r, 8));
        }
    }
    for (int32_t g = 0; g < x->n_groups; g++) {
#pragma GCC unroll 2
        for (int32_t part = 0; part < attar_scales_of(type); part++) {
            __m256i isum[ATTAR_STREAMS][2];
            quads(type, part, attar_quants_at(type, w, g), stride, x, g, isum);
            for (int i = 0; i < ATTAR_STREAMS; i++) {
                group_scales scales;
                load_scales(type, attar_scales_at(type, w + (uint64_t)i * stride, g), g, &scales);
                add_group(type, part, &scales, x->unit + g, isum[i], sum[i]);
            }
        }
    }
    for (int i = 0; i < ATTAR_STREAMS; i++) {
        for (int32_t r = 0; r < 16; r += 8) vec_store(y + i * y_stride + r, 8, _mm256_load_ps(sum[i] + r));
    }
}

#endif
