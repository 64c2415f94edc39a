// Attention hands out two kinds of items. A prompt: (KV head, some tokens), each meeting all its keys chunk by chunk. A
// single token: (KV head, chunk of keys); whoever finishes the last chunk of a KV head merges them, in order. Chunks lie
// at fixed positions, so neither the number of threads nor who takes what changes a bit.
#include "attention.h"

#include <math.h>
#include <string.h>

// One thread's part of a layer's attention in a step.
typedef struct {
    const attar_step *step;
    const attar_layer *layer;
    int32_t index;  // of the layer
    int32_t H, N, K, G, V;
    bool quantize;      // o_proj takes integers
    bool whole_groups;  // a KV head's G*H outputs are whole groups of integers
    attar_attend_room room;
} attention;

int64_t attar_rope_at(const attar_step *step, bool local, int32_t t) {
    const int32_t half = step->model->head_dim / 2;
    // Both kinds lie one after the other, each as long as this step.
    return ((int64_t)local * step->n_tokens + t) * half;
}

// --- queries, keys and values of this step ------------------------------------------------------------------------

// x [H] of token t: bias, norm, rotation.
static void turn(const attention *a, float *x, const float *bias, const float *norm, int32_t t) {
    const attar_kernels *kernels = a->step->kernels;
    const attar_scratch *scratch = a->step->scratch;
    const int64_t at = attar_rope_at(a->step, a->layer->local, t);
    if (bias) kernels->add(x, bias, a->H);
    if (norm) kernels->rms_norm(x, norm, x, a->H, a->step->model->rms_eps);
    kernels->rope(x, scratch->cosines + at, scratch->sines + at, a->H, a->step->model->family->interleaved_rope);
}

// Factors [H] of the keys of KV head kv, or of its queries, in an int8 cache (key_scales.h).
static const float *scales_of(const attention *a, bool queries, int32_t kv) {
    const int64_t head = ((int64_t)queries * a->step->model->n_layers + a->index) * a->K + kv;
    return a->step->scratch->key_scales + head * a->H;
}

static void multiply(float *x, const float *factors, int32_t n) {
    for (int32_t j = 0; j < n; j++) x[j] *= factors[j];
}

// Writes the cache rows of one KV head of token t.
static void store_key_value(const attention *a, int32_t kv, int32_t t) {
    const attar_step *s = a->step;
    const int64_t at = ((int64_t)t * a->K + kv) * a->H;
    float *k = s->scratch->k + at, *v = s->scratch->v + at;  // [H]
    turn(a, k, a->layer->k_bias ? a->layer->k_bias + kv * a->H : NULL, a->layer->k_norm, t);
    if (s->cache->type == ATTAR_KV_INT8) multiply(k, scales_of(a, false, kv), a->H);
    if (a->layer->v_bias) s->kernels->add(v, a->layer->v_bias + kv * a->H, a->H);
    attar_cache_store(s->cache, s->model, s->kernels, a->index, kv, s->position + t, k, v, a->room.halves);
}

// Rows of the block of query rows that begins with row `first` of n.
static int32_t block_rows(int32_t first, int32_t n) {
    return n - first < ATTAR_ATTEND_ROWS ? n - first : ATTAR_ATTEND_ROWS;
}

// Puts query x [H] into row r of n, in the order that the cache's type wants (attend.h).
static void place_query(const attention *a, const float *x, int32_t r, int32_t n) {
    const int32_t first = r / ATTAR_ATTEND_ROWS * ATTAR_ATTEND_ROWS, rows = block_rows(first, n);
    const int32_t quads = attar_quads(a->H);
    if (a->step->cache->type == ATTAR_KV_F16) {
        float *q = (float *)a->room.queries + (int64_t)first * a->H + (r - first);  // [H, rows]
        for (int32_t j = 0; j < a->H; j++) q[(int64_t)j * rows] = x[j];
        return;
    }
    int16_t *rounded = (int16_t *)a->room.halves;  // [Q * 4]
    for (int32_t j = a->H; j < quads * 4; j++) rounded[j] = 0;
    a->room.scales[r] = a->step->kernels->round_i16(x, rounded, a->H, ATTAR_QUAD_LIMIT);
    int16_t *q = (int16_t *)a->room.queries + ((int64_t)first * quads + (r - first)) * 4;  // [Q, rows, 4]
    for (int32_t i = 0; i < quads; i++, q += rows * 4, rounded += 4)
        memcpy(q, (int16_t[]){rounded[0], rounded[2], rounded[1], rounded[3]}, 4 * sizeof *q);
}

