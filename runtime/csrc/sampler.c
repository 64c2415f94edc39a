// Draws tokens. Everything is done in double by plain arithmetic, an exponential of our own included, so that a seed
// draws the same tokens on every platform, whatever its C library.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"

typedef struct {
    double weight;  // exp((logit - largest logit) / temperature)
    float logit;
    int32_t id;
} candidate;

struct attar_sampler {
    attar_sampler_params params;
    int32_t n_vocab;
    uint64_t state[4];
    candidate *candidates;  // [n_vocab]
};

// --- random numbers -----------------------------------------------------------------------------------------------

// splitmix64 (Steele, Lea & Flood, 2014, OOPSLA), which the authors of xoshiro advise for seeding.
static uint64_t next_seed(uint64_t *seed) {
    uint64_t z = *seed += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static uint64_t rotate(uint64_t x, int32_t bits) { return (x << bits) | (x >> (64 - bits)); }

// xoshiro256++ 1.0 (Blackman & Vigna, 2019, arXiv:1805.01407).
static uint64_t next_random(uint64_t s[4]) {
    const uint64_t result = rotate(s[0] + s[3], 23) + s[0], t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate(s[3], 45);
    return result;
}

// Uniform in [0, 1), 53 bits.
static double next_uniform(attar_sampler *s) { return (double)(next_random(s->state) >> 11) * 0x1p-53; }

// --- weights ------------------------------------------------------------------------------------------------------

// exp(x) for x <= 0, to about 1e-15: 2^n e^r with |r| <= ln(2) / 2, e^r by its Taylor series.
static double exp_negative(double x) {
    if (!(x > -700.0)) return 0.0;
    const double n = floor(x * 1.4426950408889634 + 0.5), r = x - n * 0.6931471805599453;
    double sum = 1.0, term = 1.0;
    for (int32_t i = 1; i < 16; i++) {
        term *= r / i;
        sum += term;
    }
    return ldexp(sum, (int)n);
}

// The lowest id of the largest logit. NaN never wins; all NaN gives 0.
static int32_t largest(const float *logits, int32_t n) {
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++)
        if (logits[i] > logits[best] || (isnan(logits[best]) && !isnan(logits[i]))) best = i;
    return best;
}

static double weigh(attar_sampler *s, const float *logits, float top) {
    double total = 0.0;
    for (int32_t i = 0; i < s->n_vocab; i++) {
        const double weight = isnan(logits[i]) ? 0.0 : exp_negative(((double)logits[i] - top) / s->params.temperature);
        s->candidates[i] = (candidate){weight, isnan(logits[i]) ? -INFINITY : logits[i], i};
        total += weight;
    }
    return total;
}

// --- the most likely candidates, in order ---------------------------------------------------------------------------

// Largest logit first, then lowest id: a total order, so the heap's shape never shows.
static bool comes_first(const candidate *a, const candidate *b) {
    return a->logit > b->logit || (a->logit == b->logit && a->id < b->id);
}

