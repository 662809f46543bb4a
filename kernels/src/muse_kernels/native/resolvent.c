#include "common.h"

/* Resolvent.

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
INLINE void spread_over(const num M, num H, const real *restrict from, real *restrict re, real *restrict im) {
    for (num h = 0; h < H; h++)
        for (num m = 0; m < M; m++) { re[h * M + m] = from[2 * h]; im[h * M + m] = from[2 * h + 1]; }
}

/* to (H) += sums of `re`, `im` (H, M) over M. */
INLINE void gather_over(const num M, num H, const real *restrict re, const real *restrict im, real *restrict to) {
    for (num h = 0; h < H; h++) {
        real dr = 0, di = 0;
        for (num m = 0; m < M; m++) { dr += re[h * M + m]; di += im[h * M + m]; }
        to[2 * h] += dr;
        to[2 * h + 1] += di;
    }
}

/* Both with the widths that are common as constants, which loops over heads are vectorised for. */
static void spread(num H, num M, const real *from, real *re, real *im) {
    switch (M) {
        case 1: spread_over(1, H, from, re, im); break;
        case 2: spread_over(2, H, from, re, im); break;
        case 3: spread_over(3, H, from, re, im); break;
        case 4: spread_over(4, H, from, re, im); break;
        default: spread_over(M, H, from, re, im);
    }
}

static void gather(num H, num M, const real *re, const real *im, real *to) {
    switch (M) {
        case 1: gather_over(1, H, re, im, to); break;
        case 2: gather_over(2, H, re, im, to); break;
        case 3: gather_over(3, H, re, im, to); break;
        case 4: gather_over(4, H, re, im, to); break;
        default: gather_over(M, H, re, im, to);
    }
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

/* One site of y backward: gr, gi (J) the gradient of y that later sites carry, on return that of the site before; sr, si
   and vr, vi (J) the values' shares of the gradients of theta and l. */
INLINE void site_backward(const int complex_x, num J, const real *restrict gy, const real *restrict x,
                          const real *restrict yb, const real *restrict tr, const real *restrict ti,
                          const real *restrict lr, const real *restrict li, real *restrict gr, real *restrict gi,
                          real *restrict sr, real *restrict si, real *restrict vr, real *restrict vi,
                          real *restrict gx) {
    for (num j = 0; j < J; j++) {
        real xr = complex_x ? x[2 * j] : x[j], xi = complex_x ? x[2 * j + 1] : 0;
        real Gr = gy[2 * j] + gr[j], Gi = gy[2 * j + 1] + gi[j];
        real ur = xr - (lr[j] * yb[2 * j] - li[j] * yb[2 * j + 1]);
        real ui = xi - (lr[j] * yb[2 * j + 1] + li[j] * yb[2 * j]);
        real wr = Gr * tr[j] + Gi * ti[j], wi = Gi * tr[j] - Gr * ti[j]; /* gradient of u */
        sr[j] = Gr * ur + Gi * ui;
        si[j] = Gi * ur - Gr * ui;
        vr[j] = -(wr * yb[2 * j] + wi * yb[2 * j + 1]);
        vi[j] = -(wi * yb[2 * j] - wr * yb[2 * j + 1]);
        if (complex_x) { gx[2 * j] = wr; gx[2 * j + 1] = wi; } else gx[j] = wr;
        gr[j] = -(wr * lr[j] + wi * li[j]);
        gi[j] = -(wi * lr[j] - wr * li[j]);
    }
}

/* One site of theta backward: G (H) its gradient; carry (H) on return what reaches theta of the site before. gp is
   written, or added to where all sites have one p. */
INLINE void theta_backward(const int fixed, num H, const real *restrict theta, const real *restrict tb,
                           const real *restrict p, const real *restrict G, real *restrict carry, real *restrict ga,
                           real *restrict gz, real *restrict gp) {
    for (num h = 0; h < H; h++) {
        real t = theta[2 * h], s = theta[2 * h + 1], qr = t * t - s * s, qi = 2 * t * s;
        real Gr = G[2 * h], Gi = G[2 * h + 1];
        real dr = -(Gr * qr + Gi * qi), di = -(Gi * qr - Gr * qi); /* gradient of 1 / theta */
        real er = -(dr * tb[2 * h] + di * tb[2 * h + 1]), ei = -(di * tb[2 * h] - dr * tb[2 * h + 1]);
        ga[2 * h] = dr;
        ga[2 * h + 1] = di;
        gz[2 * h] -= dr;
        gz[2 * h + 1] -= di;
        if (fixed) { gp[2 * h] += er; gp[2 * h + 1] += ei; } else { gp[2 * h] = er; gp[2 * h + 1] = ei; }
        carry[2 * h] = -(dr * p[2 * h] + di * p[2 * h + 1]);
        carry[2 * h + 1] = -(di * p[2 * h] - dr * p[2 * h + 1]);
    }
}

int resolvent_backward(const resolvent_call *c, num first, num last) {
    num N = c->N, H = c->H, M = c->M, J = H * M;
    real *work = calloc(10 * J + 4 * H + 1, sizeof(real));
    if (!work) return 1;
    real *tr = work, *ti = tr + J, *lr = ti + J, *li = lr + J, *gr = li + J, *gi = gr + J, *sr = gi + J, *si = sr + J;
    real *vr = si + J, *vi = vr + J, *carry = vi + J, *of_theta = carry + 2 * H; /* gr, gi: gradient carried to y */
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
                const real *yb = i ? c->y + (place - 1) * J * 2 : y_before, *gy = c->grad_y + place * J * 2;
                const real *x = c->x + place * J * (c->complex_x ? 2 : 1);
                real *gx = c->grad_x + place * J * (c->complex_x ? 2 : 1), *gl = c->grad_l + coupled * H * 2;
                spread(H, M, theta, tr, ti);
                if (i == N - 1 || !c->fixed) spread(H, M, c->l + coupled * H * 2, lr, li);
                if (c->complex_x) site_backward(1, J, gy, x, yb, tr, ti, lr, li, gr, gi, sr, si, vr, vi, gx);
                else site_backward(0, J, gy, x, yb, tr, ti, lr, li, gr, gi, sr, si, vr, vi, gx);
                gather(H, M, sr, si, of_theta);
                if (!c->fixed) memset(gl, 0, sizeof(real) * 2 * H);
                gather(H, M, vr, vi, gl);
            }
            real *ga = c->grad_a + place * H * 2, *gz = c->grad_z + row * H * 2, *gp = c->grad_p + coupled * H * 2;
            if (c->fixed) theta_backward(1, H, theta, tb, p, of_theta, carry, ga, gz, gp);
            else theta_backward(0, H, theta, tb, p, of_theta, carry, ga, gz, gp);
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
