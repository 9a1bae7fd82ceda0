/* Encodes the dates of a tile of a series. */
#include <stdlib.h>
#include <string.h>

#include "series.h"

#define NEAREST 8 /* references are sought among so many dates on either side */
#define TRIED 5   /* and of these among the most promising ones */
#define FAR 1e300

/* A piece that is coded, or will be. */
typedef struct {
    Spectrum spectrum;
    Coefficients coefficients;
    Sample sample; /* of the decoded coefficients */
    Gram own;
    int done;
} Piece;

typedef struct {
    const TecModel *m;
    const Layout *layout;
    const int32_t *dn;
    const uint8_t *known;
    int dates, run, layers;
    const int32_t *qualities; /* of layers */
    Sample *samples;          /* of what is wanted, by date */
    Gram *grams;
    double *alone, *given;
    int32_t *order, *finer;
    Piece *pieces; /* by layer, then date */
    double *planes, *components;
    Wanted wanted;
    double means[MOST_BANDS];
    uint8_t *out;
    int64_t capacity, used;
    int64_t *starts, *lengths;
    uint32_t *checksums;
    Collected *collected; /* of predicted pieces, or null */
} Job;

static int64_t samples_of(const Layout *l) { return (int64_t)l->height * l->width * l->bands; }

/* The planes and means of a date. */
static int take_planes(Job *job, int date) {
    int64_t first = date * samples_of(job->layout);
    return tec_planes_of(job->layout, job->dn + first, job->known ? job->known + first : 0, job->planes, job->means);
}

/* Whether a date may refer to another. */
static int are_near(const Job *job, int date, int other) {
    int apart = date > other ? date - other : other - date;
    return apart && apart <= NEAREST && date / job->run == other / job->run;
}

/* Estimate the sizes of all dates, alone and given one other. */
static int estimate(Job *job, double step) {
    int status = TEC_OK;
    Gram *cross = tec_room(2, sizeof *cross), *left = cross + 1;
    if (!cross) return TEC_NO_MEMORY;
    for (int d = 0; d < job->dates && !status; d++) {
        int32_t whole[MOST_BANDS];
        status = take_planes(job, d);
        for (int b = 0; b < job->layout->bands; b++) whole[b] = (int32_t)job->means[b];
        if (!status) status = tec_analyse_planes(job->m, job->layout, job->planes, whole, &job->wanted);
        if (!status) status = tec_sample(job->m, job->layout, &job->wanted, 0, &job->samples[d]);
        if (status) break;
        tec_gram(&job->samples[d], &job->samples[d], &job->grams[d]);
        job->alone[d] = tec_bits_of(&job->samples[d], &job->grams[d], step);
        for (int o = 0; o < job->dates; o++) job->given[(int64_t)d * job->dates + o] = FAR;
    }
    for (int d = 0; d < job->dates && !status; d++)
        for (int o = 0; o < d; o++) {
            if (!are_near(job, d, o)) continue;
            for (int turn = 0; turn < 2; turn++) { /* each from the other */
                int date = turn ? o : d, other = turn ? d : o;
                const Gram *between[1][MOST_REFERENCES] = {{&job->grams[other]}}, *one = cross;
                References references;
                tec_gram(&job->samples[date], &job->samples[other], cross);
                tec_fit_weights(&job->samples[date], &job->grams[date], &one, between, 1, step, &references, left);
                job->given[(int64_t)date * job->dates + other] = tec_bits_of(&job->samples[date], left, step);
            }
        }
    free(cross);
    return status;
}

/* ---- references */

/* List the pieces among which those of a piece are sought, the most promising first. */
static int list_candidates(const Job *job, int layer, int date, int32_t *found) {
    int count = 0;
    double worth[2 * NEAREST + 2];
    for (int other = date - NEAREST; other <= date + NEAREST; other++) {
        int number = layer * job->dates + other;
        if (other < 0 || other >= job->dates || !are_near(job, date, other) || !job->pieces[number].done) continue;
        double bits = job->given[(int64_t)date * job->dates + other];
        if (bits >= job->alone[date]) continue;
        int at = count++;
        for (; at && worth[at - 1] > bits; at--) worth[at] = worth[at - 1], found[at] = found[at - 1];
        worth[at] = bits, found[at] = number;
    }
    if (count > TRIED) count = TRIED;
    if (layer) found[count++] = (layer - 1) * job->dates + date;
    return count;
}

