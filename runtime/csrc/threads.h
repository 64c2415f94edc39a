// threads.h: a pool that runs one function on every thread and waits for all, with barriers inside the function.
//
// Waiting spins briefly, then yields, then sleeps on a condition variable, so a stolen core delays the others but does
// not burn them. The calling thread is worker 0; n_threads 1 starts no thread at all.
#ifndef ATTAR_THREADS_H
#define ATTAR_THREADS_H

#include "attar.h"

typedef struct attar_pool attar_pool;
typedef void (*attar_task)(void *context, int32_t thread, int32_t n_threads);

attar_status attar_pool_create(int32_t n_threads, attar_pool **out, attar_error *error);
void attar_pool_free(attar_pool *pool);
int32_t attar_pool_size(const attar_pool *pool);
void attar_pool_run(attar_pool *pool, attar_task task, void *context);
void attar_pool_barrier(attar_pool *pool);  // called by every thread inside a task

// Hands out the items of a phase in order, to whichever thread asks next: 0, 1, 2 ... The barrier that ends the phase
// starts again from 0, and so does a run.
int32_t attar_pool_take(attar_pool *pool);

// Usable cores (the process's affinity mask), at least 1.
int32_t attar_usable_cores(void);

// The share [*begin, *end) of n items, in units of `unit`, that falls to `thread`.
void attar_split(int32_t n, int32_t unit, int32_t thread, int32_t n_threads, int32_t *begin, int32_t *end);

#endif
