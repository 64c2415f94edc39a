// One token of every row through all layers of a decoder, as XLA calls it: a step of decoding is then one function in
// place of some twenty a layer, whose threads stay awake from one product to the next.
#include "call_values.h"
#include "kernels.h"
#include "team.h"

#include <stdlib.h>
#include <string.h>

enum { PIECES_A_THREAD = 4 };
// Multiplications of all layers below which one thread is done before another has begun.
static const int64_t SMALL = 500000;

// Arguments in order. Norms that a family has not are [L, 0].
enum {
    INPUT,          // f32 [R, D], embedded tokens
    ROPE,           // f32 [kinds, 2, R, H/2], cosines and sines
    POSITION,       // s32 [R]
    KEY_POSITIONS,  // s32 [R, S], those of this step's tokens among them
    SLOT,           // s32 [], where this step's keys and values go
    LAYERS,         // s32 [L, 2], window and kind of each
    CONSTANTS,      // f32 [5], see below
    KEYS,           // f32 [L, R, K, S, H]
    VALUES,
    Q_PROJ,  // f32 [L, N * H, D]
    K_PROJ,  // f32 [L, K * H, D]
    V_PROJ,
    O_PROJ,     // f32 [L, D, N * H]
    GATE_PROJ,  // f32 [L, F, D]
    UP_PROJ,
    DOWN_PROJ,   // f32 [L, D, F]
    INPUT_NORM,  // f32 [L, D]
    POST_ATTENTION_NORM,
    PRE_MLP_NORM,
    POST_MLP_NORM,
    Q_NORM,  // f32 [L, H]
    K_NORM,
    N_ARGUMENTS
};
enum { EPS, GAIN_OFFSET, QUERY_SCALE, CAP, IS_GELU, N_CONSTANTS };
// Results: f32 [R, D] before the final norm, and the two caches, where they lay.
enum { OUTPUT, NEW_KEYS, NEW_VALUES, N_RESULTS };

static const struct {
    int dtype, rank;
} EXPECTED[N_ARGUMENTS] = {
    [INPUT] = {XLA_F32, 2},         [ROPE] = {XLA_F32, 4},          [POSITION] = {XLA_S32, 1},
    [KEY_POSITIONS] = {XLA_S32, 2}, [SLOT] = {XLA_S32, 0},          [LAYERS] = {XLA_S32, 2},
    [CONSTANTS] = {XLA_F32, 1},     [KEYS] = {XLA_F32, 5},          [VALUES] = {XLA_F32, 5},
    [Q_PROJ] = {XLA_F32, 3},        [K_PROJ] = {XLA_F32, 3},        [V_PROJ] = {XLA_F32, 3},
    [O_PROJ] = {XLA_F32, 3},        [GATE_PROJ] = {XLA_F32, 3},     [UP_PROJ] = {XLA_F32, 3},
    [DOWN_PROJ] = {XLA_F32, 3},     [INPUT_NORM] = {XLA_F32, 2},    [POST_ATTENTION_NORM] = {XLA_F32, 2},
    [PRE_MLP_NORM] = {XLA_F32, 2},  [POST_MLP_NORM] = {XLA_F32, 2}, [Q_NORM] = {XLA_F32, 2},
    [K_NORM] = {XLA_F32, 2},
};

typedef struct step {
    const engine_kernels *kernels;
    int64_t L, R, D, F, N, K, H, S, kinds;
    const void *in[N_ARGUMENTS];
    float *keys, *values, *stream;  // stream [R, D]
    // Room to work in: [R, D], [R, N * H], [R, K * H] twice, [R, N * H], [R, F] twice, [R, D].
    float *normed, *q, *k, *v, *attended, *gate, *up, *branch;
    float *queries, *scores;  // of each thread: [G, H] and [G, score_stride]
    int32_t *seen;            // of each thread: [S]
    int64_t score_stride, pieces;
} step;

enum { TO_QKV, TO_ATTENDED, FROM_ATTENDED, TO_GATE, FROM_GATE, N_STAGES };

