// x86_product.h: the integer products of the x86 tables; see product.h.
#ifndef ATTAR_X86_PRODUCT_H
#define ATTAR_X86_PRODUCT_H

#include "product.h"
#include "x86_intrinsics.h"

// Contract of attar_prepare. Integer sums start at -bias times the sum of the activations: as one int32, or as a pair
// of int16 for sums of two lanes of 16 bits.
attar_span attar_avx2_prepare(const attar_weight *w, attar_act x, const attar_product *product, int32_t g0, int32_t n,
                              int32_t t0, int32_t tokens, attar_span_memory *memory);
attar_span attar_avx2_prepare_pairs(const attar_weight *w, attar_act x, const attar_product *product, int32_t g0,
                                    int32_t n, int32_t t0, int32_t tokens, attar_span_memory *memory);

// How AVX2 multiplies: packed bytes with 8-bit activations, packed words with int16.
attar_product attar_avx2_bytes(uint32_t type);
attar_product attar_avx2_words(uint32_t type);

// Entries of the tables; contract in kernels.h.
void attar_avx2_matmul(const attar_weight *w, int32_t row0, int32_t row1, attar_act x, int32_t n_tokens, float *y,
                       int64_t ldy);
void attar_avx512_matmul(const attar_weight *w, int32_t row0, int32_t row1, attar_act x, int32_t n_tokens, float *y,
                         int64_t ldy);

#endif
