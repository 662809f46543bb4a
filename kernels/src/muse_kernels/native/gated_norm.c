#include "common.h"

/* Gated norm.

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