static float constant(const step *s, int which) { return ((const float *)s->in[CONSTANTS])[which]; }

static const float *weight(const step *s, int which, int64_t layer, int64_t size) {
    return (const float *)s->in[which] + layer * size;
}

static bool has_norm(const step *s, int which) { return s->in[which] != NULL; }

static int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

static int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

// Columns begin to end, counted from `first`, of one of several products that stand side by side.
static void multiply_part(const step *s, few_rows_product product, int64_t first, int64_t begin, int64_t end) {
    begin = max(begin - first, 0);
    end = min(end - first, product.M);
    if (begin < end) s->kernels->multiply(&product, begin, end);
}

static void to_qkv(const step *s, int64_t layer, int64_t begin, int64_t end) {
    const int64_t M = s->N * s->H, small = s->K * s->H, D = s->D, R = s->R;
    multiply_part(s, (few_rows_product){s->normed, weight(s, Q_PROJ, layer, M * D), s->q, R, D, M}, 0, begin, end);
    const few_rows_product k = {s->normed, weight(s, K_PROJ, layer, small * D), s->k, R, D, small};
    const few_rows_product v = {s->normed, weight(s, V_PROJ, layer, small * D), s->v, R, D, small};
    multiply_part(s, k, M, begin, end);
    multiply_part(s, v, M + small, begin, end);
}

// Norms, turns and scales a head of H entries; `from` and `to` may not overlap.
static void turn(const step *s, int64_t layer, int64_t row, int norm, const float *from, float *to, float scale) {
    const int64_t H = s->H, half = H / 2;
    const int32_t kind = ((const int32_t *)s->in[LAYERS])[2 * layer + 1];
    const float *cosines = (const float *)s->in[ROPE] + (2 * kind * s->R + row) * half;
    const float *sines = cosines + s->R * half;
    if (has_norm(s, norm))
        s->kernels->norm(from, weight(s, norm, layer, H), to, H, constant(s, EPS), constant(s, GAIN_OFFSET));
    else
        memcpy(to, from, (size_t)H * sizeof *to);
    for (int64_t j = 0; j < half; j++) {
        const float first = to[j], second = to[j + half];
        to[j] = (first * cosines[j] - second * sines[j]) * scale;
        to[j + half] = (second * cosines[j] + first * sines[j]) * scale;
    }
}

// Slots that a row sees in a layer: not padding, not later, and among the `window` latest. None is written behind SLOT.
static int64_t find_seen(const step *s, int64_t layer, int64_t row, int32_t *seen) {
    const int32_t *positions = (const int32_t *)s->in[KEY_POSITIONS] + row * s->S;
    const int64_t position = ((const int32_t *)s->in[POSITION])[row];
    const int64_t window = ((const int32_t *)s->in[LAYERS])[2 * layer];
    const int64_t written = *(const int32_t *)s->in[SLOT] + 1;
    int64_t n = 0;
    for (int64_t i = 0; i < written; i++) {
        seen[n] = (int32_t)i;
        n += positions[i] >= 0 && positions[i] <= position && position - positions[i] < window;
    }
    return n;
}

// One row's queries of one head of keys and values, whose new entries are written first.
static void to_attended(const step *s, int64_t layer, int64_t pair, int64_t thread) {
    const int64_t row = pair / s->K, head = pair % s->K, H = s->H, G = s->N / s->K;
    const int64_t cache = ((layer * s->R + row) * s->K + head) * s->S * H;
    const int64_t slot = *(const int32_t *)s->in[SLOT], from = (row * s->K + head) * H;
    turn(s, layer, row, K_NORM, s->k + from, s->keys + cache + slot * H, 1.0f);
    memcpy(s->values + cache + slot * H, s->v + from, (size_t)H * sizeof *s->v);
    float *queries = s->queries + thread * G * H;
    for (int64_t g = 0; g < G; g++)
        turn(s, layer, row, Q_NORM, s->q + (row * s->N + head * G + g) * H, queries + g * H, constant(s, QUERY_SCALE));
    int32_t *seen = s->seen + thread * s->S;
    const head_attention attention = {
        .queries = queries,
        .keys = s->keys + cache,
        .values = s->values + cache,
        .attended = s->attended + (row * s->N + head * G) * H,
        .seen = seen,
        .scores = s->scores + thread * G * s->score_stride,
        .G = G,
        .H = H,
        .n_seen = find_seen(s, layer, row, seen),
        .score_stride = s->score_stride,
        .cap = constant(s, CAP),
    };
    s->kernels->attend(&attention);
}

