/* Decodes the dates of a tile of a series. */
#include "series.h"

#include <stdlib.h>
#include <string.h>

#include "fastest.h"
#include "lanes.h"

int tec_piece_quality(int quality, int head) {
    int finer = quality + ((head >> 2) << FINER_BITS);
    return finer < LAST_QUALITY ? finer : LAST_QUALITY;
}

/* ---- prediction */

int tec_prediction(int quality, const int *of_references, int count) {
    int prediction = count ? FROM_DATES : ALONE;
    for (int k = 0; k < count; k++)
        if (of_references[k] < quality) prediction = FROM_LAYER;
    return prediction;
}

/* out = the whole numbers nearest to the weighted sum in 1/16. */
FASTEST static void add_weighted(const int32_t *const *known, const double *weight, int count, int length,
                                 int32_t *out) {
    const double most = 1 << 27;
    int i = 0;
    for (; i + LANES <= length; i += LANES) {
        Lanes sum = all(0.5);
        for (int k = 0; k < count; k++) sum += weight[k] * load_whole(known[k] + i);
        store_whole(out + i, clip(nearest(sum * (1.0 / (1 << WEIGHT_BITS))), most));
    }
    for (; i < length; i++) {
        int64_t sum = 1 << (WEIGHT_BITS - 1);
        for (int k = 0; k < count; k++) sum += (int64_t)weight[k] * known[k][i];
        sum >>= WEIGHT_BITS;
        out[i] = (int32_t)(sum > 1 << 27 ? 1 << 27 : sum < -(1 << 27) ? -(1 << 27) : sum);
    }
}

int tec_predict(const TecModel *m, const Layout *l, const References *references,
                const Coefficients *const *known, Coefficients *guess) {
    int64_t blocks = (int64_t)l->rows * l->cols;
    int status = tec_coefficients(l, guess);
    for (int f = 0; f < FREQUENCIES && !status; f++) {
        Frequency at = m->frequencies[f];
        int64_t first = (at.u * MOST_SIZE + at.v) * (int64_t)l->rows;
        for (int r = 0; r < l->rows; r++) {
            int from[MOST_REFERENCES], count = 0;
            for (int k = 0; k < references->count; k++)
                if (known[k]->alive[first + r]) from[count++] = k;
            if (!count) continue;
            for (int i = 0; i < tec_bands_of(l, at.class); i++) {
                int band = l->order[i], size = MOST_SIZE >> l->level[band];
                int64_t place = (at.u * size + at.v) * blocks + (int64_t)r * l->cols;
                const int32_t *rows[MOST_REFERENCES];
                double weight[MOST_REFERENCES];
                for (int k = 0; k < count; k++) {
                    rows[k] = known[from[k]]->of[band] + place;
                    weight[k] = references->weight[from[k]][at.class][i];
                }
                add_weighted(rows, weight, count, l->cols, guess->of[band] + place);
            }
            guess->alive[first + r] = 1;
        }
    }
    return status;
}

void tec_add(const TecModel *m, const Layout *l, const Coefficients *guess, Coefficients *c) {
    const int32_t most = 1 << 27;
    for (int f = 0; f < FREQUENCIES; f++) {
        Frequency at = m->frequencies[f];
        int64_t first = (at.u * MOST_SIZE + at.v) * (int64_t)l->rows;
        for (int r = 0; r < l->rows; r++) {
            if (!guess->alive[first + r]) continue;
            for (int i = 0; i < tec_bands_of(l, at.class); i++) {
                int band = l->order[i], size = MOST_SIZE >> l->level[band];
                int64_t place = ((at.u * size + at.v) * (int64_t)l->rows + r) * l->cols;
                const int32_t *from = guess->of[band] + place;
                int32_t *to = c->of[band] + place;
                if (!c->alive[first + r]) memcpy(to, from, sizeof *to * (size_t)l->cols);
                else
                    for (int j = 0; j < l->cols; j++) {
                        int32_t sum = to[j] + from[j]; /* of two numbers up to 2^27 */
                        to[j] = sum > most ? most : sum < -most ? -most : sum;
                    }
            }
            c->alive[first + r] = 1;
        }
    }
}

