// Vector operations and attention against double arithmetic.
#include <math.h>
#include <string.h>

#include "kernels_test.h"

enum { LONGEST = 70 };  // every length to here: whole vectors of 4, 8, 16 and all remainders

static const double ROUNDING = 4 * 0x1p-23;          // a few roundings of one value
static const double EXP_ROUNDING = 8 * 0x1p-23;      // e^x and a division
static const double TANH_ERROR = 4 * 0x1p-23;        // absolute, of tanh alone
static const double ATTEND_ROUNDING = 64 * 0x1p-23;  // of the largest value: scores are sums of head_dim products

#define EXPECT_NEAR(c, got, wanted, tolerance)                                                                   \
    EXPECT(c, fabs((double)(got) - (wanted)) <= (tolerance), "got %.9g, wanted %.9g within %.2g", (double)(got), \
           (double)(wanted), (double)(tolerance))

// Three vectors of n random values and room for a result.
typedef struct {
    float *a, *b, *out;
} vectors;

static vectors vectors_new(uint64_t *random, int32_t n, float size) {
    const vectors v = {new_floats((size_t)n), new_floats((size_t)n), new_floats((size_t)n)};
    fill_floats(random, v.a, (size_t)n, -size, size);
    fill_floats(random, v.b, (size_t)n, -size, size);
    return v;
}

static void vectors_free(vectors v) {
    free(v.a);
    free(v.b);
    free(v.out);
}

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

static void check_gates(check *c, const attar_kernels *kernels, vectors v, int32_t n) {
    SUBJECT(c, "%s silu_mul, n %d", kernels->name, n);
    kernels->silu_mul(v.a, v.b, v.out, n);
    for (int32_t i = 0; i < n; i++) {
        const double wanted = v.a[i] * sigmoid(v.a[i]) * v.b[i];
        EXPECT_NEAR(c, v.out[i], wanted, EXP_ROUNDING * (1 + fabs((double)v.a[i])) * fabs(wanted) + 1e-30);
    }
    SUBJECT(c, "%s gelu_mul, n %d", kernels->name, n);
    kernels->gelu_mul(v.a, v.b, v.out, n);
    for (int32_t i = 0; i < n; i++) {
        const double g = v.a[i], wanted = g * sigmoid(2 * sqrt(2 / M_PI) * (g + 0.044715 * g * g * g)) * v.b[i];
        EXPECT_NEAR(c, v.out[i], wanted, TANH_ERROR * fabs(g * v.b[i]) + 1e-30);
    }
}

static void check_elementwise(check *c, const attar_kernels *kernels, vectors v, int32_t n) {
    const size_t bytes = (size_t)n * sizeof(float);
    SUBJECT(c, "%s add, n %d", kernels->name, n);
    memcpy(v.out, v.a, bytes);
    kernels->add(v.out, v.b, n);
    for (int32_t i = 0; i < n; i++) EXPECT(c, v.out[i] == v.a[i] + v.b[i], "%g", (double)v.out[i]);
    SUBJECT(c, "%s scale, n %d", kernels->name, n);
    memcpy(v.out, v.a, bytes);
    kernels->scale(v.out, 0.3f, n);
    for (int32_t i = 0; i < n; i++) EXPECT(c, v.out[i] == v.a[i] * 0.3f, "%g", (double)v.out[i]);
    SUBJECT(c, "%s soft_cap, n %d", kernels->name, n);
    memcpy(v.out, v.a, bytes);
    kernels->soft_cap(v.out, 5.0f, n);
    for (int32_t i = 0; i < n; i++) EXPECT_NEAR(c, v.out[i], 5 * tanh(v.a[i] / 5.0), 5 * TANH_ERROR);
}

static void check_norm(check *c, const attar_kernels *kernels, vectors v, int32_t n) {
    SUBJECT(c, "%s rms_norm, n %d", kernels->name, n);
    kernels->rms_norm(v.a, v.b, v.out, n, 1e-5f);
    double squares = 0;
    for (int32_t i = 0; i < n; i++) squares += (double)v.a[i] * v.a[i];
    const double factor = 1 / sqrt(squares / n + 1e-5);
    for (int32_t i = 0; i < n; i++) {
        const double wanted = v.a[i] * factor * v.b[i];
        EXPECT_NEAR(c, v.out[i], wanted, (ROUNDING + n * 0x1p-25) * fabs(wanted));
    }
}

