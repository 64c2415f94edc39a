// x86_tile.h: integer weights times many tokens, a loop bound by arithmetic. A tile of 16 rows is decoded once to
// 16-bit integers, with the rows interleaved so that lanes are rows, and multiplied with all tokens. The AVX2 file
// decodes; it and the AVX-512 file each bring the multiplication.
#ifndef ATTAR_X86_TILE_H
#define ATTAR_X86_TILE_H

#include "kernels.h"

enum {
    TILE_ROWS = 16,
    TILE_GROUPS = 16,  // 16 rows x 512 columns x 2 bytes: 16 KiB, half of the first-level cache
};

// A decoded tile. Pair p of group g and row r (values 2p, 2p + 1) is at q[g][p][r]; scales and offsets are [.][r].
typedef struct {
    _Alignas(64) int16_t q[TILE_GROUPS][ATTAR_GROUP / 2][TILE_ROWS][2];
    _Alignas(64) float scale[TILE_GROUPS][2][TILE_ROWS];
    _Alignas(64) float offset[TILE_GROUPS][TILE_ROWS];
    int32_t n;      // groups in use
    int32_t parts;  // scales in a group: 2 for Q6_K, else 1
    bool has_offset;
} attar_tile;

// Activations of a token, q [cols], d and s [cols / 32]; the next token's follow.
typedef struct {
    const int16_t *q;
    const float *d, *s;
} token_act;

// Where a tile's results go: columns 0 .. n_rows-1 of y [tokens, ldy]; `first` starts from zero.
typedef struct {
    float *y;
    int64_t ldy;
    int32_t n_rows;
    bool first;
} attar_tile_output;

// Continues the output with the tile times n_tokens tokens. x: the first token's first group of the tile; tokens are
// `cols` values apart.
typedef void (*attar_multiply_tile)(const attar_tile *w, token_act x, int64_t cols, int32_t n_tokens,
                                    attar_tile_output out);

// y [n_tokens, ldy], columns row0..row1-1: decodes w tile by tile and calls `multiply`.
void attar_avx2_matmul_tiles(const attar_weight *w, int32_t row0, int32_t row1, attar_act x, int32_t n_tokens, float *y,
                             int64_t ldy, attar_multiply_tile multiply);

// Entries of the tables that are not local to a file; contracts in kernels.h.
void attar_avx2_quantize(const float *x, attar_act y, int32_t n_tokens, int32_t cols);
void attar_avx2_matmul(const attar_weight *w, int32_t row0, int32_t row1, attar_act x, int32_t n_tokens, float *y,
                       int64_t ldy);
void attar_avx512_matmul(const attar_weight *w, int32_t row0, int32_t row1, attar_act x, int32_t n_tokens, float *y,
                         int64_t ldy);

#endif
