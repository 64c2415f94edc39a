// Matrix products: the scalar table against double arithmetic, the others against the scalar one.
#include <math.h>
#include <string.h>

#include "kernels_test.h"

// Integer products: a running float sum of G terms, each rounded three times, is within 4 G units of rounding of the
// sum of the terms' sizes. Between tables there is no tolerance: they must agree bit for bit.
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
    uint8_t *bytes;  // [rows, row_bytes]
    int32_t tokens;
    float *x;  // [tokens, cols]
    attar_act act;
} problem;

static void put_f16(uint8_t *p, float value) {
    const uint16_t h = attar_f32_to_f16(value);
    memcpy(p, &h, sizeof h);
}

// Random bytes are valid blocks but for the f16 scales, which must be finite.
static void fill_block(uint64_t *random, uint32_t type, uint8_t *block) {
    const attar_type_info info = attar_type_get(type);
    for (uint32_t i = 0; i < info.block_bytes; i++) block[i] = (uint8_t)(next_random(random) >> 56);
    if (type == ATTAR_F32) {
        const float value = random_float(random, -1, 1);
        memcpy(block, &value, sizeof value);
    } else if (type == ATTAR_F16) {
        put_f16(block, random_float(random, -1, 1));
    } else if (type == ATTAR_BF16) {
        block[1] = (uint8_t)((block[1] & 0x80) | 0x3F);  // sizes 2^-1 .. 2
    } else {
        const bool second = type == ATTAR_Q4_1 || type == ATTAR_Q4_K || type == ATTAR_Q5_K;
        put_f16(block + (type == ATTAR_Q6_K ? 208 : 0), random_float(random, -0.1f, 0.1f));
        if (second) put_f16(block + 2, random_float(random, -0.1f, 0.1f));
    }
}

static attar_act new_act(int32_t tokens, int32_t cols) {
    const size_t values = (size_t)tokens * (size_t)cols;
    return (attar_act){new_items(values, sizeof(int16_t)), new_floats(values / ATTAR_GROUP),
                       new_floats(values / ATTAR_GROUP)};
}

static void free_act(attar_act act) {
    free(act.q);
    free(act.d);
    free(act.s);
}

static problem problem_new(uint64_t *random, uint32_t type, int32_t rows, int32_t cols, int32_t tokens) {
    const attar_type_info info = attar_type_get(type);
    problem p = {.tokens = tokens};
    p.w = (attar_weight){.row_bytes = attar_row_bytes(type, (uint64_t)cols), .type = type, .rows = rows, .cols = cols};
    // weights are not aligned in a file: start them 2 bytes off
    const size_t bytes = (size_t)rows * p.w.row_bytes, offset = type == ATTAR_F32 ? 4 : 2;
    p.bytes = new_items(bytes + offset, 1);
    p.w.data = p.bytes + offset;
    for (size_t i = offset; i < bytes + offset; i += info.block_bytes) fill_block(random, type, p.bytes + i);
    p.x = new_floats((size_t)tokens * (size_t)cols);
    fill_floats(random, p.x, (size_t)tokens * (size_t)cols, -3, 3);
    if (info.integer) {
        p.act = new_act(tokens, cols);
        attar_kernels_scalar.quantize(p.x, p.act, tokens, cols);
    }
    return p;
}

static void problem_free(problem p) {
    free(p.bytes);
    free(p.x);
    free_act(p.act);
}

