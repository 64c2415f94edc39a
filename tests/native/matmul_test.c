// Matrix products and activations: every table against double arithmetic, quantize also against the scalar table.
#include <math.h>
#include <string.h>

#include "kernels_test.h"
#include "random_weights.h"

// Integer products: a running float sum of G terms, each rounded three times, is within 4 G units of rounding of the
// sum of the terms' sizes.
static const double INTEGER_ROUNDING = 4.0 * 0x1p-24;
// Float products of n terms: the usual bound n u on a sum, for any order of summation, with a factor 2 for the product.
static const double FLOAT_ROUNDING = 2.0 * 0x1p-24;

static const uint32_t INTEGER_TYPES[] = {ATTAR_Q4_0, ATTAR_Q4_1, ATTAR_Q5_0, ATTAR_Q8_0,
                                         ATTAR_Q4_K, ATTAR_Q5_K, ATTAR_Q6_K};
static const uint32_t FLOAT_TYPES[] = {ATTAR_F32, ATTAR_F16, ATTAR_BF16};
#define COUNT(array) (sizeof(array) / sizeof *(array))

// --- problems -------------------------------------------------------------------------------------------------

typedef struct {
    attar_weight w;
    void *memory;         // of the file's rows
    const uint8_t *file;  // [rows, row_bytes]
    uint8_t *packed;      // the same as tiles, of integer types
    int32_t tokens;
    float *x;  // [tokens, cols]
    attar_act act;
} problem;

static size_t value_bytes(int32_t bits) { return (size_t)bits / 8; }

static attar_act new_act(int32_t bits, int32_t tokens, int32_t cols) {
    const size_t values = (size_t)tokens * (size_t)cols;
    return (attar_act){new_items(values, value_bytes(bits)), new_floats(values / ATTAR_GROUP),
                       new_items(values / ATTAR_GROUP * 2, sizeof(int32_t)), bits};
}

static void free_act(attar_act act) {
    free(act.q);
    free(act.d);
    free(act.sum);
}

// Activations from value `at` on.
static attar_act act_at(attar_act act, int64_t at) {
    return (attar_act){(uint8_t *)act.q + at * (int64_t)value_bytes(act.bits), act.d + at / ATTAR_GROUP,
                       act.sum + at / ATTAR_GROUP * 2, act.bits};
}

// Value i of the activations; 16-bit ones lie 0, 2, 1, 3 in each four.
static int32_t act_value(attar_act act, int64_t i) {
    static const int32_t places[4] = {0, 2, 1, 3};
    return act.bits == 8 ? ((const int8_t *)act.q)[i] : ((const int16_t *)act.q)[i / 4 * 4 + places[i % 4]];
}

// bits: of the activations, where the type is an integer one.
static problem problem_new(uint64_t *random, uint32_t type, int32_t rows, int32_t cols, int32_t tokens, int32_t bits) {
    problem p = {.tokens = tokens};
    p.file = random_file_rows(random, type, rows, cols, &p.memory);
    p.w = (attar_weight){p.file, attar_row_bytes(type, (uint64_t)cols), type, rows, cols};
    p.x = new_floats((size_t)tokens * (size_t)cols);
    fill_floats(random, p.x, (size_t)tokens * (size_t)cols, -3, 3);
    if (attar_type_get(type).integer) {
        p.w.data = p.packed = pack_file_rows(type, p.file, rows, cols);
        p.act = new_act(bits, tokens, cols);
        attar_kernels_scalar.quantize(p.x, p.act, tokens, cols);
    }
    return p;
}

static void problem_free(problem p) {
    free(p.memory);
    free(p.packed);
    free(p.x);
    free_act(p.act);
}

// y [tokens, ldy], columns row0..row1-1, with any table.
static void multiply(const attar_kernels *kernels, const problem *p, int32_t row0, int32_t row1, int32_t token0,
                     int32_t tokens, float *y, int64_t ldy) {
    const int64_t at = (int64_t)token0 * p->w.cols;
    if (attar_type_get(p->w.type).integer) {
        kernels->matmul(&p->w, row0, row1, act_at(p->act, at), tokens, y, ldy);
    } else {
        kernels->matmul_f32(&p->w, row0, row1, p->x + at, tokens, y, ldy);
    }
}

// --- checks ---------------------------------------------------------------------------------------------------