/* ---- the header of a predicted piece */

/* The weight that is expected of the first band of a class. */
static int expected_weight(const References *references, int k, int class) {
    return class ? references->weight[k][class - 1][0] : FIRST_WEIGHT;
}

void tec_write_weights(BitWriter *bits, int class, int bands, const References *references) {
    tec_put(bits, references->shared[class], 1);
    for (int k = 0; k < references->count; k++) {
        int before = expected_weight(references, k, class);
        for (int i = 0; i < (references->shared[class] ? 1 : bands); i++) {
            tec_put_signed(bits, references->weight[k][class][i] - before, 1);
            before = references->weight[k][class][i];
        }
    }
}

void tec_write_references(BitWriter *bits, const Layout *l, const References *references, int number) {
    for (int k = 0; k < references->count; k++) tec_put_signed(bits, (int64_t)number - references->number[k], 2);
    for (int class = 0; class < CLASSES; class++)
        if (tec_bands_of(l, class)) tec_write_weights(bits, class, tec_bands_of(l, class), references);
}

/* Read which pieces are referred to. */
static int read_numbers(BitReader *bits, int number, int count, References *references) {
    for (int k = 0; k < references->count; k++) {
        int64_t other = number - tec_get_signed(bits, 2);
        if (other < 0 || other >= count || other == number || bits->short_of) return TEC_DAMAGED;
        references->number[k] = (int32_t)other;
    }
    return TEC_OK;
}

static int read_weights(BitReader *bits, const Layout *l, References *references) {
    for (int class = 0; class < CLASSES; class++) {
        int bands = tec_bands_of(l, class), shared = bands ? (int)tec_get(bits, 1) : 0;
        for (int k = 0; k < references->count; k++) {
            int64_t weight = expected_weight(references, k, class);
            for (int i = 0; i < bands; i++) {
                if (!shared || !i) weight += tec_get_signed(bits, 1);
                if (weight < -MOST_WEIGHT || weight > MOST_WEIGHT) return TEC_DAMAGED;
                references->weight[k][class][i] = (int8_t)weight;
            }
        }
    }
    return bits->short_of ? TEC_DAMAGED : TEC_OK;
}

static int rice_of_means(int digits) { return digits < 6 ? 6 - digits : 0; }

void tec_write_changed_means(BitWriter *bits, int bands, int64_t step, const double *wanted,
                             const int32_t *first, int32_t *means) {
    int digits = tec_mean_digits(step);
    int32_t unit = 1 << digits, before = 0;
    for (int b = 0; b < bands; b++) {
        double x = wanted[b] / unit;
        int32_t change = (int32_t)(x < 0 ? x - 0.5 : x + 0.5) - (first[b] >> digits);
        tec_put_signed(bits, change - before, rice_of_means(digits));
        before = change;
        means[b] = (change + (first[b] >> digits)) * unit;
    }
}

static int read_changed_means(BitReader *bits, int bands, int64_t step, const int32_t *first, int32_t *means) {
    int digits = tec_mean_digits(step);
    int64_t change = 0;
    for (int b = 0; b < bands; b++) {
        change += tec_get_signed(bits, rice_of_means(digits));
        int64_t mean = change + (first[b] >> digits);
        if (change > MOST_MEAN || change < -MOST_MEAN || mean > MOST_MEAN >> digits ||
            mean < -(MOST_MEAN >> digits))
            return TEC_DAMAGED;
        means[b] = (int32_t)(mean * ((int64_t)1 << digits));
    }
    return TEC_OK;
}

/* The spread that the next component is expected to have. */
static int expected_spread(const Basis *first, int class, int k, const int32_t *spreads) {
    return k < first->components ? first->spreads[k] : k ? spreads[k - 1] : tec_first_spread(class);
}

/* Take the vectors of another basis. */
static void keep_vectors(const Basis *first, int components, Basis *basis) {
    basis->bands = first->bands, basis->components = components;
    memcpy(basis->vectors, first->vectors, sizeof basis->vectors);
    memcpy(basis->full, first->full, sizeof basis->full);
}

