/* One plane of the bound layer: prediction, expected sizes of residuals, and their coding.
 *
 * Samples are coded row by row. Each is predicted from samples around it, and from those of other
 * planes, with weights that both sides fit to what they coded before. docs/error-bounds.md says all
 * that a decoder has to do. Everything is in whole numbers.
 */
#include "fastest.h"
#include "planes_comb.h"
#include "planes_fit.h"

#include <stdlib.h>
#include <string.h>

static const uint8_t LOGARITHMS[64] = {
    0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5, 5, 6, 6,
    6, 7, 7, 7, 7, 8, 8, 8, 8, 9, 9, 9, 9, 10, 10, 10, 10, 11, 11, 11,
    11, 11, 12, 12, 12, 12, 13, 13, 13, 13, 13, 14, 14, 14, 14, 14, 15, 15, 15, 15,
    15, 15, 16, 16,
};

static const uint32_t POWERS[32] = {
    65536, 66971, 68438, 69936, 71468, 73032, 74632, 76266, 77936, 79642, 81386,
    83169, 84990, 86851, 88752, 90696, 92682, 94711, 96785, 98905, 101070, 103283,
    105545, 107856, 110218, 112631, 115098, 117618, 120194, 122825, 125515, 128263,
};

int tec_log_of(uint64_t n) { /* of 1 or more, in sixteenths of an octave */
    int whole = bits_in(n) - 1;
    uint64_t part = whole > 6 ? n >> (whole - 6) : n << (6 - whole);
    return 16 * whole + LOGARITHMS[part & 63];
}

static uint64_t power_of(int n) { /* 2^(n / 32), at least 1 and at most 2^47 */
    if (n < 0) return 1;
    if (n >= 32 * 47) return (uint64_t)1 << 47;
    return ((uint64_t)POWERS[n & 31] << (n >> 5)) >> 16;
}

/* ---- planes with margins */

int tec_plane_begin(Plane *p, int height, int width) {
    size_t count = ((size_t)height + 2 * MARGIN) * ((size_t)width + 2 * MARGIN);
    tec_plane_end(p);
    *p = (Plane){height, width, 0, 0, calloc(count, sizeof *p->values), calloc(count, 1)};
    return p->values && p->sizes ? TEC_OK : TEC_NO_MEMORY;
}

void tec_plane_end(Plane *p) {
    free(p->values), free(p->sizes);
    p->values = 0, p->sizes = 0;
}

static void sides(Plane *p, int y) {
    int32_t *v = value_at(p, y, 0);
    uint8_t *s = size_at(p, y, 0);
    for (int i = 1; i <= MARGIN; i++) {
        v[-i] = v[0], v[p->width - 1 + i] = v[p->width - 1];
        s[-i] = s[0], s[p->width - 1 + i] = s[p->width - 1];
    }
}

static void copy_row(Plane *p, int from, int to) {
    size_t pitch = (size_t)p->width + 2 * MARGIN;
    memcpy(value_at(p, to, -MARGIN), value_at(p, from, -MARGIN), pitch * sizeof *p->values);
    memcpy(size_at(p, to, -MARGIN), size_at(p, from, -MARGIN), pitch);
}

static void top(Plane *p) {
    for (int i = 1; i <= MARGIN; i++) copy_row(p, 0, -i);
}

static void bottom(Plane *p) {
    for (int i = 0; i < MARGIN; i++) copy_row(p, p->height - 1, p->height + i);
}

void tec_plane_margins(Plane *p) {
    for (int y = 0; y < p->height; y++) sides(p, y);
    top(p), bottom(p);
}

/* ---- samples */

static const int8_t around_own[13][2] = {{-1, 0}, {-1, -1}, {-1, 1}, {0, -2}, {-2, 0}, {-2, 1}, {-1, -2},
                                         {-2, -1}, {-1, 2}, {-2, 2}, {-2, -2}, {0, -3}, {-3, 0}};

typedef struct {
    const Task *task;
    Learnt *learnt;
    Fit *fit;
    int64_t range;  /* of the values, in units of 2^coarse */
    int64_t middle;
    int unit_log;   /* of half of the smallest step and a quarter, in eighths of a value */
    int step_log;   /* of the smallest step, in eighths of a value */
    uint64_t unit;
    int raw, combed;
    Comb comb;
    int paired;    /* from `from` on, every other value occurs: those that differ from the highest by an even number */
    int64_t from;
} Walk;

