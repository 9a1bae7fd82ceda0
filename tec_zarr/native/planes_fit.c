/* Weights of a prediction, fitted to what was decoded already.
 *
 * The columns of a plane are divided into stripes. Each stripe keeps sums of products of its samples; its
 * weights are fitted to these and, less so, to those of the stripes beside it. All is in whole numbers.
 */
#include "planes_fit.h"

#include "fastest.h"

#include <stdlib.h>
#include <string.h>

#define STRIPES 16 /* at most */
#define SCALED_LIMIT 2047 /* of an input scaled for the fit: products of a segment fit 32 bits */
#define SWEEPS 4
#define ENOUGH 40 /* samples after which the weights of a stripe are fitted again */
#define FORGET 3 /* then its sums forget this power of a half */

static const int8_t around[18][2] = {{0, 0}, {-1, 0}, {0, 1}, {1, 0}, {-1, -1}, {-1, 1},
                                     {1, -1}, {1, 1}, {0, 2}, {2, 0}, {0, -2}, {-2, 0},
                                     {1, 2}, {2, 1}, {-1, 2}, {1, -2}, {2, -1}, {-2, 1}};
static const int count_around[WIDE] = {18, 12, 12, 8};

/* One input of samples x0 .. x0 + count - 1 of a row: a sample of a reference, less those beside. */
FASTEST static void fill(const int32_t *restrict at, const int32_t *restrict row, int above, int count,
                         int shift, int16_t *restrict out) {
    for (int i = 0; i < count; i++)
        out[i] = input(2 * at[i] - row[i - 1] - row[i - above], shift);
}

FASTEST static void add_inputs(int16_t (*restrict x)[SEGMENT_ROOM], const int32_t *restrict weights, int from,
                               int to, int count, int32_t *restrict out) {
    for (int i = 0; i < count; i++) out[i] = 0;
    for (int j = from; j < to; j++) {
        int32_t weight = weights[j];
        for (int i = 0; i < count; i++) out[i] += weight * x[j][i];
    }
}

static void fill_references(const Task *task, Fit *f, int y, int x0, int count) {
    int at = OWN;
    for (int r = 0; r < task->wide_count + task->far_count; r++) {
        int is_wide = r < task->wide_count;
        const Plane *p = is_wide ? task->wide[r] : task->far[r - task->wide_count];
        const int32_t *row = value_at(p, y, x0);
        int above = p->width + 2 * MARGIN;
        for (int i = 0; i < (is_wide ? count_around[r] : 1); i++)
            fill(value_at(p, y + around[i][0], x0 + around[i][1]), row, above, count, p->shift, f->x[at++]);
    }
    add_inputs(f->x, f->weights, OWN, at, count, f->at);
}

FASTEST static void scale_inputs(const int16_t *restrict from, const int16_t *restrict scale, int count,
                                 int16_t *restrict to) {
    for (int i = 0; i < count; i++) {
        int32_t x = (from[i] * scale[i] + (1 << 13)) >> 14;
        to[i] = (int16_t)(x < -SCALED_LIMIT ? -SCALED_LIMIT : x > SCALED_LIMIT ? SCALED_LIMIT : x);
    }
}

FASTEST static void add_products(int16_t (*restrict x)[SEGMENT_ROOM], int inputs, int count,
                                 int64_t (*restrict gram)[INPUTS], int64_t *restrict right) {
    for (int i = 0; i <= INPUTS; i++) {
        if (i == inputs) i = INPUTS; /* what was missing */
        const int16_t *a = x[i];
        for (int j = 0; j <= i && j < inputs; j += 4) {
            const int16_t *b = x[j], *c = x[j + 1], *d = x[j + 2], *e = x[j + 3];
            int32_t sums[4] = {0};
            for (int k = 0; k < count; k++) {
                sums[0] += a[k] * b[k];
                sums[1] += a[k] * c[k];
                sums[2] += a[k] * d[k];
                sums[3] += a[k] * e[k];
            }
            for (int k = 0; k < 4; k++) {
                if (i == INPUTS) right[j + k] += sums[k];
                else if (j + k <= i) {
                    gram[i][j + k] += sums[k];
                    if (j + k < i) gram[j + k][i] += sums[k];
                }
            }
        }
    }
}

