#include "common.h"

/* Fast weights.

   q, k (B, N, H, K); v, o (B, N, H, M); g, b (B, N, H); resets (B, N) or NULL; states (B, H, K, M); all contiguous.
   A row is one head of one sequence. The columns of W do not meet, so that they are taken in strips of `W` columns. */

typedef struct {
    num N, H, K, M, every;
    int delta, before;
    const real *q, *k, *v, *g, *b, *initial;
    const uint8_t *resets;
    real *o, *final, *kept;                       /* kept (B, H, ceil(N / every), K, M): W before every `every` tokens */
    const real *grad_o, *grad_final;
    real *grad_q, *grad_k, *grad_v, *grad_g, *grad_b, *grad_initial;
} fast_weights_call;

/* `to` = e W + k (b u)' with u = v - e W'k (delta) or v (hebbian); u is left in `u`, W'q of before or after in `o`. */
INLINE void token(const int W, num K, int delta, int before, const real *restrict q, const real *restrict k,
                  const real *restrict v, real e, real b, const real *S, real *to, real *restrict u,
                  real *restrict o) {
    real w[64], a[64], a2[64], o2[64]; /* two sums, of even and odd rows, wait less for each other */
    for (int m = 0; m < W; m++) a[m] = a2[m] = o[m] = o2[m] = 0;
    num r = 0;
    if (before)
        for (; r < K; r++)
            for (int m = 0; m < W; m++) { a[m] += k[r] * S[r * W + m]; o[m] += q[r] * S[r * W + m]; }
    else if (delta) {
        for (; r + 1 < K; r += 2)
            for (int m = 0; m < W; m++) { a[m] += k[r] * S[r * W + m]; a2[m] += k[r + 1] * S[(r + 1) * W + m]; }
        for (; r < K; r++)
            for (int m = 0; m < W; m++) a[m] += k[r] * S[r * W + m];
    }
    for (int m = 0; m < W; m++) { u[m] = delta ? v[m] - e * (a[m] + a2[m]) : v[m]; w[m] = b * u[m]; }
    if (before) {
        for (r = 0; r < K; r++)
            for (int m = 0; m < W; m++) to[r * W + m] = e * S[r * W + m] + k[r] * w[m];
        return;
    }
    for (r = 0; r + 1 < K; r += 2)
        for (int m = 0; m < W; m++) {
            real s = e * S[r * W + m] + k[r] * w[m], s2 = e * S[(r + 1) * W + m] + k[r + 1] * w[m];
            to[r * W + m] = s;
            to[(r + 1) * W + m] = s2;
            o[m] += q[r] * s;
            o2[m] += q[r + 1] * s2;
        }
    for (; r < K; r++)
        for (int m = 0; m < W; m++) {
            real s = e * S[r * W + m] + k[r] * w[m];
            to[r * W + m] = s;
            o[m] += q[r] * s;
        }
    for (int m = 0; m < W; m++) o[m] += o2[m];
}

INLINE void load(const int W, num K, num M, num width, const real *from, real *S) {
    for (num r = 0; r < K; r++) {
        for (num m = 0; m < width; m++) S[r * W + m] = from[r * M + m];
        for (num m = width; m < W; m++) S[r * W + m] = 0;
    }
}

INLINE void store(const int W, num K, num M, num width, const real *S, real *to) {
    for (num r = 0; r < K; r++)
        for (num m = 0; m < width; m++) to[r * M + m] = S[r * W + m];
}

INLINE void forward_strip(const int W, const fast_weights_call *c, num row, num column, num width, real *S) {
    num N = c->N, H = c->H, K = c->K, M = c->M, sequence = row / H, head = row % H, pieces = (N + c->every - 1) / c->every;
    if (c->initial) load(W, K, M, width, c->initial + row * K * M + column, S);
    else memset(S, 0, sizeof(real) * K * W);
    for (num t = 0; t < N; t++) {
        num place = (sequence * N + t) * H + head;
        const real *q = c->q + place * K, *k = c->k + place * K;
        real v[64], u[64], o[64];
        if (c->kept && t % c->every == 0)
            store(W, K, M, width, S, c->kept + ((row * pieces + t / c->every) * K) * M + column);
        if (c->resets && c->resets[sequence * N + t]) memset(S, 0, sizeof(real) * K * W);
        for (int m = 0; m < W; m++) v[m] = m < width ? c->v[place * M + column + m] : 0;
        token(W, K, c->delta, c->before, q, k, v, (real)exp((double)c->g[place]), c->b[place], S, S, u, o);
        for (num m = 0; m < width; m++) c->o[place * M + column + m] = o[m];
    }
    store(W, K, M, width, S, c->final + row * K * M + column);
}

/* P (every + 1, K, W): W before each token of a piece, by running it again; D (K, W) the gradient of W; U (every, W)
   the u of each token; Z (K, W) zeros. */