static void to_gate(const step *s, int64_t layer, int64_t begin, int64_t end) {
    const int64_t F = s->F, D = s->D, R = s->R;
    const few_rows_product gate = {s->normed, weight(s, GATE_PROJ, layer, F * D), s->gate, R, D, F};
    const few_rows_product up = {s->normed, weight(s, UP_PROJ, layer, F * D), s->up, R, D, F};
    s->kernels->multiply(&gate, begin, end);
    s->kernels->multiply(&up, begin, end);
    const bool gelu = constant(s, IS_GELU) != 0.0f;
    for (int64_t r = 0; r < R; r++)
        s->kernels->activate(s->gate + r * F + begin, s->up + r * F + begin, end - begin, gelu);
}

// Columns of a stage that are shared out; rows and heads in the case of attention.
static int64_t stage_size(const step *s, int64_t kind) {
    switch (kind) {
        case TO_QKV: return (s->N + 2 * s->K) * s->H;
        case TO_ATTENDED: return s->R * s->K;
        case TO_GATE: return s->F;
        default: return s->D;
    }
}

static void do_piece(void *work, int64_t stage, int64_t piece, int64_t thread) {
    const step *s = work;
    const int64_t layer = stage / N_STAGES, kind = stage % N_STAGES, size = stage_size(s, kind);
    const int64_t begin = size * piece / s->pieces, end = size * (piece + 1) / s->pieces;
    const int64_t heads = s->N * s->H, D = s->D, F = s->F, R = s->R;
    switch (kind) {
        case TO_QKV: to_qkv(s, layer, begin, end); return;
        case TO_ATTENDED:
            for (int64_t pair = begin; pair < end; pair++) to_attended(s, layer, pair, thread);
            return;
        case FROM_ATTENDED: {
            const float *w = weight(s, O_PROJ, layer, D * heads);
            s->kernels->multiply(&(few_rows_product){s->attended, w, s->branch, R, heads, D}, begin, end);
            return;
        }
        case TO_GATE: to_gate(s, layer, begin, end); return;
        default: {
            const float *w = weight(s, DOWN_PROJ, layer, D * F);
            s->kernels->multiply(&(few_rows_product){s->gate, w, s->branch, R, F, D}, begin, end);
        }
    }
}

static void norm_rows(const step *s, const float *x, int which, int64_t layer, float *y) {
    const float *gain = weight(s, which, layer, s->D), eps = constant(s, EPS), offset = constant(s, GAIN_OFFSET);
    for (int64_t r = 0; r < s->R; r++) s->kernels->norm(x + r * s->D, gain, y + r * s->D, s->D, eps, offset);
}

// Adds a branch's result to the stream, normed first where the family has that norm.
static void add_branch(const step *s, bool normed, int which, int64_t layer) {
    if (normed) norm_rows(s, s->branch, which, layer, s->branch);
    for (int64_t i = 0; i < s->R * s->D; i++) s->stream[i] += s->branch[i];
}

static void run_stage(const step *s, team *t, int64_t layer, int kind) {
    const int64_t stage = layer * N_STAGES + kind;
    if (t)
        team_run(t, stage, s->pieces);
    else
        do_piece((void *)s, stage, 0, 0);
}

