#include "weights.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "error.h"
#include "packed.h"

enum {
    ALIGNMENT = 64,
    HUGE_PAGE = 2 << 20,
    SPAN_BYTES = 1 << 20,  // of the file that are packed, and then given back, at once
};

static uint64_t round_up(uint64_t n, uint64_t unit) { return (n + unit - 1) / unit * unit; }

attar_status attar_weights_init(attar_weights *weights, uint64_t capacity, attar_error *error) {
    *weights = (attar_weights){
        .matrices = calloc(capacity + 1, sizeof *weights->matrices),
        .vectors = calloc(capacity + 1, sizeof *weights->vectors),
    };
    if (weights->matrices && weights->vectors) return ATTAR_OK;
    attar_weights_free(weights);
    return attar_fail(error, ATTAR_ERROR_MEMORY, "out of memory for the names of %" PRIu64 " tensors", capacity);
}

void attar_weights_free(attar_weights *weights) {
    free(weights->matrices);
    free(weights->vectors);
    free(weights->memory);
    *weights = (attar_weights){0};
}

void attar_weights_add_matrix(attar_weights *weights, attar_weight *weight) {
    if (!attar_type_get(weight->type).integer) {
        weights->mapped_bytes += (uint64_t)weight->rows * weight->row_bytes;
        return;
    }
    weights->matrices[weights->n_matrices++] = (attar_matrix_slot){weight, weight->data, weights->memory_bytes};
    weights->memory_bytes += attar_packed_bytes(weight->type, weight->rows, weight->cols);
}

void attar_weights_add_vector(attar_weights *weights, const float **vector, int32_t n) {
    weights->vectors[weights->n_vectors++] = (attar_vector_slot){vector, n, weights->memory_bytes};
    weights->memory_bytes += round_up((uint64_t)n * sizeof **vector, ALIGNMENT);
}

// --- loading ------------------------------------------------------------------------------------------------------

// Tells the system that these bytes of the file are not needed again; pages shared with neighbours are left alone.
static void give_back(const uint8_t *data, uint64_t bytes) {
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t begin = ((uintptr_t)data + page - 1) / page * page, end = ((uintptr_t)data + bytes) / page * page;
    // A refusal costs memory and nothing else.
    if (begin < end) (void)madvise((void *)begin, end - begin, MADV_DONTNEED);
}

static int32_t tiles_of(const attar_weight *w) { return (w->rows + ATTAR_TILE_ROWS - 1) / ATTAR_TILE_ROWS; }

static int32_t tiles_in_span(const attar_weight *w) {
    const uint64_t tiles = SPAN_BYTES / (w->row_bytes * ATTAR_TILE_ROWS);
    return tiles > 0 ? (int32_t)tiles : 1;
}

static int32_t spans_of(const attar_weight *w) { return (tiles_of(w) - 1) / tiles_in_span(w) + 1; }

static void pack_span(const attar_weights *weights, const attar_matrix_slot *slot, int32_t span) {
    const attar_weight *w = slot->weight;
    const int32_t n = tiles_in_span(w), first = span * n, last = first + n < tiles_of(w) ? first + n : tiles_of(w);
    const uint64_t tile_bytes = attar_tile_bytes(w->type, w->cols);
    for (int32_t i = first; i < last; i++) {
        const int32_t row = i * ATTAR_TILE_ROWS, left = w->rows - row;
        attar_pack_tile(w->type, slot->file + (uint64_t)row * w->row_bytes, w->row_bytes,
                        left < ATTAR_TILE_ROWS ? left : ATTAR_TILE_ROWS, w->cols,
                        weights->memory + slot->at + (uint64_t)i * tile_bytes);
    }
    const int32_t row0 = first * ATTAR_TILE_ROWS, row1 = last * ATTAR_TILE_ROWS;
    give_back(slot->file + (uint64_t)row0 * w->row_bytes, (uint64_t)((row1 < w->rows ? row1 : w->rows) - row0) * w->row_bytes);
}

typedef struct {
    const attar_weights *weights;
    attar_pool *pool;
} loading;

// Every span of every matrix is a work item; threads walk the list of matrices alike and take what comes next.
static void pack_matrices(void *context, int32_t thread, int32_t n_threads) {
    const loading *l = context;
    (void)thread;
    (void)n_threads;
    int32_t item = attar_pool_take(l->pool);
    for (int32_t i = 0, before = 0; i < l->weights->n_matrices; i++) {
        const int32_t spans = spans_of(l->weights->matrices[i].weight);
        for (; item < before + spans; item = attar_pool_take(l->pool))
            pack_span(l->weights, &l->weights->matrices[i], item - before);
        before += spans;
    }
}

static uint8_t *allocate(uint64_t bytes) {
    if (bytes > SIZE_MAX - HUGE_PAGE) return NULL;
    uint8_t *memory = aligned_alloc(HUGE_PAGE, (size_t)round_up(bytes, HUGE_PAGE));
#if defined(MADV_HUGEPAGE)
    // Fewer page faults now and fewer TLB misses later; a refusal changes nothing.
    if (memory) (void)madvise(memory, (size_t)(bytes / HUGE_PAGE * HUGE_PAGE), MADV_HUGEPAGE);
#endif
    return memory;
}

attar_status attar_weights_load(attar_weights *weights, attar_pool *pool, attar_error *error) {
    weights->memory = allocate(weights->memory_bytes);
    if (!weights->memory)
        return attar_fail(error, ATTAR_ERROR_MEMORY,
                          "the system refuses %" PRIu64 " bytes for the weights; take a smaller model or fewer bits",
                          weights->memory_bytes);
    attar_pool_run(pool, pack_matrices, &(loading){weights, pool});
    for (int32_t i = 0; i < weights->n_matrices; i++)
        weights->matrices[i].weight->data = weights->memory + weights->matrices[i].at;
    for (int32_t i = 0; i < weights->n_vectors; i++) {
        const attar_vector_slot *slot = &weights->vectors[i];
        const float *file = *slot->vector;
        memcpy(weights->memory + slot->at, file, (size_t)slot->n * sizeof *file);
        *slot->vector = (const float *)(const void *)(weights->memory + slot->at);
        give_back((const uint8_t *)file, (uint64_t)slot->n * sizeof *file);
    }
    return ATTAR_OK;
}

attar_weight attar_weight_rows(const attar_weight *w, int32_t row0, int32_t row1) {
    attar_weight rows = *w;
    const bool tiled = attar_type_get(w->type).integer;
    rows.data += tiled ? (uint64_t)(row0 / ATTAR_TILE_ROWS) * attar_tile_bytes(w->type, w->cols)
                       : (uint64_t)row0 * w->row_bytes;
    rows.rows = row1 - row0;
    return rows;
}

void attar_weight_row(const attar_weight *w, int32_t row, float *y) {
    if (attar_type_get(w->type).integer) {
        const uint8_t *tile = w->data + (uint64_t)(row / ATTAR_TILE_ROWS) * attar_tile_bytes(w->type, w->cols);
        attar_unpack_row(w->type, tile, row % ATTAR_TILE_ROWS, y, w->cols);
    } else {
        attar_dequantize_row(w->type, w->data + (uint64_t)row * w->row_bytes, y, (uint64_t)w->cols);
    }
}
