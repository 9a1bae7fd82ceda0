/* Bits, numbers and residuals of the bound layer, with probabilities that both sides learn. */
#include "planes.h"
#include "planes_table.h"

#include <string.h>

void tec_coder_begin(Coder *c) {
    for (int n = 0; n <= MOST_COUNT; n++) c->rates[n] = 131072 / (2 * n + 3);
}

/* The compiler makes one variant that encodes and one that decodes of what is marked so. */
#if defined(__GNUC__)
#define EITHER static inline __attribute__((always_inline))
#else
#define EITHER static inline
#endif

EITHER int code_bit(Coder *c, Bit *bit, int one, const int encoding) {
    if (encoding) {
        uint32_t part = (c->e.range >> 16) * bit->one;
        if (!one) c->e.low += part;
        c->e.range = one ? part : c->e.range - part;
        while (c->e.range < (1u << 24)) {
            c->e.range <<= 8;
            shift_low(&c->e);
        }
    } else {
        uint32_t part = (c->d.range >> 16) * bit->one;
        one = c->d.code < part;
        if (!one) c->d.code -= part;
        c->d.range = one ? part : c->d.range - part;
        while (c->d.range < (1u << 24)) {
            c->d.range <<= 8;
            c->d.code = c->d.code << 8 | next_byte(&c->d);
        }
    }
    static const int32_t most = 65536 - 48;
    int32_t next = bit->one + ((((one ? 65536 : 0) - bit->one) * (c->rates[bit->count] >> 1)) >> 15);
    bit->one = (uint16_t)(next < 48 ? 48 : next > most ? most : next);
    bit->count = (uint16_t)(bit->count + (bit->count < MOST_COUNT));
    return one;
}

uint32_t tec_code_bits(Coder *c, uint32_t value, int bits) {
    if (!c->encoding) return decode_bits(&c->d, bits);
    encode_bits(&c->e, value, bits);
    return value;
}

uint64_t tec_code_uniform(Coder *c, uint64_t value, uint64_t count) {
    if (count <= 1) return 0;
    int low = bits_in(count - 1) > 12 ? bits_in(count - 1) - 12 : 0;
    uint32_t most = (uint32_t)((count - 1) >> low) + 1, high = (uint32_t)(value >> low);
    if (c->encoding) {
        uint32_t unit = c->e.range / most;
        c->e.low += (uint64_t)unit * high;
        c->e.range = unit;
        while (c->e.range < (1u << 24)) {
            c->e.range <<= 8;
            shift_low(&c->e);
        }
    } else {
        uint32_t unit = c->d.range / most;
        high = c->d.code / unit;
        if (high >= most) high = most - 1;
        c->d.code -= unit * high;
        c->d.range = unit;
        while (c->d.range < (1u << 24)) {
            c->d.range <<= 8;
            c->d.code = c->d.code << 8 | next_byte(&c->d);
        }
    }
    uint64_t out = high;
    for (int left = low; left > 0;) { /* pieces of 16 bits at most, highest first */
        int some = left > 16 ? 16 : left;
        left -= some;
        out = out << some | tec_code_bits(c, (uint32_t)(value >> left) & ((1u << some) - 1), some);
    }
    return out;
}

/* A magnitude m >= 0 is one of 64 buckets and plain bits: 0 to 11, then four buckets an octave of
 * m - 4. The last bucket holds all others. */
EITHER int64_t code_symbol(Coder *c, Symbols *s, int scale, int side, int64_t value, const int encoding) {
    if (code_bit(c, &s->zero[scale], value == 0, encoding)) return 0;
    int negative = code_bit(c, &s->sign[scale][side], value < 0, encoding);
    uint64_t m = 0;
    int bucket = 0, bits = 0;
    if (encoding) {
        m = (uint64_t)(value < 0 ? -value : value) - 1;
        bucket = (int)m;
        if (m >= 12) {
            bits = bits_in(m - 4) - 3;
            bucket = 8 + 4 * bits + (int)((m - 4) >> bits & 3);
            if (bucket > 63) bucket = 63;
        }
    }
    int node = 1;
    for (int i = 5; i >= 0; i--)
        node = 2 * node + code_bit(c, &s->magnitude[scale][node], bucket >> i & 1, encoding);
    bucket = node - 64;
    if (bucket == 63) {
        bits = (int)tec_code_bits(c, (uint32_t)bits_in(m), 6);
        if (bits > 33) bits = 33;
        uint64_t high = tec_code_bits(c, (uint32_t)(m >> 16), bits > 16 ? bits - 16 : 0);
        m = high << 16 | tec_code_bits(c, (uint32_t)m & 0xffff, bits > 16 ? 16 : bits);
    } else if (bucket >= 12) {
        bits = bucket / 4 - 2;
        uint64_t plain = tec_code_bits(c, (uint32_t)((m - 4) & ((1u << bits) - 1)), bits);
        m = ((uint64_t)(4 + bucket % 4) << bits) + plain + 4;
    } else m = (uint64_t)bucket;
    return negative ? -(int64_t)m - 1 : (int64_t)m + 1;
}

int64_t tec_code_symbol(Coder *c, Symbols *s, int scale, int side, int64_t value) {
    return c->encoding ? code_symbol(c, s, scale, side, value, 1) : code_symbol(c, s, scale, side, 0, 0);
}

void tec_learnt_begin(Learnt *learnt) {
    for (int scale = 0; scale < SCALES; scale++) {
        Symbols *r = &learnt->residuals, *c = &learnt->corrections;
        r->zero[scale] = (Bit){FIRST_BITS[scale][0], FIRST_COUNT};
        c->zero[scale] = (Bit){FIRST_CORRECTIONS[scale < 27 ? scale : 26], FIRST_COUNT};
        for (int node = 0; node < 64; node++) {
            r->magnitude[scale][node] = (Bit){FIRST_BITS[scale][node], FIRST_COUNT};
            c->magnitude[scale][node] = (Bit){FIRST_BITS[CENTRE / 2][node], FIRST_COUNT};
        }
        for (int side = 0; side < 8; side++) r->sign[scale][side] = c->sign[scale][side] = (Bit){32768, FIRST_COUNT};
    }
    memcpy(learnt->weights, FIRST_WEIGHTS, sizeof learnt->weights);
}
