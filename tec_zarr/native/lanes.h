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
static inline void store_whole(int32_t *to, Lanes x) {
    *(WholeLanesAnywhere *)to = __builtin_convertvector(x, WholeLanes);
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
