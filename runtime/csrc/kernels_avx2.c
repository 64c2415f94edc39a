// kernels_avx2.c: the table for CPUs with AVX2, FMA and F16C.
#include "vec_avx2.h"
#include "vec_quads_avx2.h"

#include "vec_attend.h"
#include "vec_matmul_f32.h"
#include "vec_ops.h"
#include "x86_product.h"

const attar_kernels attar_kernels_avx2 = {
    .name = "avx2",
    .quantize = vec_quantize,
    .matmul = attar_avx2_matmul,
    .matmul_f32 = vec_matmul_f32,
    .rms_norm = vec_rms_norm,
    .rms_norm_quantize = vec_rms_norm_quantize,
    .rope = vec_rope,
    .attend = {vec_attend_f16, vec_attend_int8},
    .f32_to_f16 = vec_f32_to_f16,
    .round_i16 = vec_round_i16,
    .silu_mul = vec_silu_mul,
    .gelu_mul = vec_gelu_mul,
    .silu_mul_quantize = vec_silu_mul_quantize,
    .gelu_mul_quantize = vec_gelu_mul_quantize,
    .add = vec_add_to,
    .scale = vec_scale,
    .soft_cap = vec_soft_cap,
};
