// kernels_avx2.c: activations to integers, and the table for CPUs with AVX2, FMA and F16C.
#include "vec_avx2.h"
#include "vec_quads_avx2.h"

#include "vec_attend.h"
#include "vec_matmul_f32.h"
#include "vec_ops.h"
#include "x86_tile.h"

// As quantize_group in kernels_scalar.c, bit for bit.
static void quantize_group(const float *x, int16_t *q, float *d, float *s) {
    __m256 v[4], max = _mm256_setzero_ps();
    for (int i = 0; i < 4; i++) {
        v[i] = _mm256_loadu_ps(x + i * LANES);
        max = _mm256_max_ps(max, vec_abs(v[i]));
    }
    const float largest = vec_largest(max);
    const __m256 inverse = _mm256_set1_ps(largest > 0.0f ? 32767.0f / largest : 0.0f);
    __m256i rounded[4];
    for (int i = 0; i < 4; i++) rounded[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
    for (int i = 0; i < 2; i++) {  // packs works within 128-bit halves; the permutation restores the order
        const __m256i packed = _mm256_packs_epi32(rounded[2 * i], rounded[2 * i + 1]);
        _mm256_storeu_si256((__m256i *)(q + 16 * i), _mm256_permute4x64_epi64(packed, 0xD8));
    }
    const __m256i sums =
        _mm256_add_epi32(_mm256_add_epi32(rounded[0], rounded[1]), _mm256_add_epi32(rounded[2], rounded[3]));
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4E));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xB1));
    *d = largest / 32767.0f;
    *s = *d * (float)_mm_cvtsi128_si32(sum);
}

void attar_avx2_quantize(const float *x, attar_act y, int32_t n_tokens, int32_t cols) {
    const int64_t groups = (int64_t)n_tokens * cols / ATTAR_GROUP;
    for (int64_t g = 0; g < groups; g++) {
        quantize_group(x + g * ATTAR_GROUP, y.q + g * ATTAR_GROUP, y.d + g, y.s + g);
    }
}

const attar_kernels attar_kernels_avx2 = {
    .name = "avx2",
    .quantize = attar_avx2_quantize,
    .matmul = attar_avx2_matmul,
    .matmul_f32 = vec_matmul_f32,
    .rms_norm = vec_rms_norm,
    .rope = vec_rope,
    .attend = {vec_attend_f16, vec_attend_int8},
    .f32_to_f16 = vec_f32_to_f16,
    .round_i16 = vec_round_i16,
    .silu_mul = vec_silu_mul,
    .gelu_mul = vec_gelu_mul,
    .add = vec_add_to,
    .scale = vec_scale,
    .soft_cap = vec_soft_cap,
};
