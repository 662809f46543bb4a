#include "common.h"

/* Short convolution.

   x (B, N, C), C = 2 H K + V, in bfloat16 where `half`; taps (S, C); initial (B, S - 1, C) or NULL; documents (B, N) or
   NULL, 0 that of `initial`; query, key (B, N, H K), value (B, N, V). A row is a sequence. */

typedef struct {
    num N, C, S, heads, width;
    int half;
    double shortest;
    const void *x;
    const real *taps, *initial;
    const int32_t *document;
    void *query, *key, *value;                       /* or their gradients */
    void *grad_x;
    real *grad_taps, *grad_initial;                  /* grad_taps (B, S, C) */
} short_convolution_call;

/* Where the input `lag` tokens before t stands in the ring of S inputs, or NULL: another document's. */
INLINE real *at_lag(const short_convolution_call *c, num row, num t, num lag, real *ring) {
    const int32_t *document = c->document ? c->document + row * c->N : NULL;
    num before = t - lag;
    if (document && (before < 0 ? 0 : document[before]) != document[t]) return NULL;
    return ring + ((before + c->S) % c->S) * c->C;
}

INLINE void first_inputs(const short_convolution_call *c, num row, real *ring) {
    for (num lag = 1; lag < c->S; lag++) {
        real *to = ring + ((c->S - lag) % c->S) * c->C;
        if (c->initial) memcpy(to, c->initial + (row * (c->S - 1) + c->S - 1 - lag) * c->C, sizeof(real) * c->C);
        else memset(to, 0, sizeof(real) * c->C);
    }
}

INLINE void convolved(const short_convolution_call *c, num row, num t, real *ring, real *restrict y) {
    num C = c->C;
    take(c->half, c->x, (row * c->N + t) * C, C, ring + (t % c->S) * C);
    for (num lag = 0; lag < c->S; lag++) {
        const real *restrict x = at_lag(c, row, t, lag, ring), *restrict tap = c->taps + lag * C;
        if (!lag) for (num i = 0; i < C; i++) y[i] = tap[i] * x[i];
        else if (x) for (num i = 0; i < C; i++) y[i] += tap[i] * x[i];
    }
}

int short_convolution_forward(const short_convolution_call *c, num first, num last) {
    num C = c->C, N = c->N, K = c->width, keys = c->heads * K, V = C - 2 * keys;
    real *ring = malloc(sizeof(real) * (c->S + 1) * C);
    if (!ring) return 1;
    real *y = ring + c->S * C;
    for (num row = first; row < last; row++) {
        first_inputs(c, row, ring);
        for (num t = 0; t < N; t++) {
            convolved(c, row, t, ring, y);
            for (num i = 0; i < C; i++) y[i] /= 1 + exponential(-y[i]);
            for (num head = 0; head < 2 * c->heads; head++) {
                real *part = y + head * K, square = 0;
                for (num i = 0; i < K; i++) square += part[i] * part[i];
                real length = (real)sqrt((double)square), scale = 1 / (length > (real)c->shortest ? length : (real)c->shortest);
                for (num i = 0; i < K; i++) part[i] *= scale;
            }
            num place = row * N + t;
            give(c->half, y, keys, c->query, place * keys);
            give(c->half, y + keys, keys, c->key, place * keys);
            give(c->half, y + 2 * keys, V, c->value, place * V);
        }
    }
    free(ring);
    return 0;
}

int short_convolution_backward(const short_convolution_call *c, num first, num last) {
    num C = c->C, N = c->N, S = c->S, K = c->width, keys = c->heads * K, V = C - 2 * keys;
    real *ring = malloc(sizeof(real) * (2 * S + 3) * C);
    if (!ring) return 1;
    real *to_ring = ring + S * C, *y = to_ring + S * C, *s = y + C, *g = s + C;
    for (num row = first; row < last; row++) {
        real *to_taps = c->grad_taps + row * S * C;
        memset(to_taps, 0, sizeof(real) * S * C);
        memset(to_ring, 0, sizeof(real) * S * C);
        first_inputs(c, row, ring);
        for (num t = 0; t < N; t++) {
            num place = row * N + t;
            convolved(c, row, t, ring, y);
            take(c->half, c->query, place * keys, keys, g);
            take(c->half, c->key, place * keys, keys, g + keys);
            take(c->half, c->value, place * V, V, g + 2 * keys);
            for (num i = 0; i < C; i++) s[i] = 1 / (1 + exponential(-y[i]));
            for (num head = 0; head < 2 * c->heads; head++) {
                real *to = g + head * K, *of = y + head * K, *open = s + head * K, square = 0, along = 0;
                for (num i = 0; i < K; i++) {
                    real one = of[i] * open[i];
                    square += one * one;
                    along += one * to[i];
                }
                real length = (real)sqrt((double)square), shortest = (real)c->shortest;
                int divided = length > shortest;
                real scale = 1 / (divided ? length : shortest), share = divided ? along * scale * scale : 0;
                for (num i = 0; i < K; i++) to[i] = (to[i] - share * of[i] * open[i]) * scale;
            }
            for (num i = 0; i < C; i++) g[i] *= s[i] * (1 + y[i] * (1 - s[i]));
            real *fresh = to_ring + (t % S) * C; /* of the token S before, which is given below; now this token's */
            memset(fresh, 0, sizeof(real) * C);
            for (num lag = 0; lag < S; lag++) {
                const real *restrict x = at_lag(c, row, t, lag, ring), *restrict tap = c->taps + lag * C;
                if (!x) continue;
                real *restrict to_x = to_ring + ((t - lag + S) % S) * C, *restrict to_tap = to_taps + lag * C;
                for (num i = 0; i < C; i++) { to_x[i] += tap[i] * g[i]; to_tap[i] += x[i] * g[i]; }
            }
            num done = t - S + 1; /* no later token reads it */
            if (done >= 0) give(c->half, to_ring + (done % S) * C, C, c->grad_x, (row * N + done) * C);
            else if (c->grad_initial)
                memcpy(c->grad_initial + (row * (S - 1) + done + S - 1) * C, to_ring + ((done + S) % S) * C, sizeof(real) * C);
        }
        for (num done = N - S + 1; done < N; done++) {
            if (done >= 0) give(c->half, to_ring + (done % S) * C, C, c->grad_x, (row * N + done) * C);
            else if (c->grad_initial)
                memcpy(c->grad_initial + (row * (S - 1) + done + S - 1) * C, to_ring + ((done + S) % S) * C, sizeof(real) * C);
        }
    }
    free(ring);
    return 0;
}
