/* Packed bytes of a frame: as they are, or as a zlib stream (RFC 1950 and 1951). */
#include "frame.h"

#include <string.h>

#define FAST 10    /* bits of a code that one look into a table decodes */
#define LONGEST 15 /* bits of the longest code */

typedef struct {
    const uint8_t *at, *end;
    uint64_t bits; /* not yet used, the next one lowest */
    int count;     /* how many of them there are; more were asked for than there are if negative */
} Bits;

/* A canonical Huffman code. */
typedef struct {
    uint16_t fast[1 << FAST];     /* symbol * 16 + length of a short code; 0: there is none */
    uint16_t counts[LONGEST + 1]; /* codes of each length */
    uint16_t symbols[288];        /* in the order of their codes */
} Code;

static void refill(Bits *b) {
    while (b->count <= 56 && b->at < b->end) {
        b->bits |= (uint64_t)*b->at++ << b->count;
        b->count += 8;
    }
}

/* Take up to 32 bits. Beyond the end they are 0, and `count` becomes negative. */
static uint32_t take(Bits *b, int n) {
    if (b->count < n) refill(b);
    uint32_t value = (uint32_t)(b->bits & (((uint64_t)1 << n) - 1));
    b->bits >>= n;
    b->count -= n;
    return value;
}

/* Make a code from the lengths of its symbols; 0 if there is no such code. As in zlib, a code of
 * lengths has all its codes, another one may lack some if none is longer than one bit. */
static int make_code(Code *code, const uint8_t *lengths, int n, int whole) {
    uint16_t start[LONGEST + 2], next[LONGEST + 2];
    memset(code->counts, 0, sizeof code->counts);
    memset(code->fast, 0, sizeof code->fast);
    for (int i = 0; i < n; i++) code->counts[lengths[i]]++;
    code->counts[0] = 0;
    int left = 1, longest = 0;
    start[1] = next[1] = 0;
    for (int length = 1; length <= LONGEST; length++) {
        left = 2 * left - code->counts[length];
        if (left < 0) return 0;
        if (code->counts[length]) longest = length;
        start[length + 1] = (uint16_t)(start[length] + code->counts[length]);
        next[length + 1] = (uint16_t)((next[length] + code->counts[length]) << 1);
    }
    if (left > 0 && longest && (whole || longest > 1)) return 0;
    if (!longest && whole) return 0;
    for (int i = 0; i < n; i++) {
        int length = lengths[i];
        if (!length) continue;
        code->symbols[start[length]++] = (uint16_t)i;
        unsigned word = next[length]++, reversed = 0;
        if (length > FAST) continue;
        for (int k = 0; k < length; k++) reversed |= (word >> k & 1) << (length - 1 - k);
        for (; reversed < 1u << FAST; reversed += 1u << length)
            code->fast[reversed] = (uint16_t)(i << 4 | length);
    }
    return 1;
}

/* Return the next symbol, or -1. */
static int next_symbol(Bits *b, const Code *code) {
    if (b->count < LONGEST) refill(b);
    unsigned found = code->fast[b->bits & ((1u << FAST) - 1)];
    if (found) {
        b->bits >>= found & 15;
        b->count -= (int)(found & 15);
        return (int)(found >> 4);
    }
    int word = 0, first = 0, index = 0;
    for (int length = 1; length <= LONGEST; length++) {
        word |= (int)(b->bits & 1);
        b->bits >>= 1;
        b->count--;
        int count = code->counts[length];
        if (word - first < count) return code->symbols[index + word - first];
        index += count;
        first = (first + count) << 1;
        word <<= 1;
    }
    return -1;
}

static const uint16_t run_base[29] = {3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27,
                                      31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};
static const uint8_t run_bits[29] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2,
                                     2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};
static const uint16_t back_base[30] = {1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129,
                                       193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097,
                                       6145, 8193, 12289, 16385, 24577};
static const uint8_t order[19] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};

static int fixed_codes(Code *literals, Code *distances) {
    uint8_t lengths[288];
    for (int i = 0; i < 288; i++) lengths[i] = i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8;
    if (!make_code(literals, lengths, 288, 1)) return 0;
    memset(lengths, 5, 32);
    return make_code(distances, lengths, 32, 1);
}

