/* Bits, numbers and residuals of the bound layer, with probabilities that both sides learn. */
#include "planes_bits.h"
#include "planes_table.h"

#include <string.h>

void tec_coder_begin(Coder *c) {
    for (int n = 0; n <= MOST_COUNT; n++) c->rates[n] = 131072 / (2 * n + 3);
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

EITHER int64_t code_symbol(Coder *c, Symbols *s, int scale, int side, int64_t value, const int encoding) {
    if (code_bit(c, &s->zero[scale], value == 0, encoding)) return 0;
    int negative = code_bit(c, &s->sign[scale][side], value < 0, encoding);
    uint64_t m = 0;
    int bucket = 0, bits = 0;
    if (encoding) {
        m = (uint64_t)(value < 0 ? -value : value) - 1;
        bucket = bucket_of(m);
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

void tec_learnt_from(Learnt *learnt, const int32_t *numbers) {
    for (int scale = 0; scale < SCALES; scale++) {
        for (int node = 0; node < 64; node++) {
            Bit bit = {(uint16_t)numbers[64 * scale + node], FIRST_COUNT};
            if (node) learnt->residuals.magnitude[scale][node] = bit;
            else learnt->residuals.zero[scale] = bit;
        }
        learnt->corrections.zero[scale] = (Bit){(uint16_t)numbers[64 * SCALES + scale], FIRST_COUNT};
    }
    for (int scale = 0; scale < SCALES; scale++)
        memcpy(learnt->corrections.magnitude[scale], learnt->residuals.magnitude[CENTRE / 2], 64 * sizeof(Bit));
    memcpy(learnt->weights, numbers + 2 * SCALES * 65, sizeof learnt->weights);
}

void tec_learnt_into(const Learnt *learnt, int32_t *numbers) {
    int32_t *times = numbers + SCALES * 65;
    for (int scale = 0; scale < SCALES; scale++) {
        for (int node = 0; node < 64; node++) {
            const Symbols *s = &learnt->residuals;
            Bit bit = node ? s->magnitude[scale][node] : s->zero[scale];
            numbers[64 * scale + node] = bit.one, times[64 * scale + node] = bit.count - FIRST_COUNT;
        }
        Bit bit = learnt->corrections.zero[scale];
        numbers[64 * SCALES + scale] = bit.one, times[64 * SCALES + scale] = bit.count - FIRST_COUNT;
    }
    memcpy(numbers + 2 * SCALES * 65, learnt->weights, sizeof learnt->weights);
}