void tec_write_kept_basis(BitWriter *bits, const Basis *first, int class, int components,
                          const int32_t *spreads, Basis *basis) {
    keep_vectors(first, components, basis);
    tec_put(bits, (uint32_t)components, 5);
    for (int k = 0; k < components; k++) {
        tec_put_signed(bits, expected_spread(first, class, k, spreads) - spreads[k], 2);
        basis->spreads[k] = spreads[k];
    }
}

static int read_kept_basis(BitReader *bits, const Basis *first, int class, Basis *basis) {
    keep_vectors(first, (int)tec_get(bits, 5), basis);
    if (basis->components > first->bands) return TEC_DAMAGED;
    for (int k = 0; k < basis->components; k++) {
        int64_t spread = expected_spread(first, class, k, basis->spreads) - tec_get_signed(bits, 2);
        if (spread <= tec_silent(class) || spread > SPREAD_HIGH) return TEC_DAMAGED;
        basis->spreads[k] = (int32_t)spread;
    }
    return TEC_OK;
}

/* Read what follows the numbers of the references; all of these have the layout of the spectrum. */
static int read_rest(BitReader *bits, int64_t step, const Spectrum *first, References *references, Spectrum *s) {
    int status = read_weights(bits, &s->layout, references);
    if (!status) status = read_changed_means(bits, s->layout.bands, step, first->means, s->means);
    for (int class = 0; class < CLASSES && !status; class++) {
        int bands = tec_bands_of(&s->layout, class);
        Basis *basis = &s->bases[class];
        if (!bands) basis->bands = basis->components = 0;
        else if (tec_get(bits, 1)) status = read_kept_basis(bits, &first->bases[class], class, basis);
        else
            status = tec_read_basis(bits, bands, class, tec_angle_base(&s->layout, class), &first->bases[class], basis);
    }
    return status ? status : bits->short_of ? TEC_DAMAGED : TEC_OK;
}

/* ---- decoding */

typedef struct {
    const TecModel *m;
    const TecPiece *pieces;
    int count, bands, height, width;
    References *references; /* of pieces that were reached */
    BitReader *readers;     /* behind the numbers of the references */
    uint8_t *state;         /* NEW, OPEN or DONE */
    int32_t *uses;          /* by pieces that are not decoded yet */
    int32_t *stack;
    TecDate *dates;
} Series;

enum { NEW, OPEN, DONE };

static int read_head(Series *s, int number) {
    const TecPiece *piece = &s->pieces[number];
    References *references = &s->references[number];
    if (piece->length < 1 || piece->quality < FIRST_QUALITY) return TEC_DAMAGED;
    references->count = piece->bytes[0] & 3;
    s->readers[number] = (BitReader){piece->bytes + 1, 8 * (piece->length - 1), 0, 0};
    int status = read_numbers(&s->readers[number], number, s->count, references);
    for (int k = 0; k < references->count && !status; k++) s->uses[references->number[k]]++;
    return status;
}

static int same_layout(const TecDate *a, const TecDate *b) {
    const Layout *x = &a->spectrum.layout, *y = &b->spectrum.layout;
    return x->height == y->height && x->width == y->width && !memcmp(x->grids, y->grids, sizeof *x->grids * (size_t)x->bands);
}

static int decode_piece(Series *s, int number, uint32_t *checksum) {
    const TecPiece *piece = &s->pieces[number];
    References *references = &s->references[number];
    TecDate *date = &s->dates[number];
    int quality = tec_piece_quality(piece->quality, piece->bytes[0]);
    if (!references->count)
        return tec_decode_date(s->m, piece->bytes + 1, piece->length - 1, s->bands, s->height, s->width,
                               quality, date, checksum);
    const TecDate *first = &s->dates[references->number[0]];
    const Coefficients *known[MOST_REFERENCES];
    int qualities[MOST_REFERENCES];
    for (int k = 0; k < references->count; k++) {
        const TecDate *other = &s->dates[references->number[k]];
        if (!same_layout(first, other)) return TEC_DAMAGED;
        known[k] = &other->coefficients, qualities[k] = s->pieces[references->number[k]].quality;
    }
    *date = (TecDate){.map = first->map, .map_length = first->map_length, .height = s->height, .width = s->width};
    date->spectrum.layout = first->spectrum.layout;
    BitReader *bits = &s->readers[number];
    Coefficients guess = {.block = 0};
    int status = read_rest(bits, tec_step(quality), &first->spectrum, references, &date->spectrum);
    int64_t after = (bits->at + 7) / 8;
    if (!status) status = tec_predict(s->m, &date->spectrum.layout, references, known, &guess);
    if (!status)
        status = tec_decode_values(s->m, &date->spectrum, quality,
                                   tec_prediction(piece->quality, qualities, references->count), &guess,
                                   bits->bytes + after, piece->length - 1 - after, &date->coefficients, checksum);
    if (!status) tec_add(s->m, &date->spectrum.layout, &guess, &date->coefficients);
    free(guess.block);
    return status;
}

