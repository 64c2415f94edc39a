// Takes positions out of the middle of a cache. A key holds its position as a rotation, so what moves down is turned
// back by the distance (Su et al., 2021, arXiv:2104.09864: rotations add up); values do not depend on positions.
#include <math.h>

#include "kv_cache.h"

// How one layer's rows move, and room for two positions on their way.
typedef struct {
    const attar_cache *cache;
    const attar_model *model;
    const attar_kernels *kernels;
    int32_t layer, distance;
    float *cosines, *sines;      // [H/2] of minus the distance
    float *k, *v, *held_k, *held_v;  // [V]
    uint16_t *halves;            // [V]
} slide;

static void turn_back(const slide *s, const double *frequencies) {
    for (int32_t j = 0; j < s->model->head_dim / 2; j++) {
        const double angle = -s->distance * frequencies[j];
        s->cosines[j] = (float)cos(angle);
        s->sines[j] = (float)sin(angle);
    }
}

// k, v [H] = row `row` of KV head kv, the key turned back.
static void take(const slide *s, int32_t kv, int32_t row, float *k, float *v) {
    attar_cache_load(s->cache, s->model, s->layer, kv, row, k, v);
    s->kernels->rope(k, s->cosines, s->sines, s->model->head_dim, s->model->family->interleaved_rope);
}

static void put(const slide *s, int32_t kv, int32_t row, const float *k, const float *v) {
    attar_cache_store(s->cache, s->model, s->kernels, s->layer, kv, row, k, v, s->halves);
}

// Rows that nothing has wrapped round: each moves down into one that is done with.
static void move_down(const slide *s, int32_t kv, int32_t first) {
    for (int32_t p = first; p < s->cache->position - s->distance; p++) {
        take(s, kv, p + s->distance, s->k, s->v);
        put(s, kv, p, s->k, s->v);
    }
}

static int32_t greatest_divisor(int32_t a, int32_t b) { return b == 0 ? a : greatest_divisor(b, a % b); }

// A full ring turns as a whole: row x gets what row x + distance held, cycle by cycle.
static void turn_ring(const slide *s, int32_t kv) {
    const int32_t rows = s->cache->local_rows, cycles = greatest_divisor(rows, s->distance % rows);
    for (int32_t start = 0; start < cycles; start++) {
        take(s, kv, start, s->held_k, s->held_v);
        int32_t to = start;
        for (int32_t from; (from = (to + s->distance) % rows) != start; to = from) {
            take(s, kv, from, s->k, s->v);
            put(s, kv, to, s->k, s->v);
        }
        put(s, kv, to, s->held_k, s->held_v);
    }
}

void attar_cache_slide(attar_cache *cache, const attar_model *model, const attar_kernels *kernels,
                       const double *frequencies, int32_t n_keep, int32_t n_discard, float *room) {
    const int32_t H = model->head_dim, V = attar_value_width(H);
    slide s = {.cache = cache, .model = model, .kernels = kernels, .distance = n_discard, .cosines = room,
               .sines = room + H / 2, .k = room + V, .v = room + 2 * V, .held_k = room + 3 * V,
               .held_v = room + 4 * V, .halves = (uint16_t *)(void *)(room + 5 * V)};
    for (s.layer = 0; s.layer < model->n_layers; s.layer++) {
        const bool local = model->layers[s.layer].local;
        turn_back(&s, frequencies + (local ? H / 2 : 0));
        for (int32_t kv = 0; kv < model->n_kv_heads; kv++) {
            if (local && cache->lost > 0)
                turn_ring(&s, kv);
            else
                move_down(&s, kv, n_keep);
        }
    }
    cache->position -= n_discard;
    if (cache->lost > 0) cache->lost = cache->lost - n_discard > n_keep ? cache->lost - n_discard : n_keep;
}
