#include "kv_cache.h"

// --- size and place -----------------------------------------------------------------------------------------------

static int32_t rows_of(const attar_model *model, bool local, int32_t n_ctx, int32_t n_batch) {
    const int64_t ring = (int64_t)model->sliding_window + n_batch + ATTAR_KEY_TILE;
    const int64_t rows = local && ring < n_ctx ? ring : n_ctx;
    return (int32_t)((rows + ATTAR_ATTEND_KEYS - 1) / ATTAR_ATTEND_KEYS * ATTAR_ATTEND_KEYS);
}

// Bytes of one position of one KV head's keys, values and scales.
typedef struct {
    uint64_t key, value, scale;
} row_bytes;

static row_bytes row_bytes_of(const attar_model *model, attar_kv_type type) {
    const uint64_t width = (uint64_t)attar_value_width(model->head_dim);
    if (type == ATTAR_KV_INT8) return (row_bytes){(uint64_t)attar_quads(model->head_dim) * 4, width, sizeof(float)};
    return (row_bytes){(uint64_t)model->head_dim * sizeof(uint16_t), width * sizeof(uint16_t), 0};
}

// Rows are a multiple of 128, so that every part is one of 64 bytes, whatever a row takes.
static uint64_t layer_bytes(const attar_model *model, int32_t rows, attar_kv_type type) {
    const row_bytes row = row_bytes_of(model, type);
    return (uint64_t)model->n_kv_heads * (uint64_t)rows * (row.key + row.value + 2 * row.scale);
}

uint64_t attar_cache_bytes(const attar_model *model, int32_t n_ctx, int32_t n_batch, attar_kv_type type) {
    const uint64_t n_local = (uint64_t)model->n_local_layers, n_global = (uint64_t)model->n_layers - n_local;
    return n_local * layer_bytes(model, rows_of(model, true, n_ctx, n_batch), type) +
           n_global * layer_bytes(model, rows_of(model, false, n_ctx, n_batch), type);
}

void attar_cache_init(attar_cache *cache, const attar_model *model, int32_t n_ctx, int32_t n_batch, attar_kv_type type,
                      uint8_t *memory, attar_cache_layer *layers) {
    const row_bytes row = row_bytes_of(model, type);
    *cache = (attar_cache){.layers = layers, .type = type, .window = model->sliding_window};
    if (model->n_local_layers > 0) cache->local_rows = rows_of(model, true, n_ctx, n_batch);
    for (int32_t i = 0; i < model->n_layers; i++) {
        const int32_t rows = rows_of(model, model->layers[i].local, n_ctx, n_batch);
        const uint64_t all = (uint64_t)model->n_kv_heads * (uint64_t)rows;
        layers[i] = (attar_cache_layer){.k = memory, .v = memory + all * row.key, .rows = rows};
        if (type == ATTAR_KV_INT8) {
            layers[i].k_scale = (float *)(void *)(layers[i].v + all * row.value);
            layers[i].v_scale = layers[i].k_scale + all;
        }
        memory += layer_bytes(model, rows, type);
    }
}

attar_kv attar_cache_chunk(const attar_cache *cache, const attar_model *model, int32_t layer, int32_t kv, int32_t p) {
    const attar_cache_layer *at = &cache->layers[layer];
    const row_bytes row = row_bytes_of(model, cache->type);
    const uint64_t first = (uint64_t)kv * (uint64_t)at->rows + (uint64_t)(p % at->rows);
    attar_kv chunk = {.k = at->k + first * row.key, .v = at->v + first * row.value};
    if (cache->type == ATTAR_KV_INT8) {
        chunk.k_scale = at->k_scale + first;
        chunk.v_scale = at->v_scale + first;
    }
    return chunk;
}

// --- which positions are held -------------------------------------------------------------------------------------

