// product.h: what the integer products of all vector tables share: activations made ready for a span of columns, and
// the order in which columns, tokens and tiles are visited. Each instruction set brings its way to make activations
// ready and the products of one tile.
//
// A span of columns of some tokens is made ready once and then meets every tile of the row range: tiles stream by, the
// activations stay in the caches. Sums between spans pass through y, which loses nothing.
#ifndef ATTAR_PRODUCT_H
#define ATTAR_PRODUCT_H

#include "kernels.h"
#include "packed.h"

// Token-groups made ready at once: 16 KiB as bytes, 32 KiB as words, which a core's first cache holds beside a tile.
enum { ATTAR_SPAN_UNITS = 512 };

// With one token the memory decides, and one core reads four streams half as fast again as one: as many tiles are
// multiplied side by side.
enum { ATTAR_STREAMS = 4 };

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

// Columns 0 .. n_rows - 1 of y [tokens, ldy]; adds to what is there unless `first`.
typedef struct {
    float *y;
    int64_t ldy;
    int32_t n_rows;
    bool first;
} attar_tile_output;

// The product of part of a tile, from the block w on, with all tokens of x.
typedef void (*attar_tile_product)(const uint8_t *w, const attar_span *x, attar_tile_output out);

// The product of part of ATTAR_STREAMS tiles, `stride` bytes apart, with one token: y [16] of each tile follows
// y_stride values after the one before.
typedef void (*attar_stream_product)(const uint8_t *w, uint64_t stride, const attar_span *x, float *y,
                                     int64_t y_stride, bool first);

// Room for a span.
typedef struct {
    _Alignas(64) int16_t q[ATTAR_SPAN_UNITS * ATTAR_GROUP];
    _Alignas(64) attar_unit unit[ATTAR_SPAN_UNITS];
} attar_span_memory;

// How one type is multiplied with activations of one precision.
typedef struct attar_product attar_product;

// Makes groups g0 .. g0+n-1 of tokens t0 .. t0+tokens-1 ready.
typedef attar_span (*attar_prepare)(const attar_weight *w, attar_act x, const attar_product *product, int32_t g0,
                                    int32_t n, int32_t t0, int32_t tokens, attar_span_memory *memory);

struct attar_product {
    attar_prepare prepare;
    attar_tile_product multiply;
    attar_stream_product stream;
    attar_blocks blocks;
};

// --- the loops ------------------------------------------------------------------------------------------------

// Groups in a span: all, if a few tokens' worth fits; else equal parts, multiples of 8 as K-quants need.
static inline int32_t span_groups(int32_t groups, int32_t n_tokens) {
    const int32_t most = ATTAR_SPAN_UNITS / (n_tokens < 12 ? n_tokens : 12);
    const int32_t parts = (groups + most - 1) / most;
    return parts == 1 ? groups : (groups / parts / 8 + 1) * 8;
}

// The tile of `row`, from group g0 on, with which a block begins.
static inline const uint8_t *tile_from(const attar_weight *w, int32_t row, int32_t g0) {
    const uint8_t *tile = w->data + (uint64_t)(row / ATTAR_TILE_ROWS) * attar_tile_bytes(w->type, w->cols);
    return attar_quants_at(w->type, tile, g0);
}

// Whole tiles from row0 on, for one token: four streams of tiles, one after another each. Returns the first row left.
static inline int32_t multiply_streams(const attar_weight *w, int32_t row0, int32_t row1, const attar_span *x,
                                       int32_t g0, attar_stream_product multiply, float *y) {
    const uint64_t tile_bytes = attar_tile_bytes(w->type, w->cols);
    const int32_t length = (row1 - row0) / ATTAR_TILE_ROWS / ATTAR_STREAMS;  // tiles of a stream
    for (int32_t i = 0; i < length; i++) {
        const int32_t row = row0 + i * ATTAR_TILE_ROWS;
        multiply(tile_from(w, row, g0), (uint64_t)length * tile_bytes, x, y + row, length * ATTAR_TILE_ROWS, g0 == 0);
    }
    return row0 + length * ATTAR_STREAMS * ATTAR_TILE_ROWS;
}

static inline void multiply_span(const attar_weight *w, int32_t row0, int32_t row1, const attar_span *x, int32_t g0,
                                 const attar_product *product, float *y, int64_t ldy) {
    int32_t row = x->tokens == 1 ? multiply_streams(w, row0, row1, x, g0, product->stream, y) : row0;
    for (; row < row1; row += ATTAR_TILE_ROWS) {
        const int32_t left = row1 - row;
        product->multiply(tile_from(w, row, g0), x,
                          (attar_tile_output){y + row, ldy, left < ATTAR_TILE_ROWS ? left : ATTAR_TILE_ROWS, g0 == 0});
    }
}

// Contract of attar_kernels.matmul.
static inline void multiply_spans(const attar_weight *w, int32_t row0, int32_t row1, attar_act x, int32_t n_tokens,
                                  float *y, int64_t ldy, const attar_product *product) {
    const int32_t groups = w->cols / ATTAR_GROUP, n_groups = span_groups(groups, n_tokens);
    const int32_t most = ATTAR_SPAN_UNITS / n_groups;
    const int32_t n = most >= n_tokens ? n_tokens : most >= 12 ? most / 12 * 12 : most;
    attar_span_memory memory;
    for (int32_t t = 0; t < n_tokens; t += n) {
        const int32_t tokens = n_tokens - t < n ? n_tokens - t : n;
        for (int32_t g = 0; g < groups; g += n_groups) {
            const int32_t left = groups - g;
            const attar_span span =
                product->prepare(w, x, product, g, left < n_groups ? left : n_groups, t, tokens, &memory);
            multiply_span(w, row0, row1, &span, g, product, y + t * ldy, ldy);
        }
    }
}

#endif
