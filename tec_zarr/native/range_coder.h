/* The range coder of the core: 32 bits of range, carries resolved before a byte leaves.
 *
 * Decoders read zeros beyond the end of their bytes, so that an encoder leaves out trailing zeros.
 */
#ifndef TEC_RANGE_CODER_H
#define TEC_RANGE_CODER_H

#include <stdint.h>

typedef struct {
    uint8_t *at, *end;
    uint64_t low;
    uint32_t range;
    uint8_t cache;
    uint64_t pending; /* `cache`, and the bytes of 0xff behind it */
    int begun, full;
} Encoder;

static inline Encoder begin_encoding(uint8_t *bytes, int64_t length) {
    Encoder e = {bytes, bytes + length, 0, 0xffffffffu, 0, 1, 0, 0};
    return e;
}

static inline void put_byte(Encoder *e, uint8_t byte) {
    if (!e->begun) e->begun = 1; /* the first byte is always zero: nothing carries beyond the start */
    else if (e->at < e->end) *e->at++ = byte;
    else e->full = 1;
}

static inline void shift_low(Encoder *e) {
    if (e->low < 0xff000000u || e->low > 0xffffffffu) {
        uint8_t carry = (uint8_t)(e->low >> 32);
        put_byte(e, (uint8_t)(e->cache + carry));
        while (--e->pending) put_byte(e, (uint8_t)(0xff + carry));
        e->cache = (uint8_t)(e->low >> 24);
    }
    e->pending++;
    e->low = (e->low & 0x00ffffffu) << 8;
}

/* Return the number of bytes written, or -1 if they do not fit. Of all codes of the last range, the one
 * with most zeros at its end is taken. */
static inline int64_t end_encoding(Encoder *e, const uint8_t *bytes) {
    for (int zeros = 32; zeros; zeros--) {
        uint64_t unit = (uint64_t)1 << zeros, code = (e->low + unit - 1) / unit * unit;
        if (code - e->low < e->range) {
            e->low = code;
            break;
        }
    }
    for (int i = 0; i < 5; i++) shift_low(e);
    while (e->at > bytes && !e->at[-1]) e->at--;
    return e->full ? -1 : e->at - bytes;
}

static inline void encode_part(Encoder *e, uint32_t start, uint32_t size, int bits) {
    uint32_t unit = e->range >> bits;
    e->low += (uint64_t)unit * start;
    e->range = unit * size;
    while (e->range < (1u << 24)) {
        e->range <<= 8;
        shift_low(e);
    }
}

typedef struct {
    const uint8_t *at, *end;
    uint32_t range, code;
} Decoder;

static inline uint8_t next_byte(Decoder *d) { return d->at < d->end ? *d->at++ : 0; }

static inline Decoder begin_decoding(const uint8_t *bytes, int64_t length) {
    Decoder d = {bytes, bytes + length, 0xffffffffu, 0};
    for (int i = 0; i < 4; i++) d.code = d.code << 8 | next_byte(&d);
    return d;
}

static inline uint32_t decode_place(Decoder *d, int bits) {
    uint32_t place = d->code / (d->range >> bits);
    uint32_t most = (1u << bits) - 1;
    return place < most ? place : most;
}

static inline void refill(Decoder *d) {
    while (d->range < (1u << 24)) {
        d->range <<= 8;
        d->code = d->code << 8 | next_byte(d);
    }
}

static inline void decode_part(Decoder *d, uint32_t start, uint32_t size, int bits) {
    uint32_t unit = d->range >> bits;
    d->code -= unit * start;
    d->range = unit * size;
    refill(d);
}

static inline void encode_bits(Encoder *e, uint32_t value, int bits) {
    while (bits > 12) {
        bits -= 12;
        encode_part(e, value >> bits & 0xfff, 1, 12);
    }
    encode_part(e, value & ((1u << bits) - 1), 1, bits);
}

static inline uint32_t decode_bits(Decoder *d, int bits) {
    uint32_t value = 0;
    while (bits > 0) {
        int some = bits > 12 ? 12 : bits;
        uint32_t place = decode_place(d, some);
        decode_part(d, place, 1, some);
        value = value << some | place;
        bits -= some;
    }
    return value;
}

/* A bit that is 1 with a chance of `chance` / 65536. */
static inline void encode_bit(Encoder *e, uint32_t chance, int bit) {
    if (bit) encode_part(e, 0, chance, 16);
    else encode_part(e, chance, 65536 - chance, 16);
}

static inline int decode_bit(Decoder *d, uint32_t chance) {
    int bit = d->code < (d->range >> 16) * chance;
    if (bit) decode_part(d, 0, chance, 16);
    else decode_part(d, chance, 65536 - chance, 16);
    return bit;
}

/* Exponential Golomb: how far a symbol lies beyond the end of its table. */
static inline void encode_escape(Encoder *e, uint32_t value) {
    int bits = 0;
    while ((value + 1) >> (bits + 1)) bits++;
    for (int i = 0; i < bits; i++) encode_part(e, 1, 1, 1);
    if (bits < 24) encode_part(e, 0, 1, 1);
    if (bits) encode_bits(e, (value + 1) & ((1u << bits) - 1), bits);
}

static inline uint32_t decode_escape(Decoder *d) {
    int bits = 0;
    while (bits < 24) {
        uint32_t one = decode_place(d, 1);
        decode_part(d, one, 1, 1);
        if (!one) break;
        bits++;
    }
    return (bits ? 1u << bits | decode_bits(d, bits) : 1u) - 1;
}

#endif
