// vec_quads_neon.h: the twin of vec_quads_avx2.h, which states the meaning of each function, for vec_neon.h.
//
// sdot multiplies bytes by bytes, so the 16-bit numbers are taken apart: w = 128 high + low, low from -64 to 63 and,
// within ATTAR_QUAD_LIMIT, high from -127 to 127. Their sums are kept apart until the end.
#ifndef ATTAR_VEC_QUADS_NEON_H
#define ATTAR_VEC_QUADS_NEON_H

typedef struct {
    int32x4_t high, low;
} ivec;

typedef int8x16_t quads;

ATTAR_INLINE ivec ivec_zero(void) { return (ivec){vdupq_n_s32(0), vdupq_n_s32(0)}; }
ATTAR_INLINE vec ivec_to_vec(ivec v) { return vcvtq_f32_s32(vaddq_s32(vshlq_n_s32(v.high, 7), v.low)); }
ATTAR_INLINE quads quads_load(const int8_t *p) { return vld1q_s8(p); }

// Bytes 0 to 3: the high parts of numbers 0 to 3, bytes 4 to 7: the low parts. w holds numbers 0, 2, 1, 3.
ATTAR_INLINE int8x8_t take_apart(const int16_t *w) {
    static const uint8_t order[8] = {0, 2, 1, 3, 4, 6, 5, 7};
    const int16x4_t number = vld1_s16(w), high = vshr_n_s16(vadd_s16(number, vdup_n_s16(64)), 7);
    const int16x4_t low = vsub_s16(number, vshl_n_s16(high, 7));
    return vreinterpret_s8_u8(vtbl1_u8(vreinterpret_u8_s8(vmovn_s16(vcombine_s16(high, low))), vld1_u8(order)));
}

ATTAR_INLINE ivec quads_dot(ivec sum, quads x, const int16_t *w) {
    const int8x8_t parts = take_apart(w);
    return (ivec){vdotq_lane_s32(sum.high, x, parts, 0), vdotq_lane_s32(sum.low, x, parts, 1)};
}

ATTAR_INLINE int16x4_t round_to_i16(vec v) { return vqmovn_s32(vcvtnq_s32_f32(v)); }

ATTAR_INLINE void store_u16(void *p, int32_t n, uint16x4_t v) {
    uint16_t lanes[LANES];
    vst1_u16(lanes, v);
    memcpy(p, lanes, (size_t)(n < LANES ? n : LANES) * sizeof *lanes);
}

ATTAR_INLINE void vec_store_f16(uint16_t *p, int32_t n, vec v) { store_u16(p, n, vreinterpret_u16_f16(vcvt_f16_f32(v))); }

ATTAR_INLINE void vec_store_i16(int16_t *p, int32_t n, vec v) { store_u16(p, n, vreinterpret_u16_s16(round_to_i16(v))); }

ATTAR_INLINE void vec_store_quads(int16_t *p, vec v) {
    static const uint8_t order[8] = {0, 1, 4, 5, 2, 3, 6, 7};
    vst1_u8((uint8_t *)p, vtbl1_u8(vreinterpret_u8_s16(round_to_i16(v)), vld1_u8(order)));
}

#endif
