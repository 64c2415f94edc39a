// kv_cache.h: keys and values of one sequence, in f16.
//
// Each layer holds k and v as [K, rows, H], so that the keys of one head are consecutive. Position p lies in row
// p % rows. Global layers have n_ctx rows: nothing is ever overwritten. Local layers have a ring of window + n_batch
// rows: a batch of n_batch tokens needs the window - 1 positions before its first token and its own, all at once, and
// the remainder lets a caller take back up to n_batch tokens (see attar_cache_rewind).
#ifndef ATTAR_KV_CACHE_H
#define ATTAR_KV_CACHE_H

#include "model.h"

typedef struct {
    uint16_t *k, *v;  // [K, rows, H] f16
    int32_t rows;
} attar_cache_layer;

typedef struct {
    attar_cache_layer *layers;  // [L]
    int32_t position;           // tokens held
    int32_t lost;               // positions below this have been overwritten in the local layers
    int32_t local_rows;         // rows of a local layer; 0 without local layers
    int32_t window;
} attar_cache;

// Consecutive cache rows of one KV head.
typedef struct {
    const uint16_t *k, *v;  // [n, H]
    int32_t n;
} attar_segment;

uint64_t attar_cache_bytes(const attar_model *model, int32_t n_ctx, int32_t n_batch);
// `memory` has attar_cache_bytes, 64-byte aligned; `layers` has L entries.
void attar_cache_init(attar_cache *cache, const attar_model *model, int32_t n_ctx, int32_t n_batch, uint8_t *memory,
                      attar_cache_layer *layers);

// Records that the positions up to `position` are written.
void attar_cache_advance(attar_cache *cache, int32_t position);
// The oldest position a rewind may go back to (besides 0).
int32_t attar_cache_oldest(const attar_cache *cache);
// Keeps the first `position` tokens; false, and nothing changes, where the ring no longer holds what they need.
bool attar_cache_rewind(attar_cache *cache, int32_t position);

// Offset in k and v of position p of KV head `kv`, in values.
int64_t attar_cache_row(const attar_cache_layer *layer, const attar_model *model, int32_t kv, int32_t p);
// Positions [first, end) of KV head `kv` as one segment, or two where they wrap round the ring; returns how many.
int32_t attar_cache_segments(const attar_cache_layer *layer, const attar_model *model, int32_t kv, int32_t first,
                             int32_t end, attar_segment out[2]);

#endif