/* Decode a piece whose references are decoded, and forget those that no other piece needs. */
static int finish(Series *s, int number, int wanted, int32_t *dn, TecTake *take, void *to) {
    uint32_t checksum = 0;
    int status = decode_piece(s, number, &checksum);
    if (!status && wanted) status = tec_date_pixels(s->m, &s->dates[number], dn);
    if (!status) status = take(to, number, checksum, wanted ? dn : 0);
    const References *references = &s->references[number];
    for (int k = 0; k < references->count; k++)
        if (!--s->uses[references->number[k]]) tec_date_end(&s->dates[references->number[k]]);
    if (!s->uses[number]) tec_date_end(&s->dates[number]);
    return status;
}

/* Find all pieces that are needed, and an order of decoding: `order` gets their numbers. */
static int find_order(Series *s, const uint8_t *wanted, int32_t *order, int *needed) {
    *needed = 0;
    for (int i = 0; i < s->count; i++) {
        if (!wanted[i] || s->state[i] != NEW) continue;
        int depth = 0;
        s->stack[depth++] = i;
        while (depth) {
            int number = s->stack[depth - 1];
            if (s->state[number] == NEW) {
                int status = read_head(s, number);
                if (status) return status;
                s->state[number] = OPEN;
            }
            const References *references = &s->references[number];
            int next = -1;
            for (int k = 0; k < references->count && next < 0; k++) {
                int other = references->number[k];
                if (s->state[other] == OPEN) return TEC_DAMAGED; /* a circle */
                if (s->state[other] == NEW) next = other;
            }
            if (next >= 0) {
                s->stack[depth++] = next;
                continue;
            }
            s->state[number] = DONE;
            order[(*needed)++] = number;
            depth--;
        }
    }
    return TEC_OK;
}

int tec_series_decode(const TecModel *m, const TecPiece *pieces, int count, int bands, int height,
                      int width, const uint8_t *wanted, TecTake *take, void *to) {
    if (count < 1 || !tec_is_tile(bands, height, width, FIRST_QUALITY)) return TEC_BAD_ARGUMENT;
    Series s = {.m = m, .pieces = pieces, .count = count, .bands = bands, .height = height, .width = width};
    uint64_t n = (uint64_t)count;
    s.references = tec_room(n, sizeof *s.references), s.readers = tec_room(n, sizeof *s.readers);
    s.state = tec_zeros(n, 1), s.uses = tec_zeros(n, sizeof *s.uses);
    s.stack = tec_room(2 * n, sizeof *s.stack), s.dates = tec_zeros(n, sizeof *s.dates);
    int32_t *dn = tec_room((uint64_t)bands * (uint64_t)height * (uint64_t)width, sizeof *dn), *order = s.stack;
    int status = TEC_NO_MEMORY, needed = 0;
    if (s.references && s.readers && s.state && s.uses && s.stack && s.dates && dn) {
        order = s.stack + count;
        status = find_order(&s, wanted, order, &needed);
    }
    for (int i = 0; i < needed && !status; i++) status = finish(&s, order[i], wanted[order[i]], dn, take, to);
    for (int i = 0; s.dates && i < count; i++) tec_date_end(&s.dates[i]);
    free(s.references), free(s.readers), free(s.state), free(s.uses), free(s.stack), free(s.dates), free(dn);
    return status;
}