static void run_layers(const step *s, team *t) {
    // Llama calls the norm before the MLP "post attention"; with post-norms that name is the branch's.
    const bool post_norms = has_norm(s, PRE_MLP_NORM);
    for (int64_t layer = 0; layer < s->L; layer++) {
        norm_rows(s, s->stream, INPUT_NORM, layer, s->normed);
        run_stage(s, t, layer, TO_QKV);
        run_stage(s, t, layer, TO_ATTENDED);
        run_stage(s, t, layer, FROM_ATTENDED);
        add_branch(s, post_norms, POST_ATTENTION_NORM, layer);
        norm_rows(s, s->stream, post_norms ? PRE_MLP_NORM : POST_ATTENTION_NORM, layer, s->normed);
        run_stage(s, t, layer, TO_GATE);
        run_stage(s, t, layer, FROM_GATE);
        add_branch(s, post_norms, POST_MLP_NORM, layer);
    }
}

// Cuts the room to work in out of one allocation, NULL if there is none; `n_threads` work at a time.
static void *make_room(step *s, int64_t n_threads) {
    const int64_t heads = s->N * s->H, small = s->K * s->H, G = s->N / s->K;
    s->score_stride = (s->S + SCORES_MULTIPLE - 1) / SCORES_MULTIPLE * SCORES_MULTIPLE;
    struct {
        float **at;
        int64_t size;
    } parts[] = {
        {&s->normed, s->R * s->D},
        {&s->q, s->R * heads},
        {&s->k, s->R * small},
        {&s->v, s->R * small},
        {&s->attended, s->R * heads},
        {&s->gate, s->R * s->F},
        {&s->up, s->R * s->F},
        {&s->branch, s->R * s->D},
        {&s->queries, n_threads * G * s->H},
        {&s->scores, n_threads * G * s->score_stride},
    };
    const size_t n_parts = sizeof parts / sizeof *parts;
    int64_t total = 0;
    for (size_t i = 0; i < n_parts; i++) total += parts[i].size;
    float *room = malloc((size_t)total * sizeof(float) + (size_t)(n_threads * s->S) * sizeof(int32_t));
    if (!room) return NULL;
    float *next = room;
    for (size_t i = 0; i < n_parts; i++) {
        *parts[i].at = next;
        next += parts[i].size;
    }
    s->seen = (int32_t *)(void *)next;
    return room;
}

static bool is_shape(const xla_buffer *buffer, int64_t a, int64_t b, int64_t c) {
    return buffer->dims[0] == a && buffer->dims[1] == b && (buffer->rank < 3 || buffer->dims[2] == c);
}

// What is wrong with the sizes, or NULL; fills in those of `s`.
static const char *read_sizes(step *s, const xla_buffer *const b[N_ARGUMENTS]) {
    s->R = b[INPUT]->dims[0], s->D = b[INPUT]->dims[1];
    const int64_t *cache = b[KEYS]->dims;
    s->L = cache[0], s->K = cache[2], s->S = cache[3], s->H = cache[4];
    s->F = b[GATE_PROJ]->dims[1];
    s->kinds = b[ROPE]->dims[0];
    if (s->K < 1 || s->H < 2 || s->H % 2 || b[Q_PROJ]->dims[1] % s->H) return "attar_decode_layers: heads must be even";
    s->N = b[Q_PROJ]->dims[1] / s->H;
    const int64_t L = s->L, heads = s->N * s->H, small = s->K * s->H;
    const int64_t weights[][4] = {
        {Q_PROJ, L, heads, s->D},       {K_PROJ, L, small, s->D},   {V_PROJ, L, small, s->D},
        {O_PROJ, L, s->D, heads},       {GATE_PROJ, L, s->F, s->D}, {UP_PROJ, L, s->F, s->D},
        {DOWN_PROJ, L, s->D, s->F},     {INPUT_NORM, L, s->D, 0},   {POST_ATTENTION_NORM, L, s->D, 0},
        {KEY_POSITIONS, s->R, s->S, 0}, {LAYERS, L, 2, 0},
    };
    for (size_t i = 0; i < sizeof weights / sizeof *weights; i++)
        if (!is_shape(b[weights[i][0]], weights[i][1], weights[i][2], weights[i][3]))
            return "attar_decode_layers: the sizes of weights, positions and cache must agree";
    const int64_t optional[][2] = {{PRE_MLP_NORM, s->D}, {POST_MLP_NORM, s->D}, {Q_NORM, s->H}, {K_NORM, s->H}};
    for (size_t i = 0; i < sizeof optional / sizeof *optional; i++) {
        const xla_buffer *norm = b[optional[i][0]];
        if (norm->dims[0] != L || (norm->dims[1] != 0 && norm->dims[1] != optional[i][1]))
            return "attar_decode_layers: norms must be of the hidden size or of a head, or absent";
    }
    const int64_t *rope = b[ROPE]->dims;
    if (s->N % s->K || cache[1] != s->R || memcmp(cache, b[VALUES]->dims, 5 * sizeof *cache) || rope[1] != 2 ||
        rope[2] != s->R || rope[3] != s->H / 2 || b[POSITION]->dims[0] != s->R || b[CONSTANTS]->dims[0] != N_CONSTANTS)
        return "attar_decode_layers: the sizes of cache, rotations and heads must agree";
    return NULL;
}

