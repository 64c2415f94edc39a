// quants.h: the ggml block formats this runtime reads, and the activation format its integer kernels use.
//
// Weights w [rows, cols] are rows of blocks. Every block format is, on each group of 32 values (16 for Q6_K),
//     w_i = scale * q_i + offset,   q_i an integer of at most 8 bits,
// so a row times an activation vector x is   sum_groups  scale * sum(q_i x_i) + offset * sum(x_i).
//
// Activations are rounded to integers per group of 32 (attar_act): x_i ~ d * a_i, so that products stay integer. With 8
// bits the rounding error is 1/254 of the group's largest value; that is the fast form. With 16 bits it is 2^-16 of it,
// and logits agree with float arithmetic to about 1e-3.
#ifndef ATTAR_QUANTS_H
#define ATTAR_QUANTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { ATTAR_GROUP = 32 };

// ggml type numbers.
typedef enum {
    ATTAR_F32 = 0,
    ATTAR_F16 = 1,
    ATTAR_Q4_0 = 2,
    ATTAR_Q4_1 = 3,
    ATTAR_Q5_0 = 6,
    ATTAR_Q8_0 = 8,
    ATTAR_Q4_K = 12,
    ATTAR_Q5_K = 13,
    ATTAR_Q6_K = 14,
    ATTAR_BF16 = 30,
    ATTAR_TYPE_LIMIT = 31,
} attar_type;

typedef struct {
    const char *name;     // NULL: a type number this runtime does not read
    uint32_t block_cols;  // values in a block; cols must be a multiple
    uint32_t block_bytes;
    bool integer;  // true: kernels take attar_act; false: kernels take float activations
} attar_type_info;

// Information on a type number; .name is NULL for any number that is not readable.
attar_type_info attar_type_get(uint32_t type);

// Bytes of a row of `cols` values; 0 if cols is not a positive multiple of the block.
uint64_t attar_row_bytes(uint32_t type, uint64_t cols);

// 32 consecutive weights as integers: w_i = scale[i / 16] * q_i + offset. Only Q6_K has two different scales.
typedef struct {
    int8_t q[ATTAR_GROUP];
    float scale[2], offset;
} attar_group;

// Decodes group `group` (values 32 * group ...) of a row of an integer type.
void attar_decode_group(uint32_t type, const uint8_t *row, uint64_t group, attar_group *out);

// Activations of T tokens, each of `cols` values (a multiple of 32), as integers of 8 or 16 bits. Each half of a group
// (16 values) has its sum, since Q6_K's scales change there; with 8 bits that is a pair of int16, so that kernels can
// start 16-bit sums with it: the low one of the values whose index is 0 or 1 modulo 4, the high one of the others.
typedef struct {
    void *q;       // [T, cols] int8_t, in order; or int16_t, each four (0, 1, 2, 3) stored as 0, 2, 1, 3
    float *d;      // [T, cols / 32], scale of each group
    int32_t *sum;  // [T, cols / 16], sum of each half-group's q: a pair of int16, or one int32
    int32_t bits;  // 8: a in [-127, 127], and neighbours 2i and 2i + 1 of one sign are at most 128 together
                   // 16: a in [-32767, 32767]
} attar_act;

// Of a sum of two neighbours of one sign, what 8-bit activations count as the size of one: such sums stay at most 128,
// so that two products with bytes below 256 fit 16 bits.
#define ATTAR_PAIR_SHARE (127.0f / 127.875f)

// The sum of a half-group's values.
static inline int32_t attar_act_sum(int32_t bits, int32_t sum) {
    return bits == 8 ? (int16_t)(sum & 0xFFFF) + (sum >> 16) : sum;
}

// Decodes one row to float: the specification of each format. y [cols].
void attar_dequantize_row(uint32_t type, const uint8_t *row, float *y, uint64_t cols);

float attar_f16_to_f32(uint16_t h);
uint16_t attar_f32_to_f16(float f);  // round to nearest even, as IEEE 754

#endif