static int read_codes(Bits *b, Code *literals, Code *distances) {
    uint8_t lengths[286 + 30] = {0};
    int n = (int)take(b, 5) + 257, m = (int)take(b, 5) + 1, some = (int)take(b, 4) + 4;
    if (b->count < 0 || n > 286 || m > 30) return 0;
    for (int i = 0; i < some; i++) lengths[order[i]] = (uint8_t)take(b, 3);
    if (!make_code(literals, lengths, 19, 1)) return 0;
    uint8_t found[286 + 30];
    int i = 0;
    while (i < n + m) {
        int symbol = next_symbol(b, literals);
        if (symbol < 0 || b->count < 0) return 0;
        if (symbol < 16) {
            found[i++] = (uint8_t)symbol;
            continue;
        }
        if (symbol == 16 && !i) return 0;
        uint8_t value = symbol == 16 ? found[i - 1] : 0;
        int times = symbol == 16 ? 3 + (int)take(b, 2)
                    : symbol == 17 ? 3 + (int)take(b, 3) : 11 + (int)take(b, 7);
        if (b->count < 0 || times > n + m - i) return 0;
        while (times--) found[i++] = value;
    }
    return found[256] && make_code(literals, found, n, 0) && make_code(distances, found + n, m, 0);
}

/* Decode the symbols of a block; return where its output ends, or null. */
static uint8_t *block(Bits *b, const Code *literals, const Code *distances, const uint8_t *start,
                      uint8_t *to, const uint8_t *end) {
    for (;;) {
        int symbol = next_symbol(b, literals);
        if (symbol < 0 || b->count < 0) return 0;
        if (symbol == 256) return to;
        if (symbol < 256) {
            if (to == end) return 0;
            *to++ = (uint8_t)symbol;
            continue;
        }
        if (symbol > 285) return 0;
        int64_t run = run_base[symbol - 257] + (int64_t)take(b, run_bits[symbol - 257]);
        int far = next_symbol(b, distances);
        if (far < 0 || far > 29) return 0;
        int64_t back = back_base[far] + (int64_t)take(b, far < 2 ? 0 : far / 2 - 1);
        if (b->count < 0 || back > to - start || run > end - to) return 0;
        for (; run; run--, to++) *to = to[-back];
    }
}

static uint32_t adler32(const uint8_t *bytes, int64_t length) {
    uint32_t a = 1, b = 0;
    while (length) {
        int64_t some = length < 5552 ? length : 5552; /* the sums do not overflow before */
        length -= some;
        while (some--) b += a += *bytes++;
        a %= 65521;
        b %= 65521;
    }
    return b << 16 | a;
}

/* Inflate a zlib stream that makes exactly `size` bytes and ends with its bytes. */
static int inflate(const uint8_t *bytes, int64_t length, uint8_t *out, int64_t size) {
    Code literals, distances;
    if (length < 2 || (bytes[0] & 15) != 8 || bytes[0] >> 4 > 7 || bytes[1] & 32 ||
        (bytes[0] * 256 + bytes[1]) % 31)
        return TEC_DAMAGED;
    Bits b = {bytes + 2, bytes + length, 0, 0};
    uint8_t *to = out, *end = out + size;
    for (int last = 0; !last;) {
        last = (int)take(&b, 1);
        int kind = (int)take(&b, 2);
        if (b.count < 0 || kind == 3) return TEC_DAMAGED;
        if (!kind) {
            take(&b, b.count & 7);
            uint32_t n = take(&b, 16), check = take(&b, 16);
            if (b.count < 0 || (n ^ check) != 0xffff) return TEC_DAMAGED;
            for (; n && b.count; n--) { /* whole bytes that were read ahead */
                if (to == end) return TEC_DAMAGED;
                *to++ = (uint8_t)take(&b, 8);
            }
            if ((int64_t)n > b.end - b.at || (int64_t)n > end - to) return TEC_DAMAGED;
            if (n) memcpy(to, b.at, n);
            to += n;
            b.at += n;
            continue;
        }
        if (!(kind == 1 ? fixed_codes(&literals, &distances)
                        : read_codes(&b, &literals, &distances)))
            return TEC_DAMAGED;
        if (!(to = block(&b, &literals, &distances, out, to, end))) return TEC_DAMAGED;
    }
    take(&b, b.count & 7);
    uint32_t check = 0;
    for (int i = 0; i < 4; i++) check = check << 8 | take(&b, 8);
    if (b.count || b.at != b.end || to != end || check != adler32(out, size)) return TEC_DAMAGED;
    return TEC_OK;
}

int tec_unpack(const uint8_t *packed, int64_t length, uint8_t *out, int64_t size) {
    if (!size || !length) return size || length ? TEC_DAMAGED : TEC_OK;
    if (packed[0] == 1) return inflate(packed + 1, length - 1, out, size);
    if (packed[0] || length - 1 != size) return TEC_DAMAGED;
    memcpy(out, packed + 1, (size_t)size);
    return TEC_OK;
}
