// What decoding on a CPU computes at each step, for a few rows of float32: one table for each instruction set.
#ifndef ATTAR_ENGINE_KERNELS_H
#define ATTAR_ENGINE_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

// y [R, M] = x [R, K] times the transpose of w [M, K].
typedef struct few_rows_product {
    const float *x;
    const float *w;
    float *y;
    int64_t R, K, M;
} few_rows_product;

// The G queries [G, H] of one row that read one head of keys and values [S, H].
typedef struct head_attention {
    const float *queries;  // rotated and scaled
    const float *keys, *values;
    float *attended;      // [G, H]
    const int32_t *seen;  // the slots that are read, n_seen of them
    float *scores;        // [G, score_stride], room to work in
    int64_t G, H, n_seen, score_stride;
    float cap;  // 0 for none
} head_attention;

typedef struct engine_kernels {
    // Columns begin to end of y. An entry is summed in the same order in every block, so that a row gives the same bits
    // alone and among others.
    void (*multiply)(const few_rows_product *p, int64_t begin, int64_t end);
    // gate = activation(gate) * up, n entries; SiLU, or GELU in its tanh approximation.
    void (*activate)(float *gate, const float *up, int64_t n, bool gelu);
    void (*attend)(const head_attention *a);
    // y [n] = x / sqrt(mean(x^2) + eps) * (gain + offset)
    void (*norm)(const float *x, const float *gain, float *y, int64_t n, float eps, float offset);
} engine_kernels;

extern const engine_kernels engine_kernels_portable;
extern const engine_kernels engine_kernels_avx2;

// A multiple of this holds the scores of a query, so that they are worked on in whole vectors.
enum { SCORES_MULTIPLE = 8 };

// The best table for the CPU this runs on.
const engine_kernels *choose_kernels(void);

#endif