static inline int64_t floor_divided(int64_t a, int64_t b) { return a / b - (a % b < 0); }

/* Features of the expected size: logarithms over that of the unit, 0 to 255. */
static inline int feature(const Walk *w, int64_t size) {
    int log = tec_log_of((uint64_t)size + w->unit) - w->unit_log;
    return log > 255 ? 255 : log;
}

static inline int64_t apart(int64_t a, int64_t b) { return a < b ? b - a : a - b; }

static inline void features_of(const Walk *w, const int32_t *v, const uint8_t *s, int y, int x, int16_t *f) {
    const Task *task = w->task;
    int64_t pitch = task->plane->width + 2 * MARGIN;
    f[0] = s[-1];
    f[1] = s[-pitch];
    f[2] = (int16_t)((s[-pitch - 1] + s[-pitch + 1] + 1) >> 1);
    f[3] = (int16_t)((s[-2] + s[-2 * pitch] + 1) >> 1);
    int64_t west = v[-1], north = v[-pitch], corner = v[-pitch - 1];
    int64_t rough = apart(west, corner) + apart(north, corner) + apart(north, v[-pitch + 1]);
    int64_t far = apart(west, v[-2]) + apart(north, v[-2 * pitch]);
    f[4] = (int16_t)feature(w, (rough << task->plane->coarse) * 3);
    f[5] = (int16_t)feature(w, (far << task->plane->coarse) * 4);
    for (int r = 0; r < task->wide_count; r++) {
        const uint8_t *at = size_at(task->wide[r], y, x);
        int64_t other = task->wide[r]->width + 2 * MARGIN;
        f[6 + 2 * r] = at[0];
        f[7 + 2 * r] = (int16_t)((at[-1] + at[1] + at[-other] + at[other] + 2) >> 2);
    }
}

/* Where every other value occurs, a bin of residual holds bound + 1 of those: it is one wider than the step.
 *
 * Bins go on from that of the prediction, wider ones where they begin at `from` or above. */
typedef struct {
    int64_t middle, bound; /* of the bin of the prediction */
    int64_t bins, edge;    /* so many bins from the first to the last of its width; where the other width begins */
    int upper;
} Bins;

static inline Bins bins_of(const Walk *w, int64_t base, int64_t bound) {
    int64_t paired = base - ((base - bound - w->task->high) & 1), wide = 2 * bound + 2, step = 2 * bound + 1;
    if (paired - bound >= w->from) {
        int64_t bins = (paired - bound - w->from) / wide;
        return (Bins){paired, bound, bins, paired - bound - bins * wide, 1};
    }
    int64_t left = w->from - 1 - bound - base, bins = left > 0 ? (left + step - 1) / step : 0;
    int64_t edge = base + bound + bins * step + 1;
    return (Bins){base, bound, bins, edge + ((edge - w->task->high) & 1), 0};
}

static inline int64_t bin_of(const Bins *b, int64_t value) {
    int64_t step = 2 * b->bound + 1, first = b->middle - b->bound;
    if (b->upper)
        return value >= b->edge ? floor_divided(value - first, step + 1)
                                : floor_divided(value - b->edge, step) - b->bins;
    return value < b->edge ? floor_divided(value - first, step) : (value - b->edge) / (step + 1) + b->bins + 1;
}

static inline int64_t value_of(const Bins *b, int64_t number) {
    int64_t step = 2 * b->bound + 1;
    number = clip(number, -65536, 65536); /* as many as there are values */
    if (b->upper)
        return number >= -b->bins ? b->middle + number * (step + 1)
                                  : b->edge + b->bound + (number + b->bins) * step;
    return number <= b->bins ? b->middle + number * step
                             : b->edge + b->bound + (number - b->bins - 1) * (step + 1);
}

/* How far a decoded value is off. */
static inline int64_t off_at(const Task *task, int64_t place) {
    if (task->skipped && task->skipped[place]) return 0;
    return (int64_t)task->decoded[place] - task->wanted[place];
}

/* Encoder: a residual near `number` that costs little and leaves the samples within their bound.
 *
 * Four samples lie between a value and those on its left and above. Each is blended of the four values with
 * weights of 9, 3, 3 and 1 of 16, so that errors of opposite signs cancel. Costs are in sixteenths of a bit. */
