// Packed tiles against the decoder of file rows: the same bits, for every type, row and ragged last tile.
#include "kernels_test.h"
#include "random_weights.h"

static const uint32_t TYPES[] = {ATTAR_Q4_0, ATTAR_Q4_1, ATTAR_Q5_0, ATTAR_Q8_0, ATTAR_Q4_K, ATTAR_Q5_K, ATTAR_Q6_K};
enum { N_TYPES = sizeof TYPES / sizeof *TYPES };

static void check_group(check *c, const attar_group *got, const attar_group *wanted, int32_t row, int32_t g) {
    EXPECT(c, memcmp(got->q, wanted->q, sizeof got->q) == 0, "integers of row %d, group %d", row, g);
    EXPECT(c, got->scale[0] == wanted->scale[0] && got->scale[1] == wanted->scale[1] && got->offset == wanted->offset,
           "scales of row %d, group %d", row, g);
}

static void check_rows(check *c, uint64_t *random, uint32_t type, int32_t rows, int32_t cols) {
    SUBJECT(c, "packed %s, %dx%d", attar_type_get(type).name, rows, cols);
    const uint64_t row_bytes = attar_row_bytes(type, (uint64_t)cols), tile_bytes = attar_tile_bytes(type, cols);
    void *memory;
    const uint8_t *file = random_file_rows(random, type, rows, cols, &memory);
    uint8_t *packed = pack_file_rows(type, file, rows, cols);
    float *got = new_floats((size_t)cols), *wanted = new_floats((size_t)cols);
    for (int32_t row = 0; row < (rows + 15) / 16 * 16; row++) {
        const uint8_t *tile = packed + (uint64_t)(row / 16) * tile_bytes;
        attar_unpack_row(type, tile, row % 16, got, cols);
        if (row < rows) {
            attar_dequantize_row(type, file + (uint64_t)row * row_bytes, wanted, (uint64_t)cols);
            EXPECT(c, memcmp(got, wanted, (size_t)cols * sizeof *got) == 0, "row %d differs", row);
        }
        for (int32_t i = 0; i < cols; i++) EXPECT(c, row < rows || got[i] == 0.0f, "row %d is not filled with 0", row);
        for (int32_t g = 0; row < rows && g < cols / ATTAR_GROUP; g++) {
            attar_group packed_group, file_group;
            attar_unpack_group(type, tile, row % 16, g, &packed_group);
            attar_decode_group(type, file + (uint64_t)row * row_bytes, (uint64_t)g, &file_group);
            check_group(c, &packed_group, &file_group, row, g);
        }
    }
    free(memory);
    free(packed);
    free(got);
    free(wanted);
}

static void check_sizes(check *c) {
    SUBJECT(c, "sizes of tiles");
    for (int32_t i = 0; i < N_TYPES; i++) {
        const int32_t block = (int32_t)attar_type_get(TYPES[i]).block_cols;
        EXPECT(c, attar_tile_bytes(TYPES[i], 3 * block) % 64 == 0, "type %u", TYPES[i]);
        EXPECT(c, attar_block_bytes(TYPES[i]) % 32 == 0, "type %u", TYPES[i]);
        EXPECT(c, attar_tile_bytes(TYPES[i], 3 * block + 16) == 0, "type %u", TYPES[i]);
        EXPECT(c, attar_packed_bytes(TYPES[i], 17, block) == 2 * attar_tile_bytes(TYPES[i], block), "type %u",
               TYPES[i]);
    }
    EXPECT(c, attar_tile_bytes(ATTAR_F16, 64) == 0, "floats have no tiles");
    EXPECT(c, attar_tile_bytes(ATTAR_Q4_0, 576) == 18 * 288, "got %u", (unsigned)attar_tile_bytes(ATTAR_Q4_0, 576));
}

void test_packed(check *c) {
    static const int32_t rows[] = {1, 15, 16, 17, 48};
    uint64_t random = 8;
    check_sizes(c);
    for (int32_t i = 0; i < N_TYPES; i++) {
        const int32_t block = (int32_t)attar_type_get(TYPES[i]).block_cols;
        for (int32_t blocks = 1; blocks <= 5; blocks++) {
            check_rows(c, &random, TYPES[i], rows[blocks - 1], blocks * block);
        }
    }
}
