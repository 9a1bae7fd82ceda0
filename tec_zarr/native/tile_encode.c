/* The image model tec-s2: encodes one date of one tile. */
#include <stdlib.h>
#include <string.h>

#include "fastest.h"
#include "tile.h"

#define BITS_OF_ERROR 8.0 /* bits that a squared step of error is worth to the quantiser */

/* 11 bytes hold the symbol of any value: 16 bits, an escape of 49 and 16 low bits. */
int64_t tec_tile_capacity(int bands, int height, int width) {
    int64_t rows = (height + MOST_SIZE) / MOST_SIZE, cols = (width + MOST_SIZE) / MOST_SIZE;
    return HEADER_ROOM + 11 * FREQUENCIES * (int64_t)bands * rows * cols;
}

static double mean_of(const double *plane, int height, int width) {
    double total = 0;
    for (int y = 0; y < height; y++) {
        double sum = 0;
        for (int x = 0; x < width; x++) sum += *plane++;
        total += sum;
    }
    return total / ((double)height * width);
}

int tec_wanted(const Layout *l, Wanted *wanted) {
    int64_t places = 0, blocks = (int64_t)l->rows * l->cols;
    for (int b = 0; b < l->bands; b++) places += FREQUENCIES >> (2 * l->level[b]);
    double *next = wanted->block = tec_room((uint64_t)places * (uint64_t)blocks, sizeof *next);
    for (int b = 0; b < l->bands && next; next += (FREQUENCIES >> (2 * l->level[b])) * blocks, b++)
        wanted->of[b] = next;
    return next ? TEC_OK : TEC_NO_MEMORY;
}

int tec_planes_of(const Layout *l, const int32_t *dn, const uint8_t *known, double *planes, double *means) {
    int64_t samples = (int64_t)l->height * l->width, places = (int64_t)l->plane_height[0] * l->plane_width[0];
    int32_t *whole = tec_room((uint64_t)samples, sizeof *whole);
    int status = whole ? TEC_OK : TEC_NO_MEMORY;
    for (int b = 0; b < l->bands && !status; b++) {
        const int32_t *from = dn + b * samples;
        double *plane = planes + b * places;
        for (int64_t i = 0; i < samples; i++)
            whole[i] = from[i] > MOST_DN ? MOST_DN : from[i] < -MOST_DN ? -MOST_DN : from[i];
        status = tec_plane(l, b, whole, known ? known + b * samples : 0, plane);
        if (!status) means[b] = mean_of(plane, l->plane_height[l->level[b]], l->plane_width[l->level[b]]);
    }
    free(whole);
    return status;
}

int tec_analyse_planes(const TecModel *m, const Layout *l, const double *planes, const int32_t *means,
                       const Wanted *wanted) {
    int64_t places = (int64_t)l->plane_height[0] * l->plane_width[0];
    int status = TEC_OK;
    for (int b = 0; b < l->bands && !status; b++)
        status = tec_analyse(m, l, b, planes + b * places, means[b], wanted->of[b]);
    return status;
}

int64_t tec_component_places(const TecModel *m, const Layout *l) {
    int64_t count = 0;
    for (int class = 0; class < CLASSES; class++)
        count += (int64_t)(m->first[class + 1] - m->first[class]) * tec_bands_of(l, class);
    return count;
}

/* The usual basis from which the basis of class 0 takes the fewest bits, or 0. */
static int choose_usual(const TecModel *m, const Layout *l, double covariance[MOST_BANDS][MOST_BANDS], double step) {
    int64_t fewest = 0;
    int best = 0;
    for (int number = 0; number <= tec_usual_bases(l->bands); number++) {
        uint8_t room[4096];
        double copy[MOST_BANDS][MOST_BANDS];
        BitWriter trial = {room, 8 * sizeof room, 0, 0};
        Basis usual, basis;
        memcpy(copy, covariance, sizeof copy);
        tec_usual_basis(m, l, number, &usual);
        tec_write_basis(&trial, copy, l->bands, step, 0, tec_angle_base(l, 0), &usual, &basis);
        if (!number || trial.at < fewest) best = number, fewest = trial.at;
    }
    return best;
}