static void sift_down(candidate *heap, int32_t n, int32_t at) {
    const candidate moved = heap[at];
    for (int32_t child = 2 * at + 1; child < n; child = 2 * at + 1) {
        if (child + 1 < n && comes_first(&heap[child + 1], &heap[child])) child++;
        if (!comes_first(&heap[child], &moved)) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moved;
}

// Moves the first of heap [n] to heap[n - 1] and mends the rest.
static const candidate *pop(candidate *heap, int32_t n) {
    const candidate first = heap[0];
    heap[0] = heap[n - 1];
    if (n > 1) sift_down(heap, n - 1, 0);
    heap[n - 1] = first;
    return &heap[n - 1];
}

// Orders candidates by popping, until the rules are met; they end up, best first, at the array's end, backwards.
// Returns how many are kept and their total weight: top_k first, then top_p of what top_k kept, then min_p.
static int32_t keep_likeliest(attar_sampler *s, double total, double *kept_weight) {
    const int32_t n = s->n_vocab;
    const int32_t k = s->params.top_k > 0 && s->params.top_k < n ? s->params.top_k : n;
    for (int32_t i = n / 2 - 1; i >= 0; i--) sift_down(s->candidates, n, i);
    int32_t popped = 0;
    if (k < n) {
        total = 0.0;
        while (popped < k) total += pop(s->candidates, n - popped)->weight, popped++;
    }
    double sum = 0.0;
    for (int32_t kept = 0; kept < k; kept++) {
        if (kept == popped) pop(s->candidates, n - popped), popped++;
        const double weight = s->candidates[n - 1 - kept].weight;
        const bool enough = sum >= (double)s->params.top_p * total || weight < (double)s->params.min_p;
        if (kept > 0 && (enough || weight <= 0.0)) {
            *kept_weight = sum;
            return kept;
        }
        sum += weight;
    }
    *kept_weight = sum;
    return k;
}

// --- the public calls ---------------------------------------------------------------------------------------------

static attar_status check_params(const attar_sampler_params *p, int32_t n_vocab, attar_error *error) {
    if (n_vocab < 1) return attar_fail(error, ATTAR_ERROR_ARGUMENT, "n_vocab must be at least 1, got %d", n_vocab);
    if (!(p->temperature >= 0.0F) || isinf(p->temperature))
        return attar_fail(error, ATTAR_ERROR_ARGUMENT, "temperature must be 0 (greedy) or more, got %g",
                          (double)p->temperature);
    if (p->top_k < 0)
        return attar_fail(error, ATTAR_ERROR_ARGUMENT, "top_k must be 0 (keep all) or more, got %d", p->top_k);
    if (!(p->top_p > 0.0F && p->top_p <= 1.0F))
        return attar_fail(error, ATTAR_ERROR_ARGUMENT, "top_p must be above 0 and at most 1, got %g", (double)p->top_p);
    if (!(p->min_p >= 0.0F && p->min_p <= 1.0F))
        return attar_fail(error, ATTAR_ERROR_ARGUMENT, "min_p must be 0 to 1, got %g", (double)p->min_p);
    return ATTAR_OK;
}

attar_status attar_sampler_create(int32_t n_vocab, const attar_sampler_params *params, uint64_t seed,
                                  attar_sampler **out, attar_error *error) {
    *out = NULL;
    attar_status status = check_params(params, n_vocab, error);
    if (status != ATTAR_OK) return status;
    attar_sampler *s = calloc(1, sizeof *s);
    if (s) s->candidates = malloc((size_t)n_vocab * sizeof *s->candidates);
    if (!s || !s->candidates) {
        attar_sampler_free(s);
        return attar_fail(error, ATTAR_ERROR_MEMORY, "out of memory for %d candidates", n_vocab);
    }
    s->params = *params;
    s->n_vocab = n_vocab;
    for (int32_t i = 0; i < 4; i++) s->state[i] = next_seed(&seed);
    *out = s;
    return ATTAR_OK;
}

void attar_sampler_free(attar_sampler *sampler) {
    if (sampler) free(sampler->candidates);
    free(sampler);
}

int32_t attar_sampler_draw(attar_sampler *sampler, const float *logits) {
    const int32_t n = sampler->n_vocab, best = largest(logits, n);
    const float top = logits[best];
    if (sampler->params.temperature == 0.0F || isnan(top) || isinf(top)) return best;
    double total = weigh(sampler, logits, top);
    const bool filtered = sampler->params.top_k > 0 || sampler->params.top_p < 1.0F || sampler->params.min_p > 0.0F;
    const int32_t kept = filtered ? keep_likeliest(sampler, total, &total) : n;
    const double target = next_uniform(sampler) * total;
    double sum = 0.0;
    for (int32_t i = 0; i < kept; i++) {
        const candidate *c = &sampler->candidates[filtered ? n - 1 - i : i];
        sum += c->weight;
        if (sum > target) return c->id;
    }
    return best;  // only by rounding: the sum fell a hair short of the total
}
