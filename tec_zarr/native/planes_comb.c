/* Residuals of a plane whose values are not equally likely: what stretched whole numbers once leaves gaps.
 *
 * Both sides count the values of earlier rows. Each decision between two ranges of values is coded with its
 * own chance times the share of either range among the samples counted.
 */
#include "planes_comb.h"

#include "fastest.h"
#include "planes_bits.h"

#include <stdlib.h>

#define MOST_COUNTED 16383
#define ENOUGH 256 /* samples after which `sums` are made anew */
#define BLOCK 64   /* values whose even and odd ones are told apart */
#define PRIOR 32   /* what values never seen count in the mean */
#define UNSEEN 16  /* of a block: counts that say nothing of even or odd */
#define WINDOW 16  /* values on each side that a value is compared with */
#define WIDEST 64  /* range of magnitudes in which values are told apart */

/* A value never seen counts as much as a part of what was seen in its block, of even or of odd values. */
FASTEST static void add_up(Comb *comb) {
    size_t count = (size_t)comb->range + 1;
    uint32_t sum = 0, *restrict sums = comb->sums;
    const uint32_t *restrict counts = comb->counts;
    for (size_t first = 0; first < count; first += BLOCK) {
        size_t size = first + BLOCK < count ? BLOCK : count - first;
        uint32_t seen[2] = {0, 0}, prior[2];
        for (size_t i = 0; i + 1 < size; i += 2) seen[0] += counts[first + i], seen[1] += counts[first + i + 1];
        if (size & 1) seen[0] += counts[first + size - 1];
        for (int odd = 0; odd < 2; odd++)
            prior[odd] = PRIOR * (2 * seen[odd] + UNSEEN) / (seen[0] + seen[1] + UNSEEN) + 1;
        for (size_t i = 0; i < size; i++) {
            sums[first + i] = sum;
            sum += counts[first + i] + prior[i & 1];
        }
    }
    sums[count] = sum;
}

int tec_comb_begin(Comb *comb, int64_t range) {
    size_t count = (size_t)range + 1;
    *comb = (Comb){calloc(2 * count + 1, sizeof *comb->counts), 0, range, 0};
    if (!comb->counts) return TEC_NO_MEMORY;
    comb->sums = comb->counts + count;
    add_up(comb);
    return TEC_OK;
}

void tec_comb_end(Comb *comb) {
    free(comb->counts);
    comb->counts = 0;
}

FASTEST void tec_comb_settle(Comb *comb) {
    if (comb->since < ENOUGH) return;
    comb->since = 0;
    size_t count = (size_t)comb->range + 1;
    uint32_t most = 0, halves = 0;
    for (size_t i = 0; i < count; i++) most = comb->counts[i] > most ? comb->counts[i] : most;
    while (most >> halves > MOST_COUNTED) halves++;
    if (halves)
        for (size_t i = 0; i < count; i++) comb->counts[i] >>= halves;
    add_up(comb);
}

/* What was counted of the values low .. high, as far as there are such values. */
static inline uint64_t counted(const Comb *comb, int64_t low, int64_t high) {
    low = low < 0 ? 0 : low;
    high = high > comb->range ? comb->range : high;
    return high < low ? 0 : comb->sums[high + 1] - comb->sums[low];
}

int tec_comb_pays(const Task *task, int *pays) {
    Comb comb;
    int status = tec_comb_begin(&comb, task->high - task->low), width = task->plane->width;
    int64_t saved = 0, coded = 0; /* in sixteenths of a bit */
    for (int y = 0; y < task->plane->height && !status; y++) {
        int64_t row = (int64_t)y * width;
        for (int64_t i = row; i < row + width; i++) {
            if (task->skipped && task->skipped[i]) continue;
            int64_t value = (int64_t)task->wanted[i] - task->low;
            uint64_t one = counted(&comb, value, value), all = counted(&comb, value - WINDOW, value + WINDOW);
            saved += tec_log_of(one * (2 * WINDOW + 1)) - tec_log_of(all);
            coded++;
            tec_comb_count(&comb, value);
        }
        tec_comb_settle(&comb);
    }
    if (!status) tec_comb_end(&comb);
    *pays = 4 * saved > coded; /* a 64th of a bit for each sample */
    return status;
}

/* The chance of a one, if `ones` and `zeros` were counted in ranges of so many values. */
static inline uint32_t chance_of(uint32_t chance, uint64_t ones, uint64_t zeros, uint64_t one_values,
                                 uint64_t zero_values) {
    uint64_t one = chance * ones * zero_values, zero = (65536 - chance) * zeros * one_values;
    if (!(one + zero)) return chance;
    uint64_t out = (one << 16) / (one + zero);
    return (uint32_t)(out < LEAST_CHANCE ? LEAST_CHANCE : out > 65536 - LEAST_CHANCE ? 65536 - LEAST_CHANCE : out);
}