static double header_bits(const Job *job, const References *references, int number) {
    uint8_t room[2048];
    BitWriter bits = {room, 8 * sizeof room, 0, 0};
    tec_write_references(&bits, job->layout, references, number);
    return (double)bits.at;
}

/* Choose references one by one: each time the one that lowers the estimated bits most. */
static int choose(Job *job, int layer, int date, double step, References *best) {
    int number = layer * job->dates + date;
    int32_t candidates[2 * NEAREST + 3];
    int count = list_candidates(job, layer, date, candidates);
    best->count = 0;
    Gram *room = tec_room((uint64_t)count * (1 + MOST_REFERENCES) + 1, sizeof *room);
    if (!room) return TEC_NO_MEMORY;
    Gram *cross = room, *rows = room + count, *left = room + (int64_t)count * (1 + MOST_REFERENCES);
    const Sample *target = &job->samples[date];
    for (int i = 0; i < count; i++) tec_gram(target, &job->pieces[candidates[i]].sample, &cross[i]);
    double bits = tec_bits_of(target, &job->grams[date], step);
    int chosen[MOST_REFERENCES];
    for (int n = 0; n < MOST_REFERENCES && n < count; n++) {
        References found = {.count = 0};
        int winner = -1;
        for (int i = 0; i < count; i++) {
            int taken = 0;
            for (int k = 0; k < n; k++) taken |= chosen[k] == i;
            if (taken) continue;
            chosen[n] = i;
            const Gram *to[MOST_REFERENCES], *between[MOST_REFERENCES][MOST_REFERENCES];
            for (int k = 0; k <= n; k++) {
                to[k] = &cross[chosen[k]];
                for (int j = 0; j <= n; j++) { /* rows[k] has the products of the k-th choice with all */
                    int low = k < j ? k : j, high = k < j ? j : k;
                    between[k][j] = k == j ? &job->pieces[candidates[chosen[k]]].own
                                           : &rows[(int64_t)low * count + chosen[high]];
                }
            }
            References trial = {.finer = best->finer};
            tec_fit_weights(target, &job->grams[date], to, between, n + 1, step, &trial, left);
            for (int k = 0; k <= n; k++) trial.number[k] = candidates[chosen[k]];
            double size = tec_bits_of(target, left, step) + header_bits(job, &trial, number);
            if (size < bits) bits = size, found = trial, winner = i;
        }
        if (winner < 0) break;
        *best = found;
        chosen[n] = winner;
        for (int i = 0; i < count && n + 1 < MOST_REFERENCES; i++)
            tec_gram(&job->pieces[candidates[winner]].sample, &job->pieces[candidates[i]].sample,
                     &rows[(int64_t)n * count + i]);
    }
    free(room);
    return TEC_OK;
}

/* ---- a predicted piece */

/* Variances of the components of a basis, in steps, and what is left beside the first `components`. */
static double variances(const double covariance[MOST_BANDS][MOST_BANDS], const Basis *basis, double step,
                        int components, double *out) {
    double rest = 0;
    for (int a = 0; a < basis->bands; a++) rest += covariance[a][a];
    for (int k = 0; k < components; k++) {
        double sum = 0;
        for (int a = 0; a < basis->bands; a++)
            for (int b = 0; b < basis->bands; b++)
                sum += covariance[a][b] * basis->vectors[a][k] * basis->vectors[b][k];
        sum /= (double)((int64_t)1 << (2 * BASIS_BITS));
        rest -= sum;
        out[k] = sum / (step * step);
    }
    return rest > 0 ? rest / (step * step) : 0;
}

