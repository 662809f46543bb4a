#include "vectors.h"

/* Newton-Schulz steps of matrices x (B, R, C), contiguous, to o: singular values near 1, the same singular vectors.

   With X of n = min(R, C) rows and m = max(R, C) columns (the transpose of a tall matrix) and G = X X', a step is
   X <- Q X with Q = a + b G + c G G. All these are polynomials of the first G, so that they commute and are symmetric:
   P <- Q P and G <- Q G Q need one triangle each, and X is multiplied once, by the last P. A row is one matrix. */

typedef struct {
    num R, C, steps;
    double a, b, c, smallest;
    const real *x;
    real *o;
} newton_schulz_call;

#if BYTES == 64
enum { TALL = 12 }; /* rows of a tile; with WIDE vectors a row its sums fill three quarters of the registers */
#else
enum { TALL = 6 };
#endif
enum { WIDE = 2, EDGE = 16, PART = TALL / 3 };

/* A rectangle of a product: c = alpha sum_k a[k][i] b[k][j] + beta d, of M rows and N vectors; `ka` numbers from one row
   of a to the next, and so on. */
INLINE void tile(const int M, const int N, num K, const real *a, num ka, const real *b, num kb, real alpha, real beta,
                 const real *d, real *c, num kc) {
    vec s[TALL][WIDE];
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) s[i][j] = (vec){0};
    for (num k = 0; k < K; k++, a += ka, b += kb) {
        vec w[WIDE];
        for (int j = 0; j < N; j++) w[j] = load(b + j * V);
        for (int i = 0; i < M; i++)
            for (int j = 0; j < N; j++) s[i][j] = add_product(s[i][j], a[i], w[j]);
    }
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) {
            vec sum = alpha * s[i][j];
            if (d) sum += beta * load(d + i * kc + j * V);
            store(sum, c + i * kc + j * V);
        }
}

typedef struct {
    num K, ka, kb, kc;
    const real *a, *b, *d;
    real alpha, beta, *c;
} product;

#define SIZED(M, N)                                                                                                     \
    static void __attribute__((noinline)) tile_##M##_##N(const product *p, num i, num j) {                              \
        tile(M * PART, N, p->K, p->a + i, p->ka, p->b + j, p->kb, p->alpha, p->beta, p->d ? p->d + i * p->kc + j : NULL, \
             p->c + i * p->kc + j, p->kc);                                                                              \
    }
SIZED(3, 2) SIZED(2, 2) SIZED(1, 2) SIZED(3, 1) SIZED(2, 1) SIZED(1, 1)

/* Rows first <= i < last and the columns j of one tile's width, or what is left of it. */
static void columns_of(const product *p, num first, num last, num j, num columns) {
    int narrow = columns - j <= V;
    for (num i = first; i < last; i += TALL) {
        num left = last - i;
        if (left >= TALL) (narrow ? tile_3_1 : tile_3_2)(p, i, j);
        else if (left > PART) (narrow ? tile_2_1 : tile_2_2)(p, i, j);
        else (narrow ? tile_1_1 : tile_1_2)(p, i, j);
    }
}

static void multiply(const product *p, num rows, num columns) {
    for (num j = 0; j < columns; j += WIDE * V) columns_of(p, 0, rows, j, columns);
}

/* The same of a symmetric product (n, n): the tiles that touch its lower triangle, and the rest from these. */
static void multiply_symmetric(const product *p, num n) {
    for (num j = 0; j < n; j += WIDE * V) columns_of(p, j / TALL * TALL, n, j, n);
    for (num top = 0; top < n; top += EDGE)
        for (num left = top; left < n; left += EDGE)
            for (num i = top; i < top + EDGE; i++)
                for (num j = left > i ? left : i + 1; j < left + EDGE; j++) p->c[i * n + j] = p->c[j * n + i];
}

/* to (columns, `kt` numbers a row) = from' (rows, columns); what lies behind the columns of `to` is zero. */
static void transpose(num rows, num columns, const real *from, num kf, real *to, num kt) {
    for (num j = 0; j < columns; j++)
        for (num i = rows; i < kt; i++) to[j * kt + i] = 0;
    for (num top = 0; top < rows; top += EDGE)
        for (num left = 0; left < columns; left += EDGE) {
            num down = rows - top < EDGE ? rows : top + EDGE, right = columns - left < EDGE ? columns : left + EDGE;
            for (num j = left; j < right; j++)
                for (num i = top; i < down; i++) to[j * kt + i] = from[i * kf + j];
        }
}

INLINE num whole(num n) { return (n + EDGE - 1) / EDGE * EDGE; }

int newton_schulz(const newton_schulz_call *call, num first, num last) {
    num R = call->R, C = call->C, n = R < C ? R : C, m = R < C ? C : R, N = whole(n), M = whole(m), width = R < C ? M : N;
    real *memory = numbers(4 * N * N + 2 * M * N);
    if (!memory) return 1;
    real *own = memory + 4 * N * N, *other = own + M * N; /* x as it lies, and transposed */
    real *across = R < C ? own : other, *down = R < C ? other : own; /* (n, M) and (m, N) */
    for (num row = first; row < last; row++) {
        real *G = memory, *Q = G + N * N, *P = Q + N * N, *T = P + N * N;
        const real *x = call->x + row * R * C;
        for (num i = 0; i < R; i++) {
            memcpy(own + i * width, x + i * C, sizeof(real) * C);
            for (num j = C; j < width; j++) own[i * width + j] = 0;
        }
        double squares = 0;
        for (num i = 0; i < R * width; i++) squares += (double)own[i] * own[i];
        double norm = sqrt(squares);
        real scale = (real)(1 / (norm < call->smallest ? call->smallest : norm)); /* NaN stays NaN */
        for (num i = 0; i < R * width; i++) own[i] *= scale;
        transpose(R, C, own, width, other, R < C ? N : M);
        product gram = {m, N, N, N, down, down, NULL, 1, 0, G};
        multiply_symmetric(&gram, N);
        for (num step = 0; step < call->steps; step++) {
            product factor = {N, N, N, N, G, G, G, (real)call->c, (real)call->b, Q};
            multiply_symmetric(&factor, N);
            for (num i = 0; i < N; i++) Q[i * N + i] += (real)call->a;
            if (step + 1 < call->steps) { /* G <- Q G Q */
                product half = {N, N, N, N, Q, G, NULL, 1, 0, T}, both = {N, N, N, N, T, Q, NULL, 1, 0, G};
                multiply_symmetric(&half, N);
                multiply_symmetric(&both, N);
            }
            if (step) {
                product all = {N, N, N, N, Q, P, NULL, 1, 0, T};
                multiply_symmetric(&all, N);
            }
            real *made = step ? T : Q, *spare = P;
            if (step) T = spare;
            else Q = spare;
            P = made;
        }
        product end = {n, N, M, M, P, across, NULL, 1, 0, down};
        if (R >= C) end = (product){n, M, N, N, across, P, NULL, 1, 0, down};
        multiply(&end, R < C ? N : M, width);
        for (num i = 0; i < R; i++) memcpy(call->o + (row * R + i) * C, down + i * width, sizeof(real) * C);
    }
    free(memory);
    return 0;
}