static void check_rope(check *c, const attar_kernels *kernels, vectors v, int32_t half, bool interleaved) {
    SUBJECT(c, "%s rope, half %d, interleaved %d", kernels->name, half, interleaved);
    float *cosines = new_floats((size_t)half), *sines = new_floats((size_t)half);
    for (int32_t j = 0; j < half; j++) {
        cosines[j] = cosf(v.b[j]);
        sines[j] = sinf(v.b[j]);
    }
    memcpy(v.out, v.a, 2 * (size_t)half * sizeof(float));
    kernels->rope(v.out, cosines, sines, 2 * half, interleaved);
    for (int32_t j = 0; j < half; j++) {
        const int32_t a = interleaved ? 2 * j : j, b = interleaved ? 2 * j + 1 : j + half;
        const double x = v.a[a], y = v.a[b], size = fabs(x) + fabs(y);
        EXPECT_NEAR(c, v.out[a], x * cosines[j] - y * sines[j], ROUNDING * size);
        EXPECT_NEAR(c, v.out[b], y * cosines[j] + x * sines[j], ROUNDING * size);
    }
    free(cosines);
    free(sines);
}

void test_vectors(check *c, const attar_kernels *kernels) {
    uint64_t random = 4;
    for (int32_t n = 1; n <= LONGEST; n++) {
        for (int trial = 0; trial < 4; trial++) {
            const vectors v = vectors_new(&random, n, trial == 0 ? 100.0f : 6.0f);
            if (trial == 1) v.a[n / 2] = 0.0f;
            check_gates(c, kernels, v, n);
            check_elementwise(c, kernels, v, n);
            check_norm(c, kernels, v, n);
            vectors_free(v);
        }
    }
    for (int32_t half = 1; half <= LONGEST / 2; half++) {
        const vectors v = vectors_new(&random, 2 * half, 3.0f);
        check_rope(c, kernels, v, half, false);
        check_rope(c, kernels, v, half, true);
        vectors_free(v);
    }
}

// --- 16-bit floats --------------------------------------------------------------------------------------------

void test_half_floats(check *c, const attar_kernels *kernels) {
    SUBJECT(c, "%s f32_to_f16", kernels->name);
    enum { N = 4099 };
    uint64_t random = 5;
    float *x = new_floats(N);
    uint16_t *y = new_items(N, sizeof *y);
    for (int trial = 0; trial < 20; trial++) {
        for (int32_t i = 0; i < N; i++)
            x[i] = ldexpf(random_float(&random, -1, 1), (int)(next_random(&random) % 46) - 28);
        for (int32_t i = 0; i < 64; i++) x[i] = attar_f16_to_f32((uint16_t)next_random(&random));
        x[0] = INFINITY, x[1] = -INFINITY, x[2] = 65520.0f, x[3] = 65519.996f, x[4] = -0.0f, x[5] = 0x1p-25f;
        kernels->f32_to_f16(x, y, N);
        for (int32_t i = 0; i < N; i++) {
            EXPECT(c, isnan(x[i]) || y[i] == attar_f32_to_f16(x[i]), "%a became %04x", (double)x[i], y[i]);
        }
    }
    free(x);
    free(y);
}

// --- attention ------------------------------------------------------------------------------------------------

typedef struct {
    int32_t n_keys, n_heads, head_dim;
    int64_t stride;
    float softcap;
    float *q;         // [n_heads, head_dim]
    uint16_t *k, *v;  // [n_keys, stride]
} attention;

static uint16_t *random_rows(uint64_t *random, size_t count) {
    uint16_t *rows = new_items(count, sizeof *rows);
    for (size_t i = 0; i < count; i++) rows[i] = attar_f32_to_f16(random_float(random, -1, 1));
    return rows;
}