static double log2_above(double x) { /* log2(1 + x), coarsely */
    double sum = 0;
    for (x += 1; x >= 2; x /= 2) sum++;
    return sum + (x - 1) * (1.3465 - 0.3465 * x); /* within 0.01 */
}

/* Bits of the values of a class in a basis, and what the energy that it leaves out costs. */
static double worth_of(const double *variance, int components, double rest, double values) {
    double bits = 0.2 * 6 * rest;
    for (int k = 0; k < components; k++) bits += log2_above(6 * variance[k]) / 2;
    return values * bits;
}

/* Write the basis of a class: that of the first reference, or a rotation of it. */
static int write_basis(BitWriter *bits, double covariance[MOST_BANDS][MOST_BANDS], double step, int class,
                       const Layout *l, double values, const Basis *first, Basis *basis) {
    double kept[MOST_BANDS], turned[MOST_BANDS], copy[MOST_BANDS][MOST_BANDS];
    int32_t spreads[MOST_BANDS];
    int components = 0, bands = tec_bands_of(l, class);
    variances(covariance, first, step, bands, kept);
    for (int k = 0; k < bands; k++) {
        spreads[k] = tec_spread(kept[k]);
        if (spreads[k] > SPREAD_HIGH) spreads[k] = SPREAD_HIGH;
        if (spreads[k] > tec_silent(class)) components = k + 1;
        else spreads[k] = tec_silent(class) + 1;
    }
    uint8_t room[4096];
    BitWriter trial = {room, 8 * sizeof room, 0, 0};
    memcpy(copy, covariance, sizeof copy);
    int status = tec_write_basis(&trial, copy, bands, step, class, tec_angle_base(l, class), first, basis);
    if (status) return status;
    double rest = variances(covariance, basis, step, basis->components, turned);
    double cost = (double)trial.at + worth_of(turned, basis->components, rest, values);
    rest = variances(covariance, first, step, components, kept);
    if (5 + 3 * components + worth_of(kept, components, rest, values) <= cost) {
        tec_put(bits, 1, 1);
        tec_write_kept_basis(bits, first, class, components, spreads, basis);
        return TEC_OK;
    }
    tec_put(bits, 0, 1);
    for (int64_t i = 0; i < trial.at; i++) tec_put(bits, room[i >> 3] >> (7 - (i & 7)) & 1, 1);
    return TEC_OK;
}

/* Take the prediction off what is wanted. */
static void subtract(const Job *job, const Coefficients *guess) {
    const Layout *l = job->layout;
    for (int f = 0; f < FREQUENCIES; f++) {
        Frequency at = job->m->frequencies[f];
        const uint8_t *alive = guess->alive + (at.u * MOST_SIZE + at.v) * l->rows;
        for (int i = 0; i < tec_bands_of(l, at.class); i++) {
            int band = l->order[i], size = MOST_SIZE >> l->level[band];
            double unit = tec_gain(job->m, l, band, at.u, at.v) / 4294967296.0 / 64;
            int64_t plane = (at.u * size + at.v) * (int64_t)l->rows * l->cols;
            for (int r = 0; r < l->rows; r++)
                for (int c = 0; c < l->cols && alive[r]; c++) {
                    int64_t p = plane + (int64_t)r * l->cols + c;
                    job->wanted.of[band][p] -= unit * guess->of[band][p];
                }
        }
    }
}

