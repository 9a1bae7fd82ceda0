/* Four doubles at a time, where the compiler knows vectors, else one after the other. */
#ifndef TEC_LANES_H
#define TEC_LANES_H

#include <stdint.h>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi" /* vectors are passed to functions that are inlined */
#endif

#define LANES 4

typedef double Lanes __attribute__((vector_size(32)));
typedef int32_t WholeLanes __attribute__((vector_size(16)));
typedef double LanesAnywhere __attribute__((vector_size(32), aligned(8), may_alias));
typedef int32_t WholeLanesAnywhere __attribute__((vector_size(16), aligned(4), may_alias));

static inline Lanes load(const double *from) { return *(const LanesAnywhere *)from; }
static inline void store(double *to, Lanes x) { *(LanesAnywhere *)to = x; }
static inline Lanes load_whole(const int32_t *from) {
    WholeLanes x = *(const WholeLanesAnywhere *)from;
    return __builtin_convertvector(x, Lanes);
}
/* Of numbers that are whole. */
static inline WholeLanes whole(Lanes x) { return __builtin_convertvector(x, WholeLanes); }
static inline void store_whole(int32_t *to, Lanes x) { *(WholeLanesAnywhere *)to = whole(x); }

/* Store four vectors as the columns of four lines, `pitch` numbers apart. */
static inline void put_turned(const WholeLanes *x, int32_t *to, int pitch) {
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define TURNED 1
    WholeLanes a = __builtin_shufflevector(x[0], x[1], 0, 4, 1, 5);
    WholeLanes b = __builtin_shufflevector(x[2], x[3], 0, 4, 1, 5);
    WholeLanes c = __builtin_shufflevector(x[0], x[1], 2, 6, 3, 7);
    WholeLanes d = __builtin_shufflevector(x[2], x[3], 2, 6, 3, 7);
    *(WholeLanesAnywhere *)to = __builtin_shufflevector(a, b, 0, 1, 4, 5);
    *(WholeLanesAnywhere *)(to + pitch) = __builtin_shufflevector(a, b, 2, 3, 6, 7);
    *(WholeLanesAnywhere *)(to + 2 * pitch) = __builtin_shufflevector(c, d, 0, 1, 4, 5);
    *(WholeLanesAnywhere *)(to + 3 * pitch) = __builtin_shufflevector(c, d, 2, 3, 6, 7);
#endif
#endif
#ifndef TURNED
    for (int n = 0; n < LANES; n++)
        for (int j = 0; j < LANES; j++) to[n * pitch + j] = x[j][n];
#endif
}
static inline Lanes all(double x) { return (Lanes){x, x, x, x}; }

typedef int64_t Mask __attribute__((vector_size(32)));

static inline Lanes clip(Lanes x, double most) {
    Lanes high = all(most), low = all(-most);
    Mask over = x > high, under = x < low;
    return (Lanes)(((Mask)high & over) | ((Mask)low & under) | ((Mask)x & ~(over | under)));
}

/* The whole numbers nearest to x, of less than 2^51: beyond 2^52 doubles are whole. */
static inline Lanes nearest(Lanes x) {
    const double far = 6755399441055744.0; /* 1.5 * 2^52 */
    return (x + far) - far;
}

#endif
