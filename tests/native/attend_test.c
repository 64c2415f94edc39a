// The KV cache and the attention kernels against double arithmetic.
#include <math.h>
#include <string.h>

#include "kernels_test.h"
#include "key_scales.h"
#include "kv_cache.h"

#define EXPECT_NEAR(c, got, wanted, tolerance)                                                                   \
    EXPECT(c, fabs((double)(got) - (wanted)) <= (tolerance), "got %.9g, wanted %.9g within %.2g", (double)(got), \
           (double)(wanted), (double)(tolerance))

// Of the largest value, by attar_kv_type: scores are float sums of head_dim products; int8 also rounds queries and
// weights to 15 bits.
static const double ATTEND_ROUNDING[ATTAR_KV_TYPES] = {64 * 0x1p-23, 20 * 0x1p-15};

enum { HEADS = 2, MOST_KEYS = 300 };  // KV heads; keys of three chunks

// A cache of one layer, and in `k` and `v` [HEADS, n_keys, H] what it should hold.
typedef struct {
    attar_model model;
    attar_layer layer;
    attar_cache cache;
    attar_cache_layer cache_layer;
    uint8_t *memory;
    double *k, *v;
    int32_t n_keys;
} fixture;

// x [n] as the cache's type rounds it.
static void round_like_cache(attar_kv_type type, const float *x, double *out, int32_t n) {
    float max = 0;
    for (int32_t i = 0; i < n; i++) max = fmaxf(max, fabsf(x[i]));
    for (int32_t i = 0; i < n; i++) {
        if (type == ATTAR_KV_F16)
            out[i] = attar_f16_to_f32(attar_f32_to_f16(x[i]));
        else
            out[i] = (double)lrintf(x[i] * (127.0f / max)) * (double)max / 127;
    }
}

static void store_key(fixture *f, const attar_kernels *kernels, int32_t kv, int32_t p, const float *k, const float *v) {
    const int32_t H = f->model.head_dim;
    uint16_t *room = new_items((size_t)attar_value_width(H), sizeof *room);
    attar_cache_store(&f->cache, &f->model, kernels, 0, kv, p, k, v, room);
    const int64_t at = ((int64_t)kv * f->n_keys + p) * H;
    round_like_cache(f->cache.type, k, f->k + at, H);
    round_like_cache(f->cache.type, v, f->v + at, H);
    free(room);
}

// Rows that are never written hold NaNs, and may not matter.
static void fixture_init(fixture *f, const attar_kernels *kernels, uint64_t *random, attar_kv_type type, int32_t n_keys,
                         int32_t H) {
    *f = (fixture){.model = {.n_layers = 1, .n_heads = HEADS, .n_kv_heads = HEADS, .head_dim = H}, .n_keys = n_keys};
    f->model.layers = &f->layer;
    const uint64_t bytes = attar_cache_bytes(&f->model, n_keys, 1, type);
    f->memory = new_items(bytes, 1);
    memset(f->memory, 0xFF, bytes);
    attar_cache_init(&f->cache, &f->model, n_keys, 1, type, f->memory, &f->cache_layer);
    f->k = new_items((size_t)(HEADS * n_keys * H), sizeof *f->k);
    f->v = new_items((size_t)(HEADS * n_keys * H), sizeof *f->v);
    float *k = new_floats((size_t)H), *v = new_floats((size_t)H);
    for (int32_t i = 0; i < HEADS * n_keys; i++) {
        fill_floats(random, k, (size_t)H, -1, 1);
        fill_floats(random, v, (size_t)H, -1, 1);
        store_key(f, kernels, i % HEADS, i / HEADS, k, v);
    }
    free(k);
    free(v);
}

static void fixture_free(fixture *f) {
    free(f->memory);
    free(f->k);
    free(f->v);
}

// --- attention ------------------------------------------------------------------------------------------------

// Rows of queries [rows, H] of KV head kv, each seeing its keys.
typedef struct {
    int32_t kv, rows;
    int32_t begin[ATTAR_ATTEND_ROWS], end[ATTAR_ATTEND_ROWS];
    float cap;
    float *q;
} block;

// The softmax of one row in double; out [H].
static void exact_attention(const fixture *f, const block *b, int32_t row, double *out) {
    const int32_t H = f->model.head_dim;
    const double *k = f->k + (int64_t)b->kv * f->n_keys * H, *v = f->v + (int64_t)b->kv * f->n_keys * H;
    double *scores = new_items((size_t)f->n_keys, sizeof *scores), max = -INFINITY, sum = 0;
    for (int32_t i = b->begin[row]; i < b->end[row]; i++) {
        scores[i] = 0;
        for (int32_t j = 0; j < H; j++) scores[i] += (double)b->q[row * H + j] * k[i * H + j];
        if (b->cap != 0) scores[i] = b->cap * tanh(scores[i] / b->cap);
        max = fmax(max, scores[i]);
    }
    for (int32_t j = 0; j < H; j++) out[j] = 0;
    for (int32_t i = b->begin[row]; i < b->end[row]; i++) {
        const double p = exp(scores[i] - max);
        sum += p;
        for (int32_t j = 0; j < H; j++) out[j] += p * v[i * H + j];
    }
    for (int32_t j = 0; j < H; j++) out[j] /= sum;
    free(scores);
}