INLINE void backward_strip(const int W, const fast_weights_call *c, num row, num column, num width, real *P, real *D,
                           real *U, const real *Z) {
    num N = c->N, H = c->H, K = c->K, M = c->M, sequence = row / H, head = row % H, pieces = (N + c->every - 1) / c->every;
    num size = K * W;
    const int before = c->before;
    if (c->grad_final) load(W, K, M, width, c->grad_final + row * K * M + column, D);
    else memset(D, 0, sizeof(real) * size);
    for (num piece = pieces - 1; piece >= 0; piece--) {
        num from = piece * c->every, count = N - from < c->every ? N - from : c->every;
        load(W, K, M, width, c->kept + ((row * pieces + piece) * K) * M + column, P);
        for (num j = 0; j < count; j++) {
            num t = from + j, place = (sequence * N + t) * H + head;
            real v[64], o[64];
            const real *S = c->resets && c->resets[sequence * N + t] ? Z : P + j * size;
            for (int m = 0; m < W; m++) v[m] = m < width ? c->v[place * M + column + m] : 0;
            token(W, K, c->delta, c->before, c->q + place * K, c->k + place * K, v, (real)exp((double)c->g[place]),
                  c->b[place], S, P + (j + 1) * size, U + j * W, o);
        }
        for (num j = count - 1; j >= 0; j--) {
            num t = from + j, place = (sequence * N + t) * H + head;
            int reset = c->resets && c->resets[sequence * N + t];
            const real *S = reset ? Z : P + j * size, *A = P + (j + 1) * size; /* W before and after the token */
            const real *restrict q = c->q + place * K, *restrict k = c->k + place * K, *u = U + j * W;
            real *restrict dq = c->grad_q + place * K, *restrict dk = c->grad_k + place * K;
            real b = c->b[place], e = (real)exp((double)c->g[place]);
            real o[64], w[64], dw[64], da[64], de[64], again = 0, rate = 0, decay = 0;
            for (int m = 0; m < W; m++) {
                o[m] = m < width ? c->grad_o[place * M + column + m] : 0;
                w[m] = b * u[m];
                dw[m] = de[m] = 0;
            }
            if (before)
                for (num r = 0; r < K; r++) {
                    real s = 0;
                    for (int m = 0; m < W; m++) { s += S[r * W + m] * o[m]; dw[m] += k[r] * D[r * W + m]; }
                    dq[r] += s;
                }
            else
                for (num r = 0; r < K; r++) {
                    real s = 0;
                    for (int m = 0; m < W; m++) {
                        real d = D[r * W + m] + q[r] * o[m];
                        D[r * W + m] = d;
                        s += A[r * W + m] * o[m];
                        dw[m] += k[r] * d;
                    }
                    dq[r] += s;
                }
            for (int m = 0; m < W; m++) da[m] = c->delta ? -b * e * dw[m] : 0;
            for (num r = 0; r < K; r++) {
                real s = 0;
                for (int m = 0; m < W; m++) {
                    real d = D[r * W + m], earlier = S[r * W + m];
                    s += d * w[m] + earlier * da[m];
                    de[m] += d * earlier;
                    D[r * W + m] = e * d + k[r] * da[m];
                }
                dk[r] += s;
            }
            if (before)
                for (num r = 0; r < K; r++)
                    for (int m = 0; m < W; m++) D[r * W + m] += q[r] * o[m];
            for (num m = 0; m < width; m++) c->grad_v[place * M + column + m] = b * dw[m];
            for (int m = 0; m < W; m++) { rate += dw[m] * u[m]; decay += de[m]; }
            if (c->delta) /* e W'k = v - u */
                for (num m = 0; m < width; m++) again += dw[m] * (c->v[place * M + column + m] - u[m]);
            c->grad_b[place] += rate;
            c->grad_g[place] += e * decay - b * again;
            if (reset) memset(D, 0, sizeof(real) * size);
        }
    }
    store(W, K, M, width, D, c->grad_initial + row * K * M + column);
}

#define BY_WIDTH(call)                                                                                                  \
    if (width > 48) { enum { W = 64 }; call; }                                                                          \
    else if (width > 32) { enum { W = 48 }; call; }                                                                     \
    else if (width > 16) { enum { W = 32 }; call; }                                                                     \
    else { enum { W = 16 }; call; }

int fast_weights_forward(const fast_weights_call *c, num first, num last) {
    real *S = malloc(sizeof(real) * c->K * 64);
    if (!S) return 1;
    for (num row = first; row < last; row++)
        for (num column = 0; column < c->M; column += 64) {
            num width = c->M - column < 64 ? c->M - column : 64;
            BY_WIDTH(forward_strip(W, c, row, column, width, S))
        }
    free(S);
    return 0;
}

/* The gradients of q, k, g and b are added to what is there, since strips share them. */
int fast_weights_backward(const fast_weights_call *c, num first, num last) {
    real *P = calloc(((c->every + 3) * c->K + c->every) * 64, sizeof(real));
    if (!P) return 1;
    real *D = P + (c->every + 1) * c->K * 64, *Z = D + c->K * 64, *U = Z + c->K * 64;
    for (num row = first; row < last; row++)
        for (num column = 0; column < c->M; column += 64) {
            num width = c->M - column < 64 ? c->M - column : 64;
            BY_WIDTH(backward_strip(W, c, row, column, width, P, D, U, Z))
        }
    free(P);
    return 0;
}
