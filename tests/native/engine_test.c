// engine_test: what XLA calls (engine/csrc), called through a table of functions as XLA would give it, with a thread
// for each task. Meant to run under the sanitizers too. Exits 1 on a failure.
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "check.h"
#include "kernels.h"
#include "team.h"

enum { ROUNDS = 3000, MOST_PIECES = 64, MOST_TASKS = 8 };

xla_error *attar_few_rows(xla_call *call);

// --- XLA ---
typedef struct {
    void (*run)(void *);
    void *data;
} task;

static struct xla_context {
    int64_t n_threads;
    bool full;  // takes no task
    pthread_t threads[MOST_TASKS];
    int n_started;
} pool;

static struct xla_error {
    char message[200];
} last_error;

static void *run_task(void *data) {
    const task t = *(task *)data;
    free(data);
    t.run(t.data);
    return NULL;
}

static xla_error *create_error(xla_error_create *asked) {
    snprintf(last_error.message, sizeof last_error.message, "%s", asked->message);
    return &last_error;
}

static void destroy_error(xla_error_destroy *asked) { (void)asked; }

static xla_error *count_threads(xla_pool_num_threads *asked) {
    *asked->num_threads = pool.n_threads;
    return NULL;
}

static xla_error *schedule_task(xla_pool_schedule *asked) {
    if (pool.full) return &last_error;
    task *t = malloc(sizeof *t);
    *t = (task){asked->task, asked->data};
    pthread_create(&pool.threads[pool.n_started++], NULL, run_task, t);
    return NULL;
}

static void join_tasks(void) {
    while (pool.n_started) pthread_join(pool.threads[--pool.n_started], NULL);
}

typedef void (*any_function)(void);

static xla_call new_call(void) {
    static xla_api api = {.struct_size = sizeof api};
    api.functions[XLA_ERROR_CREATE] = (any_function)create_error;
    api.functions[XLA_ERROR_DESTROY] = (any_function)destroy_error;
    api.functions[XLA_POOL_SCHEDULE] = (any_function)schedule_task;
    api.functions[XLA_POOL_NUM_THREADS] = (any_function)count_threads;
    return (xla_call){.struct_size = sizeof(xla_call), .api = &api, .context = &pool, .stage = XLA_STAGE_EXECUTE};
}

// --- the team ---
// Plain memory, so that the sanitizer reports any ordering that the team does not give.
typedef struct {
    int64_t stage;
    int64_t times[MOST_PIECES];
    int64_t wrong[MOST_TASKS];
} counts;

static void count_piece(void *work, int64_t stage, int64_t piece, int64_t thread) {
    counts *c = work;
    c->wrong[thread] += stage != c->stage;
    c->times[piece] += 1;
}

// Each piece of each stage is done once, by whoever; nobody is waited for that did not begin.
static void test_team(check *c, int64_t n_threads, bool full) {
    SUBJECT(c, "team of %d%s", (int)n_threads, full ? ", nobody free" : "");
    pool.n_threads = n_threads;
    pool.full = full;
    const xla_call call = new_call();
    for (int64_t work = 0; work < 10; work++) {
        const int64_t useful = work / 2 < 1 ? 1 : work / 2, got = team_threads(&call, work, 2);
        EXPECT(c, got == (useful < n_threads ? useful : n_threads), "%d threads for %d", (int)got, (int)work);
    }
    counts counted = {0};
    team *t = team_gather(&call, n_threads, count_piece, &counted);
    for (int64_t round = 0; round < ROUNDS; round++) {
        const int64_t n_pieces = 1 + round * 7 % MOST_PIECES;
        counted.stage = round % 5;
        memset(counted.times, 0, sizeof counted.times);
        team_run(t, counted.stage, n_pieces);
        for (int64_t i = 0; i < MOST_PIECES; i++)
            EXPECT(c, counted.times[i] == (i < n_pieces), "piece %d of %d: %d times", (int)i, (int)n_pieces,
                   (int)counted.times[i]);
    }
    team_dismiss(t);
    join_tasks();
    pool.full = false;
    for (int i = 0; i < MOST_TASKS; i++)
        EXPECT(c, counted.wrong[i] == 0, "%d pieces of another stage", (int)counted.wrong[i]);
}