// The exact product of decoded weights with the (rounded) activations, and the sum of the sizes of its terms.
static void exact_dot(const problem *p, const float *weights, int32_t token, double *sum, double *size) {
    const bool integer = attar_type_get(p->w.type).integer;
    *sum = *size = 0;
    for (int32_t i = 0; i < p->w.cols; i++) {
        const int64_t at = (int64_t)token * p->w.cols + i;
        const double x = integer ? (double)p->act.d[at / ATTAR_GROUP] * act_value(p->act, at) : p->x[at];
        *sum += weights[i] * x;
        *size += fabs(weights[i] * x);
    }
}

static void check_exact(check *c, const problem *p, const float *y) {
    const bool integer = attar_type_get(p->w.type).integer;
    const double terms = integer ? p->w.cols / 16 : p->w.cols;
    const double bound = (integer ? INTEGER_ROUNDING : FLOAT_ROUNDING) * (terms + 2);
    float *weights = new_floats((size_t)p->w.cols);
    for (int32_t row = 0; row < p->w.rows; row++) {
        attar_dequantize_row(p->w.type, p->file + (uint64_t)row * p->w.row_bytes, weights, (uint64_t)p->w.cols);
        for (int32_t t = 0; t < p->tokens; t++) {
            double sum, size;
            exact_dot(p, weights, t, &sum, &size);
            const double error = fabs(y[t * p->w.rows + row] - sum);
            EXPECT(c, error <= bound * size, "row %d token %d: %.9g, exactly %.9g, sizes %g", row, t,
                   (double)y[t * p->w.rows + row], sum, size);
        }
    }
    free(weights);
}

static bool same_bits(const float *a, const float *b, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (a[i] != b[i]) return false;  // +0 and -0 are the same number
    }
    return true;
}

// One token and a part of the rows at a time must give the same bits as all at once, and touch nothing else. Integer
// types take parts that begin at multiples of 16.
static void check_parts(check *c, const attar_kernels *kernels, const problem *p, const float *whole) {
    const int32_t rows = p->w.rows, unit = attar_type_get(p->w.type).integer ? ATTAR_TILE_ROWS : 1;
    float *y = new_floats((size_t)rows);
    for (int32_t row0 = 0, n; row0 < rows; row0 += n) {
        n = unit * (1 + rows / unit / 4);
        const int32_t row1 = row0 + n < rows ? row0 + n : rows;
        for (int32_t t = 0; t < p->tokens; t++) {
            for (int32_t r = 0; r < rows; r++) y[r] = -77.0f;
            multiply(kernels, p, row0, row1, t, 1, y, rows);
            EXPECT(c, same_bits(y + row0, whole + t * rows + row0, (size_t)(row1 - row0)),
                   "rows %d..%d of token %d alone differ from the whole product", row0, row1, t);
            for (int32_t r = 0; r < rows; r++) {
                EXPECT(c, (r >= row0 && r < row1) || y[r] == -77.0f, "row %d written outside %d..%d", r, row0, row1);
            }
        }
    }
    free(y);
}

static void check_product(check *c, const attar_kernels *kernels, uint64_t *random, uint32_t type, int32_t rows,
                          int32_t cols, int32_t tokens, int32_t bits) {
    SUBJECT(c, "%s matmul %s %dx%d, %d tokens of %d bits", kernels->name, attar_type_get(type).name, rows, cols, tokens,
            bits);
    problem p = problem_new(random, type, rows, cols, tokens, bits);
    float *y = new_floats((size_t)rows * (size_t)tokens);
    multiply(kernels, &p, 0, rows, 0, tokens, y, rows);
    check_exact(c, &p, y);
    check_parts(c, kernels, &p, y);
    free(y);
    problem_free(p);
}

static void check_type(check *c, const attar_kernels *kernels, uint64_t *random, uint32_t type, int32_t bits) {
    static const int32_t rows[] = {1, 7, 16, 19, 33, 48}, tokens[] = {1, 2, 3, 5, 6, 7, 12, 16};
    static const int32_t blocks[] = {1, 2, 3, 18};
    const int32_t block = (int32_t)attar_type_get(type).block_cols;
    for (size_t b = 0; b < COUNT(blocks); b++) {
        const int32_t cols = block == 256 && blocks[b] > 3 ? 5 * block : blocks[b] * block;
        for (size_t n = 0; n < COUNT(tokens); n++) {
            check_product(c, kernels, random, type, rows[(n + b) % COUNT(rows)], cols, tokens[n], bits);
        }
    }
    check_product(c, kernels, random, type, 40, 9 * 512 + block, 9, bits);   // columns in parts
    check_product(c, kernels, random, type, 17, 2 * 512 + block, 61, bits);  // tokens in parts
}

