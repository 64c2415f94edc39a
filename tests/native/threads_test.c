// threads_test: the pool's promises, meant to run under the thread sanitizer too. Exits 1 on a failure.
#include <stdatomic.h>
#include <string.h>
#include <time.h>

#include "check.h"
#include "threads.h"

enum { ROUNDS = 2000, PHASES = 50, MOST_THREADS = 8 };

// Plain memory, so that the sanitizer reports any ordering that the pool does not give.
typedef struct {
    attar_pool *pool;
    int64_t calls[MOST_THREADS];
    int64_t table[MOST_THREADS];
    int64_t wrong;
    int32_t n_threads;
} shared;

static void count_call(void *context, int32_t thread, int32_t n_threads) {
    shared *s = context;
    s->calls[thread] += 1;
    if (n_threads != s->n_threads) s->wrong += 1;
}

// Every run calls the task once on each thread, and run() returns after all of them.
static void test_run(check *c, shared *s) {
    SUBJECT(c, "run, %d threads", s->n_threads);
    for (int64_t round = 1; round <= ROUNDS; round++) {
        attar_pool_run(s->pool, count_call, s);
        for (int32_t t = 0; t < s->n_threads; t++) {
            EXPECT(c, s->calls[t] == round, "thread %d ran %lld of %lld times", t, (long long)s->calls[t],
                   (long long)round);
        }
    }
    EXPECT(c, s->wrong == 0, "n_threads was wrong %lld times", (long long)s->wrong);
}

// In each phase every thread writes its own entry; after the barrier all entries must be seen by all.
static void exchange(void *context, int32_t thread, int32_t n_threads) {
    shared *s = context;
    for (int64_t phase = 1; phase <= PHASES; phase++) {
        s->table[thread] = phase * (thread + 1);
        attar_pool_barrier(s->pool);
        for (int32_t t = 0; t < n_threads; t++) s->calls[thread] += s->table[t] != phase * (t + 1);
        attar_pool_barrier(s->pool);
    }
}

static void test_barrier(check *c, shared *s) {
    SUBJECT(c, "barrier, %d threads", s->n_threads);
    memset(s->calls, 0, sizeof s->calls);
    for (int round = 0; round < 20; round++) attar_pool_run(s->pool, exchange, s);
    for (int32_t t = 0; t < s->n_threads; t++) {
        EXPECT(c, s->calls[t] == 0, "thread %d saw %lld stale entries", t, (long long)s->calls[t]);
    }
}

enum { ITEMS = 1000 };

typedef struct {
    attar_pool *pool;
    int32_t seen[ITEMS];  // plain memory: each item is one thread's alone
} handout;

static void take_items(void *context, int32_t thread, int32_t n_threads) {
    handout *h = context;
    for (int32_t phase = 0; phase < 3; phase++) {
        for (int32_t i; (i = attar_pool_take(h->pool)) < ITEMS;) h->seen[i] += 1;
        if (phase < 2) attar_pool_barrier(h->pool);
    }
    (void)thread;
    (void)n_threads;
}

// Every item goes to one thread, once a phase, however the threads fare.
static void test_handout(check *c, attar_pool *pool) {
    SUBJECT(c, "items, %d threads", attar_pool_size(pool));
    handout h = {.pool = pool};
    for (int32_t round = 1; round <= 80; round++) {
        attar_pool_run(pool, take_items, &h);
        for (int32_t i = 0; i < ITEMS; i++) EXPECT(c, h.seen[i] == 3 * round, "item %d: %d", i, h.seen[i]);
    }
}

// Pauses long enough for the workers to fall asleep: they must wake up, and the pool must stop while they sleep.
static void test_sleep(check *c, shared *s) {
    SUBJECT(c, "sleep, %d threads", s->n_threads);
    memset(s->calls, 0, sizeof s->calls);
    for (int64_t round = 1; round <= 5; round++) {
        nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
        attar_pool_run(s->pool, count_call, s);
        for (int32_t t = 0; t < s->n_threads; t++) EXPECT(c, s->calls[t] == round, "thread %d did not wake", t);
    }
    nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
}

static void test_pool(check *c, int32_t n_threads) {
    shared s = {.n_threads = n_threads};
    attar_error error = {0};
    const attar_status status = attar_pool_create(n_threads, &s.pool, &error);
    EXPECT(c, status == ATTAR_OK, "%s", error.message);
    if (status != ATTAR_OK) return;
    EXPECT(c, attar_pool_size(s.pool) == n_threads, "size %d", attar_pool_size(s.pool));
    test_run(c, &s);
    test_barrier(c, &s);
    test_sleep(c, &s);
    test_handout(c, s.pool);
    attar_pool_free(s.pool);
}

static void test_arguments(check *c) {
    SUBJECT(c, "create");
    static const int32_t wrong[] = {0, -1, 1000000};
    for (int i = 0; i < 3; i++) {
        attar_pool *pool = NULL;
        attar_error error = {0};
        const attar_status status = attar_pool_create(wrong[i], &pool, &error);
        EXPECT(c, status == ATTAR_ERROR_ARGUMENT && pool == NULL, "n_threads %d gave status %d", wrong[i], status);
        EXPECT(c, strstr(error.message, "n_threads") != NULL, "message '%s'", error.message);
    }
    attar_pool_free(NULL);
    EXPECT(c, attar_usable_cores() >= 1, "%d cores", attar_usable_cores());
}

// The shares cover 0..n-1 once, in order, start at multiples of the unit, and differ by at most one unit.
static void test_split(check *c) {
    for (int32_t n = 0; n < 100; n += 7) {
        for (int32_t n_threads = 1; n_threads < 9; n_threads++) {
            SUBJECT(c, "split %d among %d", n, n_threads);
            int32_t next = 0, least = n, most = 0;
            for (int32_t t = 0; t < n_threads; t++) {
                int32_t begin, end;
                attar_split(n, 8, t, n_threads, &begin, &end);
                EXPECT(c, begin == next && end >= begin, "share %d is %d..%d after %d", t, begin, end, next);
                EXPECT(c, begin % 8 == 0 || begin == n, "share %d begins at %d", t, begin);
                least = end - begin < least ? end - begin : least;
                most = end - begin > most ? end - begin : most;
                next = end;
            }
            EXPECT(c, next == n, "shares end at %d", next);
            EXPECT(c, most - least <= 15, "shares of %d and %d", least, most);
        }
    }
}

int main(void) {
    static const int32_t sizes[] = {1, 2, 3, MOST_THREADS};
    check c = {0};
    test_arguments(&c);
    test_split(&c);
    for (int i = 0; i < 4; i++) test_pool(&c, sizes[i]);
    printf("threads: %d failures\n", c.failures);
    return c.failures != 0;
}