// y [tokens, ldy], columns row0..row1-1, with any table.
static void multiply(const attar_kernels *kernels, const problem *p, int32_t row0, int32_t row1, int32_t token0,
                     int32_t tokens, float *y, int64_t ldy) {
    const int64_t at = (int64_t)token0 * p->w.cols;
    if (attar_type_get(p->w.type).integer) {
        const attar_act act = {p->act.q + at, p->act.d + at / ATTAR_GROUP, p->act.s + at / ATTAR_GROUP};
        kernels->matmul(&p->w, row0, row1, act, tokens, y, ldy);
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
        const double x = integer ? (double)p->act.d[at / ATTAR_GROUP] * p->act.q[at] : p->x[at];
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
        attar_dequantize_row(p->w.type, p->w.data + (uint64_t)row * p->w.row_bytes, weights, (uint64_t)p->w.cols);
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

// One token and a part of the rows at a time must give the same bits as all at once, and touch nothing else.
static void check_parts(check *c, const attar_kernels *kernels, const problem *p, const float *whole) {
    const int32_t rows = p->w.rows;
    float *y = new_floats((size_t)rows);
    for (int32_t row0 = 0; row0 < rows; row0 += 1 + rows / 3) {
        const int32_t row1 = row0 + 1 + rows / 4 < rows ? row0 + 1 + rows / 4 : rows;
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
                          int32_t cols, int32_t tokens) {
    SUBJECT(c, "%s matmul %s %dx%d, %d tokens", kernels->name, attar_type_get(type).name, rows, cols, tokens);
    problem p = problem_new(random, type, rows, cols, tokens);
    const size_t count = (size_t)rows * (size_t)tokens;
    float *y = new_floats(count), *reference = new_floats(count);
    multiply(kernels, &p, 0, rows, 0, tokens, y, rows);
    check_exact(c, &p, y);
    if (attar_type_get(type).integer) {
        multiply(&attar_kernels_scalar, &p, 0, rows, 0, tokens, reference, rows);
        EXPECT(c, same_bits(y, reference, count), "bits differ from the scalar table's");
    }
    check_parts(c, kernels, &p, y);
    free(y);
    free(reference);
    problem_free(p);
}

void test_matmul(check *c, const attar_kernels *kernels) {
    static const int32_t rows[] = {1, 7, 8, 16, 19, 33}, tokens[] = {1, 2, 3, 5, 6, 7, 12, 16};
    static const int32_t blocks[] = {1, 2, 3, 18};
    uint64_t random = 1;
    for (size_t t = 0; t < COUNT(INTEGER_TYPES); t++) {
        const int32_t block = (int32_t)attar_type_get(INTEGER_TYPES[t]).block_cols;
        for (size_t b = 0; b < COUNT(blocks); b++) {
            const int32_t cols = block == 256 && blocks[b] > 3 ? 5 * block : blocks[b] * block;
            for (size_t n = 0; n < COUNT(tokens); n++) {
                check_product(c, kernels, &random, INTEGER_TYPES[t], rows[(n + b) % COUNT(rows)], cols, tokens[n]);
            }
        }
        check_product(c, kernels, &random, INTEGER_TYPES[t], 40, 3 * 512 + block, 9);
    }
}

void test_matmul_f32(check *c, const attar_kernels *kernels) {
    static const int32_t rows[] = {1, 3, 4, 8, 13, 21}, cols[] = {1, 5, 8, 15, 16, 33, 100, 576},
                         tokens[] = {1, 2, 3, 4, 7};
    uint64_t random = 2;
    for (size_t t = 0; t < COUNT(FLOAT_TYPES); t++) {
        for (size_t k = 0; k < COUNT(cols); k++) {
            for (size_t n = 0; n < COUNT(tokens); n++) {
                check_product(c, kernels, &random, FLOAT_TYPES[t], rows[(k + n) % COUNT(rows)], cols[k], tokens[n]);
            }
        }
    }
}

// --- activations ----------------------------------------------------------------------------------------------

static void check_activations(check *c, const float *x, attar_act act, int32_t groups) {
    for (int32_t g = 0; g < groups; g++) {
        double sum = 0;
        for (int32_t i = g * ATTAR_GROUP; i < (g + 1) * ATTAR_GROUP; i++) {
            const double error = fabs(x[i] - (double)act.d[g] * act.q[i]);
            EXPECT(c, error <= 0.51 * (double)act.d[g], "value %d: %g is %d x %g", i, (double)x[i], act.q[i],
                   (double)act.d[g]);
            sum += act.q[i];
        }
        EXPECT(c, act.s[g] == act.d[g] * (float)sum, "sum of group %d: %g", g, (double)act.s[g]);
    }
}

void test_quantize(check *c, const attar_kernels *kernels) {
    SUBJECT(c, "%s quantize", kernels->name);
    enum { TOKENS = 3, COLS = 96, VALUES = TOKENS * COLS };
    uint64_t random = 3;
    float *x = new_floats(VALUES);
    const attar_act act = new_act(TOKENS, COLS), reference = new_act(TOKENS, COLS);
    for (int trial = 0; trial < 20; trial++) {
        const float size = ldexpf(1.0f, trial * 6 - 60);
        fill_floats(&random, x, VALUES, -size, size);
        for (int i = 0; i < ATTAR_GROUP; i++) x[i + ATTAR_GROUP] = 0.0f;  // a group of zeros
        x[70] = trial % 2 ? -size : size;
        kernels->quantize(x, act, TOKENS, COLS);
        attar_kernels_scalar.quantize(x, reference, TOKENS, COLS);
        check_activations(c, x, act, VALUES / ATTAR_GROUP);
        EXPECT(c, memcmp(act.q, reference.q, VALUES * sizeof *act.q) == 0, "integers differ, size %g", (double)size);
        EXPECT(c, same_bits(act.d, reference.d, VALUES / ATTAR_GROUP), "scales differ, size %g", (double)size);
        EXPECT(c, same_bits(act.s, reference.s, VALUES / ATTAR_GROUP), "sums differ, size %g", (double)size);
    }
    free(x);
    free_act(act);
    free_act(reference);
}
