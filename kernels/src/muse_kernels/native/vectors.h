/* Vectors of the processor's width, by the extension that GCC and clang have in common, and products added to them. */

#ifndef MUSE_KERNELS_VECTORS
#define MUSE_KERNELS_VECTORS

#include "common.h"
#if defined(__AVX512F__) || defined(__FMA__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define BYTES 64
#else
#define BYTES 32
#endif
#define LANES (BYTES / (BITS / 8))
enum { V = LANES };
typedef real vec __attribute__((vector_size(BYTES)));
typedef real anywhere __attribute__((vector_size(BYTES), aligned(sizeof(real))));
#if BITS == 32
typedef int32_t lanes __attribute__((vector_size(BYTES)));
#else
typedef int64_t lanes __attribute__((vector_size(BYTES)));
#endif

INLINE vec load(const real *p) { return *(const anywhere *)p; }
INLINE void store(vec x, real *p) { *(anywhere *)p = x; }

/* Memory for n numbers, on a vector's boundary; NULL without any. */
INLINE real *numbers(num n) { return aligned_alloc(BYTES, (sizeof(real) * n / BYTES + 1) * BYTES); }

/* s + a b, rounded once where the processor can. */
INLINE vec add_products(vec s, vec a, vec b) {
#if defined(__AVX512F__) && BITS == 32
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)s);
#elif defined(__AVX512F__)
    return (vec)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)s);
#elif defined(__FMA__) && BITS == 32
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)s);
#elif defined(__FMA__)
    return (vec)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)s);
#else
    return s + a * b;
#endif
}

INLINE vec add_product(vec s, real a, vec b) { return add_products(s, a - (vec){0}, b); }

#define FIRST(h, l) ((l) & (h) ? LANES + (l) - (h) : (l))
#define SECOND(h, l) ((l) & (h) ? LANES + (l) : (l) + (h))
#define ALL_4(of, h) of(h, 0), of(h, 1), of(h, 2), of(h, 3)
#define ALL_8(of, h) ALL_4(of, h), of(h, 4), of(h, 5), of(h, 6), of(h, 7)
#define ALL_16(of, h) ALL_8(of, h), of(h, 8), of(h, 9), of(h, 10), of(h, 11), of(h, 12), of(h, 13), of(h, 14), of(h, 15)
#if LANES == 4
#define ALL ALL_4
#elif LANES == 8
#define ALL ALL_8
#else
#define ALL ALL_16
#endif
#if defined(__clang__)
#define SHUFFLED(a, b, of, h) __builtin_shufflevector(a, b, ALL(of, h))
#else
#define SHUFFLED(a, b, of, h) __builtin_shuffle(a, b, (lanes){ALL(of, h)})
#endif
/* Sums of neighbours h apart, those of a and b in turns: after all h the sum of the lanes of x[i] is lane i. */
#define JOIN(h)                                                                                                         \
    for (int i = 0; i < LANES / (2 * (h)); i++)                                                                         \
        x[i] = SHUFFLED(x[2 * i], x[2 * i + 1], FIRST, h) + SHUFFLED(x[2 * i], x[2 * i + 1], SECOND, h);

/* The sums of the lanes of V vectors, which are written over. */
INLINE vec sums_of(vec *x) {
    JOIN(1)
    JOIN(2)
#if LANES >= 8
    JOIN(4)
#endif
#if LANES >= 16
    JOIN(8)
#endif
    return x[0];
}

INLINE real sum_of(vec x) {
    real sum = 0;
    for (int i = 0; i < V; i++) sum += x[i];
    return sum;
}

#endif
