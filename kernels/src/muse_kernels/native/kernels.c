/* Recurrences of muse-kernels for CPUs, one row after the other and one token after the other.

   Compiled twice, with BITS = 32 and BITS = 64. Complex numbers are pairs (real, imaginary). Every function
   works on rows first <= row < last, so that threads can share the rows. Gradients of complex numbers are torch's: for
   w = f(v) the gradient of v is that of w times the conjugate of f'(v). Source: mathematics 1 and 3.

   Plain loops whose lengths are multiples of LANES, for the compiler to make vectors of. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int64_t num;
#if BITS == 32
typedef float real;
typedef uint32_t bits;
#define ROUND rintf
#define MOST 87.0f
#define OFFSET 127
#define MANTISSA 23
#else
typedef double real;
typedef uint64_t bits;
#define ROUND rint
#define MOST 708.0
#define OFFSET 1023
#define MANTISSA 52
#endif

#define LANES 16
#define INLINE static inline __attribute__((always_inline))

/* ------------------------------------------------------------------------------------------------ fast weights

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

/* --------------------------------------------------------------------------------------------------- resolvent

   theta_i = 1 / (a_i - z - p_i theta_{i-1}),  y_i = theta_i (x_i - l_i y_{i-1}).  A row is one sequence; its H heads
   are side by side: a, theta (R, N, H), z, theta_{-1} (R, H), y (R, N, H, M), y_{-1} (R, H, M) complex; x like y, real
   or complex. p and l (R, N, H) complex, or (R, 1, H) where `fixed`: the same at every site. M may be 0. */

typedef struct {
    num N, H, M;
    int fixed, complex_x;
    const real *a, *z, *p, *l, *x, *theta_before, *y_before;
    real *theta, *y;
    const real *grad_theta, *grad_y;
    real *grad_a, *grad_z, *grad_p, *grad_l, *grad_x, *grad_theta_before, *grad_y_before;
} resolvent_call;

/* One complex number of a head to each of its M values. */
INLINE void spread(num H, num M, const real *from, real *re, real *im) {
    for (num h = 0; h < H; h++)
        for (num m = 0; m < M; m++) { re[h * M + m] = from[2 * h]; im[h * M + m] = from[2 * h + 1]; }
}

int resolvent_forward(const resolvent_call *c, num first, num last) {
    num N = c->N, H = c->H, M = c->M, J = H * M;
    real *work = malloc(sizeof(real) * (4 * J + 1));
    if (!work) return 1;
    real *tr = work, *ti = tr + J, *lr = ti + J, *li = lr + J;
    for (num row = first; row < last; row++) {
        const real *before = c->theta_before + row * H * 2, *z = c->z + row * H * 2, *y_before = c->y_before + row * J * 2;
        for (num i = 0; i < N; i++) {
            num place = row * N + i, coupled = c->fixed ? row : place;
            const real *restrict a = c->a + place * H * 2, *restrict p = c->p + coupled * H * 2;
            real *restrict theta = c->theta + place * H * 2;
            for (num h = 0; h < H; h++) {
                real br = before[2 * h], bi = before[2 * h + 1];
                real dr = a[2 * h] - z[2 * h] - (p[2 * h] * br - p[2 * h + 1] * bi);
                real di = a[2 * h + 1] - z[2 * h + 1] - (p[2 * h] * bi + p[2 * h + 1] * br);
                /* Divided by the larger part first: the square of neither overflows or vanishes. */
                real ar = dr < 0 ? -dr : dr, ai = di < 0 ? -di : di, large = ar > ai ? ar : ai;
                real ur = dr / large, ui = di / large, scale = 1 / (large * (ur * ur + ui * ui));
                theta[2 * h] = ur * scale;
                theta[2 * h + 1] = -ui * scale;
            }
            before = theta;
            if (!M) continue;
            spread(H, M, theta, tr, ti);
            if (i == 0 || !c->fixed) spread(H, M, c->l + coupled * H * 2, lr, li);
            real *restrict y = c->y + place * J * 2;
            if (c->complex_x) {
                const real *restrict x = c->x + place * J * 2;
                for (num j = 0; j < J; j++) {
                    real ur = x[2 * j] - (lr[j] * y_before[2 * j] - li[j] * y_before[2 * j + 1]);
                    real ui = x[2 * j + 1] - (lr[j] * y_before[2 * j + 1] + li[j] * y_before[2 * j]);
                    y[2 * j] = tr[j] * ur - ti[j] * ui;
                    y[2 * j + 1] = tr[j] * ui + ti[j] * ur;
                }
            } else {
                const real *restrict x = c->x + place * J;
                for (num j = 0; j < J; j++) {
                    real ur = x[j] - (lr[j] * y_before[2 * j] - li[j] * y_before[2 * j + 1]);
                    real ui = -(lr[j] * y_before[2 * j + 1] + li[j] * y_before[2 * j]);
                    y[2 * j] = tr[j] * ur - ti[j] * ui;
                    y[2 * j + 1] = tr[j] * ui + ti[j] * ur;
                }
            }
            y_before = y;
        }
    }
    free(work);
    return 0;
}

