// neon_product.h: the integer products of the NEON table; see product.h.
#ifndef ATTAR_NEON_PRODUCT_H
#define ATTAR_NEON_PRODUCT_H

#include "product.h"

// Contract of attar_kernels.matmul.
void attar_neon_matmul(const attar_weight *w, int32_t row0, int32_t row1, attar_act x, int32_t n_tokens, float *y,
                       int64_t ldy);

#endif
