// Compiled once for each instruction set, with ENGINE_KERNELS the name of its table.
#include "kernels.h"

#include <math.h>
#include <string.h>

enum { LANES = 8, COLUMNS = 3, ROWS = 4, AHEAD = 2048 };  // a prefetch looks so many bytes ahead

typedef float lanes __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t words __attribute__((vector_size(LANES * sizeof(int32_t))));

static inline lanes load(const float *at) {
    lanes value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline void store(float *at, lanes value) { memcpy(at, &value, sizeof value); }

static inline lanes all(float value) { return (lanes){value, value, value, value, value, value, value, value}; }

static inline float sum_of(lanes v) { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define HAS_SHUFFLE
#endif
#endif

// The sums of four vectors, each in the order of `sum_of`.
static inline void sums_of(const lanes v[4], float sums[4]) {
#if defined(HAS_SHUFFLE)
    typedef float half __attribute__((vector_size(4 * sizeof(float))));
    half folded[4];
    for (int i = 0; i < 4; i++)
        folded[i] = __builtin_shufflevector(v[i], v[i], 0, 1, 2, 3) + __builtin_shufflevector(v[i], v[i], 4, 5, 6, 7);
    const half a = __builtin_shufflevector(folded[0], folded[1], 0, 1, 4, 5) +
                   __builtin_shufflevector(folded[0], folded[1], 2, 3, 6, 7);
    const half b = __builtin_shufflevector(folded[2], folded[3], 0, 1, 4, 5) +
                   __builtin_shufflevector(folded[2], folded[3], 2, 3, 6, 7);
    const half total = __builtin_shufflevector(a, b, 0, 2, 4, 6) + __builtin_shufflevector(a, b, 1, 3, 5, 7);
    memcpy(sums, &total, sizeof total);
#else
    for (int i = 0; i < 4; i++) sums[i] = sum_of(v[i]);
#endif
}

static inline lanes choose(words condition, lanes yes, lanes no) {
    return (lanes)(((words)yes & condition) | ((words)no & ~condition));
}

// e^x to 2 units in the last place, for x from -87 to 88; beyond, its value at the bound.
static inline lanes exp_of(lanes x) {
    const lanes low = all(-87.0f), high = all(88.0f), shift = all(12582912.0f);  // 1.5 * 2^23 rounds to whole numbers
    x = choose(x < low, low, choose(x > high, high, x));
    const lanes shifted = x * 1.44269504f + shift, n = shifted - shift;
    const lanes r = (x - n * 0.693359375f) - n * -2.12194440e-4f;  // ln 2 in two parts
    lanes p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const words exponent = ((words)shifted - (words)shift + 127) << 23;
    return p * (lanes)exponent;
}

// By a polynomial near 0, where 1 - 2 / (e^2x + 1) would lose digits.
static inline lanes tanh_of(lanes x) {
    const lanes square = x * x;
    lanes p = all(-5.70498872745e-3f);
    p = p * square + 2.06390887954e-2f;
    p = p * square - 5.37397155531e-2f;
    p = p * square + 1.33314422036e-1f;
    p = p * square - 3.33332819422e-1f;
    return choose(square < 0.390625f, p * square * x + x, 1.0f - 2.0f / (exp_of(2.0f * x) + 1.0f));
}

// `columns` columns of y for `rows` rows of x, both constants where it is inlined: sums of eight lanes in registers.
__attribute__((always_inline)) static inline void tile(const few_rows_product *p, int64_t row, int64_t column, int rows,
                                                       int columns) {
    const int64_t K = p->K, whole = K / LANES * LANES;
    const float *x = p->x + row * K, *w = p->w + column * K;
    lanes sums[COLUMNS][ROWS] = {0};
    for (int64_t k = 0; k < whole; k += LANES) {
        lanes weights[COLUMNS];
        for (int c = 0; c < columns; c++) {
            weights[c] = load(w + c * K + k);
            __builtin_prefetch((const void *)((uintptr_t)(w + c * K + k) + AHEAD));
        }
        for (int r = 0; r < rows; r++) {
            const lanes inputs = load(x + r * K + k);
            for (int c = 0; c < columns; c++) sums[c][r] += inputs * weights[c];
        }
    }
    for (int c = 0; c < columns; c++) {
        float totals[ROWS];
        sums_of(sums[c], totals);
        for (int r = 0; r < rows; r++) {
            for (int64_t k = whole; k < K; k++) totals[r] += x[r * K + k] * w[c * K + k];
            p->y[(row + r) * p->M + column + c] = totals[r];
        }
    }
}

__attribute__((always_inline)) static inline void rows_of(const few_rows_product *p, int64_t column, int columns) {
    int64_t row = 0;
    for (; row + ROWS <= p->R; row += ROWS) tile(p, row, column, ROWS, columns);
    for (; row < p->R; row++) tile(p, row, column, 1, columns);
}

static void multiply(const few_rows_product *p, int64_t begin, int64_t end) {
    int64_t column = begin;
    for (; column + COLUMNS <= end; column += COLUMNS) rows_of(p, column, COLUMNS);
    for (; column < end; column++) rows_of(p, column, 1);
}

static inline lanes activated(lanes gate, bool gelu) {
    if (!gelu) return gate / (1.0f + exp_of(-gate));
    const lanes inner = 0.7978845608f * (gate + 0.044715f * gate * gate * gate);
    return 0.5f * gate * (1.0f + tanh_of(inner));
}

static void activate(float *gate, const float *up, int64_t n, bool gelu) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store(gate + i, activated(load(gate + i), gelu) * load(up + i));
    for (; i < n; i++) gate[i] = activated(all(gate[i]), gelu)[0] * up[i];
}

static inline float dot(const float *a, const float *b, int64_t n) {
    lanes sums = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) sums += load(a + i) * load(b + i);
    float total = sum_of(sums);
    for (; i < n; i++) total += a[i] * b[i];
    return total;
}

