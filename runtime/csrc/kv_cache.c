#include "kv_cache.h"

static int32_t rows_of(const attar_model *model, bool local, int32_t n_ctx, int32_t n_batch) {
    int64_t ring = (int64_t)model->sliding_window + n_batch;
    return local && ring < n_ctx ? (int32_t)ring : n_ctx;
}

// Bytes of one layer's k (or v), rounded up to a cache line.
static uint64_t half_bytes(const attar_model *model, int32_t rows) {
    uint64_t bytes = (uint64_t)model->n_kv_heads * (uint64_t)rows * (uint64_t)model->head_dim * sizeof(uint16_t);
    return (bytes + 63) / 64 * 64;
}

uint64_t attar_cache_bytes(const attar_model *model, int32_t n_ctx, int32_t n_batch) {
    uint64_t n_local = (uint64_t)model->n_local_layers, n_global = (uint64_t)model->n_layers - n_local;
    return 2 * (n_local * half_bytes(model, rows_of(model, true, n_ctx, n_batch)) +
                n_global * half_bytes(model, rows_of(model, false, n_ctx, n_batch)));
}

void attar_cache_init(attar_cache *cache, const attar_model *model, int32_t n_ctx, int32_t n_batch, uint8_t *memory,
                      attar_cache_layer *layers) {
    *cache = (attar_cache){.layers = layers, .window = model->sliding_window};
    if (model->n_local_layers > 0) cache->local_rows = rows_of(model, true, n_ctx, n_batch);
    for (int32_t i = 0; i < model->n_layers; i++) {
        int32_t rows = rows_of(model, model->layers[i].local, n_ctx, n_batch);
        layers[i] = (attar_cache_layer){(uint16_t *)(void *)memory, NULL, rows};
        memory += half_bytes(model, rows);
        layers[i].v = (uint16_t *)(void *)memory;
        memory += half_bytes(model, rows);
    }
}

void attar_cache_advance(attar_cache *cache, int32_t position) {
    cache->position = position;
    int32_t overwritten = cache->local_rows > 0 ? position - cache->local_rows : 0;
    if (overwritten > cache->lost) cache->lost = overwritten;
}

// The next query, at position p, sees keys from p - window + 1 on; all of them must be at or above `lost`.
int32_t attar_cache_oldest(const attar_cache *cache) { return cache->lost > 0 ? cache->lost + cache->window - 1 : 0; }

bool attar_cache_rewind(attar_cache *cache, int32_t position) {
    if (position != 0 && position < attar_cache_oldest(cache) && position != cache->position) return false;
    cache->position = position;
    if (position == 0) cache->lost = 0;
    return true;
}

int64_t attar_cache_row(const attar_cache_layer *layer, const attar_model *model, int32_t kv, int32_t p) {
    return ((int64_t)kv * layer->rows + p % layer->rows) * model->head_dim;
}

int32_t attar_cache_segments(const attar_cache_layer *layer, const attar_model *model, int32_t kv, int32_t first,
                             int32_t end, attar_segment out[2]) {
    int32_t until_wrap = layer->rows - first % layer->rows;
    int32_t n = end - first, n_first = n < until_wrap ? n : until_wrap;
    int64_t at = attar_cache_row(layer, model, kv, first);
    out[0] = (attar_segment){layer->k + at, layer->v + at, n_first};
    if (n_first == n) return 1;
    at = attar_cache_row(layer, model, kv, first + n_first);
    out[1] = (attar_segment){layer->k + at, layer->v + at, n - n_first};
    return 2;
}
