#include "plan.h"

#include <inttypes.h>

#include "error.h"
#include "threads.h"

// Query rows of one item of a prompt's attention: each key and value that is read serves this many.
enum { ROOM_ROWS = 48 };

enum { DEFAULT_CONTEXT = 4096, DEFAULT_BATCH = 256, MAX_BATCH = 4096, MAX_THREADS = 256 };

// Hands out consecutive 64-byte aligned pieces of `memory`, or only counts them where that is NULL.
typedef struct {
    uint8_t *memory;
    uint64_t used;
} arena;

static void *take(arena *a, int64_t count, size_t item_bytes) {
    uint8_t *piece = a->memory ? a->memory + a->used : NULL;
    a->used += ((uint64_t)count * item_bytes + 63) / 64 * 64;
    return piece;
}

static float *take_floats(arena *a, int64_t count) { return take(a, count, sizeof(float)); }

static attar_act take_act(arena *a, int64_t n_tokens, int64_t cols, int32_t bits) {
    const int64_t groups = n_tokens * cols / ATTAR_GROUP + 1;  // where cols is no multiple, no integers are used
    return (attar_act){.q = take(a, n_tokens * cols, (size_t)bits / 8), .d = take_floats(a, groups),
                       .sum = take(a, 2 * groups, sizeof(int32_t)), .bits = bits};
}

int32_t attar_attend_rows(const attar_model *model) {
    const int32_t G = model->n_heads / model->n_kv_heads;
    return G < ROOM_ROWS ? ROOM_ROWS / G * G : G;
}

static attar_attend_room take_room(arena *a, const attar_model *model) {
    const int64_t R = attar_attend_rows(model), V = attar_value_width(model->head_dim);
    return (attar_attend_room){.row = take_floats(a, V), .halves = take(a, V, sizeof(uint16_t)),
                               .queries = take_floats(a, R * V), .scales = take_floats(a, R),
                               .states = take(a, R, sizeof(attar_softmax)), .sums = take_floats(a, R * V)};
}

// Whether every down_proj takes integers.
static bool all_integer(const attar_model *model) {
    for (int32_t i = 0; i < model->n_layers; i++)
        if (!attar_type_get(model->layers[i].down.type).integer) return false;
    return true;
}

uint64_t attar_scratch_place(const attar_model *model, const attar_session_plan *plan, uint8_t *memory,
                             attar_scratch *s) {
    arena a = {memory, 0};
    const int64_t B = plan->n_batch, D = model->n_embd, F = model->n_ff, H = model->head_dim;
    const int64_t NH = model->n_heads * H, KH = model->n_kv_heads * H;
    const int64_t W = D > NH ? D : NH, P = B > plan->n_threads ? B : plan->n_threads;
    const int64_t columns = F < ATTAR_MLP_COLUMNS ? F : ATTAR_MLP_COLUMNS;
    const int64_t chunks = (plan->n_ctx + ATTAR_ATTEND_KEYS - 1) / ATTAR_ATTEND_KEYS;
    *s = (attar_scratch){
        .cache_layers = take(&a, model->n_layers, sizeof *s->cache_layers),
        .inverse_frequencies = take(&a, H, sizeof *s->inverse_frequencies),
        .cosines = take_floats(&a, B * H),
        .sines = take_floats(&a, B * H),
        .x = take_floats(&a, P * D),
        .h = take_floats(&a, P * D),
        .q = take_floats(&a, B * NH),
        .k = take_floats(&a, B * KH),
        .v = take_floats(&a, B * KH),
        .mixed = take_floats(&a, B * NH),
        .branch = take_floats(&a, B * D),
        .gate = take_floats(&a, all_integer(model) ? 0 : B * F),
        .act = take_act(&a, P, W, plan->activation_bits),
        .head_act = take_act(&a, P, D, 16),
        .gate_act = take_act(&a, B, F, plan->activation_bits),
        .key_scales = take_floats(&a, plan->kv_type == ATTAR_KV_INT8 ? 2 * model->n_layers * KH : 0),
        .rooms = take(&a, plan->n_threads, sizeof *s->rooms),
        .mlp_rooms = take(&a, plan->n_threads, sizeof *s->mlp_rooms),
        .slide_room = take_floats(&a, 6 * (int64_t)attar_value_width(model->head_dim)),
        .chunk_states = take(&a, chunks * model->n_heads, sizeof *s->chunk_states),
        .chunk_sums = take_floats(&a, chunks * model->n_heads * attar_value_width(model->head_dim)),
        .chunks_done = take(&a, model->n_kv_heads, sizeof *s->chunks_done),
    };
    for (int32_t i = 0; i < plan->n_threads; i++) {
        const attar_attend_room room = take_room(&a, model);
        const attar_mlp_room mlp_room = {take_floats(&a, B * columns), take_floats(&a, B * columns)};
        if (!memory) continue;
        s->rooms[i] = room;
        s->mlp_rooms[i] = mlp_room;
    }
    for (int32_t kv = 0; memory && kv < model->n_kv_heads; kv++) atomic_init(&s->chunks_done[kv], 0);
    return a.used;
}

