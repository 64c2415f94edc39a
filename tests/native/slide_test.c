// A cache after a slide against one whose keys were computed at the new positions.
#include <math.h>
#include <string.h>

#include "kernels_test.h"
#include "kv_cache.h"

enum { HEADS = 2, LAYERS = 2, WINDOW = 40, N_BATCH = 24 };  // layer 0 is global, layer 1 local: a ring of 128 rows

// Of the largest magnitude: rounded twice, and turned in between.
static const double SLIDE_ROUNDING[ATTAR_KV_TYPES] = {2.5 * 0x1p-11, 2.5 / 254 * 1.42};

typedef struct {
    attar_model model;
    attar_family family;
    attar_layer layers[LAYERS];
    attar_cache cache;
    attar_cache_layer cache_layers[LAYERS];
    uint8_t *memory;
    double frequencies[256];  // [2, H/2]
    float *room;              // [6, V]
} fixture;

// The key before rotation, and the value, of one token: the same numbers whenever they are asked for.
static void token(const fixture *f, int32_t layer, int32_t kv, int32_t index, float *k, float *v) {
    uint64_t random = 1 + (uint64_t)((index * HEADS + kv) * LAYERS + layer);
    for (int i = 0; i < 8; i++) next_random(&random);
    fill_floats(&random, k, (size_t)f->model.head_dim, -1, 1);
    fill_floats(&random, v, (size_t)f->model.head_dim, -1, 1);
}

static void rotate(const fixture *f, const attar_kernels *kernels, int32_t layer, int32_t position, float *k) {
    const int32_t half = f->model.head_dim / 2;
    float *cosines = new_floats((size_t)half), *sines = new_floats((size_t)half);
    for (int32_t j = 0; j < half; j++) {
        const double angle = position * f->frequencies[layer * half + j];
        cosines[j] = (float)cos(angle);
        sines[j] = (float)sin(angle);
    }
    kernels->rope(k, cosines, sines, f->model.head_dim, f->family.interleaved_rope);
    free(cosines);
    free(sines);
}

static void fixture_init(fixture *f, int32_t n_ctx, int32_t H, attar_kv_type type, bool interleaved) {
    *f = (fixture){.model = {.n_layers = LAYERS, .n_local_layers = 1, .n_heads = HEADS, .n_kv_heads = HEADS,
                             .head_dim = H, .sliding_window = WINDOW}};
    f->family.interleaved_rope = interleaved;
    f->layers[1].local = true;
    f->model.layers = f->layers;
    f->model.family = &f->family;
    const uint64_t bytes = attar_cache_bytes(&f->model, n_ctx, N_BATCH, type);
    f->memory = new_items(bytes, 1);
    memset(f->memory, 0xFF, bytes);
    attar_cache_init(&f->cache, &f->model, n_ctx, N_BATCH, type, f->memory, f->cache_layers);
    for (int32_t j = 0; j < H; j++) f->frequencies[j] = pow(j < H / 2 ? 10000 : 100, -2.0 * (j % (H / 2)) / H);
    f->room = new_floats((size_t)(6 * attar_value_width(H)));
}

static void fixture_free(fixture *f) {
    free(f->memory);
    free(f->room);
}

// Tokens first .. end - 1 at the next positions.
static void append(fixture *f, const attar_kernels *kernels, int32_t first, int32_t end) {
    const int32_t H = f->model.head_dim, V = attar_value_width(H);
    float *k = f->room, *v = f->room + V;
    for (int32_t i = first; i < end; i++) {
        const int32_t p = f->cache.position;
        for (int32_t layer = 0; layer < LAYERS; layer++) {
            for (int32_t kv = 0; kv < HEADS; kv++) {
                token(f, layer, kv, i, k, v);
                rotate(f, kernels, layer, p, k);
                attar_cache_store(&f->cache, &f->model, kernels, layer, kv, p, k, v, (uint16_t *)(f->room + 2 * V));
            }
        }
        attar_cache_advance(&f->cache, p + 1);
    }
}