void test_matmul(check *c, const attar_kernels *kernels) {
    uint64_t random = 1;
    for (size_t t = 0; t < COUNT(INTEGER_TYPES); t++) {
        check_type(c, kernels, &random, INTEGER_TYPES[t], 8);
        check_type(c, kernels, &random, INTEGER_TYPES[t], 16);
    }
}

// The largest weights times the largest activations, alike and opposite in sign: what 16-bit sums must bear.
void test_extremes(check *c, const attar_kernels *kernels) {
    enum { ROWS = 16, COLS = 512 };
    uint64_t random = 9;
    for (size_t t = 0; t < COUNT(INTEGER_TYPES); t++) {
        for (int32_t trial = 0; trial < 24; trial++) {
            const uint32_t type = INTEGER_TYPES[t];
            SUBJECT(c, "%s matmul of extreme %s, trial %d", kernels->name, attar_type_get(type).name, trial);
            problem p = problem_new(&random, type, ROWS, COLS, 1, trial % 2 ? 16 : 8);
            for (int32_t g = 0; g < COLS / ATTAR_GROUP; g++) {
                uint8_t *quants = p.packed + (attar_quants_at(type, p.packed, g) - p.packed);
                for (int32_t i = 0; i < attar_group_bytes(type); i++)
                    quants[i] = trial / 2 % 3 == 0 ? 0xFF : trial / 2 % 3 == 1 ? 0 : i / 2 % 2 ? 0xFF : 0;
            }
            for (int32_t i = 0; i < COLS; i++)
                p.x[i] = trial / 6 == 0 ? -1.0f : trial / 6 == 1 ? 1.0f : i % 4 < 2 ? 1.0f : -1.0f;
            attar_kernels_scalar.quantize(p.x, p.act, 1, COLS);
            float got[ROWS], wanted[ROWS];
            multiply(kernels, &p, 0, ROWS, 0, 1, got, ROWS);
            multiply(&attar_kernels_scalar, &p, 0, ROWS, 0, 1, wanted, ROWS);
            for (int32_t r = 0; r < ROWS; r++) {
                EXPECT(c, fabsf(got[r] - wanted[r]) <= 1e-4f * (1.0f + fabsf(wanted[r])), "row %d: %g, wanted %g", r,
                       (double)got[r], (double)wanted[r]);
            }
            problem_free(p);
        }
    }
}

void test_matmul_f32(check *c, const attar_kernels *kernels) {
    static const int32_t rows[] = {1, 3, 4, 8, 13, 21}, cols[] = {1, 5, 8, 15, 16, 33, 100, 576},
                         tokens[] = {1, 2, 3, 4, 7};
    uint64_t random = 2;
    for (size_t t = 0; t < COUNT(FLOAT_TYPES); t++) {
        for (size_t k = 0; k < COUNT(cols); k++) {
            for (size_t n = 0; n < COUNT(tokens); n++) {
                check_product(c, kernels, &random, FLOAT_TYPES[t], rows[(k + n) % COUNT(rows)], cols[k], tokens[n], 0);
            }
        }
    }
}

// --- activations ----------------------------------------------------------------------------------------------

static void check_activations(check *c, const float *x, attar_act act, int32_t groups) {
    for (int32_t h = 0; h < 2 * groups; h++) {  // half-groups
        const double d = act.d[h / 2];
        int32_t sum = 0;
        for (int32_t i = h * ATTAR_GROUP / 2; i < (h + 1) * ATTAR_GROUP / 2; i++) {
            const double error = fabs(x[i] - d * act_value(act, i));
            EXPECT(c, error <= 0.51 * d, "value %d: %g is %d x %g", i, (double)x[i], act_value(act, i), d);
            sum += act_value(act, i);
            if (act.bits == 8 && i % 2 == 0) {  // what two products in 16 bits rest on
                const int32_t first = act_value(act, i), second = act_value(act, i + 1);
                EXPECT(c, (first < 0) != (second < 0) || abs(first + second) <= 128, "%d and %d", first, second);
            }
        }
        EXPECT(c, attar_act_sum(act.bits, act.sum[h]) == sum, "sum of half-group %d", h);
    }
}

