// x86_rows.h: reading 8 rows of any integer format, for the AVX2 and the AVX-512 file: values as unsigned 16-bit
// integers (add -bias_of(type)), scales with lanes = rows.
//
// Every function takes the type as a compile-time constant and is inlined, so each format gets its own loop.
#ifndef ATTAR_X86_ROWS_H
#define ATTAR_X86_ROWS_H

#include "vec_avx2.h"

enum {
    ROWS_8 = 8,
    K_GROUPS = 8,  // groups in a block of 256
};

// What the compiler must know about a type for its loops to unroll; `type` is a constant wherever this is used.
ATTAR_INLINE int32_t groups_of(uint32_t type) {
    return type == ATTAR_Q4_K || type == ATTAR_Q5_K || type == ATTAR_Q6_K ? K_GROUPS : 1;
}

ATTAR_INLINE bool has_offset(uint32_t type) { return type == ATTAR_Q4_1 || type == ATTAR_Q4_K || type == ATTAR_Q5_K; }

ATTAR_INLINE int32_t scales_of(uint32_t type) {
    return type == ATTAR_Q6_K ? 2 : 1;  // scales in a group
}

// What load_words leaves to be subtracted from each value.
ATTAR_INLINE int16_t bias_of(uint32_t type) {
    switch (type) {
        case ATTAR_Q4_0: return 8;
        case ATTAR_Q5_0: return 16;
        case ATTAR_Q6_K: return 32;
        default: return 0;
    }
}

// --- decoding values ------------------------------------------------------------------------------------------

// 32 weights as 16-bit integers.
typedef struct {
    __m256i low, high;  // values 0..15, 16..31
} words;

ATTAR_INLINE __m256i widen_u8(const uint8_t *p) { return _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)p)); }

ATTAR_INLINE __m256i widen_i8(const uint8_t *p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p)); }

// Bits shift .. shift+3 of each byte.
ATTAR_INLINE __m256i nibble(__m256i v, int32_t shift) {
    return _mm256_and_si256(_mm256_srli_epi16(v, shift), _mm256_set1_epi16(15));
}

ATTAR_INLINE words words_nibbles(const uint8_t *qs) {
    const __m256i v = widen_u8(qs);
    return (words){nibble(v, 0), _mm256_srli_epi16(v, 4)};
}

// Bit i of the mask, moved to bit 4 of word i; 16 values.
ATTAR_INLINE __m256i fifth_bits(uint32_t mask) {
    const __m256i bits =
        _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, -32768);
    const __m256i v = _mm256_and_si256(_mm256_set1_epi16((int16_t)mask), bits);
    return _mm256_and_si256(_mm256_cmpeq_epi16(v, bits), _mm256_set1_epi16(16));
}

ATTAR_INLINE words words_q5_0(const uint8_t *block) {
    uint32_t mask;
    memcpy(&mask, block + 2, sizeof mask);
    const words q = words_nibbles(block + 6);
    return (words){_mm256_or_si256(q.low, fifth_bits(mask)), _mm256_or_si256(q.high, fifth_bits(mask >> 16))};
}

ATTAR_INLINE words words_q4_k(const uint8_t *qs, int32_t j) {
    qs += j / 2 * 32;
    return (words){nibble(widen_u8(qs), 4 * (j % 2)), nibble(widen_u8(qs + 16), 4 * (j % 2))};
}

ATTAR_INLINE words words_q5_k(const uint8_t *block, int32_t j) {
    const words q = words_q4_k(block + 48, j);
    const __m256i one = _mm256_set1_epi16(1);
    const __m256i low = _mm256_and_si256(_mm256_srli_epi16(widen_u8(block + 16), j), one);
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(widen_u8(block + 32), j), one);
    return (words){_mm256_or_si256(q.low, _mm256_slli_epi16(low, 4)),
                   _mm256_or_si256(q.high, _mm256_slli_epi16(high, 4))};
}

