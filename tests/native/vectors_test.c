// Vector operations against double arithmetic.
#include <math.h>
#include <string.h>

#include "kernels_test.h"

enum { LONGEST = 70 };  // every length to here: whole vectors of 4, 8, 16 and all remainders

static const double ROUNDING = 4 * 0x1p-23;          // a few roundings of one value
static const double EXP_ROUNDING = 8 * 0x1p-23;      // e^x and a division
static const double TANH_ERROR = 4 * 0x1p-23;        // absolute, of tanh alone

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