static inline int64_t start_of(int bucket) { /* the least m of a bucket */
    return bucket < 12 ? bucket : ((int64_t)(4 + bucket % 4) << (bucket / 4 - 2)) + 4;
}

/* One of the values low .. high, by how often each was counted. */
EITHER int64_t code_value(Coder *c, const Comb *comb, int64_t low, int64_t high, int64_t value, const int encoding) {
    low = low < 0 ? 0 : low;
    high = high > comb->range ? comb->range : high;
    if (high <= low) return low;
    uint32_t before = comb->sums[low], all = comb->sums[high + 1] - before;
    if (encoding) {
        uint32_t unit = c->e.range / all;
        c->e.low += (uint64_t)unit * (comb->sums[value] - before);
        c->e.range = unit * (comb->sums[value + 1] - comb->sums[value]);
        while (c->e.range < (1u << 24)) {
            c->e.range <<= 8;
            shift_low(&c->e);
        }
        return value;
    }
    uint32_t unit = c->d.range / all, place = c->d.code / unit;
    if (place >= all) place = all - 1;
    while (low < high) { /* the last value that begins at or before the place */
        int64_t middle = (low + high + 1) / 2;
        if (comb->sums[middle] - before <= place) low = middle;
        else high = middle - 1;
    }
    c->d.code -= unit * (comb->sums[low] - before);
    c->d.range = unit * (comb->sums[low + 1] - comb->sums[low]);
    refill(&c->d);
    return low;
}

EITHER int64_t code_combed(Coder *c, Symbols *s, const Comb *comb, int scale, int side, int64_t predicted,
                           int64_t number, const int encoding) {
    uint64_t own = counted(comb, predicted, predicted);
    uint64_t around = counted(comb, predicted - WINDOW, predicted + WINDOW) - own;
    Bit *bit = &s->zero[scale];
    if (code_bit_as(c, bit, chance_of(bit->one, own, around, 1, 2 * WINDOW), !number, encoding)) return 0;
    int reach = scale < CENTRE ? 1 : scale < CENTRE + 16 ? 1 << (scale - CENTRE) / 4 : WINDOW;
    bit = &s->sign[scale][side];
    uint32_t chance = chance_of(bit->one, counted(comb, predicted - reach, predicted - 1),
                                counted(comb, predicted + 1, predicted + reach), 1, 1);
    int negative = code_bit_as(c, bit, chance, number < 0, encoding);
    int64_t first = predicted + (negative ? -1 : 1), sign = negative ? -1 : 1;
    uint64_t m = encoding ? (uint64_t)(number < 0 ? -number : number) - 1 : 0;
    int bucket = bucket_of(m), node = 1;
    for (int half = 32; half; half /= 2) {
        int low = (node * 2 * half) - 64; /* the buckets of the node are low .. low + 2 half - 1 */
        int64_t start = start_of(low), middle = start_of(low + half), end = start_of(low + 2 * half);
        bit = &s->magnitude[scale][node];
        chance = bit->one;
        if (low + 2 * half < 64 && end - start <= WIDEST) {
            int64_t a = first + sign * start, b = first + sign * (middle - 1);
            int64_t d = first + sign * middle, e = first + sign * (end - 1);
            chance = chance_of(chance, negative ? counted(comb, e, d) : counted(comb, d, e),
                               negative ? counted(comb, b, a) : counted(comb, a, b),
                               (uint64_t)(end - middle), (uint64_t)(middle - start));
        }
        node = 2 * node + code_bit_as(c, bit, chance, (bucket & half) != 0, encoding);
    }
    bucket = node - 64;
    if (bucket < 12) return sign * (bucket + 1);
    if (bucket == 63) {
        int bits = (int)tec_code_bits(c, (uint32_t)bits_in(m), 6);
        if (bits > 16) bits = 16;
        m = tec_code_bits(c, (uint32_t)m & 0xffff, bits);
        return sign * ((int64_t)m + 1);
    }
    int bits = bucket / 4 - 2, plain = bits > 6 ? bits - 6 : 0;
    m = (uint64_t)start_of(bucket) +
        ((uint64_t)tec_code_bits(c, (uint32_t)((m - (uint64_t)start_of(bucket)) >> (bits - plain)), plain) << (bits - plain));
    int64_t near = first + sign * (int64_t)m, far = near + sign * (((int64_t)1 << (bits - plain)) - 1);
    return code_value(c, comb, negative ? far : near, negative ? near : far, predicted + number, encoding) - predicted;
}

int64_t tec_code_combed(Coder *c, Symbols *s, const Comb *comb, int scale, int side, int64_t predicted, int64_t number) {
    return c->encoding ? code_combed(c, s, comb, scale, side, predicted, number, 1)
                       : code_combed(c, s, comb, scale, side, predicted, 0, 0);
}