static attar_status check_range(const char *name, int32_t value, int32_t high, attar_error *error) {
    if (value >= 0 && value <= high) return ATTAR_OK;
    return attar_fail(error, ATTAR_ERROR_ARGUMENT, "%s must be 0 (default) to %d, got %d", name, high, value);
}

static void measure(const attar_model *model, attar_session_plan *plan) {
    attar_scratch unplaced;
    plan->memory = (attar_memory){
        .weight_bytes = attar_model_loaded_bytes(model),
        .cache_bytes = attar_cache_bytes(model, plan->n_ctx, plan->n_batch, plan->kv_type),
        .scratch_bytes = attar_scratch_place(model, plan, NULL, &unplaced),
    };
}

static uint64_t total(attar_memory m) { return m.weight_bytes + m.cache_bytes + m.scratch_bytes; }

// The largest context that fits `budget`, by bisection; 0 if none does.
static int32_t largest_context(const attar_model *model, attar_session_plan plan, uint64_t budget) {
    const int32_t n_batch = plan.n_batch;
    int32_t low = 0, high = plan.n_ctx;
    while (low < high) {
        plan.n_ctx = low + (high - low + 1) / 2;
        plan.n_batch = n_batch < plan.n_ctx ? n_batch : plan.n_ctx;
        measure(model, &plan);
        if (total(plan.memory) <= budget)
            low = plan.n_ctx;
        else
            high = plan.n_ctx - 1;
    }
    return low;
}

static attar_status check_budget(const attar_model *model, const attar_session_plan *plan, uint64_t budget,
                                 attar_error *error) {
    uint64_t needed = total(plan->memory);
    if (budget == 0 || needed <= budget) return ATTAR_OK;
    int32_t fits = largest_context(model, *plan, budget);
    const char *remedy = fits > 0 ? "lower n_ctx to at most" : "no context fits, raise the budget; largest n_ctx:";
    return attar_fail(error, ATTAR_ERROR_MEMORY,
                      "a context of %d tokens needs %" PRIu64 " bytes (weights %" PRIu64 ", cache %" PRIu64
                      ", scratch %" PRIu64 "), over the budget of %" PRIu64 "; %s %d",
                      plan->n_ctx, needed, plan->memory.weight_bytes, plan->memory.cache_bytes,
                      plan->memory.scratch_bytes, budget, remedy, fits);
}

static attar_status check_params(const attar_model *model, const attar_session_params *params, attar_error *error) {
    // Positions past the trained context give text that looks right and is not: refused rather than served.
    attar_status status = check_range("n_ctx", params->n_ctx, model->n_ctx_train, error);
    if (status == ATTAR_OK) status = check_range("n_threads", params->n_threads, MAX_THREADS, error);
    if (status == ATTAR_OK) status = check_range("n_batch", params->n_batch, MAX_BATCH, error);
    if (status == ATTAR_OK) status = check_range("kv_type", params->kv_type, ATTAR_KV_INT8, error);
    if (status == ATTAR_OK) status = check_range("overflow", params->overflow, ATTAR_OVERFLOW_SLIDE, error);
    const int32_t bits = params->activation_bits;
    if (status == ATTAR_OK && bits != 0 && bits != 8 && bits != 16)
        status = attar_fail(error, ATTAR_ERROR_ARGUMENT, "activation_bits must be 8 (or 0) or 16, got %d", bits);
    return status;
}

attar_status attar_plan_make(const attar_model *model, const attar_session_params *params, attar_session_plan *plan,
                             attar_error *error) {
    attar_status status = check_params(model, params, error);
    if (status != ATTAR_OK) return status;
    int32_t context = model->n_ctx_train < DEFAULT_CONTEXT ? model->n_ctx_train : DEFAULT_CONTEXT;
    *plan = (attar_session_plan){
        .n_ctx = params->n_ctx > 0 ? params->n_ctx : context,
        .n_threads = params->n_threads > 0 ? params->n_threads : attar_usable_cores(),
        .n_batch = params->n_batch > 0 ? params->n_batch : DEFAULT_BATCH,
        .activation_bits = params->activation_bits > 0 ? params->activation_bits : 8,
        .kv_type = (attar_kv_type)params->kv_type,
        .overflow = (attar_overflow)params->overflow,
        .n_keep = params->n_keep,
    };
    if (plan->n_batch > plan->n_ctx) plan->n_batch = plan->n_ctx;
    if (plan->n_keep < 0 || plan->n_keep > plan->n_ctx / 2)
        return attar_fail(error, ATTAR_ERROR_ARGUMENT, "n_keep must be 0 to half of the context (%d), got %d",
                          plan->n_ctx / 2, plan->n_keep);
    measure(model, plan);
    return check_budget(model, plan, params->memory_budget, error);
}

attar_status attar_plan(const attar_model *model, const attar_session_params *params, attar_memory *out,
                        attar_error *error) {
    attar_session_plan plan;
    attar_status status = attar_plan_make(model, params, &plan, error);
    if (status == ATTAR_OK) *out = plan.memory;
    return status;
}