// The block's queries in the kernels' order; the caller frees .q and .scales.
static attar_queries pack_queries(const fixture *f, const attar_kernels *kernels, const block *b) {
    const int32_t H = f->model.head_dim, quads = attar_quads(H);
    attar_queries q = {.rows = b->rows, .head_dim = H, .cap = b->cap};
    float *scales = new_floats((size_t)b->rows), *floats = new_floats((size_t)(b->rows * quads * 4));
    int16_t *integers = (int16_t *)floats, *rounded = new_items((size_t)H, sizeof *rounded);
    memset(floats, 0, (size_t)(b->rows * quads * 4) * sizeof *floats);
    for (int32_t r = 0; r < b->rows; r++) {
        scales[r] = kernels->round_i16(b->q + r * H, rounded, H, ATTAR_QUAD_LIMIT);
        for (int32_t j = 0; j < H; j++) {
            const int32_t place = j % 4 == 1 || j % 4 == 2 ? j ^ 3 : j;  // 0, 2, 1, 3
            if (f->cache.type == ATTAR_KV_F16)
                floats[j * b->rows + r] = b->q[r * H + j];
            else
                integers[(place / 4 * b->rows + r) * 4 + place % 4] = rounded[j];
        }
    }
    free(rounded);
    q.q = floats;
    q.scales = scales;
    return q;
}

// state [rows], sums [rows, V], chunk by chunk.
static void run_attention(const fixture *f, const attar_kernels *kernels, const block *b, attar_softmax *state,
                          float *sums) {
    attar_queries q = pack_queries(f, kernels, b);
    for (int32_t r = 0; r < b->rows; r++) state[r] = (attar_softmax){-INFINITY, 0.0f};
    memset(sums, 0, (size_t)(b->rows * attar_value_width(q.head_dim)) * sizeof *sums);
    for (int32_t start = 0; start < f->n_keys; start += ATTAR_ATTEND_KEYS) {
        for (int32_t r = 0; r < b->rows; r++) {
            q.begin[r] = b->begin[r] - start < 0 ? 0 : b->begin[r] - start;
            q.end[r] = b->end[r] - start > ATTAR_ATTEND_KEYS ? ATTAR_ATTEND_KEYS : b->end[r] - start;
        }
        kernels->attend[f->cache.type](&q, attar_cache_chunk(&f->cache, &f->model, 0, b->kv, start), state, sums);
    }
    free((void *)(uintptr_t)q.q);
    free((void *)(uintptr_t)q.scales);
}

static void check_block(check *c, const attar_kernels *kernels, const fixture *f, const block *b) {
    const int32_t H = f->model.head_dim, V = attar_value_width(H);
    attar_softmax state[ATTAR_ATTEND_ROWS];
    float *sums = new_floats((size_t)(b->rows * V));
    double *exact = new_items((size_t)H, sizeof *exact);
    run_attention(f, kernels, b, state, sums);
    for (int32_t r = 0; r < b->rows; r++) {
        exact_attention(f, b, r, exact);
        for (int32_t j = 0; j < H; j++)
            EXPECT_NEAR(c, sums[r * V + j] / state[r].sum, exact[j], ATTEND_ROUNDING[f->cache.type]);
    }
    free(sums);
    free(exact);
}

// Rows that see everything, a window of it that moves on with the row, or a few keys anywhere.
static void choose_keys(block *b, uint64_t *random, int32_t n_keys, int32_t kind) {
    const int32_t window = 1 + (int32_t)(next_random(random) % (uint64_t)n_keys);
    for (int32_t r = 0; r < b->rows; r++) {
        const int32_t end = kind == 2 ? 1 + (int32_t)(next_random(random) % (uint64_t)n_keys) : n_keys - b->rows + 1 + r;
        b->end[r] = kind == 0 || end < 1 ? n_keys : end;
        b->begin[r] = kind == 0 || b->end[r] < window ? 0 : b->end[r] - window;
    }
}

void test_attend(check *c, const attar_kernels *kernels) {
    static const int32_t keys[] = {1, 2, 7, 17, 64, 127, 129, MOST_KEYS}, dims[] = {2, 10, 16, 36, 64, 80, 128, 256};
    uint64_t random = 6;
    for (int32_t i = 0; i < 128; i++) {
        const attar_kv_type type = i % 2 ? ATTAR_KV_INT8 : ATTAR_KV_F16;
        const int32_t n_keys = keys[i / 2 % 8], H = dims[(i / 2 + i / 16) % 8];
        fixture f;
        fixture_init(&f, kernels, &random, type, n_keys, H);
        for (int32_t rows = 1; rows <= ATTAR_ATTEND_ROWS; rows++) {
            block b = {.kv = rows % HEADS, .rows = rows, .cap = (rows + i) % 3 == 2 ? 4.0f : 0.0f};
            SUBJECT(c, "%s attend, type %d, %d keys, %d rows of %d", kernels->name, type, n_keys, rows, H);
            choose_keys(&b, &random, n_keys, (rows + i) % 4);
            b.q = new_floats((size_t)(rows * H));
            fill_floats(&random, b.q, (size_t)(rows * H), -1, 1);
            check_block(c, kernels, &f, &b);
            free(b.q);
        }
        fixture_free(&f);
    }
}