int resolvent_backward(const resolvent_call *c, num first, num last) {
    num N = c->N, H = c->H, M = c->M, J = H * M;
    real *work = calloc(10 * J + 6 * H + 1, sizeof(real));
    if (!work) return 1;
    real *tr = work, *ti = tr + J, *lr = ti + J, *li = lr + J, *gr = li + J, *gi = gr + J, *sr = gi + J, *si = sr + J;
    real *vr = si + J, *vi = vr + J, *carry = vi + J, *of_theta = carry + 2 * H, *of_l = of_theta + 2 * H; /* gr, gi: gradient carried to y */
    for (num row = first; row < last; row++) {
        const real *theta_before = c->theta_before + row * H * 2, *y_before = c->y_before + row * J * 2;
        memset(gr, 0, sizeof(real) * 2 * J);
        memset(carry, 0, sizeof(real) * 2 * H);
        memset(c->grad_z + row * H * 2, 0, sizeof(real) * 2 * H);
        if (c->fixed) {
            memset(c->grad_p + row * H * 2, 0, sizeof(real) * 2 * H);
            if (M) memset(c->grad_l + row * H * 2, 0, sizeof(real) * 2 * H);
        }
        for (num i = N - 1; i >= 0; i--) {
            num place = row * N + i, coupled = c->fixed ? row : place;
            const real *theta = c->theta + place * H * 2, *p = c->p + coupled * H * 2;
            const real *tb = i ? theta - 2 * H : theta_before;
            for (num h = 0; h < 2 * H; h++) of_theta[h] = c->grad_theta[place * H * 2 + h] + carry[h];
            if (M) {
                const real *restrict yb = i ? c->y + (place - 1) * J * 2 : y_before;
                const real *restrict gy = c->grad_y + place * J * 2;
                const real *restrict x = c->x + place * J * (c->complex_x ? 2 : 1);
                real *restrict gx = c->grad_x + place * J * (c->complex_x ? 2 : 1);
                spread(H, M, theta, tr, ti);
                if (i == N - 1 || !c->fixed) spread(H, M, c->l + coupled * H * 2, lr, li);
                for (num j = 0; j < J; j++) {
                    real xr = c->complex_x ? x[2 * j] : x[j], xi = c->complex_x ? x[2 * j + 1] : 0;
                    real Gr = gy[2 * j] + gr[j], Gi = gy[2 * j + 1] + gi[j];
                    real ur = xr - (lr[j] * yb[2 * j] - li[j] * yb[2 * j + 1]);
                    real ui = xi - (lr[j] * yb[2 * j + 1] + li[j] * yb[2 * j]);
                    real wr = Gr * tr[j] + Gi * ti[j], wi = Gi * tr[j] - Gr * ti[j]; /* gradient of u */
                    sr[j] = Gr * ur + Gi * ui;                                       /* share of theta's gradient */
                    si[j] = Gi * ur - Gr * ui;
                    vr[j] = -(wr * yb[2 * j] + wi * yb[2 * j + 1]); /* share of l's gradient */
                    vi[j] = -(wi * yb[2 * j] - wr * yb[2 * j + 1]);
                    if (c->complex_x) { gx[2 * j] = wr; gx[2 * j + 1] = wi; } else gx[j] = wr;
                    gr[j] = -(wr * lr[j] + wi * li[j]);
                    gi[j] = -(wi * lr[j] - wr * li[j]);
                }
                real *gl = c->fixed ? c->grad_l + row * H * 2 : c->grad_l + place * H * 2;
                for (num h = 0; h < H; h++) {
                    real dr = 0, di = 0, er = 0, ei = 0;
                    for (num m = h * M; m < (h + 1) * M; m++) { dr += sr[m]; di += si[m]; er += vr[m]; ei += vi[m]; }
                    of_theta[2 * h] += dr;
                    of_theta[2 * h + 1] += di;
                    of_l[2 * h] = er;
                    of_l[2 * h + 1] = ei;
                }
                for (num h = 0; h < 2 * H; h++) gl[h] = c->fixed ? gl[h] + of_l[h] : of_l[h];
            }
            real *restrict ga = c->grad_a + place * H * 2, *restrict gz = c->grad_z + row * H * 2;
            real *restrict gp = c->grad_p + coupled * H * 2;
            for (num h = 0; h < H; h++) {
                real t = theta[2 * h], s = theta[2 * h + 1], qr = t * t - s * s, qi = 2 * t * s;
                real Gr = of_theta[2 * h], Gi = of_theta[2 * h + 1];
                real dr = -(Gr * qr + Gi * qi), di = -(Gi * qr - Gr * qi); /* gradient of 1 / theta */
                ga[2 * h] = dr;
                ga[2 * h + 1] = di;
                gz[2 * h] -= dr;
                gz[2 * h + 1] -= di;
                real er = -(dr * tb[2 * h] + di * tb[2 * h + 1]), ei = -(di * tb[2 * h] - dr * tb[2 * h + 1]);
                gp[2 * h] = c->fixed ? gp[2 * h] + er : er;
                gp[2 * h + 1] = c->fixed ? gp[2 * h + 1] + ei : ei;
                carry[2 * h] = -(dr * p[2 * h] + di * p[2 * h + 1]);
                carry[2 * h + 1] = -(di * p[2 * h] - dr * p[2 * h + 1]);
            }
        }
        memcpy(c->grad_theta_before + row * H * 2, carry, sizeof(real) * 2 * H);
        for (num j = 0; j < J; j++) {
            c->grad_y_before[(row * J + j) * 2] = gr[j];
            c->grad_y_before[(row * J + j) * 2 + 1] = gi[j];
        }
    }
    free(work);
    return 0;
}