// The softmax of head h in double; out [head_dim].
static void exact_attention(const attention *a, int32_t h, double *out) {
    double *scores = new_items((size_t)a->n_keys, sizeof *scores), max = -INFINITY, sum = 0;
    for (int32_t i = 0; i < a->n_keys; i++) {
        scores[i] = 0;
        for (int32_t j = 0; j < a->head_dim; j++) {
            scores[i] += (double)a->q[h * a->head_dim + j] * attar_f16_to_f32(a->k[i * a->stride + j]);
        }
        if (a->softcap != 0) scores[i] = a->softcap * tanh(scores[i] / a->softcap);
        max = fmax(max, scores[i]);
    }
    for (int32_t j = 0; j < a->head_dim; j++) out[j] = 0;
    for (int32_t i = 0; i < a->n_keys; i++) {
        const double p = exp(scores[i] - max);
        sum += p;
        for (int32_t j = 0; j < a->head_dim; j++) out[j] += p * attar_f16_to_f32(a->v[i * a->stride + j]);
    }
    for (int32_t j = 0; j < a->head_dim; j++) out[j] /= sum;
    free(scores);
}

// In two calls, as over the two parts of a ring.
static void run_attention(const attar_kernels *kernels, const attention *a, attar_softmax *state, float *acc) {
    float *scores = new_floats((size_t)(a->n_heads * ATTAR_ATTEND_CHUNK));
    for (int32_t h = 0; h < a->n_heads; h++) state[h] = (attar_softmax){-INFINITY, 0.0f};
    for (int32_t j = 0; j < a->n_heads * a->head_dim; j++) acc[j] = 0.0f;
    const int32_t first = a->n_keys / 3;
    kernels->attend(a->q, a->k, a->v, a->stride, first, a->n_heads, a->head_dim, a->softcap, state, acc, scores);
    kernels->attend(a->q, a->k + first * a->stride, a->v + first * a->stride, a->stride, a->n_keys - first, a->n_heads,
                    a->head_dim, a->softcap, state, acc, scores);
    free(scores);
}

static void check_attention(check *c, const attar_kernels *kernels, const attention *a) {
    SUBJECT(c, "%s attend, %d keys, %d heads of %d, cap %g", kernels->name, a->n_keys, a->n_heads, a->head_dim,
            (double)a->softcap);
    attar_softmax *state = new_items((size_t)a->n_heads, sizeof *state);
    float *acc = new_floats((size_t)(a->n_heads * a->head_dim));
    double *exact = new_items((size_t)a->head_dim, sizeof *exact);
    run_attention(kernels, a, state, acc);
    for (int32_t h = 0; h < a->n_heads; h++) {
        exact_attention(a, h, exact);
        for (int32_t j = 0; j < a->head_dim; j++) {
            EXPECT_NEAR(c, acc[h * a->head_dim + j] / state[h].sum, exact[j], ATTEND_ROUNDING);
        }
    }
    free(state);
    free(acc);
    free(exact);
}

void test_attend(check *c, const attar_kernels *kernels) {
    static const int32_t keys[] = {1, 2, 7, 9, 31, 255, 257, 600}, dims[] = {2, 10, 16, 36, 64, 80, 128, 256};
    uint64_t random = 6;
    for (int32_t i = 0; i < 64; i++) {
        attention a = {.n_keys = keys[i % 8], .n_heads = 1 + i / 8, .head_dim = dims[(i + i / 8) % 8]};
        a.stride = a.head_dim * (1 + i % 2);
        a.softcap = i % 3 == 2 ? 4.0f : 0.0f;
        a.q = new_floats((size_t)(a.n_heads * a.head_dim));
        fill_floats(&random, a.q, (size_t)(a.n_heads * a.head_dim), -1, 1);
        const size_t rows = (size_t)((a.n_keys - 1) * a.stride + a.head_dim);  // the last row ends the allocation
        a.k = random_rows(&random, rows);
        a.v = random_rows(&random, rows);
        check_attention(c, kernels, &a);
        free(a.q);
        free(a.k);
        free(a.v);
    }
}
