#include "packed.h"

#include <string.h>

enum { LINE = 64 };  // bytes of a quad of 16 rows

// --- sizes ----------------------------------------------------------------------------------------------------

uint64_t attar_tile_bytes(uint32_t type, int32_t cols) {
    const attar_type_info info = attar_type_get(type);
    if (info.name == NULL || !info.integer || cols <= 0 || (uint32_t)cols % info.block_cols != 0) return 0;
    const uint64_t blocks = (uint64_t)(cols / ATTAR_GROUP / attar_block_groups(type));
    return (blocks * (uint64_t)attar_block_bytes(type) + LINE - 1) / LINE * LINE;
}

uint64_t attar_packed_bytes(uint32_t type, int32_t rows, int32_t cols) {
    return ((uint64_t)rows + ATTAR_TILE_ROWS - 1) / ATTAR_TILE_ROWS * attar_tile_bytes(type, cols);
}

// --- packing --------------------------------------------------------------------------------------------------
// Values move four at a time, as 32-bit words (little endian, as the file is): word p of a row's values is quad p, and
// goes to line p of the tile, place `row`. File layouts are drawn in quants.c.

static uint32_t load_word(const uint8_t *p) {
    uint32_t word;
    memcpy(&word, p, sizeof word);
    return word;
}

static void store_word(uint8_t *p, uint32_t word) { memcpy(p, &word, sizeof word); }

// Quad p of row 0; those of the other rows follow.
static uint8_t *line(uint8_t *quants, int32_t p) { return quants + p * LINE; }

static const uint32_t LOW_NIBBLES = 0x0F0F0F0Fu;

// A file block's 16 bytes already hold value c in the low nibble and c + 16 in the high one: quads p and p + 4.
static void pack_nibbles(const uint8_t *qs, uint8_t *quants, int32_t row) {
    for (int32_t p = 0; p < 4; p++) store_word(line(quants, p) + 4 * row, load_word(qs + 4 * p));
}

static void pack_bytes(const uint8_t *qs, uint8_t *quants, int32_t row) {
    for (int32_t p = 0; p < 8; p++) store_word(line(quants, p) + 4 * row, load_word(qs + 4 * p) ^ 0x80808080u);
}

// 32 values in one nibble (`shift` 0 or 4) of 32 bytes.
static void pack_half_bytes(const uint8_t *qs, int32_t shift, uint8_t *quants, int32_t row) {
    for (int32_t p = 0; p < 4; p++) {
        const uint32_t low = load_word(qs + 4 * p) >> shift & LOW_NIBBLES;
        const uint32_t high = load_word(qs + 4 * p + 16) >> shift & LOW_NIBBLES;
        store_word(line(quants, p) + 4 * row, low | high << 4);
    }
}

// Exchanges the bits under `mask` with those `shift` above them.
static uint32_t swap_bits(uint32_t x, uint32_t mask, int32_t shift) {
    const uint32_t differ = (x ^ x >> shift) & mask;
    return x ^ differ ^ differ << shift;
}

// Bit 4p + i moves to bit 8i + p: the five digits of its number rotate by two, in four exchanges of two digits.
static uint32_t spread_fifth_bits(uint32_t bits) {
    bits = swap_bits(bits, 0x22222222u, 1);
    bits = swap_bits(bits, 0x0A0A0A0Au, 3);
    bits = swap_bits(bits, 0x00CC00CCu, 6);
    return swap_bits(bits, 0x0000F0F0u, 12);
}

// Bit j of each of 32 bytes is the fifth bit of a value of group j.
static uint32_t gather_fifth_bits(const uint8_t *qh, int32_t j) {
    uint32_t bits = 0;
    for (int32_t p = 0; p < 8; p++) bits |= (load_word(qh + 4 * p) >> j & 0x01010101u) << p;
    return bits;
}

// Bits 2j and 2j + 1 of 16 bytes, four quads.
static uint32_t gather_top_bits(const uint8_t *qh, int32_t j) {
    uint32_t bits = 0;
    for (int32_t p = 0; p < 4; p++) bits |= (load_word(qh + 4 * p) >> 2 * j & 0x03030303u) << 2 * p;
    return bits;
}

static void copy_f16(const uint8_t *from, uint8_t *scales, int32_t row) { memcpy(scales + 2 * row, from, 2); }