static void check_same_act(check *c, attar_act act, attar_act reference, int32_t values) {
    const size_t n = (size_t)values;
    EXPECT(c, memcmp(act.q, reference.q, n * value_bytes(act.bits)) == 0, "integers differ");
    EXPECT(c, same_bits(act.d, reference.d, n / ATTAR_GROUP), "scales differ");
    EXPECT(c, memcmp(act.sum, reference.sum, n / ATTAR_GROUP * 2 * sizeof *act.sum) == 0, "sums differ");
}

static void check_quantize(check *c, const attar_kernels *kernels, int32_t bits) {
    enum { TOKENS = 3, COLS = 96, VALUES = TOKENS * COLS };
    uint64_t random = 3;
    float *x = new_floats(VALUES);
    const attar_act act = new_act(bits, TOKENS, COLS), reference = new_act(bits, TOKENS, COLS);
    for (int trial = 0; trial < 20; trial++) {
        const float size = ldexpf(1.0f, trial * 6 - 60);
        SUBJECT(c, "%s quantize to %d bits, size %g", kernels->name, bits, (double)size);
        fill_floats(&random, x, VALUES, -size, size);
        for (int i = 0; i < ATTAR_GROUP; i++) x[i + ATTAR_GROUP] = 0.0f;  // a group of zeros
        x[70] = trial % 2 ? -size : size;
        kernels->quantize(x, act, TOKENS, COLS);
        attar_kernels_scalar.quantize(x, reference, TOKENS, COLS);
        check_activations(c, x, act, VALUES / ATTAR_GROUP);
        check_same_act(c, act, reference, VALUES);
    }
    free(x);
    free_act(act);
    free_act(reference);
}

void test_quantize(check *c, const attar_kernels *kernels) {
    check_quantize(c, kernels, 8);
    check_quantize(c, kernels, 16);
}

// --- fused with quantize --------------------------------------------------------------------------------------

// The fused kernels against the same table's two steps: the same bits.
static void check_fused(check *c, const attar_kernels *kernels, uint64_t *random, int32_t n, int32_t bits) {
    const attar_act act = new_act(bits, 1, n), reference = new_act(bits, 1, n);
    float *a = new_floats((size_t)n), *b = new_floats((size_t)n), *y = new_floats((size_t)n),
          *z = new_floats((size_t)n);
    fill_floats(random, a, (size_t)n, -4, 4);
    fill_floats(random, b, (size_t)n, -4, 4);
    SUBJECT(c, "%s rms_norm_quantize, n %d, %d bits", kernels->name, n, bits);
    kernels->rms_norm(a, b, y, n, 1e-5f);
    kernels->quantize(y, reference, 1, n);
    kernels->rms_norm_quantize(a, b, z, act, n, 1e-5f);
    EXPECT(c, same_bits(y, z, (size_t)n), "floats differ");
    check_same_act(c, act, reference, n);
    memset(act.q, 0, (size_t)n * value_bytes(bits));
    kernels->rms_norm_quantize(a, b, NULL, act, n, 1e-5f);
    check_same_act(c, act, reference, n);
    SUBJECT(c, "%s silu_mul_quantize, n %d, %d bits", kernels->name, n, bits);
    kernels->silu_mul(a, b, y, n);
    kernels->quantize(y, reference, 1, n);
    kernels->silu_mul_quantize(a, b, act, n);
    check_same_act(c, act, reference, n);
    SUBJECT(c, "%s gelu_mul_quantize, n %d, %d bits", kernels->name, n, bits);
    kernels->gelu_mul(a, b, y, n);
    kernels->quantize(y, reference, 1, n);
    kernels->gelu_mul_quantize(a, b, act, n);
    check_same_act(c, act, reference, n);
    free(a);
    free(b);
    free(y);
    free(z);
    free_act(act);
    free_act(reference);
}

void test_fused(check *c, const attar_kernels *kernels) {
    uint64_t random = 10;
    for (int32_t n = ATTAR_GROUP; n <= 7 * ATTAR_GROUP; n += ATTAR_GROUP) {
        check_fused(c, kernels, &random, n, 8);
        check_fused(c, kernels, &random, n, 16);
    }
}
