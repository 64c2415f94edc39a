// kernels_neon.c: the table for 64-bit Arm CPUs with dot products (Armv8.2 DotProd: phones since about 2018).
#include "neon_product.h"
#include "vec_neon.h"
#include "vec_quads_neon.h"

#include "vec_attend.h"
#include "vec_matmul_f32.h"
#include "vec_ops.h"

const attar_kernels attar_kernels_neon = {
    .name = "neon",
    .quantize = vec_quantize,
    .matmul = attar_neon_matmul,
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