/* Write the bases, and make the components of all classes, in steps. */
static int choose_bases(const TecModel *m, int64_t step, const Wanted *wanted, BitWriter *bits,
                        Spectrum *s, double *components) {
    double covariance[MOST_BANDS][MOST_BANDS], dn_step = (double)step / 256;
    Basis usual = {0};
    const Basis *before = &usual;
    int status = TEC_OK;
    for (int class = 0; class < CLASSES && !status; class++) {
        Basis *basis = &s->bases[class];
        int bands = tec_bands_of(&s->layout, class);
        basis->bands = basis->components = 0;
        if (bands) {
            tec_covariance(m, &s->layout, wanted->of, class, covariance);
            if (!class && tec_usual_bases(bands)) {
                int number = choose_usual(m, &s->layout, covariance, dn_step);
                tec_put(bits, (uint32_t)number, 2);
                tec_usual_basis(m, &s->layout, number, &usual);
            }
            status = tec_write_basis(bits, covariance, bands, dn_step, class, tec_angle_base(&s->layout, class),
                                     before, basis);
            components = tec_components(m, &s->layout, wanted->of, class, basis, dn_step, components);
        }
        before = basis;
    }
    return status;
}

int64_t tec_encode_values(const TecModel *m, const Spectrum *s, int quality, int prediction,
                          const Coefficients *guess, const double *components, Collected *collected,
                          uint8_t *bytes, int64_t capacity, Coefficients *decoded, uint32_t *checksum) {
    int32_t counts[CLASSES], spreads[CLASSES * MOST_BANDS];
    int kind, fineness, planes = tec_value_planes(m, s);
    int64_t count = (int64_t)planes * s->layout.rows * s->layout.cols, status = TEC_NO_MEMORY;
    tec_walk_inputs(s, quality, prediction, counts, spreads, &kind, &fineness);
    int32_t *values = tec_zeros((uint64_t)count, sizeof *values);
    uint8_t *indexes = tec_zeros((uint64_t)count, 1);
    int16_t *hints = guess ? tec_hints(m, &s->layout, tec_step(quality), guess) : 0;
    if (values && indexes && (hints || !guess))
        status = tec_walk(ENCODE, &m->context, MOST_SIZE, s->layout.rows, s->layout.cols, counts, spreads,
                          kind, fineness, hints, components, 256 * BITS_OF_ERROR, values, indexes, bytes,
                          capacity, 0, 0, 0);
    if (status >= 0 && collected) {
        int64_t at = collected->count;
        collected->count += tec_walk(COLLECT, &m->context, MOST_SIZE, s->layout.rows, s->layout.cols, counts, spreads,
                                     kind, fineness, hints, 0, 0, values, 0, 0, 0,
                                     collected->features + at * INPUTS, collected->symbols + at, collected->most - at);
    }
    if (status >= 0) *checksum = tec_checksum(values, count);
    if (status >= 0 && decoded) {
        int mixed = tec_mix_values(m, s, tec_step(quality), values, indexes, decoded);
        if (mixed) status = mixed;
    }
    free(values), free(indexes), free(hints);
    return status;
}

int64_t tec_encode_plain(const TecModel *m, const Layout *layout, const double *planes,
                         const double *wanted_means, int quality, uint8_t *section, int64_t capacity,
                         Spectrum *s, Coefficients *decoded, uint32_t *checksum) {
    BitWriter bits = {section, 8 * (capacity < HEADER_ROOM ? capacity : HEADER_ROOM), 0, 0};
    Wanted wanted = {.block = 0};
    int64_t step = tec_step(quality), blocks = (int64_t)layout->rows * layout->cols;
    s->layout = *layout;
    tec_write_layout(&bits, layout);
    tec_write_means(&bits, layout->bands, step, wanted_means, s->means);
    double *components = tec_room((uint64_t)tec_component_places(m, layout) * (uint64_t)blocks, sizeof *components);
    int64_t status = components ? tec_wanted(layout, &wanted) : TEC_NO_MEMORY;
    if (!status) status = tec_analyse_planes(m, layout, planes, s->means, &wanted);
    if (!status) status = choose_bases(m, step, &wanted, &bits, s, components);
    if (!status && bits.full) status = TEC_TOO_SMALL;
    free(wanted.block);
    if (!status) {
        int64_t header = (bits.at + 7) / 8;
        status = tec_encode_values(m, s, quality, ALONE, 0, components, 0, section + header, capacity - header,
                                   decoded, checksum);
        if (status >= 0) status += header;
    }
    free(components);
    return status;
}

