/* What the functions of this folder have in common: recurrences of muse-kernels for CPUs, one row after the other and
   one token after the other.

   Compiled twice, with BITS = 32 and BITS = 64. Complex numbers are pairs (real, imaginary). Every function works on
   rows first <= row < last, so that threads can share the rows. Gradients of complex numbers are torch's: for w = f(v)
   the gradient of v is that of w times the conjugate of f'(v). Source: mathematics 1 and 3.

   Plain loops without branches, for the compiler to make vectors of. */

#ifndef MUSE_KERNELS_COMMON
#define MUSE_KERNELS_COMMON

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

#define INLINE static inline __attribute__((always_inline))

/* Without branches, so that loops around it are vectorised. NaN stays NaN; beyond what a real holds the last it holds. */
INLINE real exponential(real x) {
    x = x > MOST ? MOST : x;
    x = x < -MOST ? -MOST : x;
    int32_t n = (int32_t)ROUND(x * (real)1.4426950408889634);
    real r = x - n * (real)0.6931471805599453, sum, scale; /* |r| <= log(2) / 2: Taylor's series to rounding */
    bits power = (bits)(n + OFFSET) << MANTISSA;
#if BITS == 64
    sum = (real)1 / 6227020800;
    sum = sum * r + (real)1 / 479001600;
    sum = sum * r + (real)1 / 39916800;
    sum = sum * r + (real)1 / 3628800;
    sum = sum * r + (real)1 / 362880;
    sum = sum * r + (real)1 / 40320;
    sum = sum * r + (real)1 / 5040;
#else
    sum = (real)1 / 5040;
#endif
    sum = sum * r + (real)1 / 720;
    sum = sum * r + (real)1 / 120;
    sum = sum * r + (real)1 / 24;
    sum = sum * r + (real)1 / 6;
    sum = sum * r + (real)1 / 2;
    sum = sum * r + 1;
    sum = sum * r + 1;
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

#endif
