// vec_matmul_f32.h: products with float weights over a `vec`. Include after vec_avx2.h or vec_avx512.h.
//
// Each (token, row) has one accumulator, lane i taking columns i, i + LANES, ..., whatever the block shape, so its
// result does not depend on the other tokens and rows. Blocks of 8 and more accumulators hide the latency of the FMA.
#ifndef ATTAR_VEC_MATMUL_F32_H
#define ATTAR_VEC_MATMUL_F32_H

enum { BLOCK_ROWS = 4, BLOCK_TOKENS = 3, MATVEC_ROWS = 8, MATMUL_SUMS = 12 };

// Columns c, c + 1, ... of a row of `type`, of which n are left.
ATTAR_INLINE vec vec_load_weights(uint32_t type, const uint8_t *row, int64_t c, int32_t n) {
    switch (type) {
        case ATTAR_F32: return vec_load((const float *)(const void *)row + c, n);
        case ATTAR_F16: return vec_load_f16(row + 2 * c, n);
        default: return vec_load_bf16(row + 2 * c, n);
    }
}

// Adds the n <= LANES columns from c of `rows` rows times `tokens` tokens.
ATTAR_INLINE void add_columns(uint32_t type, const uint8_t *const *data, const float *x, int64_t cols, int64_t c,
                              int32_t n, int32_t rows, int32_t tokens, vec sum[MATMUL_SUMS]) {
    vec values[BLOCK_TOKENS];
    for (int32_t t = 0; t < tokens; t++) values[t] = vec_load(x + t * cols + c, n);
    for (int32_t r = 0; r < rows; r++) {
        const vec weights = vec_load_weights(type, data[r], c, n);
        for (int32_t t = 0; t < tokens; t++) {
            sum[r * tokens + t] = vec_fma(weights, values[t], sum[r * tokens + t]);
        }
    }
}

ATTAR_INLINE void multiply_block(uint32_t type, const attar_weight *w, int32_t row, int32_t rows, const float *x,
                                 int32_t tokens, float *y, int64_t ldy) {
    const int64_t cols = w->cols;
    const uint8_t *data[MATVEC_ROWS];
    vec sum[MATMUL_SUMS];
    for (int32_t r = 0; r < rows; r++) data[r] = w->data + (uint64_t)(row + r) * w->row_bytes;
    for (int32_t i = 0; i < rows * tokens; i++) sum[i] = vec_set1(0.0f);
    int64_t c = 0;
    for (; c + LANES <= cols; c += LANES) add_columns(type, data, x, cols, c, LANES, rows, tokens, sum);
    if (c < cols) add_columns(type, data, x, cols, c, (int32_t)(cols - c), rows, tokens, sum);
    for (int32_t r = 0; r < rows; r++) {
        for (int32_t t = 0; t < tokens; t++) y[t * ldy + row + r] = vec_sum(sum[r * tokens + t]);
    }
}

ATTAR_INLINE void multiply_rows(uint32_t type, const attar_weight *w, int32_t row, int32_t rows, const float *x,
                                int32_t n_tokens, float *y, int64_t ldy) {
    int32_t t = 0;
    for (; t + BLOCK_TOKENS <= n_tokens; t += BLOCK_TOKENS) {
        multiply_block(type, w, row, rows, x + (int64_t)t * w->cols, BLOCK_TOKENS, y + t * ldy, ldy);
    }
    for (; t < n_tokens; t++) multiply_block(type, w, row, rows, x + (int64_t)t * w->cols, 1, y + t * ldy, ldy);
}

ATTAR_INLINE void matmul_type(uint32_t type, const attar_weight *w, int32_t row0, int32_t row1, const float *x,
                              int32_t n_tokens, float *y, int64_t ldy) {
    int32_t row = row0;
    for (; n_tokens == 1 && row + MATVEC_ROWS <= row1; row += MATVEC_ROWS) {
        multiply_block(type, w, row, MATVEC_ROWS, x, 1, y, ldy);
    }
    for (; row + BLOCK_ROWS <= row1; row += BLOCK_ROWS) {
        multiply_rows(type, w, row, BLOCK_ROWS, x, n_tokens, y, ldy);
    }
    for (; row < row1; row++) multiply_rows(type, w, row, 1, x, n_tokens, y, ldy);
}

static void vec_matmul_f32(const attar_weight *w, int32_t row0, int32_t row1, const float *x, int32_t n_tokens,
                           float *y, int64_t ldy) {
    switch (w->type) {
        case ATTAR_F32: matmul_type(ATTAR_F32, w, row0, row1, x, n_tokens, y, ldy); break;
        case ATTAR_F16: matmul_type(ATTAR_F16, w, row0, row1, x, n_tokens, y, ldy); break;
        default: matmul_type(ATTAR_BF16, w, row0, row1, x, n_tokens, y, ldy); break;
    }
}

#endif
