// vec_neon.h: `vec`, a vector of 4 floats, for 64-bit Arm; the twin of vec_avx2.h, which states the meaning of each
// function.
#ifndef ATTAR_VEC_NEON_H
#define ATTAR_VEC_NEON_H

#include <arm_neon.h>
#include <math.h>
#include <string.h>

#include "kernels.h"

enum { LANES = 4 };
typedef float32x4_t vec;

ATTAR_INLINE uint32x4_t lane_mask(int32_t n) {
    static const int32_t lanes[LANES] = {0, 1, 2, 3};
    return vcltq_s32(vld1q_s32(lanes), vdupq_n_s32(n));
}

ATTAR_INLINE vec vec_load(const float *p, int32_t n) {
    if (n >= LANES) return vld1q_f32(p);
    float lanes[LANES] = {0};
    memcpy(lanes, p, (size_t)n * sizeof *lanes);
    return vld1q_f32(lanes);
}

ATTAR_INLINE void vec_store(float *p, int32_t n, vec v) {
    if (n >= LANES) {
        vst1q_f32(p, v);
    } else {
        float lanes[LANES];
        vst1q_f32(lanes, v);
        memcpy(p, lanes, (size_t)n * sizeof *lanes);
    }
}

ATTAR_INLINE uint16x4_t load_u16(const void *p, int32_t n) {
    uint16_t lanes[LANES] = {0};
    memcpy(lanes, p, (size_t)(n < LANES ? n : LANES) * sizeof *lanes);
    return vld1_u16(lanes);
}

ATTAR_INLINE vec vec_load_f16(const void *p, int32_t n) { return vcvt_f32_f16(vreinterpret_f16_u16(load_u16(p, n))); }

ATTAR_INLINE vec vec_load_bf16(const void *p, int32_t n) {
    return vreinterpretq_f32_u32(vshll_n_u16(load_u16(p, n), 16));
}

ATTAR_INLINE vec vec_set1(float x) { return vdupq_n_f32(x); }
ATTAR_INLINE vec vec_add(vec a, vec b) { return vaddq_f32(a, b); }
ATTAR_INLINE vec vec_sub(vec a, vec b) { return vsubq_f32(a, b); }
ATTAR_INLINE vec vec_mul(vec a, vec b) { return vmulq_f32(a, b); }
ATTAR_INLINE vec vec_div(vec a, vec b) { return vdivq_f32(a, b); }
ATTAR_INLINE vec vec_min(vec a, vec b) { return vminq_f32(a, b); }
ATTAR_INLINE vec vec_max(vec a, vec b) { return vmaxq_f32(a, b); }
ATTAR_INLINE vec vec_fma(vec a, vec b, vec c) { return vfmaq_f32(c, a, b); }
ATTAR_INLINE vec vec_fnma(vec a, vec b, vec c) { return vfmsq_f32(c, a, b); }

ATTAR_INLINE vec vec_fmaddsub(vec a, vec b, vec c) {
    static const float signs[LANES] = {-1.0f, 1.0f, -1.0f, 1.0f};
    return vfmaq_f32(vmulq_f32(c, vld1q_f32(signs)), a, b);
}

ATTAR_INLINE vec vec_swap_pairs(vec v) { return vrev64q_f32(v); }
ATTAR_INLINE vec vec_round(vec v) { return vrndnq_f32(v); }

ATTAR_INLINE vec vec_scale2(vec v, vec n) {
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(v), vshlq_n_s32(vcvtq_s32_f32(n), 23)));
}

ATTAR_INLINE vec keep_lanes(vec v, uint32x4_t mask) {
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v), mask));
}

ATTAR_INLINE vec vec_keep_from(vec v, vec x, vec least) { return keep_lanes(v, vcgeq_f32(x, least)); }
ATTAR_INLINE vec vec_keep_first(vec v, int32_t n) { return n >= LANES ? v : keep_lanes(v, lane_mask(n)); }
ATTAR_INLINE vec vec_abs(vec v) { return vabsq_f32(v); }

ATTAR_INLINE vec vec_copy_sign(vec size, vec sign) { return vbslq_f32(vdupq_n_u32(0x80000000u), sign, size); }