/* -------------------------------------------------------------- what the functions of single tokens have in common */

/* Without branches, so that loops around it are vectorised. NaN stays NaN; beyond what a real holds the last it holds. */
INLINE real exponential(real x) {
    x = x > MOST ? MOST : x;
    x = x < -MOST ? -MOST : x;
    int32_t n = (int32_t)ROUND(x * (real)1.4426950408889634);
    real r = x - n * (real)0.6931471805599453, sum = 1, scale; /* |r| <= log(2) / 2: Taylor's series to rounding */
    bits power = (bits)(n + OFFSET) << MANTISSA;
#if BITS == 64
    sum = 1 + sum * r * ((real)1 / 13);
    sum = 1 + sum * r * ((real)1 / 12);
    sum = 1 + sum * r * ((real)1 / 11);
    sum = 1 + sum * r * ((real)1 / 10);
    sum = 1 + sum * r * ((real)1 / 9);
    sum = 1 + sum * r * ((real)1 / 8);
#endif
    sum = 1 + sum * r * ((real)1 / 7);
    sum = 1 + sum * r * ((real)1 / 6);
    sum = 1 + sum * r * ((real)1 / 5);
    sum = 1 + sum * r * ((real)1 / 4);
    sum = 1 + sum * r * ((real)1 / 3);
    sum = 1 + sum * r * ((real)1 / 2);
    sum = 1 + sum * r;
    memcpy(&scale, &power, sizeof(real));
    return sum * scale;
}

/* n numbers of a tensor of `real`, or of bfloat16 where `half`, from place `at`. */
INLINE void take(int half, const void *from, num at, num n, real *restrict to) {
    if (half) {
        const uint16_t *restrict p = (const uint16_t *)from + at;
        for (num i = 0; i < n; i++) {
            uint32_t wide = (uint32_t)p[i] << 16;
            float number;
            memcpy(&number, &wide, sizeof(float));
            to[i] = (real)number;
        }
    } else memcpy(to, (const real *)from + at, sizeof(real) * n);
}