// The six-bit scales and minima of 8 groups, a byte each; see scales_k in quants.c.
static void pack_scales_k(const uint8_t *block, uint8_t *scales, int32_t row) {
    const uint32_t first = load_word(block + 4), second = load_word(block + 8), third = load_word(block + 12);
    const uint32_t six = 0x3F3F3F3Fu, top = 0x30303030u;
    uint8_t values[16];  // scales of groups 0..7, minima of groups 0..7
    store_word(values, first & six);
    store_word(values + 4, (third & LOW_NIBBLES) | (first >> 2 & top));
    store_word(values + 8, second & six);
    store_word(values + 12, (third >> 4 & LOW_NIBBLES) | (second >> 2 & top));
    copy_f16(block, scales, row);
    copy_f16(block + 2, scales + 32, row);
    for (int32_t j = 0; j < 8; j++) {
        scales[64 + 32 * j + row] = values[j];
        scales[64 + 32 * j + 16 + row] = values[8 + j];
    }
}

static void pack_q4_k(const uint8_t *block, uint8_t *quants, uint8_t *scales, int32_t row) {
    for (int32_t j = 0; j < 8; j++) {
        pack_half_bytes(block + 16 + j / 2 * 32, j % 2 * 4, quants + j * attar_group_bytes(ATTAR_Q4_K), row);
    }
    pack_scales_k(block, scales, row);
}

static void pack_q5_k(const uint8_t *block, uint8_t *quants, uint8_t *scales, int32_t row) {
    for (int32_t j = 0; j < 8; j++) {
        uint8_t *group = quants + j * attar_group_bytes(ATTAR_Q5_K);
        pack_half_bytes(block + 48 + j / 2 * 32, j % 2 * 4, group, row);
        store_word(line(group, 4) + 4 * row, gather_fifth_bits(block + 16, j));
    }
    pack_scales_k(block, scales, row);
}

static void pack_q6_k(const uint8_t *block, uint8_t *quants, uint8_t *scales, int32_t row) {
    for (int32_t j = 0; j < 8; j++) {
        uint8_t *group = quants + j * attar_group_bytes(ATTAR_Q6_K);
        const uint8_t *ql = block + j / 4 * 64 + j % 2 * 32, *qh = block + 128 + j / 4 * 32;
        pack_half_bytes(ql, j % 4 / 2 * 4, group, row);
        store_word(line(group, 4) + 4 * row, gather_top_bits(qh, j % 4));
        store_word(line(group, 5) + 4 * row, gather_top_bits(qh + 16, j % 4));
        scales[32 + 32 * j + row] = block[192 + 2 * j];
        scales[32 + 32 * j + 16 + row] = block[192 + 2 * j + 1];
    }
    copy_f16(block + 208, scales, row);
}

static void pack_block(uint32_t type, const uint8_t *block, uint8_t *quants, uint8_t *scales, int32_t row) {
    switch (type) {
        case ATTAR_Q4_1:
            copy_f16(block + 2, scales + 32, row);
            pack_nibbles(block + 4, quants, row);
            break;
        case ATTAR_Q5_0:
            store_word(line(quants, 4) + 4 * row, spread_fifth_bits(load_word(block + 2)));
            pack_nibbles(block + 6, quants, row);
            break;
        case ATTAR_Q8_0: pack_bytes(block + 2, quants, row); break;
        case ATTAR_Q4_K: pack_q4_k(block, quants, scales, row); return;
        case ATTAR_Q5_K: pack_q5_k(block, quants, scales, row); return;
        case ATTAR_Q6_K: pack_q6_k(block, quants, scales, row); return;
        default: pack_nibbles(block + 2, quants, row); break;
    }
    copy_f16(block, scales, row);
}

// All blocks of all rows; inlined with each type as a constant.
static inline void pack_rows(uint32_t type, const uint8_t *rows, uint64_t row_bytes, int32_t n_rows, int32_t cols,
                             uint8_t *tile) {
    const attar_type_info info = attar_type_get(type);
    const int32_t groups = attar_block_groups(type), blocks = cols / (groups * ATTAR_GROUP);
    for (int32_t b = 0; b < blocks; b++) {
        const uint8_t *block = rows + (uint64_t)b * info.block_bytes;
        uint8_t *quants = tile + (int64_t)b * attar_block_bytes(type), *scales = quants + groups * attar_group_bytes(type);
        for (int32_t row = 0; row < n_rows; row++, block += row_bytes) pack_block(type, block, quants, scales, row);
    }
}

