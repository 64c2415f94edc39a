// packed.h: integer weights in the kernels' order, made once when a model is loaded.
//
// Rows go in tiles of 16 (the last tile is filled up with zeros), so that vector lanes are rows and nothing is summed
// across lanes. Four consecutive columns of a row lie together (a quad: what vpdpbusd, vpmaddubsw and sdot take at
// once). A tile is a row of blocks: the quants of one group of columns, or of 8 in the K types, and behind them their scales,
// so that a tile is read as one stream: with all scales behind all quants, one token was a fifth slower. A block is a
// multiple of 32 bytes; a tile is filled up with zeros to one of 64.
//
//   quants, for each group of 32 columns (quads 0 to 7); values are unsigned, attar_bias_of(type) more than the
//   weight's q
//     Q4_0 Q4_1 Q4_K   u8 [4][16][4]                 byte p: quad p in the low nibble, quad p + 4 in the high one
//     Q5_0 Q5_K        the same, then u8 [16][4]     bit p of a byte: fifth bit of quad p
//     Q6_K             the same, then u8 [2][16][4]  bits 2 (p % 4) and 2 (p % 4) + 1 of plane p / 4: the two top bits
//     Q8_0             u8 [8][16][4]                 q + 128
//   scales of a block
//     Q4_0 Q5_0 Q8_0   d f16 [16]
//     Q4_1             d f16 [16], m f16 [16]
//     Q4_K Q5_K        d f16 [16], dmin f16 [16], then for each group scale u8 [16], minimum u8 [16]
//     Q6_K             d f16 [16], then for each group scale i8 [2][16] (first and second 16 columns)
#ifndef ATTAR_PACKED_H
#define ATTAR_PACKED_H

#include "quants.h"

enum { ATTAR_TILE_ROWS = 16 };

// Bytes of one tile; 0 for float types and for cols that are no multiple of the block.
uint64_t attar_tile_bytes(uint32_t type, int32_t cols);

// Bytes of a packed matrix [rows, cols].
uint64_t attar_packed_bytes(uint32_t type, int32_t rows, int32_t cols);

// Packs one tile from up to 16 rows of file blocks, n_rows of them, row_bytes apart. tile: 64-byte aligned.
void attar_pack_tile(uint32_t type, const uint8_t *rows, uint64_t row_bytes, int32_t n_rows, int32_t cols,
                     uint8_t *tile);

// y [cols] = row `row` (0 to 15) of a tile, as floats; the same bits as attar_dequantize_row of the file's row.
void attar_unpack_row(uint32_t type, const uint8_t *tile, int32_t row, float *y, int32_t cols);

// Decodes 32 weights of row `row`: group `group` of a tile; as attar_decode_group of the file's row.
void attar_unpack_group(uint32_t type, const uint8_t *tile, int32_t row, int32_t group, attar_group *out);

// --- what a type looks like; constants to the compiler wherever `type` is one ----------------------------------

// Subtracted from a packed value to get the weight's integer.
static inline int32_t attar_bias_of(uint32_t type) {
    switch (type) {
        case ATTAR_Q4_0: return 8;
        case ATTAR_Q5_0: return 16;
        case ATTAR_Q6_K: return 32;
        case ATTAR_Q8_0: return 128;
        default: return 0;
    }
}

// Bits of a packed value: 4, 5, 6 or 8.
static inline int32_t attar_value_bits(uint32_t type) {
    switch (type) {
        case ATTAR_Q5_0:
        case ATTAR_Q5_K: return 5;
        case ATTAR_Q6_K: return 6;
        case ATTAR_Q8_0: return 8;
        default: return 4;
    }
}

// Bytes of a group's quants: 16 rows of 32 values.
static inline int32_t attar_group_bytes(uint32_t type) { return 64 * attar_value_bits(type); }

// Whether scales come for 8 groups together.
static inline bool attar_is_k(uint32_t type) { return type == ATTAR_Q4_K || type == ATTAR_Q5_K || type == ATTAR_Q6_K; }

// Whether weights have an offset beside their scale.
static inline bool attar_has_offset(uint32_t type) {
    return type == ATTAR_Q4_1 || type == ATTAR_Q4_K || type == ATTAR_Q5_K;
}

// Scales in a group: Q6_K has one for each half.
static inline int32_t attar_scales_of(uint32_t type) { return type == ATTAR_Q6_K ? 2 : 1; }

// Groups of a block.
static inline int32_t attar_block_groups(uint32_t type) { return attar_is_k(type) ? 8 : 1; }

// Bytes of the scales of a block.
static inline int32_t attar_scale_bytes(uint32_t type) {
    switch (type) {
        case ATTAR_Q4_K:
        case ATTAR_Q5_K: return 320;
        case ATTAR_Q6_K: return 288;
        default: return attar_has_offset(type) ? 64 : 32;
    }
}

static inline int32_t attar_block_bytes(uint32_t type) {
    return attar_block_groups(type) * attar_group_bytes(type) + attar_scale_bytes(type);
}

// Quants of group g, and the scales of its block; `blocks` is where a block begins, whose first group is 0.
static inline const uint8_t *attar_quants_at(uint32_t type, const uint8_t *blocks, int32_t g) {
    const int32_t n = attar_block_groups(type);
    return blocks + (int64_t)(g / n) * attar_block_bytes(type) + g % n * attar_group_bytes(type);
}

static inline const uint8_t *attar_scales_at(uint32_t type, const uint8_t *blocks, int32_t g) {
    const int32_t n = attar_block_groups(type);
    return blocks + (int64_t)(g / n) * attar_block_bytes(type) + n * attar_group_bytes(type);
}

#endif