ATTAR_INLINE vec vec_load_twice(const float *p, int32_t n) {
    const vec v = vec_load(p, n < LANES / 2 ? n : LANES / 2);
    return vzip1q_f32(v, v);
}

ATTAR_INLINE float vec_sum(vec v) { return vaddvq_f32(v); }
ATTAR_INLINE float vec_largest(vec v) { return vmaxvq_f32(v); }

// --- a group of activations -----------------------------------------------------------------------------------

// q [32], in order.
ATTAR_INLINE void store_bytes(const int16x8_t words[4], int8_t *q) {
    for (int i = 0; i < 2; i++) vst1q_s8(q + 16 * i, vcombine_s8(vmovn_s16(words[2 * i]), vmovn_s16(words[2 * i + 1])));
}

// q [32], each four in the order 0, 2, 1, 3.
ATTAR_INLINE void store_words(const int16x8_t words[4], int16_t *q) {
    static const uint8_t order[16] = {0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15};
    for (int i = 0; i < 4; i++) {
        vst1q_u8((uint8_t *)(q + 8 * i), vqtbl1q_u8(vreinterpretq_u8_s16(words[i]), vld1q_u8(order)));
    }
}

// The sum of 16 values as attar_act holds it.
ATTAR_INLINE int32_t half_sum(int32_t bits, const int32x4_t r[4]) {
    const int32x4_t sum = vaddq_s32(vaddq_s32(r[0], r[1]), vaddq_s32(r[2], r[3]));  // values modulo 4
    if (bits != 8) return vaddvq_s32(sum);
    const int32_t first = vgetq_lane_s32(sum, 0) + vgetq_lane_s32(sum, 1);
    const int32_t second = vgetq_lane_s32(sum, 2) + vgetq_lane_s32(sum, 3);
    return (int32_t)((uint32_t)second << 16 | (uint16_t)first);
}

// The largest of `max` and the sums of neighbours of one sign; largest_size of kernels_scalar.c.
ATTAR_INLINE float with_pairs(const vec v[ATTAR_GROUP / LANES], float max) {
    const vec zero = vdupq_n_f32(0.0f);
    vec largest = zero;
    for (int i = 0; i < 8; i += 2) {
        const vec up = vpaddq_f32(vmaxq_f32(v[i], zero), vmaxq_f32(v[i + 1], zero));
        const vec down = vpaddq_f32(vmaxq_f32(vnegq_f32(v[i]), zero), vmaxq_f32(vnegq_f32(v[i + 1]), zero));
        largest = vmaxq_f32(largest, vmaxq_f32(up, down));
    }
    const float pair = vec_largest(largest) * ATTAR_PAIR_SHARE;
    return pair > max ? pair : max;
}

// As quantize_group in kernels_scalar.c, bit for bit.
ATTAR_INLINE void vec_quantize_group(const vec v[ATTAR_GROUP / LANES], attar_act y, int64_t g) {
    vec largest = vabsq_f32(v[0]);
    for (int i = 1; i < 8; i++) largest = vmaxq_f32(largest, vabsq_f32(v[i]));
    const float limit = y.bits == 8 ? 127.0f : 32767.0f;
    const float max = y.bits == 8 ? with_pairs(v, vec_largest(largest)) : vec_largest(largest);
    const float inverse = max > ATTAR_ROUND_LEAST ? limit / max : 0.0f;
    int32x4_t rounded[8];
    int16x8_t words[4];
    for (int i = 0; i < 8; i++) rounded[i] = vcvtnq_s32_f32(vmulq_n_f32(v[i], inverse));
    for (int i = 0; i < 4; i++) words[i] = vcombine_s16(vmovn_s32(rounded[2 * i]), vmovn_s32(rounded[2 * i + 1]));
    y.d[g] = max / limit;
    y.sum[2 * g] = half_sum(y.bits, rounded);
    y.sum[2 * g + 1] = half_sum(y.bits, rounded + 4);
    if (y.bits == 8)
        store_bytes(words, (int8_t *)y.q + g * ATTAR_GROUP);
    else
        store_words(words, (int16_t *)y.q + g * ATTAR_GROUP);
}

#endif
