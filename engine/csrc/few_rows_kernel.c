// The kernel, compiled once for each instruction set under the name FEW_ROWS_NAME.
//
// A row of w that comes from memory is multiplied with eight rows of x, whose sums of eight lanes stay in registers. An
// entry of y is summed in the same order in every block, so that a row gives the same bits alone and among others.
#include "few_rows.h"

#include <string.h>

enum { LANES = 8, ROWS = 8, AHEAD = 2048 };  // bytes

typedef float lanes __attribute__((vector_size(LANES * sizeof(float))));

static inline lanes load(const float *at) {
    lanes value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline float sum_of(lanes v) { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }

// One column of y for `rows` rows of x [rows, K], a constant where it is inlined, and the row w [K].
__attribute__((always_inline)) static inline void block(const few_rows_product *p, const float *x, const float *w,
                                                        float *y, int rows) {
    const int64_t K = p->K, whole = K / LANES * LANES;
    lanes sums[ROWS];
    for (int r = 0; r < rows; r++) sums[r] = (lanes){0};
    for (int64_t k = 0; k < whole; k += LANES) {
        const lanes weights = load(w + k);
        __builtin_prefetch((const void *)((uintptr_t)(w + k) + AHEAD));
        for (int r = 0; r < rows; r++) sums[r] += load(x + r * K + k) * weights;
    }
    for (int r = 0; r < rows; r++) {
        float total = sum_of(sums[r]);
        for (int64_t k = whole; k < K; k++) total += x[r * K + k] * w[k];
        y[r * p->M] = total;
    }
}

__attribute__((always_inline)) static inline void columns(const few_rows_product *p, int64_t row, int rows,
                                                          int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; m++) block(p, p->x + row * p->K, p->w + m * p->K, p->y + row * p->M + m, rows);
}

void FEW_ROWS_NAME(const few_rows_product *p, int64_t begin, int64_t end) {
    int64_t row = 0;
    for (; row + ROWS <= p->R; row += ROWS) columns(p, row, ROWS, begin, end);
    for (; row + ROWS / 2 <= p->R; row += ROWS / 2) columns(p, row, ROWS / 2, begin, end);
    for (; row < p->R; row++) columns(p, row, 1, begin, end);
}
