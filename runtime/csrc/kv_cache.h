// kv_cache.h: keys and values of one sequence, in f16 or int8; layouts in attend.h.
//
// Position p lies in row p % rows of its layer. Global layers have n_ctx rows: nothing is ever overwritten. Local layers
// have a ring of window + n_batch rows: a batch of n_batch tokens needs the window - 1 positions before its first token
// and its own, all at once, and the remainder lets a caller take back up to n_batch tokens (see attar_cache_rewind). One
// tile more keeps a tile that is written from holding a key that is read. Rows are rounded up to whole chunks, so that
// a chunk never wraps round.
#ifndef ATTAR_KV_CACHE_H
#define ATTAR_KV_CACHE_H

#include "kernels.h"
#include "model.h"

// Each pointer holds all K heads, one after the other.
typedef struct {
    uint8_t *k, *v;
    float *k_scale, *v_scale;  // NULL for f16
    int32_t rows;
} attar_cache_layer;

typedef struct {
    attar_cache_layer *layers;  // [L]
    attar_kv_type type;
    int32_t position;           // tokens held
    int32_t lost;               // local layers hold nothing below this position: it was overwritten
    int32_t local_rows;         // rows of a local layer; 0 without local layers
    int32_t window;
} attar_cache;

uint64_t attar_cache_bytes(const attar_model *model, int32_t n_ctx, int32_t n_batch, attar_kv_type type);
// `memory` has attar_cache_bytes, 64-byte aligned; `layers` has L entries.
void attar_cache_init(attar_cache *cache, const attar_model *model, int32_t n_ctx, int32_t n_batch, attar_kv_type type,
                      uint8_t *memory, attar_cache_layer *layers);

// Records that the positions up to `position` are written.
void attar_cache_advance(attar_cache *cache, int32_t position);
// The oldest position a rewind may go back to (besides 0).
int32_t attar_cache_oldest(const attar_cache *cache);
// Keeps the first `position` tokens; false, and nothing changes, where the ring no longer holds what they need.
bool attar_cache_rewind(attar_cache *cache, int32_t position);

// Keys and values of KV head `kv` from position p on, the first of a chunk.
attar_kv attar_cache_chunk(const attar_cache *cache, const attar_model *model, int32_t layer, int32_t kv, int32_t p);

// Writes k and v [H] of KV head `kv` at position p. room: [V] 16-bit values for the call's own use.
void attar_cache_store(const attar_cache *cache, const attar_model *model, const attar_kernels *kernels, int32_t layer,
                       int32_t kv, int32_t p, const float *k, const float *v, uint16_t *room);
// Reads them back.
void attar_cache_load(const attar_cache *cache, const attar_model *model, int32_t layer, int32_t kv, int32_t p, float *k,
                      float *v);

// Drops positions [n_keep, n_keep + n_discard), all held, and moves what follows down by n_discard, turning its keys
// back by as many positions. Keys are rounded once more to the cache's type. A ring that has wrapped round keeps only
// what follows the dropped positions: its layers' next queries see no kept ones.
//   frequencies [2, H/2], as attar_rope_frequencies gives them; room: 6 V floats for the call's own use
void attar_cache_slide(attar_cache *cache, const attar_model *model, const attar_kernels *kernels,
                       const double *frequencies, int32_t n_keep, int32_t n_discard, float *room);

#endif