// The queries of KV head kv, tokens [t0, t0 + n): rows (token, head of the group), ready for the kernels.
static void prepare_queries(const attention *a, int32_t kv, int32_t t0, int32_t n) {
    const attar_step *s = a->step;
    for (int32_t r = 0; r < n * a->G; r++) {
        const int32_t t = t0 + r / a->G, head = kv * a->G + r % a->G;
        float *x = a->room.row;  // [H]
        memcpy(x, s->scratch->q + ((int64_t)t * a->N + head) * a->H, (size_t)a->H * sizeof *x);
        turn(a, x, a->layer->q_bias ? a->layer->q_bias + head * a->H : NULL, a->layer->q_norm, t);
        if (s->cache->type == ATTAR_KV_INT8)
            multiply(x, scales_of(a, true, kv), a->H);
        else
            s->kernels->scale(x, s->model->query_scale, a->H);
        place_query(a, x, r, n * a->G);
    }
}

// --- attention ----------------------------------------------------------------------------------------------------

// The first position that the query at position p sees. A ring holds a whole window, but for the first tokens after a
// slide (attar_cache_slide).
static int32_t first_key(const attention *a, int32_t p) {
    if (!a->layer->local) return 0;
    const int32_t first = p + 1 - a->step->model->sliding_window;
    return first > a->step->cache->lost ? first : a->step->cache->lost;
}

static int32_t clamp(int32_t x, int32_t low, int32_t high) { return x < low ? low : x > high ? high : x; }

// Keys and values of one chunk of KV head kv; `next` is the key that is likely to be read after it.
static attar_kv chunk_of(const attention *a, int32_t kv, int32_t chunk, const void *next) {
    attar_kv keys = attar_cache_chunk(a->step->cache, a->step->model, a->index, kv, chunk * ATTAR_ATTEND_KEYS);
    keys.next_k = next ? next : keys.k;
    return keys;
}

// The prepared queries of KV head kv, tokens [t0, t0 + n), over one chunk: state [n*G], sums [n*G, V].
static void attend_chunk(const attention *a, attar_kv keys, int32_t t0, int32_t n, int32_t chunk, attar_softmax *state,
                         float *sums) {
    const attar_step *s = a->step;
    const int32_t start = chunk * ATTAR_ATTEND_KEYS;
    const int64_t query_bytes = s->cache->type == ATTAR_KV_F16 ? a->H * 4 : attar_quads(a->H) * 8;
    for (int32_t r = 0; r < n * a->G; r += ATTAR_ATTEND_ROWS) {
        attar_queries q = {.q = (uint8_t *)a->room.queries + r * query_bytes, .scales = a->room.scales + r,
                           .rows = block_rows(r, n * a->G), .head_dim = a->H, .cap = s->model->attention_cap};
        for (int32_t i = 0; i < q.rows; i++) {
            const int32_t p = s->position + t0 + (r + i) / a->G;
            q.begin[i] = clamp(first_key(a, p) - start, 0, ATTAR_ATTEND_KEYS);
            q.end[i] = clamp(p + 1 - start, 0, ATTAR_ATTEND_KEYS);
        }
        s->kernels->attend[s->cache->type](&q, keys, state + r, sums + (int64_t)r * a->V);
    }
}

