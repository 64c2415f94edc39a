// y [R, M] = x [R, K] times the transpose of w [M, K], columns begin to end of y: one table for each instruction set.
#ifndef ATTAR_FEW_ROWS_H
#define ATTAR_FEW_ROWS_H

#include <stdint.h>

typedef struct few_rows_product {
    const float *x;  // [R, K]
    const float *w;  // [M, K]
    float *y;        // [R, M]
    int64_t R, K, M;
} few_rows_product;

void few_rows_portable(const few_rows_product *p, int64_t begin, int64_t end);
void few_rows_avx2(const few_rows_product *p, int64_t begin, int64_t end);

#endif
