// weights.h: brings a model's weights into memory, in the kernels' order, once.
//
// attar_model_open binds every weight to its place in the mapped file. Loading reads the integer matrices piece by piece
// and packs them into one block of memory (packed.h), the float vectors beside them, so that one copy is resident. Float
// matrices stay in the mapping: the kernels read them there.
#ifndef ATTAR_WEIGHTS_H
#define ATTAR_WEIGHTS_H

#include "gguf.h"
#include "kernels.h"
#include "threads.h"

typedef struct {
    attar_weight *weight;  // the model's entry: points into the file until it is packed
    const uint8_t *file;   // its blocks there
    uint64_t at;           // its place in the block of memory
} attar_matrix_slot;

typedef struct {
    const float **vector;  // the model's entry
    int32_t n;
    uint64_t at;
} attar_vector_slot;

// All weights of a model, as they are bound.
typedef struct {
    attar_matrix_slot *matrices;  // integer types only
    attar_vector_slot *vectors;
    int32_t n_matrices, n_vectors;
    uint64_t memory_bytes;  // of the block that loading allocates
    uint64_t mapped_bytes;  // of float matrices, which stay in the file's mapping
    uint8_t *memory;        // NULL until loaded
} attar_weights;

// Room for `capacity` matrices and as many vectors.
attar_status attar_weights_init(attar_weights *weights, uint64_t capacity, attar_error *error);
void attar_weights_free(attar_weights *weights);

void attar_weights_add_matrix(attar_weights *weights, attar_weight *weight);
void attar_weights_add_vector(attar_weights *weights, const float **vector, int32_t n);

// Reads `file` and packs, on every thread of the pool, and points the model's entries at the result.
attar_status attar_weights_load(attar_weights *weights, const gguf_file *file, attar_pool *pool, attar_error *error);

// Rows row0 .. row1 - 1 of a loaded matrix as one of its own; row0 is a multiple of ATTAR_TILE_ROWS.
attar_weight attar_weight_rows(const attar_weight *w, int32_t row0, int32_t row1);

// y [cols] = row `row` of w as floats.
void attar_weight_row(const attar_weight *w, int32_t row, float *y);

#endif
