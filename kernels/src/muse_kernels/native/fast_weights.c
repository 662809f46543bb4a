#include "vectors.h"

/* Fast weights.

   q, k (B, N, H, K); v, o (B, N, H, M); g, b (B, N, H); resets (B, N) or NULL; states (B, H, K, M); all contiguous.
   A row is one head of one sequence. The columns of W do not meet, so that they are taken in strips of up to MOST_VECTORS
   vectors, whose rows lie one after the other, zeros behind the last column. */

typedef struct {
    num N, H, K, M, every;
    int delta, before;
    const real *q, *k, *v, *g, *b, *initial;
    const uint8_t *resets;
    real *o, *final, *kept;                       /* kept (B, H, ceil(N / every), K, M): W before every `every` tokens */
    const real *grad_o, *grad_final;
    real *grad_q, *grad_k, *grad_v, *grad_g, *grad_b, *grad_initial;
} fast_weights_call;

enum { MOST_VECTORS = 6 };
/* Sums of as many rows at a time, so that they wait less for each other, as the processor has registers for. */
#define SETS(S) ((S) <= 2 ? 4 : (S) <= 3 || BYTES == 64 ? 2 : 1)

INLINE void columns_in(const int S, num width, const real *from, vec *to) {
    real whole[MOST_VECTORS * LANES] __attribute__((aligned(BYTES)));
    for (int n = 0; n < S; n++) store((vec){0}, whole + n * V);
    memcpy(whole, from, sizeof(real) * width);
    for (int n = 0; n < S; n++) to[n] = load(whole + n * V);
}

INLINE void columns_out(const int S, num width, const vec *from, real *to) {
    real whole[MOST_VECTORS * LANES] __attribute__((aligned(BYTES)));
    for (int n = 0; n < S; n++) store(from[n], whole + n * V);
    memcpy(to, whole, sizeof(real) * width);
}

/* `to` = e W + k (b u)' with u = v - e W'k (delta) or v (hebbian); u is left in `u`, W'q of before or after in `o`. */
INLINE void token(const int S, num K, int delta, int before, const real *restrict q, const real *restrict k, const vec *v,
                  real e, real b, const real *W, real *to, vec *restrict u, vec *restrict o) {
    enum { MANY = 4 };
    const int sets = SETS(S);
    vec a[MANY][MOST_VECTORS], p[MANY][MOST_VECTORS], w[MOST_VECTORS];
    for (int x = 0; x < sets; x++)
        for (int n = 0; n < S; n++) a[x][n] = p[x][n] = (vec){0};
    num r = 0;
    if (delta || before) {
        for (; r + sets <= K; r += sets)
            for (int x = 0; x < sets; x++)
                for (int n = 0; n < S; n++) {
                    vec s = load(W + ((r + x) * S + n) * V);
                    a[x][n] = add_product(a[x][n], k[r + x], s);
                    if (before) p[x][n] = add_product(p[x][n], q[r + x], s);
                }
        for (; r < K; r++)
            for (int n = 0; n < S; n++) {
                vec s = load(W + (r * S + n) * V);
                a[0][n] = add_product(a[0][n], k[r], s);
                if (before) p[0][n] = add_product(p[0][n], q[r], s);
            }
    }
    for (int n = 0; n < S; n++) {
        for (int x = 1; x < sets; x++) a[0][n] += a[x][n];
        u[n] = delta ? v[n] - e * a[0][n] : v[n];
        w[n] = b * u[n];
    }
    for (r = 0; r + sets <= K; r += sets)
        for (int x = 0; x < sets; x++)
            for (int n = 0; n < S; n++) {
                vec s = add_product(e * load(W + ((r + x) * S + n) * V), k[r + x], w[n]);
                store(s, to + ((r + x) * S + n) * V);
                if (!before) p[x][n] = add_product(p[x][n], q[r + x], s);
            }
    for (; r < K; r++)
        for (int n = 0; n < S; n++) {
            vec s = add_product(e * load(W + (r * S + n) * V), k[r], w[n]);
            store(s, to + (r * S + n) * V);
            if (!before) p[0][n] = add_product(p[0][n], q[r], s);
        }
    for (int n = 0; n < S; n++) {
        for (int x = 1; x < sets; x++) p[0][n] += p[x][n];
        o[n] = p[0][n];
    }
}

INLINE void strip_in(const int S, num K, num M, num width, const real *from, real *W) {
    for (num r = 0; r < K; r++) {
        vec row[MOST_VECTORS];
        columns_in(S, width, from + r * M, row);
        for (int n = 0; n < S; n++) store(row[n], W + (r * S + n) * V);
    }
}

