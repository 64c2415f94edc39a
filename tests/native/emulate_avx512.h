// emulate_avx512.h: AVX-512 instructions as plain code, from SIMDe (Debian: libsimde-dev), and the few that SIMDe 0.7
// lacks from loops written here after Intel's intrinsics guide.
#ifndef ATTAR_TESTS_EMULATE_AVX512_H
#define ATTAR_TESTS_EMULATE_AVX512_H

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <math.h>
#include <simde/x86/avx512.h>
#include <stdint.h>

#include "quants.h"

typedef simde__m512_private emulated_f32;   // .f32 [16]
typedef simde__m512i_private emulated_i32;  // .i32, .u32 [16], .u16 [32]

#define EMULATED_LANES(i) for (int i = 0; i < 16; i++)

#if !defined(_mm512_cvtepi32_ps)
#define _mm512_cvtepi32_ps emulate_cvtepi32_ps
static inline simde__m512 emulate_cvtepi32_ps(simde__m512i a) {
    const emulated_i32 v = simde__m512i_to_private(a);
    emulated_f32 r;
    EMULATED_LANES(i) r.f32[i] = (float)v.i32[i];
    return simde__m512_from_private(r);
}
#endif

#if !defined(_mm512_cvtps_epi32)
#define _mm512_cvtps_epi32 emulate_cvtps_epi32
static inline simde__m512i emulate_cvtps_epi32(simde__m512 a) {
    const emulated_f32 v = simde__m512_to_private(a);
    emulated_i32 r;
    EMULATED_LANES(i) r.i32[i] = (int32_t)lrintf(v.f32[i]);
    return simde__m512i_from_private(r);
}
#endif

#if !defined(_mm512_cvtepu8_epi32)
#define _mm512_cvtepu8_epi32 emulate_cvtepu8_epi32
static inline simde__m512i emulate_cvtepu8_epi32(simde__m128i a) {
    const simde__m128i_private v = simde__m128i_to_private(a);
    emulated_i32 r;
    EMULATED_LANES(i) r.i32[i] = v.u8[i];
    return simde__m512i_from_private(r);
}
#endif

#if !defined(_mm512_cvtepi8_epi32)
#define _mm512_cvtepi8_epi32 emulate_cvtepi8_epi32
static inline simde__m512i emulate_cvtepi8_epi32(simde__m128i a) {
    const simde__m128i_private v = simde__m128i_to_private(a);
    emulated_i32 r;
    EMULATED_LANES(i) r.i32[i] = v.i8[i];
    return simde__m512i_from_private(r);
}
#endif

#if !defined(_mm512_extractf32x8_ps)
#define _mm512_extractf32x8_ps(a, half) emulate_extractf32x8_ps(a, half)
static inline simde__m256 emulate_extractf32x8_ps(simde__m512 a, int half) {
    return simde__m512_to_private(a).m256[half];
}
#endif

#if !defined(_mm512_cvtepu16_epi32)
#define _mm512_cvtepu16_epi32 emulate_cvtepu16_epi32
static inline simde__m512i emulate_cvtepu16_epi32(simde__m256i a) {
    const simde__m256i_private v = simde__m256i_to_private(a);
    emulated_i32 r;
    EMULATED_LANES(i) r.u32[i] = v.u16[i];
    return simde__m512i_from_private(r);
}
#endif

#if !defined(_mm512_cvtph_ps)
#define _mm512_cvtph_ps emulate_cvtph_ps
static inline simde__m512 emulate_cvtph_ps(simde__m256i a) {
    const simde__m256i_private v = simde__m256i_to_private(a);
    emulated_f32 r;
    EMULATED_LANES(i) r.f32[i] = attar_f16_to_f32(v.u16[i]);
    return simde__m512_from_private(r);
}
#endif

#if !defined(_mm512_cvtps_ph)
#define _mm512_cvtps_ph(a, rounding) emulate_cvtps_ph(a)  // always to nearest even here
static inline simde__m256i emulate_cvtps_ph(simde__m512 a) {
    const emulated_f32 v = simde__m512_to_private(a);
    simde__m256i_private r;
    EMULATED_LANES(i) r.u16[i] = attar_f32_to_f16(v.f32[i]);
    return simde__m256i_from_private(r);
}
#endif

#if !defined(_mm512_fmaddsub_ps)
#define _mm512_fmaddsub_ps emulate_fmaddsub_ps
static inline simde__m512 emulate_fmaddsub_ps(simde__m512 a, simde__m512 b, simde__m512 c) {
    const emulated_f32 x = simde__m512_to_private(a), y = simde__m512_to_private(b), z = simde__m512_to_private(c);
    emulated_f32 r;
    EMULATED_LANES(i) r.f32[i] = fmaf(x.f32[i], y.f32[i], i % 2 ? z.f32[i] : -z.f32[i]);
    return simde__m512_from_private(r);
}
#endif

#if !defined(_mm512_permute_ps)
#define _mm512_permute_ps(a, control) emulate_permute_ps(a, control)
static inline simde__m512 emulate_permute_ps(simde__m512 a, int control) {
    const emulated_f32 v = simde__m512_to_private(a);
    emulated_f32 r;
    EMULATED_LANES(i) r.f32[i] = v.f32[i / 4 * 4 + (control >> 2 * (i % 4) & 3)];
    return simde__m512_from_private(r);
}
#endif

#if !defined(_mm512_maskz_loadu_ps)
#define _mm512_maskz_loadu_ps emulate_maskz_loadu_ps
static inline simde__m512 emulate_maskz_loadu_ps(simde__mmask16 mask, const float *p) {
    emulated_f32 r;
    EMULATED_LANES(i) r.f32[i] = mask >> i & 1 ? p[i] : 0.0f;
    return simde__m512_from_private(r);
}
#endif

#if !defined(_mm512_mask_storeu_ps)
#define _mm512_mask_storeu_ps emulate_mask_storeu_ps
static inline void emulate_mask_storeu_ps(float *p, simde__mmask16 mask, simde__m512 a) {
    const emulated_f32 v = simde__m512_to_private(a);
    EMULATED_LANES(i) {
        if (mask >> i & 1) p[i] = v.f32[i];
    }
}
#endif

#if !defined(_mm512_reduce_add_ps)
#define _mm512_reduce_add_ps emulate_reduce_add_ps
static inline float emulate_reduce_add_ps(simde__m512 a) {
    emulated_f32 v = simde__m512_to_private(a);
    for (int n = 8; n > 0; n /= 2) {
        for (int i = 0; i < n; i++) v.f32[i] += v.f32[i + n];
    }
    return v.f32[0];
}
#endif

#if !defined(_mm512_reduce_max_ps)
#define _mm512_reduce_max_ps emulate_reduce_max_ps
static inline float emulate_reduce_max_ps(simde__m512 a) {
    const emulated_f32 v = simde__m512_to_private(a);
    float max = v.f32[0];
    EMULATED_LANES(i) max = fmaxf(max, v.f32[i]);
    return max;
}
#endif

#endif
