// x86_product.h: what the integer products of all x86 tables share: activations made ready for a span of columns, and
// the loop over spans, tiles and tokens. Each instruction set brings the products of one tile.
#ifndef ATTAR_X86_PRODUCT_H
#define ATTAR_X86_PRODUCT_H

#include "kernels.h"
#include "packed.h"
#include "x86_intrinsics.h"

// Token-groups made ready at once; what they fill stays in the caches: 48 KiB as words.
enum { ATTAR_SPAN_UNITS = 768 };

// With one token the memory decides, and one core reads four streams half as fast again as one: as many tiles are
// multiplied side by side.
enum { ATTAR_STREAMS = 4 };

// How integer sums take off the bias of packed values: they start at -bias times the sum of the activations.
typedef enum {
    ATTAR_START_LANES,  // one int32 a half-group
    ATTAR_START_PAIRS,  // a pair of int16, for sums of two lanes of 16 bits
} attar_start;

// A group of a token, beside its values.
typedef struct {
    int32_t start[2];  // of each half where the type has two scales; else the first, of all 32 values
    float s, d;        // d times the sum of the values, where the type has an offset; the scale d
} attar_unit;

// Activations of `tokens` tokens, G groups of each, in blocks of N tokens (attar_block). The units of the same group of
// all tokens of a block lie together, so that their addresses differ by constants.
typedef struct {
    const uint8_t *q;        // [tokens] rows of int8 or int16, q_stride bytes apart
    const attar_unit *unit;  // each block [G, N]
    int64_t q_stride;
    int32_t tokens, n_groups;
} attar_span;

// How many tokens are multiplied at once: `most` as long as there are as many, then `few`, then 1.
typedef struct {
    int32_t most, few;
} attar_blocks;

ATTAR_INLINE int32_t attar_block(attar_blocks blocks, int32_t left) {
    return left >= blocks.most ? blocks.most : left >= blocks.few ? blocks.few : 1;
}

// Token t, where a block starts, and those after it.
ATTAR_INLINE attar_span attar_span_from(const attar_span *x, int32_t t) {
    return (attar_span){x->q + t * x->q_stride, x->unit + (int64_t)t * x->n_groups, x->q_stride, x->tokens - t,
                        x->n_groups};
}

// Groups g0 .. g0 + G - 1 of a tile.
typedef struct {
    const uint8_t *quants, *scales;  // of group g0, which is a multiple of 8 where attar_is_k
} attar_tile_span;

// Columns 0 .. n_rows - 1 of y [tokens, ldy]; adds to what is there unless `first`.
typedef struct {
    float *y;
    int64_t ldy;
    int32_t n_rows;
    bool first;
} attar_tile_output;

// The product of part of a tile with all tokens of x.
typedef void (*attar_tile_product)(attar_tile_span w, const attar_span *x, attar_tile_output out);

// The product of part of ATTAR_STREAMS tiles, `stride` bytes apart, with one token: y [16] of each tile follows
// y_stride values after the one before.
typedef void (*attar_stream_product)(attar_tile_span w, uint64_t stride, const attar_span *x, float *y,
                                     int64_t y_stride, bool first);

// How one type is multiplied with activations of one precision.
typedef struct {
    attar_tile_product multiply;
    attar_stream_product stream;
    attar_blocks blocks;
    attar_start start;
    bool widen;  // int8 activations become int16 first, each four in the order 0, 2, 1, 3
} attar_product;

// Contract of attar_kernels.matmul.
void attar_x86_matmul(const attar_weight *w, int32_t row0, int32_t row1, attar_act x, int32_t n_tokens, float *y,
                      int64_t ldy, attar_product product);

// Entries of the tables; contract in kernels.h.
void attar_avx2_matmul(const attar_weight *w, int32_t row0, int32_t row1, attar_act x, int32_t n_tokens, float *y,
                       int64_t ldy);
void attar_avx512_matmul(const attar_weight *w, int32_t row0, int32_t row1, attar_act x, int32_t n_tokens, float *y,
                         int64_t ldy);

// The products of one tile: 8-bit activations with packed bytes (all types but Q8_0), 16-bit ones with packed words.
attar_product attar_avx2_bytes(uint32_t type);
attar_product attar_avx2_words(uint32_t type, int32_t bits);

#endif
