// One token of every row through all layers of a decoder, as XLA calls it: a step of decoding is then one function in
// place of some twenty a layer, whose threads stay awake from one product to the next.
#include "call_values.h"
#include "decode_step.h"

#include <stdlib.h>
#include <string.h>

// Multiplications of all layers that are worth a thread: less is done before another has begun.
static const int64_t WORTH_A_THREAD = 250000;

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
    if ((b[PRE_MLP_NORM]->dims[1] == 0) != (b[POST_MLP_NORM]->dims[1] == 0))
        return "attar_decode_layers: the norms before and behind the MLP come together";
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
    const int64_t n_threads = team_threads(call, products, WORTH_A_THREAD);
    void *room = make_room(&s, n_threads);
    if (!room) return refuse(call, "attar_decode_layers: no memory to work in");
    team *t = n_threads > 1 ? team_gather(call, n_threads, decode_piece, &s) : NULL;
    if (t) s.pieces = n_threads * TEAM_PIECES;
    run_layers(&s, t);
    if (t) team_dismiss(t);
    free(room);
    return NULL;
}