void attar_pack_tile(uint32_t type, const uint8_t *rows, uint64_t row_bytes, int32_t n_rows, int32_t cols,
                     uint8_t *tile) {
    if (n_rows < ATTAR_TILE_ROWS) memset(tile, 0, attar_tile_bytes(type, cols));
    switch (type) {
        case ATTAR_Q4_0: pack_rows(ATTAR_Q4_0, rows, row_bytes, n_rows, cols, tile); break;
        case ATTAR_Q4_1: pack_rows(ATTAR_Q4_1, rows, row_bytes, n_rows, cols, tile); break;
        case ATTAR_Q5_0: pack_rows(ATTAR_Q5_0, rows, row_bytes, n_rows, cols, tile); break;
        case ATTAR_Q8_0: pack_rows(ATTAR_Q8_0, rows, row_bytes, n_rows, cols, tile); break;
        case ATTAR_Q4_K: pack_rows(ATTAR_Q4_K, rows, row_bytes, n_rows, cols, tile); break;
        case ATTAR_Q5_K: pack_rows(ATTAR_Q5_K, rows, row_bytes, n_rows, cols, tile); break;
        default: pack_rows(ATTAR_Q6_K, rows, row_bytes, n_rows, cols, tile); break;
    }
}

// --- unpacking ------------------------------------------------------------------------------------------------

// The packed value of quad p, byte i.
static int32_t packed_value(uint32_t type, const uint8_t *group, int32_t row, int32_t p, int32_t i) {
    const uint8_t *lane = group + 4 * row + i;
    if (type == ATTAR_Q8_0) return lane[LINE * p];
    const int32_t nibble = lane[LINE * (p % 4)] >> p / 4 * 4 & 15;
    switch (attar_value_bits(type)) {
        case 5: return nibble | (lane[LINE * 4] >> p & 1) << 4;
        case 6: return nibble | (lane[LINE * (4 + p / 4)] >> p % 4 * 2 & 3) << 4;
        default: return nibble;
    }
}

static float load_f16(const uint8_t *values, int32_t row) {
    uint16_t h;
    memcpy(&h, values + 2 * row, sizeof h);
    return attar_f16_to_f32(h);
}

static void unpack_scales(uint32_t type, const uint8_t *block, int32_t row, int32_t group, attar_group *out) {
    const float d = load_f16(block, row);
    out->scale[0] = out->scale[1] = d;
    out->offset = 0.0f;
    if (type == ATTAR_Q4_1) {
        out->offset = load_f16(block + 32, row);
    } else if (type == ATTAR_Q6_K) {
        const uint8_t *pair = block + 32 + group % 8 * 32 + row;
        out->scale[0] = d * (float)(int8_t)pair[0];
        out->scale[1] = d * (float)(int8_t)pair[16];
    } else if (attar_is_k(type)) {
        const uint8_t *pair = block + 64 + group % 8 * 32 + row;
        out->scale[0] = out->scale[1] = d * (float)pair[0];
        out->offset = -(load_f16(block + 32, row) * (float)pair[16]);
    }
}

void attar_unpack_group(uint32_t type, const uint8_t *tile, int32_t row, int32_t group, attar_group *out) {
    const uint8_t *quants = attar_quants_at(type, tile, group);
    const int32_t bias = attar_bias_of(type);
    for (int32_t c = 0; c < ATTAR_GROUP; c++) {
        out->q[c] = (int8_t)(packed_value(type, quants, row, c / 4, c % 4) - bias);
    }
    unpack_scales(type, attar_scales_at(type, tile, group), row, group, out);
}

void attar_unpack_row(uint32_t type, const uint8_t *tile, int32_t row, float *y, int32_t cols) {
    attar_group group;
    for (int32_t g = 0; g < cols / ATTAR_GROUP; g++) {
        attar_unpack_group(type, tile, row, g, &group);
        float *out = y + g * ATTAR_GROUP;  // [32]
        for (int32_t i = 0; i < ATTAR_GROUP; i++) out[i] = group.scale[i / 16] * (float)group.q[i] + group.offset;
    }
}