/* Move each weight to where it is best if the others stay, some times over. */
FASTEST static void sweep(Fit *f, int32_t *restrict weights) {
    int inputs = f->inputs, shift = 0;
    int64_t most = 0;
    for (int i = 0; i < inputs; i++)
        if (f->gram[i][i] > most) most = f->gram[i][i];
    while (most >> shift > INT32_MAX / 2) shift++;
    for (int i = 0; i < inputs; i++) {
        for (int j = 0; j < INPUTS; j++) f->small[i][j] = (int32_t)(f->gram[i][j] >> shift);
        f->small[i][i] += (f->small[i][i] >> f->ridge) + 1; /* large weights cost something */
    }
    for (int n = 0; n < SWEEPS; n++)
        for (int i = 0; i < inputs; i++) {
            const int32_t *row = f->small[i];
            int64_t rest = (f->right[i] >> shift) * (1 << WEIGHT_BITS), sum = 0;
            for (int j = 0; j < INPUTS; j++) sum += (int64_t)row[j] * weights[j];
            weights[i] = (int32_t)clip(weights[i] + (rest - sum) / (row[i] + (int64_t)64), -32767, 32767);
        }
}

/* The sums of a stripe, and shares of those of two stripes on each side. */
FASTEST static void gather(Fit *f, int at) {
    memcpy(f->gram, f->stripes[at].gram, sizeof f->gram);
    memcpy(f->right, f->stripes[at].right, sizeof f->right);
    for (int other = at < 2 ? 0 : at - 2; other <= at + 2 && other < f->count; other++) {
        if (other == at) continue;
        const Stripe *s = f->stripes + other;
        int64_t share = other == at - 1 || other == at + 1 ? 3 : 1;
        for (int i = 0; i < f->inputs; i++) {
            for (int j = 0; j < INPUTS; j++) f->gram[i][j] += share * s->gram[i][j] >> 3;
            f->right[i] += share * s->right[i] >> 3;
        }
    }
}

FASTEST static void forget(Stripe *s, int inputs) {
    for (int i = 0; i < inputs; i++) {
        s->right[i] -= s->right[i] >> FORGET;
        for (int j = 0; j < INPUTS; j++) s->gram[i][j] -= s->gram[i][j] >> FORGET;
    }
}

Fit *tec_fit_begin(const Task *task, uint64_t least) {
    Fit *f = calloc(1, sizeof *f);
    if (!f) return 0;
    f->ridge = least == 0 ? 8 : least < 10 ? 7 : 6;
    f->inputs = OWN + task->far_count;
    for (int r = 0; r < task->wide_count; r++) f->inputs += count_around[r];
    int width = task->plane->width, segments = (width + SEGMENT / 2) / SEGMENT;
    if (segments < 1) segments = 1;
    f->size = (width + segments - 1) / segments;
    f->segments = (segments + STRIPES - 1) / STRIPES;
    f->count = (segments + f->segments - 1) / f->segments;
    f->stripes = calloc((size_t)f->count, sizeof *f->stripes);
    if (f->stripes) return f;
    free(f);
    return 0;
}

void tec_fit_end(Fit *f) {
    free(f->stripes);
    free(f);
}

void tec_fit_segment(Fit *f, const Task *task, int y, int x0, int count) {
    int at = x0 / f->size / f->segments;
    Stripe *s = f->stripe = f->stripes + at;
    int follows = !s->begun && at;
    if (follows) memcpy(s->weights, s[-1].weights, sizeof s->weights);
    s->begun = 1;
    if (follows || s->since >= ENOUGH) {
        gather(f, at);
        sweep(f, s->weights);
        forget(s, f->inputs);
        s->since = 0;
    }
    f->weights = s->weights;
    fill_references(task, f, y, x0, count);
}

void tec_fit_learn(Fit *f, int count, int coded) {
    int padded = (count + 31) / 32 * 32;
    for (int i = count; i < padded; i++) f->scale[i] = 0;
    for (int i = 0; i < f->inputs; i++) scale_inputs(f->x[i], f->scale, padded, f->scaled[i]);
    scale_inputs(f->missing, f->scale, padded, f->scaled[INPUTS]);
    add_products(f->scaled, f->inputs, padded, f->stripe->gram, f->stripe->right);
    f->stripe->since += coded;
}
