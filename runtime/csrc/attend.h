// attend.h: the KV cache as the attention kernels read it, and the blocks of queries they take.
//
// Positions lie in rows, row = position % rows of the layer (kv_cache.h). Scores want lanes to be keys, so that nothing
// is summed across lanes; weighted sums of values want lanes to be head dimensions. V = H rounded up to 16, Q = H
// rounded up to 4, divided by 4; what rounding adds is zero.
//
//   ATTAR_KV_F16   k f16 [rows / 16, H, 16]           v f16 [rows, V]
//   ATTAR_KV_INT8  k i8  [rows / 16, Q, 16, 4]        v i8  [rows / 4, V, 4]
//                  k_scale, v_scale f32 [rows]        a value is scale times integer, integers -127 to 127
//
// int8 comes in quads, four values that are multiplied by four int16 and added up in one or two instructions: four
// dimensions of a key, or one dimension of four positions. The int16 are stored in the order 0, 2, 1, 3, so that two
// multiplications take the even and the odd bytes (vpmaddwd, vpdpwssd).
#ifndef ATTAR_ATTEND_H
#define ATTAR_ATTEND_H

#include "attar.h"

enum {
    ATTAR_KEY_TILE = 16,      // positions whose keys lie side by side
    ATTAR_ATTEND_KEYS = 128,  // positions of a chunk; rows of a layer are a multiple
    ATTAR_ATTEND_ROWS = 6,    // most query rows of a block: with two vectors each, 12 sums fill 16 registers
    ATTAR_KV_TYPES = 2,
};

// Values whose largest is below this round to zeros: the inverse of their scale would overflow.
#define ATTAR_ROUND_LEAST 1e-30F

// Keys and values of one KV head, from the start of a chunk on.
typedef struct {
    const void *k, *v;
    const float *k_scale, *v_scale;  // NULL for f16
    const void *next_k;              // k of the chunk that this thread is likely to meet next: a hint for prefetching
} attar_kv;

// Query rows that share a KV head, for one chunk. Row r sees keys begin[r] to end[r] - 1 of it, maybe none.
typedef struct {
    const void *q;        // f16: float [H, rows]; int8: int16 [Q, rows, 4], fours stored as 0, 2, 1, 3
    const float *scales;  // int8: [rows], a query is scale times integer
    int32_t rows, head_dim;
    int32_t begin[ATTAR_ATTEND_ROWS], end[ATTAR_ATTEND_ROWS];
    float cap;            // score = cap tanh(score / cap); 0: none
} attar_queries;

// Running softmax of a query row: sums [V] holds sum exp(score - max) v over the keys so far, sum the same without v.
typedef struct {
    float max, sum;
} attar_softmax;

// V of attend.h's head, Q of its quads.
static inline int32_t attar_value_width(int32_t head_dim) { return (head_dim + 15) / 16 * 16; }
static inline int32_t attar_quads(int32_t head_dim) { return (head_dim + 3) / 4; }

// The largest integer queries and weights are rounded to. Times 127, summed over a chunk's keys or up to 1040 dimensions,
// it stays within 32 bits; and it is 128 times a signed byte plus another one, for CPUs that only multiply bytes.
#define ATTAR_QUAD_LIMIT 16255.0F

#endif