ATTAR_INLINE __m256i words_q6_k_half(const uint8_t *ql, const uint8_t *qh, int32_t part) {
    const __m256i top = _mm256_and_si256(_mm256_srli_epi16(widen_u8(qh), 2 * part), _mm256_set1_epi16(3));
    return _mm256_or_si256(nibble(widen_u8(ql), 4 * (part / 2)), _mm256_slli_epi16(top, 4));
}

ATTAR_INLINE words words_q6_k(const uint8_t *block, int32_t j) {
    const int32_t half = j / 4, part = j % 4;
    const uint8_t *ql = block + 64 * half + 32 * (part % 2), *qh = block + 128 + 32 * half;
    return (words){words_q6_k_half(ql, qh, part), words_q6_k_half(ql + 16, qh + 16, part)};
}

// Group j of a block, without its bias; layouts in quants.c.
ATTAR_INLINE words load_words(uint32_t type, const uint8_t *block, int32_t j) {
    switch (type) {
        case ATTAR_Q4_0: return words_nibbles(block + 2);
        case ATTAR_Q4_1: return words_nibbles(block + 4);
        case ATTAR_Q5_0: return words_q5_0(block);
        case ATTAR_Q8_0: return (words){widen_i8(block + 2), widen_i8(block + 18)};
        case ATTAR_Q4_K: return words_q4_k(block + 16, j);
        case ATTAR_Q5_K: return words_q5_k(block, j);
        default: return words_q6_k(block, j);
    }
}

// --- decoding scales ------------------------------------------------------------------------------------------

// A place in 8 rows: the same block of each.
typedef struct {
    const uint8_t *row[ROWS_8];
} rows_8;

ATTAR_INLINE int16_t load_i16(const uint8_t *p) {
    int16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

// The f16 at `at` in each row.
ATTAR_INLINE __m256 gather_f16(const rows_8 *rows, int32_t at) {
    __m128i h = _mm_cvtsi32_si128(load_i16(rows->row[0] + at));
    h = _mm_insert_epi16(h, load_i16(rows->row[1] + at), 1);
    h = _mm_insert_epi16(h, load_i16(rows->row[2] + at), 2);
    h = _mm_insert_epi16(h, load_i16(rows->row[3] + at), 3);
    h = _mm_insert_epi16(h, load_i16(rows->row[4] + at), 4);
    h = _mm_insert_epi16(h, load_i16(rows->row[5] + at), 5);
    h = _mm_insert_epi16(h, load_i16(rows->row[6] + at), 6);
    h = _mm_insert_epi16(h, load_i16(rows->row[7] + at), 7);
    return _mm256_cvtph_ps(h);
}

ATTAR_INLINE __m128i load_i32(const uint8_t *p) {
    int32_t v;
    memcpy(&v, p, sizeof v);
    return _mm_cvtsi32_si128(v);
}

// The two f16 at the start of each row.
ATTAR_INLINE void gather_two_f16(const rows_8 *rows, __m256 *first, __m256 *second) {
    __m128i pairs[ROWS_8 / 2];  // words (a, b of row 2i; a, b of row 2i+1) as (a, a, b, b)
    for (int i = 0; i < ROWS_8 / 2; i++) {
        pairs[i] = _mm_unpacklo_epi16(load_i32(rows->row[2 * i]), load_i32(rows->row[2 * i + 1]));
    }
    const __m128i low = _mm_unpacklo_epi32(pairs[0], pairs[1]), high = _mm_unpacklo_epi32(pairs[2], pairs[3]);
    *first = _mm256_cvtph_ps(_mm_unpacklo_epi64(low, high));
    *second = _mm256_cvtph_ps(_mm_unpackhi_epi64(low, high));
}

// The scales and offsets of one block of 8 rows, lanes = rows.
typedef struct {
    __m256 scale[2 * K_GROUPS], offset[K_GROUPS];
} block_scales;

// Rearranges 8 vectors so that lane r of vector j becomes lane j of vector r.
ATTAR_INLINE void transpose_8x8(__m256i v[ROWS_8]) {
    __m256i a[ROWS_8], b[ROWS_8];
    for (int i = 0; i < ROWS_8; i += 2) {
        a[i] = _mm256_unpacklo_epi32(v[i], v[i + 1]);
        a[i + 1] = _mm256_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < ROWS_8; i += 4) {
        b[i] = _mm256_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm256_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm256_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm256_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        v[i] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x20);
        v[i + 4] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x31);
    }
}

