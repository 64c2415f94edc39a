#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "error.h"

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

enum {
    MAX_THREADS = 256,
    CACHE_LINE = 64,
    SPINS = 200,    // pauses of 40-140 cycles before the first yield: 3-10 microseconds
    YIELDS = 2000,  // yields before an idle worker sleeps: about a millisecond where the core is free
};

typedef struct {
    attar_pool *pool;
    pthread_t handle;
    int32_t index;
} worker;

// Each group of atomics that different threads write has its own cache line.
struct attar_pool {
    int32_t n_threads;
    attar_task task;  // written before `epoch` is raised, read after it is seen raised
    void *context;
    worker *workers;  // [n_threads - 1]
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    _Alignas(CACHE_LINE) atomic_uint epoch;  // raised once a run; workers wait for it to change
    atomic_int sleepers;                     // workers in, or about to enter, the condition variable
    atomic_bool stop;
    _Alignas(CACHE_LINE) atomic_int running;  // workers still in the current task
    _Alignas(CACHE_LINE) atomic_int arrived;  // threads waiting at the barrier
    _Alignas(CACHE_LINE) atomic_uint phase;   // raised by the last thread to arrive
    _Alignas(CACHE_LINE) atomic_int next;     // the next work item of this phase
};

static void pause_cpu(void) {
#if defined(__x86_64__) || defined(__i386__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

// One step of waiting: a pause at first, then the rest of the time slice.
static void wait_step(int32_t step) {
    if (step < SPINS) {
        pause_cpu();
    } else {
        sched_yield();
    }
}

// The waiter raises `sleepers` and then reads `epoch`; attar_pool_run raises `epoch` and then reads `sleepers`. Both
// are sequentially consistent, so at least one sees the other and no wake-up is lost.
static void sleep_until_epoch(attar_pool *pool, unsigned seen) {
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->sleepers, 1);
    while (atomic_load(&pool->epoch) == seen) pthread_cond_wait(&pool->wake, &pool->mutex);
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->mutex);
}

static void wait_for_epoch(attar_pool *pool, unsigned seen) {
    for (int32_t step = 0; step < SPINS + YIELDS; step++) {
        if (atomic_load_explicit(&pool->epoch, memory_order_acquire) != seen) return;
        wait_step(step);
    }
    sleep_until_epoch(pool, seen);
}

static void *worker_main(void *argument) {
    const worker *self = argument;
    attar_pool *pool = self->pool;
    for (unsigned seen = 0;; seen++) {
        wait_for_epoch(pool, seen);
        if (atomic_load_explicit(&pool->stop, memory_order_relaxed)) return NULL;
        pool->task(pool->context, self->index, pool->n_threads);
        atomic_fetch_sub_explicit(&pool->running, 1, memory_order_release);
    }
}

static void raise_epoch(attar_pool *pool) {
    atomic_fetch_add(&pool->epoch, 1);
    if (atomic_load(&pool->sleepers) == 0) return;
    pthread_mutex_lock(&pool->mutex);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
}

void attar_pool_run(attar_pool *pool, attar_task task, void *context) {
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    if (pool->n_threads > 1) {
        pool->task = task;
        pool->context = context;
        atomic_store_explicit(&pool->running, pool->n_threads - 1, memory_order_relaxed);
        raise_epoch(pool);
    }
    task(context, 0, pool->n_threads);
    for (int32_t step = 0; atomic_load_explicit(&pool->running, memory_order_acquire) != 0; step += step < SPINS) {
        wait_step(step);
    }
}

int32_t attar_pool_take(attar_pool *pool) {
    if (pool->n_threads > 1) return atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed);
    const int32_t item = atomic_load_explicit(&pool->next, memory_order_relaxed);
    atomic_store_explicit(&pool->next, item + 1, memory_order_relaxed);
    return item;
}

void attar_pool_barrier(attar_pool *pool) {
    if (pool->n_threads == 1) {
        atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
        return;
    }
    const unsigned phase = atomic_load_explicit(&pool->phase, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&pool->arrived, 1, memory_order_acq_rel) == pool->n_threads - 1) {
        // Nobody arrives again, or takes an item, before `phase` rises.
        atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
        atomic_fetch_add_explicit(&pool->phase, 1, memory_order_release);
        return;
    }
    for (int32_t step = 0; atomic_load_explicit(&pool->phase, memory_order_acquire) == phase; step += step < SPINS) {
        wait_step(step);
    }
}

// Stops and joins the first `started` workers, then frees the pool.
static void pool_destroy(attar_pool *pool, int32_t started) {
    atomic_store_explicit(&pool->stop, true, memory_order_relaxed);
    raise_epoch(pool);
    for (int32_t i = 0; i < started; i++) pthread_join(pool->workers[i].handle, NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->mutex);
    free(pool->workers);
    free(pool);
}

static attar_pool *pool_allocate(int32_t n_threads) {
    attar_pool *pool = aligned_alloc(CACHE_LINE, sizeof *pool);  // sizeof is a multiple of its alignment
    worker *workers = calloc((size_t)n_threads, sizeof *workers);
    if (pool == NULL || workers == NULL) {
        free(pool);
        free(workers);
        return NULL;
    }
    memset(pool, 0, sizeof *pool);
    pool->n_threads = n_threads;
    pool->workers = workers;
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
    atomic_init(&pool->epoch, 0);
    atomic_init(&pool->sleepers, 0);
    atomic_init(&pool->stop, false);
    atomic_init(&pool->running, 0);
    atomic_init(&pool->arrived, 0);
    atomic_init(&pool->phase, 0);
    atomic_init(&pool->next, 0);
    return pool;
}

attar_status attar_pool_create(int32_t n_threads, attar_pool **out, attar_error *error) {
    *out = NULL;
    if (n_threads < 1 || n_threads > MAX_THREADS) {
        return attar_fail(error, ATTAR_ERROR_ARGUMENT, "n_threads must be 1 to %d, got %d", MAX_THREADS, n_threads);
    }
    attar_pool *pool = pool_allocate(n_threads);
    if (pool == NULL) return attar_fail(error, ATTAR_ERROR_MEMORY, "no memory for %d threads", n_threads);
    for (int32_t i = 0; i < n_threads - 1; i++) {
        pool->workers[i].pool = pool;
        pool->workers[i].index = i + 1;
        if (pthread_create(&pool->workers[i].handle, NULL, worker_main, &pool->workers[i]) != 0) {
            pool_destroy(pool, i);
            return attar_fail(error, ATTAR_ERROR_MEMORY, "the system starts only %d of %d threads; ask for fewer",
                              i + 1, n_threads);
        }
    }
    *out = pool;
    return ATTAR_OK;
}

void attar_pool_free(attar_pool *pool) {
    if (pool != NULL) pool_destroy(pool, pool->n_threads - 1);
}

int32_t attar_pool_size(const attar_pool *pool) { return pool->n_threads; }

int32_t attar_usable_cores(void) {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
#endif
    const long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online < 1 ? 1 : (int32_t)online;
}

void attar_split(int32_t n, int32_t unit, int32_t thread, int32_t n_threads, int32_t *begin, int32_t *end) {
    const int64_t units = ((int64_t)n + unit - 1) / unit;
    const int64_t first = units * thread / n_threads * unit, last = units * (thread + 1) / n_threads * unit;
    *begin = (int32_t)(first < n ? first : n);
    *end = (int32_t)(last < n ? last : n);
}
