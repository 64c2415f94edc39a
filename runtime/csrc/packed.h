// packed.h: integer weights in the kernels' order, made once when a model is loaded.
//
// Rows go in tiles of 16 (the last tile is filled up with zeros), so that vector lanes are rows and nothing is summed
// across lanes. Four consecutive columns of a row lie together (a quad: what vpdpbusd, vpmaddubsw and sdot take at once).
// A tile is all its quants, then all its scales; both parts are multiples of 64 bytes.
//
//   quants, for each group of 32 columns (quads 0 to 7); values are unsigned, bias_of(type) more than the weight's q
//     Q4_0 Q4_1 Q4_K   u8 [4][16][4]                 byte p: quad p in the low nibble, quad p + 4 in the high one
//     Q5_0 Q5_K        the same, then u8 [16][4]     bit p of a byte: fifth bit of quad p
//     Q6_K             the same, then u8 [2][16][4]  bits 2 (p % 4) and 2 (p % 4) + 1 of plane p / 4: the two top bits
//     Q8_0             u8 [8][16][4]                 q + 128
//   scales
//     Q4_0 Q5_0 Q8_0   each group: d f16 [16]
//     Q4_1             each group: d f16 [16], m f16 [16]
//     Q4_K Q5_K        each 8 groups: d f16 [16], dmin f16 [16], then for each group scale u8 [16], minimum u8 [16]
//     Q6_K             each 8 groups: d f16 [16], then for each group scale i8 [2][16] (first and second 16 columns)
#ifndef ATTAR_PACKED_H
#define ATTAR_PACKED_H

#include "quants.h"

enum { ATTAR_TILE_ROWS = 16 };

// Bytes of one tile, and of its quants alone; 0 for float types and for cols that are no multiple of the block.
uint64_t attar_tile_bytes(uint32_t type, int32_t cols);
uint64_t attar_tile_quant_bytes(uint32_t type, int32_t cols);

// Bytes of a packed matrix [rows, cols].
uint64_t attar_packed_bytes(uint32_t type, int32_t rows, int32_t cols);

// Packs one tile from up to 16 rows of file blocks, n_rows of them, row_bytes apart. tile: 64-byte aligned.
void attar_pack_tile(uint32_t type, const uint8_t *rows, uint64_t row_bytes, int32_t n_rows, int32_t cols,
                     uint8_t *tile);

// y [cols] = row `row` (0 to 15) of a tile, as floats; the same bits as attar_dequantize_row of the file's row.
void attar_unpack_row(uint32_t type, const uint8_t *tile, int32_t row, float *y, int32_t cols);

#endif
