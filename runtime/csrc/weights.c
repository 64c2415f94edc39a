#include "weights.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "error.h"
#include "packed.h"

enum {
    ALIGNMENT = 64,
    HUGE_PAGE = 2 << 20,
    SPAN_BYTES = 128 << 10,  // of the file that are read at once: they stay in a core's cache while they are packed
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

static int32_t tiles_of(const attar_weight *w) { return (w->rows + ATTAR_TILE_ROWS - 1) / ATTAR_TILE_ROWS; }

static int32_t tiles_in_span(const attar_weight *w) {
    const uint64_t tiles = SPAN_BYTES / (w->row_bytes * ATTAR_TILE_ROWS);
    return tiles > 0 ? (int32_t)tiles : 1;
}

static int32_t spans_of(const attar_weight *w) { return (tiles_of(w) - 1) / tiles_in_span(w) + 1; }

// One thread's part of loading.
typedef struct {
    const attar_weights *weights;
    const gguf_file *file;
    uint8_t *piece;  // room for one span of any matrix
} loader;

static attar_status pack_span(const loader *l, const attar_matrix_slot *slot, int32_t span, attar_error *error) {
    const attar_weight *w = slot->weight;
    const int32_t n = tiles_in_span(w), first = span * n, last = first + n < tiles_of(w) ? first + n : tiles_of(w);
    const int32_t row0 = first * ATTAR_TILE_ROWS, row1 = last * ATTAR_TILE_ROWS < w->rows ? last * ATTAR_TILE_ROWS : w->rows;
    const attar_status status = gguf_read(l->file, slot->file + (uint64_t)row0 * w->row_bytes, l->piece,
                                          (uint64_t)(row1 - row0) * w->row_bytes, error);
    if (status != ATTAR_OK) return status;
    const uint64_t tile_bytes = attar_tile_bytes(w->type, w->cols);
    for (int32_t i = first; i < last; i++) {
        const int32_t row = i * ATTAR_TILE_ROWS, left = w->rows - row;
        attar_pack_tile(w->type, l->piece + (uint64_t)(row - row0) * w->row_bytes, w->row_bytes,
                        left < ATTAR_TILE_ROWS ? left : ATTAR_TILE_ROWS, w->cols,
                        l->weights->memory + slot->at + (uint64_t)i * tile_bytes);
    }
    return ATTAR_OK;
}

static uint64_t largest_span(const attar_weights *weights) {
    uint64_t largest = 0;
    for (int32_t i = 0; i < weights->n_matrices; i++) {
        const attar_weight *w = weights->matrices[i].weight;
        const uint64_t bytes = (uint64_t)tiles_in_span(w) * ATTAR_TILE_ROWS * w->row_bytes;
        if (bytes > largest) largest = bytes;
    }
    return largest;
}

// What the threads of the pool share.
typedef struct {
    const attar_weights *weights;
    const gguf_file *file;
    attar_pool *pool;
    uint8_t *pieces;  // [n_threads, piece_bytes]
    uint64_t piece_bytes;
    attar_error *errors;  // [n_threads]
} loading;

// Every span of every matrix is a work item; threads walk the list of matrices alike and take what comes next.
static void pack_matrices(void *context, int32_t thread, int32_t n_threads) {
    const loading *l = context;
    const loader own = {l->weights, l->file, l->pieces + (uint64_t)thread * l->piece_bytes};
    attar_error *error = &l->errors[thread];
    (void)n_threads;
    int32_t item = attar_pool_take(l->pool);
    for (int32_t i = 0, before = 0; i < l->weights->n_matrices; i++) {
        const int32_t spans = spans_of(l->weights->matrices[i].weight);
        for (; item < before + spans; item = attar_pool_take(l->pool)) {
            if (error->status == ATTAR_OK) (void)pack_span(&own, &l->weights->matrices[i], item - before, error);
        }
        before += spans;
    }
}

static attar_status read_matrices(const attar_weights *weights, const gguf_file *file, attar_pool *pool, attar_error *error) {
    const int32_t n = attar_pool_size(pool);
    loading l = {weights, file, pool, NULL, largest_span(weights), calloc((size_t)n, sizeof(attar_error))};
    l.pieces = malloc((size_t)(l.piece_bytes * (uint64_t)n + 1));
    attar_status status = ATTAR_OK;
    if (!l.errors || !l.pieces)
        status = attar_fail(error, ATTAR_ERROR_MEMORY, "out of memory for reading the weights");
    else
        attar_pool_run(pool, pack_matrices, &l);
    for (int32_t i = 0; i < n && l.errors && status == ATTAR_OK; i++) {
        if (l.errors[i].status != ATTAR_OK) status = attar_fail(error, l.errors[i].status, "%s", l.errors[i].message);
    }
    free(l.errors);
    free(l.pieces);
    return status;
}

static attar_status read_vectors(const attar_weights *weights, const gguf_file *file, attar_error *error) {
    attar_status status = ATTAR_OK;
    for (int32_t i = 0; i < weights->n_vectors && status == ATTAR_OK; i++) {
        const attar_vector_slot *slot = &weights->vectors[i];
        status = gguf_read(file, *slot->vector, weights->memory + slot->at, (uint64_t)slot->n * sizeof(float), error);
    }
    return status;
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

attar_status attar_weights_load(attar_weights *weights, const gguf_file *file, attar_pool *pool, attar_error *error) {
    weights->memory = allocate(weights->memory_bytes);
    if (!weights->memory)
        return attar_fail(error, ATTAR_ERROR_MEMORY,
                          "the system refuses %" PRIu64 " bytes for the weights; take a smaller model or fewer bits",
                          weights->memory_bytes);
    attar_status status = read_matrices(weights, file, pool, error);
    if (status == ATTAR_OK) status = read_vectors(weights, file, error);
    if (status != ATTAR_OK) {
        free(weights->memory);
        weights->memory = NULL;
        return status;
    }
    for (int32_t i = 0; i < weights->n_matrices; i++)
        weights->matrices[i].weight->data = weights->memory + weights->matrices[i].at;
    for (int32_t i = 0; i < weights->n_vectors; i++)
        *weights->vectors[i].vector = (const float *)(const void *)(weights->memory + weights->vectors[i].at);
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