static void clear(const attention *a, int32_t n_rows, attar_softmax *state, float *sums) {
    for (int32_t r = 0; r < n_rows; r++) state[r] = (attar_softmax){-INFINITY, 0.0F};
    memset(sums, 0, (size_t)n_rows * (size_t)a->V * sizeof *sums);
}

// act = mixed as integers, n values from `begin` on in [T, N*H]; both are multiples of 32.
static void quantize_mixed(const attention *a, int64_t begin, int32_t n) {
    const attar_scratch *scratch = a->step->scratch;
    const attar_act all = scratch->act, act = {(uint8_t *)all.q + begin * all.bits / 8, all.d + begin / ATTAR_GROUP,
                                               all.sum + begin / (ATTAR_GROUP / 2), all.bits};
    a->step->kernels->quantize(scratch->mixed + begin, act, 1, n);
}

// mixed [G, H] of KV head kv, token t, from its state [G] and sums [G, V].
static void finish(const attention *a, int32_t kv, int32_t t, const attar_softmax *state, const float *sums) {
    const int64_t at = ((int64_t)t * a->N + kv * a->G) * a->H;
    for (int32_t g = 0; g < a->G; g++) {
        float *out = a->step->scratch->mixed + at + g * a->H;  // [H]
        const float inverse = 1.0F / state[g].sum;
        for (int32_t j = 0; j < a->H; j++) out[j] = sums[g * a->V + j] * inverse;
    }
    if (a->quantize && a->whole_groups) quantize_mixed(a, at, a->G * a->H);
}

// --- a prompt -----------------------------------------------------------------------------------------------------

static void store_prompt(const attention *a) {
    const attar_step *s = a->step;
    // Tokens go by tiles of the cache, so that two threads never write the same tile.
    const int32_t lead = s->position % ATTAR_KEY_TILE;
    const int32_t tiles = (lead + s->n_tokens + ATTAR_KEY_TILE - 1) / ATTAR_KEY_TILE;
    for (int32_t i; (i = attar_pool_take(s->pool)) < tiles * a->K;) {
        const int32_t t0 = i / a->K * ATTAR_KEY_TILE - lead, end = t0 + ATTAR_KEY_TILE;
        for (int32_t t = t0 > 0 ? t0 : 0; t < end && t < s->n_tokens; t++) store_key_value(a, i % a->K, t);
    }
}

// All keys of KV head kv for tokens [t0, t0 + n).
static void attend_tokens(const attention *a, int32_t kv, int32_t t0, int32_t n) {
    const int32_t p = a->step->position + t0;
    prepare_queries(a, kv, t0, n);
    clear(a, n * a->G, a->room.states, a->room.sums);
    for (int32_t c = first_key(a, p) / ATTAR_ATTEND_KEYS; c <= (p + n - 1) / ATTAR_ATTEND_KEYS; c++) {
        const attar_kv keys = chunk_of(a, kv, c, chunk_of(a, kv, c + 1, NULL).k);
        attend_chunk(a, keys, t0, n, c, a->room.states, a->room.sums);
    }
    for (int32_t i = 0; i < n; i++)
        finish(a, kv, t0 + i, a->room.states + i * a->G, a->room.sums + (int64_t)i * a->G * a->V);
}

// Tokens of an item: as many as the room holds, fewer where that would give less than 16 items.
static int32_t tokens_at_once(const attention *a) {
    return clamp(a->step->n_tokens * a->K / 16, 1, attar_attend_rows(a->step->model) / a->G);
}

static void attend_prompt(const attention *a) {
    const attar_step *s = a->step;
    const int32_t n = tokens_at_once(a), blocks = (s->n_tokens + n - 1) / n;
    for (int32_t i; (i = attar_pool_take(s->pool)) < blocks * a->K;) {
        const int32_t t0 = (blocks - 1 - i / a->K) * n;  // late tokens see most keys: they go first
        attend_tokens(a, i % a->K, t0, s->n_tokens - t0 < n ? s->n_tokens - t0 : n);
    }
}

// --- a single token -----------------------------------------------------------------------------------------------

