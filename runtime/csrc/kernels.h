// kernels.h: the table of inner loops, one for each instruction set, chosen once at start-up.
//
// kernels_scalar.c is the specification: plain loops, double-checked by tests. quantize gives its bits in every table;
// the rest match it within the tolerances stated in tests/native (integer sums are exact everywhere, float steps may be
// fused). Files are compiled with their own flags; each table is const.
//   vec_*.h     element-wise kernels, float products and attention, written once over `vec`; vec_avx2.h, vec_avx512.h
//   or
//               vec_neon.h says what a vector is
//   product.h   the loops of the integer products; kernels_*_product.c and the files named there multiply tiles
// All pointers are 64-byte aligned unless said otherwise; float weights come straight from the mapped file and need not
// be.
#ifndef ATTAR_KERNELS_H
#define ATTAR_KERNELS_H

#include "attend.h"
#include "quants.h"

// Functions that take a type as a constant, and whatever must not become a call.
#define ATTAR_INLINE static inline __attribute__((always_inline))

// A weight matrix w [rows, cols] as the kernels read it.
//   integer types: tiles of 16 rows (packed.h), 64-byte aligned; row_bytes is what a row took in the file
//   F32, F16, BF16: rows as they lie in the file, row_bytes apart
typedef struct {
    const uint8_t *data;
    uint64_t row_bytes;
    uint32_t type;
    int32_t rows, cols;
} attar_weight;

typedef struct {
    const char *name;

    // x [T, cols] -> integer groups of y.bits; cols a multiple of 32. Groups below ATTAR_ROUND_LEAST become zeros.
    void (*quantize)(const float *x, attar_act y, int32_t n_tokens, int32_t cols);

    // y [T, ldy] columns row0..row1-1 = x w^T for those rows of w; row0 is a multiple of 16, row1 too or w->rows.
    // The result of each (token, row) does not depend on T, on the row range or on the number of threads.
    void (*matmul)(const attar_weight *w, int32_t row0, int32_t row1, attar_act x, int32_t n_tokens, float *y,
                   int64_t ldy);  // integer types, packed
    void (*matmul_f32)(const attar_weight *w, int32_t row0, int32_t row1, const float *x, int32_t n_tokens, float *y,
                       int64_t ldy);  // F32, F16, BF16; x [T, cols] float

    // y = x / sqrt(mean(x^2) + eps) * w over n values (w already holds 1 + weight for Gemma, as GGUF stores it).
    void (*rms_norm)(const float *x, const float *w, float *y, int32_t n, float eps);
    // The same and then quantize into the first token of `act`, reading x once; n a multiple of 32. y may be NULL.
    void (*rms_norm_quantize)(const float *x, const float *w, float *y, attar_act act, int32_t n, float eps);

    // Rotates x [head_dim] by the angles whose cosines and sines are given, [head_dim / 2] each.
    // half-split pairs (j, j + head_dim/2) if !interleaved, else (2j, 2j + 1) (llama-family GGUF rows are permuted for
    // it).
    void (*rope)(float *x, const float *cosines, const float *sines, int32_t head_dim, bool interleaved);

    // Attends a block of query rows over a chunk of the cache, by its type (attar_kv_type), continuing state and sums.
    //   state [rows], sums [rows, V] (attend.h): start from max -INFINITY, sum 0, sums 0; finish with sums / sum
    void (*attend[ATTAR_KV_TYPES])(const attar_queries *q, attar_kv kv, attar_softmax *state, float *sums);

    // y = x as f16, rounded to nearest even; beyond +-65504, f16's largest, held there.
    void (*f32_to_f16)(const float *x, uint16_t *y, int32_t n);
    // y = x limit / max |x|, rounded to nearest even; returns the scale of these integers, max |x| / limit.
    float (*round_i16)(const float *x, int16_t *y, int32_t n, float limit);

    void (*silu_mul)(const float *gate, const float *up, float *y, int32_t n);  // y = gate * sigmoid(gate) * up
    void (*gelu_mul)(const float *gate, const float *up, float *y, int32_t n);  // y = gelu_tanh(gate) * up
    // The same and then quantize into the first token of `act`; n a multiple of 32.
    void (*silu_mul_quantize)(const float *gate, const float *up, attar_act act, int32_t n);
    void (*gelu_mul_quantize)(const float *gate, const float *up, attar_act act, int32_t n);
    void (*add)(float *x, const float *y, int32_t n);  // x += y
    void (*scale)(float *x, float factor, int32_t n);
    void (*soft_cap)(float *x, float cap, int32_t n);  // x = cap * tanh(x / cap)
} attar_kernels;

extern const attar_kernels attar_kernels_scalar;
extern const attar_kernels attar_kernels_avx2;    // built on x86-64 only
extern const attar_kernels attar_kernels_avx512;  // built on x86-64 only; needs F, BW, VL, DQ and VNNI
extern const attar_kernels attar_kernels_neon;    // built on 64-bit Arm only; needs DotProd

// The best table this CPU runs. Asks the CPU or the system; never fails (scalar runs everywhere).
const attar_kernels *attar_kernels_choose(void);
// Tables this CPU can run, best first, for tests; returns the number written (at most 4).
int32_t attar_kernels_available(const attar_kernels *out[4]);

#endif