// --- the kernels ---
static float *random_floats(size_t count, float scale) {
    static uint32_t state = 1;
    float *values = new_floats(count ? count : 1);
    for (size_t i = 0; i < count; i++) {
        state = state * 1664525u + 1013904223u;
        values[i] = scale * ((float)(state >> 8) / 8388608.0f - 1.0f);
    }
    return values;
}

static void test_products(check *c, const engine_kernels *kernels) {
    const int64_t sizes[][3] = {{1, 1, 1}, {3, 8, 5}, {4, 17, 3}, {9, 40, 22}, {16, 64, 7}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const int64_t R = sizes[i][0], K = sizes[i][1], M = sizes[i][2];
        float *x = random_floats((size_t)(R * K), 1.0f), *w = random_floats((size_t)(M * K), 1.0f);
        float *y = new_floats((size_t)(R * M));
        const few_rows_product product = {x, w, y, R, K, M};
        kernels->multiply(&product, 0, M / 2);
        kernels->multiply(&product, M / 2, M);
        for (int64_t r = 0; r < R; r++)
            for (int64_t m = 0; m < M; m++) {
                double exact = 0.0, size = 1.0;
                for (int64_t k = 0; k < K; k++) {
                    exact += (double)x[r * K + k] * (double)w[m * K + k];
                    size += fabs((double)x[r * K + k] * (double)w[m * K + k]);
                }
                EXPECT(c, fabs((double)y[r * M + m] - exact) < 1e-6 * size, "%g for %g", (double)y[r * M + m], exact);
            }
        free(x), free(w), free(y);
    }
}

static void test_activations(check *c, const engine_kernels *kernels) {
    for (int gelu = 0; gelu < 2; gelu++) {
        enum { COUNT = 1003 };
        float *gate = random_floats(COUNT, 30.0f), *up = random_floats(COUNT, 2.0f);
        gate[0] = 200.0f, gate[1] = -200.0f, gate[2] = 1e-6f, gate[3] = 0.0f;
        float *found = new_floats(COUNT);
        memcpy(found, gate, COUNT * sizeof *gate);
        kernels->activate(found, up, COUNT, gelu);
        for (int i = 0; i < COUNT; i++) {
            const double x = (double)gate[i];
            const double share =
                gelu ? 0.5 * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))) : 1.0 / (1.0 + exp(-x));
            const double exact = x * share * (double)up[i];
            EXPECT(c, fabs((double)found[i] - exact) < 2e-6 * (fabs(exact) + 1e-3 + fabs(x) * 0.1), "%g: %g for %g", x,
                   (double)found[i], exact);
        }
        free(gate), free(up), free(found);
    }
}

// Against float64, with slots left out, a cap, and a head of no whole number of vectors.
static void test_attention(check *c, const engine_kernels *kernels) {
    const int64_t sizes[][4] = {{1, 2, 1, 1}, {3, 8, 9, 4}, {2, 20, 70, 33}, {4, 64, 40, 40}, {1, 104, 17, 16}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int capped = 0; capped < 2; capped++) {
            const int64_t G = sizes[i][0], H = sizes[i][1], S = sizes[i][2], n = sizes[i][3], stride = (n + 7) / 8 * 8;
            float *q = random_floats((size_t)(G * H), 2.0f), *keys = random_floats((size_t)(S * H), 2.0f);
            float *values = random_floats((size_t)(S * H), 1.0f), *out = new_floats((size_t)(G * H));
            float *scores = new_floats((size_t)(G * stride));
            int32_t *seen = new_items((size_t)n, sizeof *seen);
            for (int64_t s = 0; s < n; s++) seen[s] = (int32_t)(s * S / n);
            const float cap = capped ? 5.0f : 0.0f;
            kernels->attend(&(head_attention){q, keys, values, out, seen, scores, G, H, n, stride, cap});
            for (int64_t g = 0; g < G; g++)
                for (int64_t h = 0; h < H; h++) {
                    double total = 0.0, exact = 0.0;
                    for (int64_t s = 0; s < n; s++) {
                        double score = 0.0;
                        for (int64_t j = 0; j < H; j++) score += (double)q[g * H + j] * (double)keys[seen[s] * H + j];
                        if (capped) score = 5.0 * tanh(score / 5.0);
                        total += exp(score);
                        exact += exp(score) * (double)values[seen[s] * H + h];
                    }
                    exact /= total;
                    EXPECT(c, fabs((double)out[g * H + h] - exact) < 2e-5, "%g for %g", (double)out[g * H + h], exact);
                }
            kernels->attend(&(head_attention){q, keys, values, out, seen, scores, G, H, 0, stride, cap});
            for (int64_t j = 0; j < G * H; j++) EXPECT(c, out[j] == 0.0f, "%g where nothing is seen", (double)out[j]);
            free(q), free(keys), free(values), free(out), free(scores), free(seen);
        }
}

