#include "quants.h"

#include <string.h>

// --- type table -----------------------------------------------------------------------------------------------

attar_type_info attar_type_get(uint32_t type) {
    static const attar_type_info table[ATTAR_TYPE_LIMIT] = {
        [ATTAR_F32] = {"F32", 1, 4, false},      [ATTAR_F16] = {"F16", 1, 2, false},
        [ATTAR_BF16] = {"BF16", 1, 2, false},    [ATTAR_Q4_0] = {"Q4_0", 32, 18, true},
        [ATTAR_Q4_1] = {"Q4_1", 32, 20, true},   [ATTAR_Q5_0] = {"Q5_0", 32, 22, true},
        [ATTAR_Q8_0] = {"Q8_0", 32, 34, true},   [ATTAR_Q4_K] = {"Q4_K", 256, 144, true},
        [ATTAR_Q5_K] = {"Q5_K", 256, 176, true}, [ATTAR_Q6_K] = {"Q6_K", 256, 210, true},
    };
    const attar_type_info unknown = {NULL, 0, 0, false};
    return type < ATTAR_TYPE_LIMIT ? table[type] : unknown;
}

uint64_t attar_row_bytes(uint32_t type, uint64_t cols) {
    const attar_type_info info = attar_type_get(type);
    if (info.name == NULL || cols == 0 || cols % info.block_cols != 0) return 0;
    const uint64_t blocks = cols / info.block_cols;
    return blocks > UINT64_MAX / info.block_bytes ? 0 : blocks * info.block_bytes;
}

// --- 16-bit floats --------------------------------------------------------------------------------------------

static float float_of_bits(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static uint32_t bits_of_float(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

// binary16: sign 1 | exponent 5 (bias 15) | fraction 10; binary32: 1 | 8 (bias 127) | 23.
float attar_f16_to_f32(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    const uint32_t magnitude = h & 0x7FFFu;
    if (magnitude >= 0x7C00u) return float_of_bits(sign | 0x7F800000u | (magnitude & 0x3FFu) << 13);  // inf, nan
    if (magnitude < 0x0400u) {  // subnormal: fraction * 2^-24, exact in binary32
        const float value = (float)magnitude * 0x1p-24f;
        return sign ? -value : value;
    }
    return float_of_bits(sign | ((magnitude << 13) + ((127u - 15u) << 23)));
}

uint16_t attar_f32_to_f16(float f) {
    const uint32_t bits = bits_of_float(f);
    const uint32_t sign = bits >> 16 & 0x8000u;
    const uint32_t magnitude = bits & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u) return (uint16_t)(sign | 0x7E00u | (magnitude >> 13 & 0x3FFu));  // nan, kept quiet
    if (magnitude >= 0x477FF000u) return (uint16_t)(sign | 0x7C00u);                              // rounds to inf
    if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 aligns the last place to 2^-24, and rounds to even
        return (uint16_t)(sign | (bits_of_float(float_of_bits(magnitude) + 0.5f) - bits_of_float(0.5f)));
    }
    const uint32_t rounded = magnitude + 0xFFFu + (magnitude >> 13 & 1u);
    return (uint16_t)(sign | ((rounded - ((127u - 15u) << 23)) >> 13));
}

// --- blocks ---------------------------------------------------------------------------------------------------
// Layouts as ggml-common.h defines them; offsets in bytes. f16 values are little endian.

static float load_f16(const uint8_t *p) { return attar_f16_to_f32((uint16_t)(p[0] | p[1] << 8)); }

// Values 0..15 are the low nibbles of qs [16], values 16..31 the high ones; `bias` makes them signed.
static void unpack_nibbles(const uint8_t *qs, int bias, int8_t *q) {
    for (int i = 0; i < 16; i++) {
        q[i] = (int8_t)((qs[i] & 15) - bias);
        q[i + 16] = (int8_t)((qs[i] >> 4) - bias);
    }
}

// Q4_0: d f16 | qs 16;  w = d (q - 8)
static void group_q4_0(const uint8_t *block, attar_group *out) {
    unpack_nibbles(block + 2, 8, out->q);
    out->scale[0] = out->scale[1] = load_f16(block);
    out->offset = 0.0f;
}

// Q4_1: d f16 | m f16 | qs 16;  w = d q + m
static void group_q4_1(const uint8_t *block, attar_group *out) {
    unpack_nibbles(block + 4, 0, out->q);
    out->scale[0] = out->scale[1] = load_f16(block);
    out->offset = load_f16(block + 2);
}

// Q5_0: d f16 | qh u32, bit i is the fifth bit of value i | qs 16;  w = d (q - 16)
static void group_q5_0(const uint8_t *block, attar_group *out) {
    unpack_nibbles(block + 6, 16, out->q);
    for (int i = 0; i < 32; i++) {
        if (block[2 + i / 8] >> i % 8 & 1) out->q[i] = (int8_t)(out->q[i] + 16);
    }
    out->scale[0] = out->scale[1] = load_f16(block);
    out->offset = 0.0f;
}

