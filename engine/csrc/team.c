#include "team.h"

#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

enum { SPINS = 2000 };  // looks before the core is given to others, some microseconds

// What can be taken: a round counted from 1, 0 before the first, in the upper half, and its next piece in the lower. A
// thread that was late to look takes a piece of whatever round it finds, and none of a past one.
typedef uint64_t ticket;
static const uint32_t DISMISSED = UINT32_MAX;

struct team {
    team_piece piece;
    void *work;
    atomic_uint_fast64_t next;
    atomic_llong stage, n_pieces;  // of the round, set before it can be taken
    atomic_llong done, holders, threads;
};

static inline uint32_t round_of(ticket t) { return (uint32_t)(t >> 32); }

static inline void relax(int *spins) {
    if (++*spins < SPINS) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    } else {
        sched_yield();
    }
}

static void let_go(team *t) {
    if (atomic_fetch_sub(&t->holders, 1) == 1) free(t);
}

// Takes a piece and does it; false if there is none now.
static bool take(team *t, int64_t thread) {
    ticket seen = atomic_load(&t->next);
    for (;;) {
        const int64_t piece = (int64_t)(seen & UINT32_MAX);
        if (round_of(seen) == 0 || round_of(seen) == DISMISSED) return false;
        // Both belong to the round that is seen if the exchange succeeds, as they change only between rounds.
        const int64_t stage = atomic_load(&t->stage), n_pieces = atomic_load(&t->n_pieces);
        if (piece >= n_pieces) return false;
        if (!atomic_compare_exchange_weak(&t->next, &seen, seen + 1)) continue;
        t->piece(t->work, stage, piece, thread);
        atomic_fetch_add(&t->done, 1);
        return true;
    }
}

static void help(void *data) {
    team *t = data;
    const int64_t thread = atomic_fetch_add(&t->threads, 1);
    int spins = 0;
    while (round_of(atomic_load(&t->next)) != DISMISSED) {
        if (take(t, thread))
            spins = 0;
        else
            relax(&spins);
    }
    let_go(t);
}

static int64_t pool_threads(const xla_call *call) {
    int64_t n = 1;
    xla_pool_num_threads asked = {sizeof asked, NULL, call->context, &n};
    xla_error *error = ((xla_pool_num_threads_function)call->api->functions[XLA_POOL_NUM_THREADS])(&asked);
    if (!error) return n;
    xla_error_destroy destroyed = {sizeof destroyed, NULL, error};
    ((xla_error_destroy_function)call->api->functions[XLA_ERROR_DESTROY])(&destroyed);
    return 1;
}

int64_t team_threads(const xla_call *call, int64_t work, int64_t least) {
    const int64_t useful = work / least;
    if (useful < 2) return 1;
    const int64_t n = pool_threads(call);
    return n < useful ? n : useful;
}

// Whether XLA's pool takes the team in.
static bool schedule(const xla_call *call, team *t) {
    xla_pool_schedule asked = {sizeof asked, NULL, call->context, help, t};
    xla_error *error = ((xla_pool_schedule_function)call->api->functions[XLA_POOL_SCHEDULE])(&asked);
    if (!error) return true;
    xla_error_destroy destroyed = {sizeof destroyed, NULL, error};
    ((xla_error_destroy_function)call->api->functions[XLA_ERROR_DESTROY])(&destroyed);
    return false;
}

team *team_gather(const xla_call *call, int64_t n_threads, team_piece piece, void *work) {
    team *t = malloc(sizeof *t);
    if (!t) return NULL;
    t->piece = piece;
    t->work = work;
    atomic_init(&t->next, 0);
    atomic_init(&t->stage, 0);
    atomic_init(&t->n_pieces, 0);
    atomic_init(&t->done, 0);
    atomic_init(&t->holders, n_threads);
    atomic_init(&t->threads, 1);
    for (int64_t i = 1; i < n_threads; i++)
        if (!schedule(call, t)) let_go(t);
    return t;
}

void team_run(team *t, int64_t stage, int64_t n_pieces) {
    const ticket round = round_of(atomic_load(&t->next)) + 1;
    atomic_store(&t->next, round << 32 | UINT32_MAX);  // closed: nobody takes a piece by the old count or the new one
    atomic_store(&t->done, 0);
    atomic_store(&t->stage, stage);
    atomic_store(&t->n_pieces, n_pieces);
    atomic_store(&t->next, round << 32);
    while (take(t, 0)) continue;
    int spins = 0;
    while (atomic_load(&t->done) < n_pieces) relax(&spins);
}

void team_dismiss(team *t) {
    atomic_store(&t->next, (ticket)DISMISSED << 32);
    let_go(t);
}