// --- rounding -------------------------------------------------------------------------------------------------

void test_half_floats(check *c, const attar_kernels *kernels) {
    SUBJECT(c, "%s f32_to_f16", kernels->name);
    enum { N = 4099 };
    uint64_t random = 5;
    float *x = new_floats(N);
    uint16_t *y = new_items(N, sizeof *y);
    for (int trial = 0; trial < 20; trial++) {
        for (int32_t i = 0; i < N; i++)
            x[i] = ldexpf(random_float(&random, -1, 1), (int)(next_random(&random) % 46) - 28);
        x[0] = INFINITY, x[1] = -INFINITY, x[2] = 65520.0f, x[3] = -1e30f, x[4] = -0.0f, x[5] = 0x1p-25f, x[6] = NAN;
        kernels->f32_to_f16(x, y, N);
        for (int32_t i = 0; i < N; i++) {
            const float held = fmaxf(-65504.0f, fminf(x[i], 65504.0f));
            const bool right = isnan(x[i]) ? isnan(attar_f16_to_f32(y[i])) : y[i] == attar_f32_to_f16(held);
            EXPECT(c, right, "%a became %04x", (double)x[i], y[i]);
        }
    }
    free(x);
    free(y);
}

void test_round_i16(check *c, const attar_kernels *kernels) {
    uint64_t random = 7;
    for (int32_t n = 1; n <= 70; n++) {
        float *x = new_floats((size_t)n);
        int16_t *y = new_items((size_t)n, sizeof *y);
        const float limit = n % 2 ? 127.0f : 32767.0f;
        SUBJECT(c, "%s round_i16, n %d, limit %g", kernels->name, n, (double)limit);
        fill_floats(&random, x, (size_t)n, -3, 3);
        float max = 0;
        for (int32_t i = 0; i < n; i++) max = fmaxf(max, fabsf(x[i]));
        EXPECT(c, kernels->round_i16(x, y, n, limit) == max / limit, "another scale");
        for (int32_t i = 0; i < n; i++) EXPECT(c, y[i] == lrintf(x[i] * (limit / max)), "%g became %d", (double)x[i], y[i]);
        for (int32_t i = 0; i < n; i++) x[i] = i % 2 ? -1e-38f : 0.0f;
        EXPECT(c, kernels->round_i16(x, y, n, limit) < 1e-38f, "the scale of nothing");
        for (int32_t i = 0; i < n; i++) EXPECT(c, y[i] == 0, "nothing became %d", y[i]);
        free(x);
        free(y);
    }
}

// --- key scales -----------------------------------------------------------------------------------------------

// One layer, two KV heads of 4 dimensions: keys [8, 2] of known sizes, with a bias on dimension 2 of head 1.
void test_key_scales(check *c) {
    enum { D = 2, H = 4 };
    static const float weights[HEADS * H * D] = {1, 0, 0, 2, 3, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0};
    static const float bias[HEADS * H] = {0, 0, 0, 0, 0, 0, 10, 0}, norm[D] = {1, 3}, k_norm[H] = {1, -7, 5, 0};
    attar_family family = {0};
    attar_layer layer = {.k = {(const uint8_t *)weights, sizeof(float) * D, ATTAR_F32, HEADS * H, D}, .attn_norm = norm,
                         .k_bias = bias};
    const attar_model model = {.family = &family, .layers = &layer, .n_layers = 1, .n_heads = HEADS, .n_kv_heads = HEADS,
                               .head_dim = H, .n_embd = D, .query_scale = 0.5f};
    // Squares of head 0: 1, 36, 9, 144; pairs (0, 2), (1, 3), or neighbours.
    static const double sizes[3][HEADS * H] = {{5, 90, 5, 90, 50, 0, 50, 0}, {18.5, 18.5, 76.5, 76.5, 0, 0, 50, 50},
                                               {13, 24.5, 13, 24.5, 13, 24.5, 13, 24.5}};
    float row[D], scales[2 * HEADS * H];
    for (int kind = 0; kind < 3; kind++) {
        SUBJECT(c, "key scales, kind %d", kind);
        family.interleaved_rope = kind == 1;
        layer.k_norm = kind == 2 ? k_norm : NULL;
        attar_key_scales(&model, row, scales);
        for (int j = 0; j < HEADS * H; j++) {
            const double size = 1.0 / scales[j];
            EXPECT_NEAR(c, size * size, sizes[kind][j], 0.1 * (1 + 0.01 * sizes[kind][j]));
            EXPECT_NEAR(c, scales[HEADS * H + j] * scales[j], 0.5, 1e-6);
        }
    }
}