INLINE void give(int half, const real *restrict from, num n, void *to, num at) {
    if (half) {
        uint16_t *restrict p = (uint16_t *)to + at;
        for (num i = 0; i < n; i++) {
            float number = (float)from[i];
            uint32_t wide;
            memcpy(&wide, &number, sizeof(float));
            uint32_t rounded = (wide + 0x7fff + ((wide >> 16) & 1)) >> 16; /* to the nearest, ties to even */
            p[i] = (uint16_t)((wide & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded); /* NaN */
        }
    } else memcpy((real *)to + at, from, sizeof(real) * n);
}

/* -------------------------------------------------------------------------------------------- short convolution

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

/* --------------------------------------------------------------------------------------------------- gated norm

   x (rows, F) over its root mean square times weight, times SiLU of gate (rows, F); `both`: x complex, its real parts
   followed by its imaginary parts, and weight and the result (rows, 2 F). weight NULL: x as it is. gate NULL: open. A
   row of a call is a block of `block` rows, for which grad_weight has a row each. */

typedef struct {
    num rows, block, F;
    int both, half_x, half_gate;
    double epsilon;
    const void *x;
    const real *weight;
    const void *gate;
    void *out;                                       /* or its gradient; of the gate's dtype */
    void *grad_x;
    real *grad_weight;
    void *grad_gate;
} gated_norm_call;

INLINE void parts_of(const gated_norm_call *c, num row, real *restrict u) {
    num F = c->F;
    if (!c->both) { take(c->half_x, c->x, row * F, F, u); return; }
    const real *restrict x = (const real *)c->x + row * 2 * F;
    for (num i = 0; i < F; i++) { u[i] = x[2 * i]; u[F + i] = x[2 * i + 1]; }
}

INLINE real over_root(const gated_norm_call *c, num J, const real *restrict u) {
    real square = 0;
    if (!c->weight) return 1;
    for (num i = 0; i < J; i++) square += u[i] * u[i];
    return (real)(1 / sqrt((double)(square / J) + c->epsilon));
}

int gated_norm_forward(const gated_norm_call *c, num first, num last) {
    num F = c->F, J = c->both ? 2 * F : F;
    real *u = malloc(sizeof(real) * (J + F));
    if (!u) return 1;
    real *gate = u + J;
    for (num row = first * c->block; row < last * c->block && row < c->rows; row++) {
        parts_of(c, row, u);
        real scale = over_root(c, J, u);
        if (c->weight) for (num i = 0; i < J; i++) u[i] *= scale * c->weight[i];
        if (c->gate) {
            take(c->half_gate, c->gate, row * F, F, gate);
            for (num i = 0; i < F; i++) gate[i] /= 1 + exponential(-gate[i]);
            for (num part = 0; part < J; part += F)
                for (num i = 0; i < F; i++) u[part + i] *= gate[i];
        }
        give(c->half_gate, u, J, c->out, row * J);
    }
    free(u);
    return 0;
}

int gated_norm_backward(const gated_norm_call *c, num first, num last) {
    num F = c->F, J = c->both ? 2 * F : F;
    real *u = malloc(sizeof(real) * (2 * J + 3 * F));
    if (!u) return 1;
    real *g = u + J, *gate = g + J, *open = gate + F, *to_gate = open + F;
    for (num number = first; number < last; number++) {
        real *restrict to_weight = c->weight ? c->grad_weight + number * J : NULL;
        if (to_weight) memset(to_weight, 0, sizeof(real) * J);
        for (num row = number * c->block; row < (number + 1) * c->block && row < c->rows; row++) {
            parts_of(c, row, u);
            take(c->half_gate, c->out, row * J, J, g);
            real scale = over_root(c, J, u), along = 0;
            for (num i = 0; i < J; i++) u[i] *= scale;
            if (c->gate) {
                take(c->half_gate, c->gate, row * F, F, gate);
                for (num i = 0; i < F; i++) { open[i] = 1 / (1 + exponential(-gate[i])); to_gate[i] = 0; }
                for (num part = 0; part < J; part += F) {
                    const real *weight = c->weight ? c->weight + part : NULL;
                    if (weight) for (num i = 0; i < F; i++) to_gate[i] += g[part + i] * u[part + i] * weight[i];
                    else for (num i = 0; i < F; i++) to_gate[i] += g[part + i] * u[part + i];
                    for (num i = 0; i < F; i++) g[part + i] *= gate[i] * open[i];
                }
                for (num i = 0; i < F; i++) to_gate[i] *= open[i] * (1 + gate[i] * (1 - open[i]));
                give(c->half_gate, to_gate, F, c->grad_gate, row * F);
            }
            if (c->weight) {
                for (num i = 0; i < J; i++) {
                    to_weight[i] += g[i] * u[i];
                    g[i] *= c->weight[i];
                    along += g[i] * u[i];
                }
                along /= J;
                for (num i = 0; i < J; i++) g[i] = scale * (g[i] - along * u[i]);
            }
            if (c->both) {
                real *restrict to = (real *)c->grad_x + row * 2 * F;
                for (num i = 0; i < F; i++) { to[2 * i] = g[i]; to[2 * i + 1] = g[F + i]; }
            } else give(c->half_x, g, J, c->grad_x, row * F);
        }
    }
    free(u);
    return 0;
}
