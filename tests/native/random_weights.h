// random_weights.h: rows of random weights, as files hold them and as kernels read them.
#ifndef ATTAR_TESTS_RANDOM_WEIGHTS_H
#define ATTAR_TESTS_RANDOM_WEIGHTS_H

#include <string.h>

#include "check.h"
#include "kernels.h"
#include "packed.h"

static inline void put_f16(uint8_t *p, float value) {
    const uint16_t h = attar_f32_to_f16(value);
    memcpy(p, &h, sizeof h);
}

// Random bytes are valid blocks but for the f16 scales, which must be finite.
static inline void fill_block(uint64_t *random, uint32_t type, uint8_t *block) {
    const attar_type_info info = attar_type_get(type);
    for (uint32_t i = 0; i < info.block_bytes; i++) block[i] = (uint8_t)(next_random(random) >> 56);
    if (type == ATTAR_F32) {
        const float value = random_float(random, -1, 1);
        memcpy(block, &value, sizeof value);
    } else if (type == ATTAR_F16) {
        put_f16(block, random_float(random, -1, 1));
    } else if (type == ATTAR_BF16) {
        block[1] = (uint8_t)((block[1] & 0x80) | 0x3F);  // sizes 2^-1 .. 2
    } else {
        put_f16(block + (type == ATTAR_Q6_K ? 208 : 0), random_float(random, -0.1f, 0.1f));
        if (attar_has_offset(type)) put_f16(block + 2, random_float(random, -0.1f, 0.1f));
    }
}

// Rows [rows, row_bytes] of blocks, 2 or 4 bytes off any alignment; `memory` is what to free.
static inline uint8_t *random_file_rows(uint64_t *random, uint32_t type, int32_t rows, int32_t cols, void **memory) {
    const attar_type_info info = attar_type_get(type);
    const size_t bytes = (size_t)rows * attar_row_bytes(type, (uint64_t)cols), offset = type == ATTAR_F32 ? 4 : 2;
    uint8_t *data = new_items(bytes + offset, 1);
    *memory = data;
    for (size_t i = offset; i < bytes + offset; i += info.block_bytes) fill_block(random, type, data + i);
    return data + offset;
}

// The same rows of an integer type as tiles; to be freed.
static inline uint8_t *pack_file_rows(uint32_t type, const uint8_t *file, int32_t rows, int32_t cols) {
    const uint64_t row_bytes = attar_row_bytes(type, (uint64_t)cols);
    uint8_t *packed = new_items(attar_packed_bytes(type, rows, cols), 1);
    for (int32_t row = 0; row < rows; row += ATTAR_TILE_ROWS) {
        const int32_t left = rows - row < ATTAR_TILE_ROWS ? rows - row : ATTAR_TILE_ROWS;
        uint8_t *tile = packed + (uint64_t)(row / ATTAR_TILE_ROWS) * attar_tile_bytes(type, cols);
        memset(tile, 0xAA, attar_tile_bytes(type, cols));
        attar_pack_tile(type, file + (uint64_t)row * row_bytes, row_bytes, left, cols, tile);
    }
    return packed;
}

#endif