static int64_t encode_predicted(Job *job, int number, int quality, const References *references) {
    Piece *piece = &job->pieces[number];
    Spectrum *s = &piece->spectrum;
    const Spectrum *first = &job->pieces[references->number[0]].spectrum;
    const Coefficients *known[MOST_REFERENCES];
    uint8_t *section = job->out + job->used + 1;
    int64_t room = job->capacity - job->used - 1, step = tec_step(quality);
    BitWriter bits = {section, 8 * (room < HEADER_ROOM ? room : HEADER_ROOM), 0, 0};
    int qualities[MOST_REFERENCES];
    for (int k = 0; k < references->count; k++) {
        known[k] = &job->pieces[references->number[k]].coefficients;
        qualities[k] = job->qualities[references->number[k] / job->dates];
    }
    s->layout = *job->layout;
    tec_write_references(&bits, job->layout, references, number);
    tec_write_changed_means(&bits, job->layout->bands, step, job->means, first->means, s->means);
    int64_t status = tec_analyse_planes(job->m, job->layout, job->planes, s->means, &job->wanted);
    Coefficients guess = {.block = 0};
    if (!status) status = tec_predict(job->m, job->layout, references, known, &guess);
    if (!status) subtract(job, &guess);
    double *components = job->components;
    for (int class = 0; class < CLASSES && !status; class++) {
        Basis *basis = &s->bases[class];
        double covariance[MOST_BANDS][MOST_BANDS];
        basis->bands = basis->components = 0;
        if (!tec_bands_of(job->layout, class)) continue;
        double values = (double)job->layout->rows * job->layout->cols * (job->m->first[class + 1] - job->m->first[class]);
        tec_covariance(job->m, job->layout, job->wanted.of, class, covariance);
        status = write_basis(&bits, covariance, (double)step / 256, class, job->layout, values, &first->bases[class], basis);
        components = tec_components(job->m, job->layout, job->wanted.of, class, basis, (double)step / 256, components);
    }
    if (!status && bits.full) status = TEC_TOO_SMALL;
    if (!status) {
        int64_t header = (bits.at + 7) / 8;
        int prediction = tec_prediction(job->qualities[number / job->dates], qualities, references->count);
        status = tec_encode_values(job->m, s, quality, prediction, &guess, job->components, job->collected, section + header, room - header,
                                   &piece->coefficients, &job->checksums[number]);
        if (status >= 0) status += header;
    }
    if (status >= 0) tec_add(job->m, job->layout, &guess, &piece->coefficients);
    free(guess.block);
    return status;
}

static int encode_piece(Job *job, int layer, int date) {
    int number = layer * job->dates + date;
    Piece *piece = &job->pieces[number];
    References references = {.finer = job->finer[date]};
    int quality = tec_piece_quality(job->qualities[layer], job->finer[date] << 2);
    if (job->capacity - job->used < 1) return TEC_TOO_SMALL;
    int64_t length = take_planes(job, date);
    if (!length) length = choose(job, layer, date, (double)tec_step(quality) / 256, &references);
    if (!length && references.count) length = encode_predicted(job, number, quality, &references);
    else if (!length)
        length = tec_encode_plain(job->m, job->layout, job->planes, job->means, quality, job->out + job->used + 1,
                                  job->capacity - job->used - 1, &piece->spectrum, &piece->coefficients,
                                  &job->checksums[number]);
    if (length < 0) return (int)length;
    job->out[job->used] = (uint8_t)(references.count | job->finer[date] << 2);
    job->starts[number] = job->used, job->lengths[number] = length + 1;
    job->used += length + 1;
    piece->done = 1;
    if (job->dates * job->layers == 1) return TEC_OK;
    int status = tec_sample(job->m, job->layout, 0, &piece->coefficients, &piece->sample);
    if (!status) tec_gram(&piece->sample, &piece->sample, &piece->own);
    return status;
}

static int encode_all(Job *job) {
    const Layout *l = job->layout;
    uint64_t dates = (uint64_t)job->dates, pieces = dates * (uint64_t)job->layers;
    int status = tec_wanted(l, &job->wanted);
    job->planes = tec_room((uint64_t)l->bands * (uint64_t)l->plane_height[0] * (uint64_t)l->plane_width[0], sizeof(double));
    job->components = tec_room((uint64_t)tec_component_places(job->m, l) * (uint64_t)l->rows * (uint64_t)l->cols, sizeof(double));
    job->samples = tec_zeros(dates, sizeof *job->samples), job->grams = tec_room(dates, sizeof *job->grams);
    job->alone = tec_room(dates, sizeof(double)), job->given = tec_room(dates * dates, sizeof(double));
    job->order = tec_room(dates, sizeof(int32_t)), job->finer = tec_room(dates, sizeof(int32_t));
    job->pieces = tec_zeros(pieces, sizeof *job->pieces);
    if (!job->planes || !job->components || !job->samples || !job->grams || !job->alone || !job->given ||
        !job->order || !job->finer || !job->pieces)
        return TEC_NO_MEMORY;
    if (!status) status = estimate(job, (double)tec_step(job->qualities[job->layers - 1]) / 256);
    if (!status) status = tec_order(job->dates, job->alone, job->given, job->order, job->finer);
    for (int layer = 0; layer < job->layers && !status; layer++)
        for (int place = 0; place < job->dates && !status; place++)
            status = encode_piece(job, layer, job->order[place]);
    return status;
}