INLINE void strip_out(const int S, num K, num M, num width, const real *W, real *to) {
    for (num r = 0; r < K; r++) memcpy(to + r * M, W + r * S * V, sizeof(real) * width);
}

INLINE void forward_strip(const int S, const fast_weights_call *c, num row, num column, num width, real *W) {
    num N = c->N, H = c->H, K = c->K, M = c->M, sequence = row / H, head = row % H, pieces = (N + c->every - 1) / c->every;
    if (c->initial) strip_in(S, K, M, width, c->initial + row * K * M + column, W);
    else memset(W, 0, sizeof(real) * K * S * V);
    for (num t = 0; t < N; t++) {
        num place = (sequence * N + t) * H + head;
        vec v[MOST_VECTORS], u[MOST_VECTORS], o[MOST_VECTORS];
        if (c->kept && t % c->every == 0)
            strip_out(S, K, M, width, W, c->kept + ((row * pieces + t / c->every) * K) * M + column);
        if (c->resets && c->resets[sequence * N + t]) memset(W, 0, sizeof(real) * K * S * V);
        columns_in(S, width, c->v + place * M + column, v);
        token(S, K, c->delta, c->before, c->q + place * K, c->k + place * K, v, (real)exp((double)c->g[place]), c->b[place],
              W, W, u, o);
        columns_out(S, width, o, c->o + place * M + column);
    }
    strip_out(S, K, M, width, W, c->final + row * K * M + column);
}

/* dq += A o by rows, D += q o where read after the token, and k'D is added to dw. */
INLINE void read_back(const int S, num K, int before, const real *restrict q, const real *restrict k, const vec *o,
                      const real *A, real *D, real *restrict dq, vec *restrict dw) {
    for (num r = 0; r < K; r += V) {
        num count = K - r < V ? K - r : V;
        vec x[LANES];
        for (num i = 0; i < count; i++) {
            vec sum = (vec){0};
            for (int n = 0; n < S; n++) {
                num place = ((r + i) * S + n) * V;
                vec d = load(D + place);
                sum = add_products(sum, load(A + place), o[n]);
                if (!before) store(d = add_product(d, q[r + i], o[n]), D + place);
                dw[n] = add_product(dw[n], k[r + i], d);
            }
            x[i] = sum;
        }
        for (num i = count; i < V; i++) x[i] = (vec){0};
        vec all = sums_of(x);
        for (num i = 0; i < count; i++) dq[r + i] += all[i];
    }
}

/* dk += D w + W da by rows, D <- e D + k da', with q o' where read before the token; the sum of D W is added to de. */
INLINE void write_back(const int S, num K, int before, const real *restrict q, const real *restrict k, real e, const vec *o,
                       const vec *w, const vec *da, const real *W, real *D, real *restrict dk, vec *restrict de) {
    for (num r = 0; r < K; r += V) {
        num count = K - r < V ? K - r : V;
        vec x[LANES];
        for (num i = 0; i < count; i++) {
            vec sum = (vec){0};
            for (int n = 0; n < S; n++) {
                num place = ((r + i) * S + n) * V;
                vec d = load(D + place), earlier = load(W + place);
                sum = add_products(add_products(sum, d, w[n]), earlier, da[n]);
                de[n] = add_products(de[n], d, earlier);
                d = add_product(e * d, k[r + i], da[n]);
                if (before) d = add_product(d, q[r + i], o[n]);
                store(d, D + place);
            }
            x[i] = sum;
        }
        for (num i = count; i < V; i++) x[i] = (vec){0};
        vec all = sums_of(x);
        for (num i = 0; i < count; i++) dk[r + i] += all[i];
    }
}

/* P (every + 1, K, strip): W before each token of a piece, by running it again; D (K, strip) the gradient of W; U (every,
   strip) the u of each token; Z (K, strip) zeros. */