static void test_norms(check *c, const engine_kernels *kernels) {
    enum { COUNT = 37 };
    float *x = random_floats(COUNT, 3.0f), *gain = random_floats(COUNT, 1.0f), *y = new_floats(COUNT);
    double squares = 0.0;
    for (int i = 0; i < COUNT; i++) squares += (double)x[i] * (double)x[i];
    kernels->norm(x, gain, y, COUNT, 1e-5f, 1.0f);
    for (int i = 0; i < COUNT; i++) {
        const double exact = (double)x[i] / sqrt(squares / COUNT + 1e-5) * ((double)gain[i] + 1.0);
        EXPECT(c, fabs((double)y[i] - exact) < 1e-6 * (1.0 + fabs(exact)), "%g for %g", (double)y[i], exact);
    }
    free(x), free(gain), free(y);
}

// --- the product as XLA calls it ---
static void test_call(check *c, int64_t n_threads) {
    SUBJECT(c, "few rows on %d threads", (int)n_threads);
    pool.n_threads = n_threads;
    enum { R = 5, K = 96, M = 701 };
    float *x = random_floats(R * K, 1.0f), *w = random_floats(M * K, 1.0f), *y = new_floats(R * M);
    float *alone = new_floats(R * M);
    const few_rows_product product = {x, w, alone, R, K, M};
    choose_kernels()->multiply(&product, 0, M);
    int64_t x_dims[] = {R, K}, w_dims[] = {M, K}, y_dims[] = {R, M};
    xla_buffer buffers[] = {
        {sizeof(xla_buffer), NULL, XLA_F32, x, 2, x_dims},
        {sizeof(xla_buffer), NULL, XLA_F32, w, 2, w_dims},
        {sizeof(xla_buffer), NULL, XLA_F32, y, 2, y_dims},
    };
    int types[] = {XLA_ARGUMENT_BUFFER, XLA_ARGUMENT_BUFFER};
    void *in[] = {&buffers[0], &buffers[1]}, *out[] = {&buffers[2]};
    xla_call call = new_call();
    call.arguments = (xla_values){sizeof(xla_values), NULL, 2, types, in};
    call.results = (xla_values){sizeof(xla_values), NULL, 1, types, out};
    EXPECT(c, attar_few_rows(&call) == NULL, "%s", last_error.message);
    join_tasks();
    EXPECT(c, memcmp(y, alone, R * M * sizeof *y) == 0, "other bits than on one thread");
    w_dims[1] = K - 1;
    EXPECT(c, attar_few_rows(&call) != NULL && strstr(last_error.message, "sizes"), "%s", last_error.message);
    buffers[1].dtype = XLA_S32;
    EXPECT(c, attar_few_rows(&call) != NULL && strstr(last_error.message, "takes float32"), "%s", last_error.message);
    free(x), free(w), free(y), free(alone);
}

int main(void) {
    check c = {0};
    for (int64_t n = 1; n <= 4; n++) test_team(&c, n, false);
    test_team(&c, 3, true);
    const struct {
        const char *name;
        const engine_kernels *kernels;
    } tables[] = {{"portable", &engine_kernels_portable}, {"chosen", choose_kernels()}};
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++) {
        SUBJECT(&c, "%s kernels", tables[i].name);
        test_products(&c, tables[i].kernels);
        test_activations(&c, tables[i].kernels);
        test_attention(&c, tables[i].kernels);
        test_norms(&c, tables[i].kernels);
    }
    for (int64_t n = 1; n <= 4; n++) test_call(&c, n);
    printf("engine: %d failures\n", c.failures);
    return c.failures != 0;
}