// Position p of a layer holds token `index`.
static void check_position(check *c, const fixture *f, const attar_kernels *kernels, int32_t layer, int32_t p,
                           int32_t index) {
    const int32_t H = f->model.head_dim, V = attar_value_width(H);
    float *k = f->room, *v = f->room + V, *held_k = f->room + 2 * V, *held_v = f->room + 3 * V;
    for (int32_t kv = 0; kv < HEADS; kv++) {
        token(f, layer, kv, index, k, v);
        rotate(f, kernels, layer, p, k);
        attar_cache_load(&f->cache, &f->model, layer, kv, p, held_k, held_v);
        for (int32_t j = 0; j < H; j++) {
            const double tolerance = SLIDE_ROUNDING[f->cache.type];
            EXPECT(c, fabs((double)held_k[j] - k[j]) <= tolerance * 1.42, "layer %d, position %d: key %g for %g", layer,
                   p, (double)held_k[j], (double)k[j]);
            EXPECT(c, fabs((double)held_v[j] - v[j]) <= tolerance, "layer %d, position %d: value %g for %g", layer, p,
                   (double)held_v[j], (double)v[j]);
        }
    }
}

// Slides twice and goes on in between; every position that a layer still holds has the key of its token.
static void check_slides(check *c, const attar_kernels *kernels, fixture *f, int32_t n, int32_t n_keep,
                         int32_t n_discard) {
    int32_t index[1024];  // of the token at each position
    append(f, kernels, 0, n);
    for (int32_t p = 0; p < n; p++) index[p] = p;
    for (int32_t round = 0, next = n; round < 2; round++) {
        attar_cache_slide(&f->cache, &f->model, kernels, f->frequencies, n_keep, n_discard, f->room);
        EXPECT(c, f->cache.position == n - n_discard, "position %d", f->cache.position);
        memmove(index + n_keep, index + n_keep + n_discard, (size_t)(n - n_keep - n_discard) * sizeof *index);
        for (int32_t p = 0; p < f->cache.position; p++) check_position(c, f, kernels, 0, p, index[p]);
        for (int32_t p = f->cache.lost; p < f->cache.position; p++) check_position(c, f, kernels, 1, p, index[p]);
        const int32_t held = f->cache.position - f->cache.lost;
        EXPECT(c, held >= WINDOW - 1 || f->cache.lost <= n_keep, "only %d positions held", held);
        const int32_t again = round == 0 ? n_discard : 0;
        for (int32_t i = 0; i < again; i++) index[f->cache.position + i] = next + i;
        append(f, kernels, next, next + again);
        next += again;
    }
}

void test_slide(check *c, const attar_kernels *kernels) {
    static const int32_t dims[] = {8, 10, 64};
    // Tokens, kept, discarded: a ring that has not wrapped, has just wrapped, often, and steps of every kind through it.
    static const int32_t shapes[][3] = {{100, 4, 30},  {120, 0, 1},    {128, 5, 60},  {129, 5, 60},   {300, 4, 100},
                                        {300, 0, 128}, {300, 7, 96},   {384, 4, 255}, {384, 200, 20}, {384, 4, 300},
                                        {384, 10, 64}, {384, 300, 84}, {384, 0, 384}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        for (int32_t kind = 0; kind < 4; kind++) {
            fixture f;
            const attar_kv_type type = kind % 2 ? ATTAR_KV_INT8 : ATTAR_KV_F16;
            SUBJECT(c, "%s slide of %d tokens, %d kept, %d dropped, type %d", kernels->name, shapes[i][0], shapes[i][1],
                    shapes[i][2], type);
            fixture_init(&f, 384, dims[(i + (size_t)kind) % 3], type, kind / 2);
            check_slides(c, kernels, &f, shapes[i][0], shapes[i][1], shapes[i][2]);
            fixture_free(&f);
        }
    }
}