INLINE void backward_strip(const int S, const fast_weights_call *c, num row, num column, num width, real *P, real *D,
                           real *U, const real *Z) {
    num N = c->N, H = c->H, K = c->K, M = c->M, sequence = row / H, head = row % H, pieces = (N + c->every - 1) / c->every;
    num size = K * S * V;
    const int before = c->before;
    if (c->grad_final) strip_in(S, K, M, width, c->grad_final + row * K * M + column, D);
    else memset(D, 0, sizeof(real) * size);
    for (num piece = pieces - 1; piece >= 0; piece--) {
        num from = piece * c->every, count = N - from < c->every ? N - from : c->every;
        strip_in(S, K, M, width, c->kept + ((row * pieces + piece) * K) * M + column, P);
        for (num j = 0; j < count; j++) {
            num t = from + j, place = (sequence * N + t) * H + head;
            const real *W = c->resets && c->resets[sequence * N + t] ? Z : P + j * size;
            vec v[MOST_VECTORS], u[MOST_VECTORS], o[MOST_VECTORS];
            columns_in(S, width, c->v + place * M + column, v);
            token(S, K, c->delta, before, c->q + place * K, c->k + place * K, v, (real)exp((double)c->g[place]), c->b[place],
                  W, P + (j + 1) * size, u, o);
            for (int n = 0; n < S; n++) store(u[n], U + (j * S + n) * V);
        }
        for (num j = count - 1; j >= 0; j--) {
            num t = from + j, place = (sequence * N + t) * H + head;
            int reset = c->resets && c->resets[sequence * N + t];
            const real *W = reset ? Z : P + j * size, *A = P + (j + 1) * size; /* before and after the token */
            const real *q = c->q + place * K, *k = c->k + place * K;
            real b = c->b[place], e = (real)exp((double)c->g[place]);
            vec o[MOST_VECTORS], u[MOST_VECTORS], v[MOST_VECTORS], w[MOST_VECTORS], dw[MOST_VECTORS], da[MOST_VECTORS],
                de[MOST_VECTORS], dv[MOST_VECTORS], rate = {0}, decay = {0}, again = {0};
            columns_in(S, width, c->grad_o + place * M + column, o);
            columns_in(S, width, c->v + place * M + column, v);
            for (int n = 0; n < S; n++) {
                u[n] = load(U + (j * S + n) * V);
                w[n] = b * u[n];
                dw[n] = de[n] = (vec){0};
            }
            read_back(S, K, before, q, k, o, before ? W : A, D, c->grad_q + place * K, dw);
            for (int n = 0; n < S; n++) da[n] = c->delta ? -b * e * dw[n] : (vec){0};
            write_back(S, K, before, q, k, e, o, w, da, W, D, c->grad_k + place * K, de);
            for (int n = 0; n < S; n++) {
                dv[n] = b * dw[n];
                rate = add_products(rate, dw[n], u[n]);
                again = add_products(again, dw[n], v[n] - u[n]); /* e W'k = v - u */
                decay += de[n];
            }
            columns_out(S, width, dv, c->grad_v + place * M + column);
            c->grad_b[place] += sum_of(rate);
            c->grad_g[place] += e * sum_of(decay) - (c->delta ? b * sum_of(again) : 0);
            if (reset) memset(D, 0, sizeof(real) * size);
        }
    }
    strip_out(S, K, M, width, D, c->grad_initial + row * K * M + column);
}

#define BY_WIDTH(call)                                                                                                  \
    switch ((width + V - 1) / V) {                                                                                      \
    case 1: { enum { S = 1 }; call; break; }                                                                            \
    case 2: { enum { S = 2 }; call; break; }                                                                            \
    case 3: { enum { S = 3 }; call; break; }                                                                            \
    case 4: { enum { S = 4 }; call; break; }                                                                            \
    case 5: { enum { S = 5 }; call; break; }                                                                            \
    default: { enum { S = 6 }; call; break; }                                                                           \
    }

/* The columns of a strip: as few strips as there can be, and these as even as vectors allow. */
INLINE num strip_of(num M) {
    num vectors = (M + V - 1) / V, strips = (vectors + MOST_VECTORS - 1) / MOST_VECTORS;
    return strips ? (vectors + strips - 1) / strips * V : V;
}

int fast_weights_forward(const fast_weights_call *c, num first, num last) {
    num strip = strip_of(c->M);
    real *W = numbers(c->K * strip);
    if (!W) return 1;
    for (num row = first; row < last; row++)
        for (num column = 0; column < c->M; column += strip) {
            num width = c->M - column < strip ? c->M - column : strip;
            BY_WIDTH(forward_strip(S, c, row, column, width, W))
        }
    free(W);
    return 0;
}

/* The gradients of q, k, g and b are added to what is there, since strips share them. */
int fast_weights_backward(const fast_weights_call *c, num first, num last) {
    num strip = strip_of(c->M), size = c->K * strip;
    real *P = numbers((c->every + 3) * size + c->every * strip);
    if (!P) return 1;
    real *D = P + (c->every + 1) * size, *Z = D + size, *U = Z + size;
    memset(Z, 0, sizeof(real) * size);
    for (num row = first; row < last; row++)
        for (num column = 0; column < c->M; column += strip) {
            num width = c->M - column < strip ? c->M - column : strip;
            BY_WIDTH(backward_strip(S, c, row, column, width, P, D, U, Z))
        }
    free(P);
    return 0;
}