// The 8 six-bit scales and minima of a Q4_K or Q5_K block, one in each byte.
ATTAR_INLINE void unpack_scales_k(const uint8_t *block, uint64_t *scales, uint64_t *minima) {
    uint32_t s[3];
    memcpy(s, block + 4, sizeof s);
    const uint32_t low6 = 0x3F3F3F3Fu, low4 = 0x0F0F0F0Fu, low2 = 0x03030303u;
    const uint32_t scales_high = (s[2] & low4) | (s[0] >> 6 & low2) << 4;
    const uint32_t minima_high = (s[2] >> 4 & low4) | (s[1] >> 6 & low2) << 4;
    *scales = (s[0] & low6) | (uint64_t)scales_high << 32;
    *minima = (s[1] & low6) | (uint64_t)minima_high << 32;
}

ATTAR_INLINE void load_scales_k(const rows_8 *rows, block_scales *out) {
    __m256i scales[ROWS_8], minima[ROWS_8];
    for (int r = 0; r < ROWS_8; r++) {
        uint64_t s, m;
        unpack_scales_k(rows->row[r], &s, &m);
        scales[r] = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t)s));
        minima[r] = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t)m));
    }
    transpose_8x8(scales);
    transpose_8x8(minima);
    __m256 d, dmin;
    gather_two_f16(rows, &d, &dmin);
    for (int j = 0; j < K_GROUPS; j++) {
        out->scale[j] = _mm256_mul_ps(d, _mm256_cvtepi32_ps(scales[j]));
        out->offset[j] = _mm256_xor_ps(_mm256_mul_ps(dmin, _mm256_cvtepi32_ps(minima[j])), _mm256_set1_ps(-0.0f));
    }
}

ATTAR_INLINE void load_scales_q6_k(const rows_8 *rows, block_scales *out) {
    const __m256 d = gather_f16(rows, 208);
    for (int half = 0; half < 2; half++) {
        __m256i scales[ROWS_8];
        for (int r = 0; r < ROWS_8; r++) {
            scales[r] = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(rows->row[r] + 192 + 8 * half)));
        }
        transpose_8x8(scales);
        for (int j = 0; j < 8; j++) out->scale[8 * half + j] = _mm256_mul_ps(d, _mm256_cvtepi32_ps(scales[j]));
    }
}

ATTAR_INLINE void load_scales(uint32_t type, const rows_8 *rows, block_scales *out) {
    if (type == ATTAR_Q6_K) {
        load_scales_q6_k(rows, out);
    } else if (groups_of(type) == K_GROUPS) {
        load_scales_k(rows, out);
    } else if (has_offset(type)) {
        gather_two_f16(rows, &out->scale[0], &out->offset[0]);
    } else {
        out->scale[0] = gather_f16(rows, 0);
    }
}

// Rows row .. row+7 of w, the last one standing in for rows at or beyond row1.
ATTAR_INLINE rows_8 rows_at(const attar_weight *w, int32_t row, int32_t row1) {
    rows_8 rows;
    for (int32_t r = 0; r < ROWS_8; r++) {
        const int32_t at = row + r < row1 ? row + r : row1 - 1;
        rows.row[r] = w->data + (uint64_t)at * w->row_bytes;
    }
    return rows;
}

ATTAR_INLINE void advance(rows_8 *rows, uint64_t bytes) {
    for (int r = 0; r < ROWS_8; r++) rows->row[r] += bytes;
}

#endif