static int64_t encode(const TecModel *m, const int32_t *dn, const uint8_t *known, const TecGrid *grids,
                      int dates, int bands, int height, int width, int run, int layers,
                      const int32_t *qualities, uint8_t *out, int64_t capacity, int64_t *starts,
                      int64_t *lengths, uint32_t *checksums, int32_t *decoded, Collected *collected) {
    if (dates < 1 || run < 1 || layers < 1 || capacity < 0) return TEC_BAD_ARGUMENT;
    for (int i = 0; i < layers; i++)
        if (!tec_is_tile(bands, height, width, qualities[i])) return TEC_BAD_ARGUMENT;
    Layout layout;
    int status = tec_layout(bands, height, width, grids, &layout);
    if (status) return status;
    Job job = {.m = m, .layout = &layout, .dn = dn, .known = known, .dates = dates, .run = run, .layers = layers,
               .qualities = qualities, .out = out, .capacity = capacity, .starts = starts, .lengths = lengths,
               .checksums = checksums, .collected = collected};
    status = encode_all(&job);
    for (int i = 0; i < dates && !status && decoded; i++) {
        const Piece *piece = &job.pieces[(layers - 1) * dates + i];
        status = tec_decode_pixels(m, &piece->spectrum, &piece->coefficients,
                                   decoded + (int64_t)i * bands * height * width);
    }
    for (int i = 0; job.samples && i < dates; i++) tec_sample_end(&job.samples[i]);
    for (int i = 0; job.pieces && i < dates * layers; i++) {
        tec_sample_end(&job.pieces[i].sample);
        free(job.pieces[i].coefficients.block);
    }
    free(job.planes), free(job.components), free(job.samples), free(job.grams), free(job.alone), free(job.given);
    free(job.order), free(job.finer), free(job.pieces), free(job.wanted.block);
    return status ? status : job.used;
}

int64_t tec_series_encode(const TecModel *m, const int32_t *dn, const uint8_t *known, const TecGrid *grids,
                          int dates, int bands, int height, int width, int run, int layers,
                          const int32_t *qualities, uint8_t *out, int64_t capacity, int64_t *starts,
                          int64_t *lengths, uint32_t *checksums, int32_t *decoded) {
    return encode(m, dn, known, grids, dates, bands, height, width, run, layers, qualities, out, capacity, starts,
                  lengths, checksums, decoded, 0);
}

int64_t tec_series_collect(const TecModel *m, const int32_t *dn, const TecGrid *grids, int dates, int bands,
                           int height, int width, int layers, const int32_t *qualities, uint8_t *features,
                           int32_t *symbols, int64_t most) {
    if (dates < 1 || layers < 1) return TEC_BAD_ARGUMENT;
    uint64_t n = (uint64_t)dates * (uint64_t)layers;
    int64_t capacity = (int64_t)n * (1 + tec_tile_capacity(bands, height, width));
    Collected collected = {features, symbols, 0, most};
    uint8_t *out = tec_room((uint64_t)capacity, 1);
    int64_t *places = tec_room(2 * n, sizeof *places);
    uint32_t *checksums = tec_room(n, sizeof *checksums);
    int64_t status = TEC_NO_MEMORY;
    if (out && places && checksums)
        status = encode(m, dn, 0, grids, dates, bands, height, width, dates, layers, qualities, out, capacity, places,
                        places + n, checksums, 0, &collected);
    free(out), free(places), free(checksums);
    return status < 0 ? status : collected.count;
}