// mixed [G, H] of KV head kv from the states [chunks, G] and sums [chunks, G, V] of its n chunks.
static void merge(const attention *a, int32_t kv, int32_t n, const attar_softmax *states, const float *sums) {
    clear(a, a->G, a->room.states, a->room.sums);
    for (int32_t g = 0; g < a->G; g++) {
        attar_softmax *total = &a->room.states[g];
        float *out = a->room.sums + g * a->V;  // [V]
        for (int32_t c = 0; c < n; c++) total->max = fmaxf(total->max, states[c * a->G + g].max);
        for (int32_t c = 0; c < n; c++) {
            const attar_softmax part = states[c * a->G + g];
            const float weight = expf(part.max - total->max);
            const float *in = sums + (int64_t)(c * a->G + g) * a->V;  // [V]
            total->sum += weight * part.sum;
            for (int32_t j = 0; j < a->V; j++) out[j] += weight * in[j];
        }
    }
    finish(a, kv, 0, a->room.states, a->room.sums);
}

static void attend_single(const attention *a, int32_t n_threads) {
    const attar_step *s = a->step;
    const int32_t first = first_key(a, s->position) / ATTAR_ATTEND_KEYS;
    const int32_t n = s->position / ATTAR_ATTEND_KEYS + 1 - first;  // chunks
    int32_t prepared = -1;
    for (int32_t i; (i = attar_pool_take(s->pool)) < n * a->K;) {
        const int32_t kv = i / n, c = i % n;
        attar_softmax *states = s->scratch->chunk_states + (int64_t)kv * n * a->G;  // [K, chunks, G]
        float *sums = s->scratch->chunk_sums + (int64_t)kv * n * a->G * a->V;       // [K, chunks, G, V]
        if (prepared != kv) prepare_queries(a, kv, 0, 1);
        prepared = kv;
        if (c == n - 1) store_key_value(a, kv, 0);  // nobody else reads its tile
        clear(a, a->G, states + c * a->G, sums + (int64_t)c * a->G * a->V);
        const int32_t next = i + n_threads < n * a->K ? i + n_threads : i;  // threads take turns, by and large
        const attar_kv keys = chunk_of(a, kv, first + c, chunk_of(a, next / n, first + next % n, NULL).k);
        attend_chunk(a, keys, 0, 1, first + c, states + c * a->G, sums + (int64_t)c * a->G * a->V);
        if (n == 1) {
            finish(a, kv, 0, states, sums);
            continue;
        }
        // Acquire and release: whoever counts the last chunk sees what the others wrote.
        if (atomic_fetch_add_explicit(&s->scratch->chunks_done[kv], 1, memory_order_acq_rel) < n - 1) continue;
        atomic_store_explicit(&s->scratch->chunks_done[kv], 0, memory_order_relaxed);
        merge(a, kv, n, states, sums);
    }
}

void attar_attention(const attar_step *step, int32_t index, int32_t thread, int32_t n_threads) {
    const attar_model *m = step->model;
    attention a = {.step = step, .layer = &m->layers[index], .index = index, .H = m->head_dim, .N = m->n_heads,
                   .K = m->n_kv_heads, .G = m->n_heads / m->n_kv_heads, .V = attar_value_width(m->head_dim),
                   .quantize = attar_type_get(m->layers[index].o.type).integer, .room = step->scratch->rooms[thread]};
    a.whole_groups = a.G * a.H % ATTAR_GROUP == 0;
    if (step->n_tokens == 1) {
        attend_single(&a, n_threads);
    } else {
        store_prompt(&a);
        attar_pool_barrier(step->pool);
        attend_prompt(&a);
    }
    if (!a.quantize || a.whole_groups) return;
    attar_pool_barrier(step->pool);  // a group spans the heads of two threads
    int32_t begin, end;
    attar_split(step->n_tokens, 1, thread, n_threads, &begin, &end);
    for (int32_t t = begin; t < end; t++) quantize_mixed(&a, (int64_t)t * a.N * a.H, a.N * a.H);
}