static int64_t blended_number(const Task *task, int64_t place, int64_t base, int64_t step, int64_t number,
                              int64_t expected) {
    int width = task->plane->width;
    int has_left = place % width != 0, has_above = place >= width;
    int64_t left = has_left ? off_at(task, place - 1) : 0, above = has_above ? off_at(task, place - width) : 0;
    int64_t corner = has_left && has_above ? off_at(task, place - width - 1) : 0;
    int64_t bound = task->blended, slope = 185 * step / expected, least = INT64_MAX, best = number;
    for (int64_t tried = number - 2; tried <= number + 2; tried++) {
        int64_t value = clip(base + tried * step, task->low, task->high), off = value - task->wanted[place];
        if (tried != number && apart(off, 0) > 17 * bound / 10 + 1) continue;
        int64_t sums[4] = {9 * off + 3 * (left + above) + corner, 9 * left + 3 * (off + corner) + above,
                           9 * above + 3 * (off + corner) + left, 9 * corner + 3 * (left + above) + off};
        int64_t share = 16 * off / bound, cost = apart(tried, 0) * slope + 3 * share * share / 8;
        for (int i = 0; i < 4; i++) cost += apart(sums[i], 0) > 16 * bound + 7 ? 320 : 0;
        if (cost < least) least = cost, best = tried;
    }
    return best;
}