// The products of one query with the keys of four slots, in the order of `dot`.
static inline void four_scores(const head_attention *a, const float *query, const int32_t *slots, float scores[4]) {
    lanes sums[4] = {0};
    int64_t i = 0;
    for (; i + LANES <= a->H; i += LANES) {
        const lanes q = load(query + i);
        for (int s = 0; s < 4; s++) sums[s] += q * load(a->keys + slots[s] * a->H + i);
    }
    sums_of(sums, scores);
    for (int s = 0; s < 4; s++)
        for (int64_t j = i; j < a->H; j++) scores[s] += query[j] * a->keys[slots[s] * a->H + j];
}

// Scores to weights that sum to 1; what lies behind the last score, to a whole vector, is overwritten.
static void softmax(float *scores, int64_t n, float cap) {
    const int64_t whole = (n + LANES - 1) / LANES * LANES;
    for (int64_t i = n; i < whole; i++) scores[i] = scores[n - 1];
    lanes most = all(-INFINITY);
    for (int64_t i = 0; i < whole; i += LANES) {
        lanes value = load(scores + i);
        if (cap != 0.0f) value = cap * tanh_of(value / cap);
        most = choose(value > most, value, most);
        store(scores + i, value);
    }
    float highest = most[0];
    for (int l = 1; l < LANES; l++) highest = most[l] > highest ? most[l] : highest;
    lanes sums = {0};
    for (int64_t i = 0; i < whole; i += LANES) {
        lanes value = exp_of(load(scores + i) - highest);
        for (int l = 0; i + LANES > n && l < LANES; l++)
            if (i + l >= n) value[l] = 0.0f;
        sums += value;
        store(scores + i, value);
    }
    const float share = 1.0f / sum_of(sums);
    for (int64_t i = 0; i < whole; i += LANES) store(scores + i, load(scores + i) * share);
}

// Entries begin to begin + n of every query's result, n a constant where it is inlined.
__attribute__((always_inline)) static inline void mix(const head_attention *a, int64_t begin, int n) {
    for (int64_t g = 0; g < a->G; g++) {
        const float *weights = a->scores + g * a->score_stride;
        lanes sums[4] = {0};
        for (int64_t i = 0; i < a->n_seen; i++) {
            const float *value = a->values + a->seen[i] * a->H + begin;
            for (int l = 0; l < n; l++) sums[l] += weights[i] * load(value + l * LANES);
        }
        for (int l = 0; l < n; l++) store(a->attended + g * a->H + begin + l * LANES, sums[l]);
    }
}

static void attend(const head_attention *a) {
    if (a->n_seen == 0) {
        memset(a->attended, 0, (size_t)(a->G * a->H) * sizeof *a->attended);
        return;
    }
    for (int64_t g = 0; g < a->G; g++) {
        const float *query = a->queries + g * a->H;
        float *scores = a->scores + g * a->score_stride;
        int64_t i = 0;
        for (; i + 4 <= a->n_seen; i += 4) four_scores(a, query, a->seen + i, scores + i);
        for (; i < a->n_seen; i++) scores[i] = dot(query, a->keys + a->seen[i] * a->H, a->H);
        softmax(scores, a->n_seen, a->cap);
    }
    int64_t h = 0;
    for (; h + 4 * LANES <= a->H; h += 4 * LANES) mix(a, h, 4);
    for (; h + LANES <= a->H; h += LANES) mix(a, h, 1);
    for (; h < a->H; h++)
        for (int64_t g = 0; g < a->G; g++) {
            float sum = 0.0f;
            for (int64_t i = 0; i < a->n_seen; i++)
                sum += a->scores[g * a->score_stride + i] * a->values[a->seen[i] * a->H + h];
            a->attended[g * a->H + h] = sum;
        }
}

static void norm(const float *x, const float *gain, float *y, int64_t n, float eps, float offset) {
    const float inverse = 1.0f / sqrtf(dot(x, x, n) / (float)n + eps);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store(y + i, load(x + i) * inverse * (load(gain + i) + offset));
    for (; i < n; i++) y[i] = x[i] * inverse * (gain[i] + offset);
}

const engine_kernels ENGINE_KERNELS = {multiply, activate, attend, norm};