int64_t tec_tile_encode(const TecModel *m, const int32_t *dn, const uint8_t *known, const TecGrid *grids,
                        int bands, int height, int width, int quality, uint8_t *section,
                        int64_t capacity, uint32_t *checksum, int32_t *decoded) {
    if (!tec_is_tile(bands, height, width, quality) || capacity < 0) return TEC_BAD_ARGUMENT;
    Layout l;
    Spectrum s;
    int64_t status = tec_layout(bands, height, width, grids, &l);
    if (status) return status;
    double means[MOST_BANDS];
    double *planes = tec_room((uint64_t)bands * (uint64_t)l.plane_height[0] * (uint64_t)l.plane_width[0], sizeof *planes);
    status = planes ? tec_planes_of(&l, dn, known, planes, means) : TEC_NO_MEMORY;
    Coefficients coefficients = {.block = 0};
    if (!status)
        status = tec_encode_plain(m, &l, planes, means, quality, section, capacity, &s,
                                  decoded ? &coefficients : 0, checksum);
    free(planes);
    if (status >= 0 && decoded) {
        int made = tec_decode_pixels(m, &s, &coefficients, decoded);
        if (made) status = made;
    }
    free(coefficients.block);
    return status;
}

int64_t tec_tile_collect(const TecModel *m, const int32_t *dn, const TecGrid *grids, int bands, int height,
                         int width, int quality, int rounded, int64_t most, double *components,
                         int32_t *values, uint8_t *features, int32_t *symbols, int32_t *sizes) {
    if (!tec_is_tile(bands, height, width, quality)) return TEC_BAD_ARGUMENT;
    Spectrum s;
    BitWriter bits = {tec_room(HEADER_ROOM, 1), 8 * HEADER_ROOM, 0, 0};
    Wanted wanted = {.block = 0};
    double means[MOST_BANDS], *planes = 0;
    int64_t status = bits.bytes ? tec_layout(bands, height, width, grids, &s.layout) : TEC_NO_MEMORY;
    const Layout *l = &s.layout;
    int64_t blocks = status ? 0 : (int64_t)l->rows * l->cols;
    if (!status && tec_component_places(m, l) * blocks > most) status = TEC_TOO_SMALL;
    if (!status) {
        planes = tec_room((uint64_t)bands * (uint64_t)l->plane_height[0] * (uint64_t)l->plane_width[0], sizeof *planes);
        status = planes ? tec_planes_of(l, dn, 0, planes, means) : TEC_NO_MEMORY;
    }
    if (!status) status = tec_wanted(l, &wanted);
    if (!status) {
        tec_write_means(&bits, bands, tec_step(quality), means, s.means);
        status = tec_analyse_planes(m, l, planes, s.means, &wanted);
    }
    if (!status) status = choose_bases(m, tec_step(quality), &wanted, &bits, &s, components);
    if (!status) {
        int32_t counts[CLASSES], spreads[CLASSES * MOST_BANDS];
        int kind, fineness, count = tec_value_planes(m, &s);
        int64_t room = tec_tile_capacity(bands, l->height, l->width);
        uint8_t *bytes = tec_room((uint64_t)room, 1);
        tec_walk_inputs(&s, quality, ALONE, counts, spreads, &kind, &fineness);
        memset(values, 0, sizeof *values * (size_t)(count * blocks));
        for (int64_t i = 0; i < count * blocks && rounded; i++) {
            double size = components[i] < 0 ? -components[i] : components[i];
            values[i] = (int32_t)(size + 0.36) * (components[i] < 0 ? -1 : 1);
        }
        if (!bytes) status = TEC_NO_MEMORY;
        else if (!rounded)
            status = tec_walk(ENCODE, &m->context, MOST_SIZE, l->rows, l->cols, counts, spreads, kind, fineness,
                              0, components, 256 * BITS_OF_ERROR, values, 0, bytes, room, 0, 0, 0);
        if (status >= 0)
            status = tec_walk(COLLECT, &m->context, MOST_SIZE, l->rows, l->cols, counts, spreads, kind, fineness,
                              0, 0, 0, values, 0, 0, 0, features, symbols, count * blocks);
        free(bytes);
        sizes[0] = count, sizes[1] = l->rows, sizes[2] = l->cols, sizes[3] = counts[0];
    }
    free(bits.bytes), free(planes), free(wanted.block);
    return status;
}