FASTEST static int code_segment(Coder *c, Walk *w, int y, int x0, int count) {
    const Task *task = w->task;
    Fit *fit = w->fit;
    Plane *p = task->plane;
    int64_t pitch = p->width + 2 * MARGIN;
    int coded = 0;
    int32_t *weights = w->learnt->weights[task->wide_count];
    if (!w->raw) tec_fit_segment(fit, task, y, x0, count);
    for (int i = 0; i < count; i++) {
        int x = x0 + i;
        int32_t *v = value_at(p, y, x);
        uint8_t *s = size_at(p, y, x);
        if (!y) /* above the first row, the value before is repeated */
            for (int up = 1; up <= MARGIN; up++)
                for (int side = -2; side <= 2; side++) {
                    v[side - up * pitch] = v[-1];
                    s[side - up * pitch] = s[-1];
                }
        int64_t place = (int64_t)y * p->width + x;
        int32_t twice = v[-1] + v[-pitch];
        if (task->skipped && task->skipped[place]) {
            *v = (twice + 1) >> 1;
            *s = (uint8_t)((s[-1] + s[-pitch] + 1) >> 1);
            task->decoded[place] = (int32_t)(clip(task->low + ((int64_t)*v << p->coarse), task->low, task->high));
            fit->scale[i] = 0;
            continue;
        }
        coded++;
        uint64_t bound = task->bounds ? (uint64_t)task->bounds[place] : task->bound;
        uint64_t step = 2 * bound + 1;
        int64_t value;
        if (w->raw) {
            uint64_t number = 0;
            if (c->encoding) number = ((uint64_t)((int64_t)task->wanted[place] - task->low)) / step;
            uint64_t bins = (uint64_t)(task->high - task->low) / step + 1;
            number = tec_code_uniform(c, number, bins);
            value = clip(task->low + (int64_t)(number * step + bound), task->low, task->high);
            *v = (int32_t)((value - task->low) >> p->coarse);
            *s = 0;
            task->decoded[place] = (int32_t)value;
            continue;
        }
        int16_t own[OWN];
        own[0] = 64;
        own[1] = input((int32_t)(2 * w->middle - twice), p->shift);
        for (int j = 2; j < OWN; j++)
            own[j] = input(2 * v[around_own[j - 2][0] * pitch + around_own[j - 2][1]] - twice, p->shift);
        int32_t sum = fit->at[i];
        for (int j = 0; j < OWN; j++) {
            fit->x[j][i] = own[j];
            sum += fit->weights[j] * own[j];
        }
        /* eighths of a value; `twice` is in halves */
        int64_t eighths = (int64_t)twice * 4 + ((int64_t)sum * ((int64_t)1 << p->shift) >> (WEIGHT_BITS - 2)) + 4;
        int64_t predicted = clip(eighths >> 3, 0, w->range);
        int16_t f[FEATURES] = {0};
        features_of(w, v, s, y, x, f);
        int32_t total = weights[FEATURES] * 16;
        for (int j = 0; j < FEATURES; j++) total += weights[j] * f[j];
        int log = total >> 12; /* 1/256 octave over the unit */
        log = (int)clip(log, -256 * 8, 256 * 30);
        int64_t expected = (int64_t)power_of((log + 16 * w->unit_log) >> 3);
        int scale = (int)clip(((log + 16 * w->unit_log - 16 * (task->bounds ? tec_log_of(8 * step) : w->step_log)) >> 6) + CENTRE, 0, SCALES - 1);
        int side = step == 1 && !p->coarse ? (int)(eighths & 7) : 4;
        int64_t base = clip(task->low + (predicted << p->coarse), task->low, task->high), number = 0;
        Bins bins = {0};
        if (w->paired) bins = bins_of(w, base, (int64_t)bound);
        if (c->encoding && w->paired) number = bin_of(&bins, task->wanted[place]);
        else if (c->encoding) {
            number = floor_divided((int64_t)task->wanted[place] - base + (int64_t)bound, (int64_t)step);
            if (task->blended)
                number = blended_number(task, place, base, (int64_t)step, number, (int64_t)expected);
        }
        if (w->combed) number = tec_code_combed(c, &w->learnt->residuals, &w->comb, scale, side, predicted, number);
        else number = tec_code_symbol(c, &w->learnt->residuals, scale, side, number);
        value = w->paired ? value_of(&bins, number) : base + (int64_t)((uint64_t)number * step);
        value = clip(value, task->low, task->high);
        if (w->combed) tec_comb_count(&w->comb, value - task->low);
        task->decoded[place] = (int32_t)value;
        *v = (int32_t)((value - task->low) >> p->coarse);
        uint64_t missed = (uint64_t)(number < 0 ? -number : number) * 8 * step;
        if (!number) missed = 2 * step < (uint64_t)expected ? 2 * step : (uint64_t)expected;
        if (missed >> 40) missed = (uint64_t)1 << 40;
        *s = (uint8_t)feature(w, (int64_t)missed);
        int64_t most = 4 * expected;
        int32_t error = (int32_t)((missed > (uint64_t)most ? most : (int64_t)missed) * 256 / expected) - 256;
        for (int j = 0; j < FEATURES; j++) { /* those that are not there are 0 */
            int32_t next = weights[j] + ((error * f[j] + 128) >> 8);
            weights[j] = next < -(1 << 17) ? -(1 << 17) : next > 1 << 17 ? 1 << 17 : next;
        }
        weights[FEATURES] = (int32_t)clip(weights[FEATURES] + (error * 5 >> 3), -(1 << 22), 1 << 22);
        int quiet = ((log < 0 ? 0 : log) * 3) >> 6, octaves = (quiet + 31) >> 5;
        fit->scale[i] = (int16_t)(POWERS[32 * octaves - quiet] >> (octaves + 2 > 31 ? 31 : octaves + 2));
        fit->missing[i] = input(2 * *v - twice, p->shift);
    }
    if (!w->raw) tec_fit_learn(fit, count, coded);
    return TEC_OK;
}

/* Encoder: how much to divide differences of neighbours by, so that they have about 8 bits. */
static int shift_of(const Task *task, int coarse) {
    uint64_t sum = 0, count = 0;
    int width = task->plane->width;
    for (int64_t i = 1; i < (int64_t)task->plane->height * width; i++) {
        if (i % width == 0 || (task->skipped && (task->skipped[i] || task->skipped[i - 1]))) continue;
        sum += (uint64_t)apart(task->wanted[i], task->wanted[i - 1]) >> coarse;
        count++;
    }
    int bits = bits_in(count ? 2 * sum / count : 0);
    return bits > 8 ? bits - 8 : 0;
}

/* Encoder: from where on every other value occurs; not below the lowest value. */
static int64_t paired_from(const Task *task, int *pays) {
    int64_t samples = (int64_t)task->plane->height * task->plane->width, from = task->low, above = 0, coded = 0;
    for (int64_t i = 0; i < samples; i++)
        if (!(task->skipped && task->skipped[i]) && ((task->wanted[i] ^ task->high) & 1) && task->wanted[i] >= from)
            from = (int64_t)task->wanted[i] + 1;
    for (int64_t i = 0; i < samples; i++) {
        if (task->skipped && task->skipped[i]) continue;
        coded++;
        above += task->wanted[i] >= from;
    }
    *pays = 16 * above > coded;
    return from;
}