void attar_cache_advance(attar_cache *cache, int32_t position) {
    cache->position = position;
    const int32_t overwritten = cache->local_rows > 0 ? position - cache->local_rows : 0;
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

// --- writing and reading ------------------------------------------------------------------------------------------

// One position of one KV head: where its key and value begin. From one dimension to the next, keys step over a tile
// (int8: from one quad to the next) and int8 values over a quad.
typedef struct {
    uint8_t *k, *v;
    float *k_scale, *v_scale;
} cell;

static cell cell_at(const attar_cache *cache, const attar_model *model, int32_t layer, int32_t kv, int32_t p) {
    const attar_cache_layer *at = &cache->layers[layer];
    const row_bytes row = row_bytes_of(model, cache->type);
    const int64_t index = (int64_t)kv * at->rows + p % at->rows;  // rows are whole tiles, so heads are too
    const int64_t tile = index / ATTAR_KEY_TILE * ATTAR_KEY_TILE, lane = index % ATTAR_KEY_TILE;
    if (cache->type == ATTAR_KV_F16)
        return (cell){at->k + tile * (int64_t)row.key + lane * 2, at->v + index * (int64_t)row.value, NULL, NULL};
    return (cell){at->k + tile * (int64_t)row.key + lane * 4, at->v + index / 4 * 4 * (int64_t)row.value + index % 4,
                  at->k_scale + index, at->v_scale + index};
}

static void store_f16(cell to, const attar_kernels *kernels, int32_t H, const float *k, const float *v, uint16_t *room) {
    const int32_t width = attar_value_width(H);
    uint16_t *keys = (uint16_t *)(void *)to.k, *values = (uint16_t *)(void *)to.v;
    kernels->f32_to_f16(k, room, H);
    for (int32_t j = 0; j < H; j++) keys[j * ATTAR_KEY_TILE] = room[j];
    kernels->f32_to_f16(v, values, H);
    for (int32_t j = H; j < width; j++) values[j] = 0;
}

static void store_int8(cell to, const attar_kernels *kernels, int32_t H, const float *k, const float *v,
                       uint16_t *room) {
    const int32_t width = attar_value_width(H), padded = attar_quads(H) * 4;
    int16_t *rounded = (int16_t *)(void *)room;
    int8_t *keys = (int8_t *)(void *)to.k, *values = (int8_t *)(void *)to.v;
    for (int32_t j = H; j < width; j++) rounded[j] = 0;
    *to.k_scale = kernels->round_i16(k, rounded, H, 127.0F);
    for (int32_t j = 0; j < padded; j++) keys[j / 4 * 4 * ATTAR_KEY_TILE + j % 4] = (int8_t)rounded[j];
    *to.v_scale = kernels->round_i16(v, rounded, H, 127.0F);
    for (int32_t j = 0; j < width; j++) values[j * 4] = (int8_t)rounded[j];
}

void attar_cache_store(const attar_cache *cache, const attar_model *model, const attar_kernels *kernels, int32_t layer,
                       int32_t kv, int32_t p, const float *k, const float *v, uint16_t *room) {
    const cell to = cell_at(cache, model, layer, kv, p);
    (cache->type == ATTAR_KV_INT8 ? store_int8 : store_f16)(to, kernels, model->head_dim, k, v, room);
}

static void load_f16(cell from, int32_t H, float *k, float *v) {
    const uint16_t *keys = (const uint16_t *)(const void *)from.k, *values = (const uint16_t *)(const void *)from.v;
    for (int32_t j = 0; j < H; j++) k[j] = attar_f16_to_f32(keys[j * ATTAR_KEY_TILE]);
    for (int32_t j = 0; j < H; j++) v[j] = attar_f16_to_f32(values[j]);
}

static void load_int8(cell from, int32_t H, float *k, float *v) {
    const int8_t *keys = (const int8_t *)(const void *)from.k, *values = (const int8_t *)(const void *)from.v;
    for (int32_t j = 0; j < H; j++) k[j] = *from.k_scale * (float)keys[j / 4 * 4 * ATTAR_KEY_TILE + j % 4];
    for (int32_t j = 0; j < H; j++) v[j] = *from.v_scale * (float)values[j * 4];
}

void attar_cache_load(const attar_cache *cache, const attar_model *model, int32_t layer, int32_t kv, int32_t p, float *k,
                      float *v) {
    const cell from = cell_at(cache, model, layer, kv, p);
    (cache->type == ATTAR_KV_INT8 ? load_int8 : load_f16)(from, model->head_dim, k, v);
}
