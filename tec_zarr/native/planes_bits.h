/* Bits whose probabilities both sides learn. */
#ifndef TEC_PLANES_BITS_H
#define TEC_PLANES_BITS_H

#include "planes.h"

#define LEAST_CHANCE 48 /* of 65536 */

/* The compiler makes one variant that encodes and one that decodes of what is marked so. */
#if defined(__GNUC__)
#define EITHER static inline __attribute__((always_inline))
#else
#define EITHER static inline
#endif

/* A bit coded with a chance of a one that may differ from that of its state. */
EITHER int code_bit_as(Coder *c, Bit *bit, uint32_t chance, int one, const int encoding) {
    if (encoding) {
        uint32_t part = (c->e.range >> 16) * chance;
        if (!one) c->e.low += part;
        c->e.range = one ? part : c->e.range - part;
        while (c->e.range < (1u << 24)) {
            c->e.range <<= 8;
            shift_low(&c->e);
        }
    } else {
        uint32_t part = (c->d.range >> 16) * chance;
        one = c->d.code < part;
        if (!one) c->d.code -= part;
        c->d.range = one ? part : c->d.range - part;
        refill(&c->d);
    }
    static const int32_t least = LEAST_CHANCE, most = 65536 - LEAST_CHANCE;
    int32_t next = bit->one + ((((one ? 65536 : 0) - bit->one) * (c->rates[bit->count] >> 1)) >> 15);
    bit->one = (uint16_t)(next < least ? least : next > most ? most : next);
    bit->count = (uint16_t)(bit->count + (bit->count < MOST_COUNT));
    return one;
}

EITHER int code_bit(Coder *c, Bit *bit, int one, const int encoding) {
    return code_bit_as(c, bit, bit->one, one, encoding);
}

/* The bucket of a magnitude less one, m: 0 to 11, then four buckets an octave of m - 4. The last bucket
 * holds all others. */
static inline int bucket_of(uint64_t m) {
    if (m < 12) return (int)m;
    int bits = bits_in(m - 4) - 3, bucket = 8 + 4 * bits + (int)((m - 4) >> bits & 3);
    return bucket > 63 ? 63 : bucket;
}

#endif