static int code_samples(Coder *c, Learnt *learnt, const Task *task, int raw) {
    Plane *p = task->plane;
    uint64_t least = task->bound;
    int64_t samples = (int64_t)p->height * p->width;
    if (task->bounds) {
        least = UINT32_MAX;
        for (int64_t i = 0; i < samples; i++)
            if ((uint32_t)task->bounds[i] < least && !(task->skipped && task->skipped[i]))
                least = (uint32_t)task->bounds[i];
    }
    Walk w = {task, learnt, tec_fit_begin(task, least), (task->high - task->low) >> p->coarse, 0, 0,
              tec_log_of(8 * (2 * least + 1)), 4 * (2 * least + 1) + 2, 0, 0, {0}, 0, 0};
    if (!w.fit) return TEC_NO_MEMORY;
    w.unit_log = tec_log_of(w.unit);
    w.middle = w.range / 2;
    w.raw = (int)tec_code_bits(c, (uint32_t)raw, 1);
    p->shift = (int)tec_code_bits(c, c->encoding ? (uint32_t)shift_of(task, p->coarse) : 0, 5);
    int status = TEC_OK, combed = 0, whole = !task->bounds && !task->bound && w.range <= COMB_RANGE && !w.raw;
    if (whole && c->encoding) status = tec_comb_pays(task, &combed);
    w.combed = whole && !status ? (int)tec_code_bits(c, (uint32_t)combed, 1) : 0;
    if (!task->bounds && task->bound && task->high - task->low < 65536 && !w.raw) {
        w.from = c->encoding ? paired_from(task, &w.paired) : 0;
        w.paired = (int)tec_code_bits(c, (uint32_t)w.paired, 1);
        if (w.paired) w.from = task->low + tec_code_bits(c, (uint32_t)(w.from - task->low), 16);
    }
    if (w.combed) status = tec_comb_begin(&w.comb, w.range);
    for (int y = 0; y < p->height && !status; y++) {
        int32_t *v = value_at(p, y, 0);
        uint8_t *s = size_at(p, y, 0);
        int64_t pitch = p->width + 2 * MARGIN;
        for (int i = 1; i <= MARGIN; i++) {
            v[-i] = y ? v[-pitch] : (int32_t)w.middle;
            s[-i] = y ? s[-pitch] : 0;
        }
        int size = w.fit->size;
        for (int x = 0; x < p->width; x += size) code_segment(c, &w, y, x, p->width - x < size ? p->width - x : size);
        if (w.combed) tec_comb_settle(&w.comb);
        sides(p, y);
        if (!y) top(p);
    }
    bottom(p);
    tec_fit_end(w.fit);
    if (w.combed) tec_comb_end(&w.comb);
    return status;
}

/* Bits of a plane that is sent as plain numbers. */
static uint64_t plain_bits(const Task *task) {
    uint64_t range = (uint64_t)(task->high - task->low), sum = 0; /* in sixteenths */
    int64_t samples = (int64_t)task->plane->height * task->plane->width;
    uint64_t same = (uint64_t)tec_log_of(range / (2 * (uint64_t)task->bound + 1) + 1);
    for (int64_t i = 0; i < samples; i++) {
        if (task->skipped && task->skipped[i]) continue;
        sum += task->bounds ? (uint64_t)tec_log_of(range / (2 * (uint64_t)task->bounds[i] + 1) + 1) : same;
    }
    return sum / 16;
}

int tec_plane_code(Coder *c, Learnt *learnt, const Task *task) {
    Plane *p = task->plane;
    int bits = bits_in((uint64_t)(task->high - task->low));
    p->coarse = bits > VALUE_BITS ? bits - VALUE_BITS : 0;
    if (!c->encoding) return code_samples(c, learnt, task, 0);
    Encoder before = c->e;
    Learnt *kept = malloc(sizeof *kept);
    if (!kept) return TEC_NO_MEMORY;
    *kept = *learnt;
    int status = code_samples(c, learnt, task, 0);
    uint64_t used = (uint64_t)(c->e.at - before.at) + c->e.pending - before.pending;
    if (!status && 8 * used > plain_bits(task) + 64) {
        c->e = before;
        *learnt = *kept;
        status = code_samples(c, learnt, task, 1);
    }
    free(kept);
    return status;
}