// What is wrong with the numbers that are used as indices, or NULL.
static const char *check_indices(const step *s) {
    const int32_t slot = *(const int32_t *)s->in[SLOT];
    if (slot < 0 || slot >= s->S) return "attar_decode_layers: the cache has no slot for another token";
    const int32_t *layers = s->in[LAYERS];
    for (int64_t l = 0; l < s->L; l++)
        if (layers[2 * l + 1] < 0 || layers[2 * l + 1] >= s->kinds)
            return "attar_decode_layers: a layer has rotations that are not there";
    return NULL;
}

// A copy only where XLA could not give the result the argument's place.
static float *in_place(const xla_buffer *from, const xla_buffer *to) {
    size_t bytes = sizeof(float);
    for (int64_t i = 0; i < from->rank; i++) bytes *= (size_t)from->dims[i];
    if (to->data != from->data) memcpy(to->data, from->data, bytes);
    return to->data;
}

XLA_FUNCTION xla_error *attar_decode_layers(xla_call *call) {
    if (is_inquiry(call)) return NULL;
    const xla_buffer *in[N_ARGUMENTS], *out[N_RESULTS];
    static const int ranks[N_RESULTS] = {2, 5, 5};
    static const int same[N_RESULTS] = {INPUT, KEYS, VALUES};
    for (int i = 0; i < N_ARGUMENTS; i++)
        if (!(in[i] = buffer_of(&call->arguments, i, EXPECTED[i].dtype, EXPECTED[i].rank)))
            return refuse(call, "attar_decode_layers: an argument is missing or has another type");
    for (int i = 0; i < N_RESULTS; i++)
        if (!(out[i] = buffer_of(&call->results, i, XLA_F32, ranks[i])) ||
            memcmp(out[i]->dims, in[same[i]]->dims, (size_t)ranks[i] * sizeof *out[i]->dims))
            return refuse(call, "attar_decode_layers: a result is missing or has another type");
    step s = {.kernels = choose_kernels(), .pieces = 1};
    for (int i = 0; i < N_ARGUMENTS; i++) s.in[i] = in[i]->rank == 2 && in[i]->dims[1] == 0 ? NULL : in[i]->data;
    const char *wrong = read_sizes(&s, in);
    if (!wrong) wrong = check_indices(&s);
    if (wrong) return refuse(call, wrong);
    s.stream = in_place(in[INPUT], out[OUTPUT]);
    s.keys = in_place(in[KEYS], out[NEW_KEYS]);
    s.values = in_place(in[VALUES], out[NEW_VALUES]);
    const int64_t products = s.R * s.L * s.D * (2 * (s.N + s.K) * s.H + 3 * s.F);
    const int64_t n_threads = products < SMALL ? 1 : team_threads(call);
    void *room = make_room(&s, n_threads);
    if (!room) return refuse(call, "attar_decode_layers: no memory to work in");
    team *t = n_threads > 1 ? team_gather(call, n_threads, do_piece, &s) : NULL;
    if (t) s.pieces = n_threads * PIECES_A_THREAD;
    run_layers(&s, t);
    if (t) team_dismiss(t);
    free(room);
    return NULL;
}