// Q8_0: d f16 | qs i8 32;  w = d q
static void group_q8_0(const uint8_t *block, attar_group *out) {
    memcpy(out->q, block + 2, 32);
    out->scale[0] = out->scale[1] = load_f16(block);
    out->offset = 0.0f;
}

// Q4_K, Q5_K: d f16 | dmin f16 | scales 12 | (qh 32) | qs 128. `scales` holds 8 six-bit scales and 8 six-bit minima:
//   byte j      (0..3)  scale j     in bits 0-5, bits 4-5 of scale j+4   in bits 6-7
//   byte j + 4          minimum j   in bits 0-5, bits 4-5 of minimum j+4 in bits 6-7
//   byte j + 8          bits 0-3 of scale j+4 in the low nibble, of minimum j+4 in the high one
static void scales_k(const uint8_t *block, int j, attar_group *out) {
    const uint8_t *s = block + 4;
    const int scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
    const int minimum = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | (s[j] >> 6) << 4;
    out->scale[0] = out->scale[1] = load_f16(block) * (float)scale;
    out->offset = -(load_f16(block + 2) * (float)minimum);
}

// 64 values share 32 bytes of qs: low nibbles are group 2n, high nibbles group 2n + 1.
static void group_q4_k(const uint8_t *block, int j, attar_group *out) {
    const uint8_t *qs = block + 16 + j / 2 * 32;
    for (int i = 0; i < 32; i++) out->q[i] = (int8_t)(qs[i] >> 4 * (j % 2) & 15);
    scales_k(block, j, out);
}

// As Q4_K; bit j of qh[i] is the fifth bit of value i of group j.
static void group_q5_k(const uint8_t *block, int j, attar_group *out) {
    const uint8_t *qh = block + 16, *qs = block + 48 + j / 2 * 32;
    for (int i = 0; i < 32; i++) out->q[i] = (int8_t)((qs[i] >> 4 * (j % 2) & 15) | (qh[i] >> j & 1) << 4);
    scales_k(block, j, out);
}

// Q6_K: ql 128 | qh 64 | scales i8 16, one for 16 values | d f16;  w = d scale (q - 32). In each half (128 values, 64
// of ql, 32 of qh) group j: nibble j/2 of ql[32 (j%2) + i], above it bits 2j, 2j+1 of qh[i].
static void group_q6_k(const uint8_t *block, int j, attar_group *out) {
    const int half = j / 4, part = j % 4;
    const uint8_t *ql = block + 64 * half + 32 * (part % 2), *qh = block + 128 + 32 * half;
    for (int i = 0; i < 32; i++) {
        const int q = (ql[i] >> 4 * (part / 2) & 15) | (qh[i] >> 2 * part & 3) << 4;
        out->q[i] = (int8_t)(q - 32);
    }
    const float d = load_f16(block + 208);
    for (int i = 0; i < 2; i++) out->scale[i] = d * (float)(int8_t)block[192 + 2 * j + i];
    out->offset = 0.0f;
}

void attar_decode_group(uint32_t type, const uint8_t *row, uint64_t group, attar_group *out) {
    const attar_type_info info = attar_type_get(type);
    const uint64_t groups = info.block_cols / ATTAR_GROUP;
    const uint8_t *block = row + group / groups * info.block_bytes;
    const int j = (int)(group % groups);
    switch (type) {
        case ATTAR_Q4_0: group_q4_0(block, out); break;
        case ATTAR_Q4_1: group_q4_1(block, out); break;
        case ATTAR_Q5_0: group_q5_0(block, out); break;
        case ATTAR_Q8_0: group_q8_0(block, out); break;
        case ATTAR_Q4_K: group_q4_k(block, j, out); break;
        case ATTAR_Q5_K: group_q5_k(block, j, out); break;
        default: group_q6_k(block, j, out); break;
    }
}

static float load_bf16(const uint8_t *p) { return float_of_bits((uint32_t)p[0] << 16 | (uint32_t)p[1] << 24); }

void attar_dequantize_row(uint32_t type, const uint8_t *row, float *y, uint64_t cols) {
    if (type == ATTAR_F32) {
        memcpy(y, row, cols * sizeof *y);
    } else if (type == ATTAR_F16) {
        for (uint64_t i = 0; i < cols; i++) y[i] = load_f16(row + 2 * i);
    } else if (type == ATTAR_BF16) {
        for (uint64_t i = 0; i < cols; i++) y[i] = load_bf16(row + 2 * i);
    } else {
        attar_group group;
        for (uint64_t g = 0; g < cols / ATTAR_GROUP; g++) {
            attar_decode_group(type, row, g, &group);
            float *out = y + g * ATTAR_GROUP;
            for (int i = 0; i < ATTAR_GROUP; i++) out[i] = group.scale[i / 16] * (float)group.q[i] + group.offset;
        }
    }
}
