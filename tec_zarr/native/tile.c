/* The image model tec-s2: one date of one tile. */
#include <stdlib.h>
#include <string.h>

#include "fastest.h"
#include "tile.h"
#include "tile_map.h"

#define CHECKED 32

/* Lanes take every 32nd value each; each step can be undone, so no single change goes unnoticed. */
FASTEST uint32_t tec_checksum(const int32_t *values, int64_t count) {
    const uint32_t factor = 0x9e3779b1u;
    uint32_t lanes[CHECKED], sum = 0;
    int64_t i = 0;
    for (int j = 0; j < CHECKED; j++) lanes[j] = (uint32_t)j;
    for (; i + CHECKED <= count; i += CHECKED)
        for (int j = 0; j < CHECKED; j++) {
            uint32_t x = (lanes[j] ^ (uint32_t)values[i + j]) * factor;
            lanes[j] = x ^ x >> 15;
        }
    for (int j = 0; i < count; i++, j++) {
        uint32_t x = (lanes[j] ^ (uint32_t)values[i]) * factor;
        lanes[j] = x ^ x >> 15;
    }
    for (int j = 0; j < CHECKED; j++) {
        sum = (sum ^ lanes[j]) * factor;
        sum ^= sum >> 15;
    }
    return sum;
}

int tec_is_tile(int bands, int height, int width, int quality) {
    return bands >= 1 && bands <= MOST_BANDS && height >= 1 && height <= MOST_SIDE && width >= 1 &&
           width <= MOST_SIDE && quality >= FIRST_QUALITY && quality <= LAST_QUALITY;
}

/* ---- decoding */

/* Native values of the cells of a plane in whole units: their means, rounded. */
FASTEST static int average_cells(const TecGrid *cells, const int32_t *plane, int height, int width,
                                 int32_t *native) {
    int across = tec_cells(cells->factor, cells->column, width);
    int64_t *sums = tec_room((uint64_t)across, sizeof *sums);
    if (!sums) return TEC_NO_MEMORY;
    for (int y = 0, tall; y < height; y += tall, native += across) {
        int first = y ? cells->factor : cells->row ? cells->row : cells->factor;
        tall = height - y < first ? height - y : first;
        for (int c = 0; c < across; c++) sums[c] = 0;
        for (int i = 0; i < tall; i++) {
            const int32_t *line = plane + (int64_t)(y + i) * width;
            int c = 0, left = cells->column ? cells->column : cells->factor;
            for (int x = 0; x < width; x++) {
                if (!left--) c++, left = cells->factor - 1;
                sums[c] += line[x];
            }
        }
        for (int c = 0; c < across; c++) {
            int from = cells->column ? cells->column + (c - 1) * cells->factor : c * cells->factor;
            int to = from + cells->factor;
            int64_t n = (int64_t)tall * ((to < width ? to : width) - (from > 0 ? from : 0));
            int64_t top = 2 * sums[c] + UNITS * n, unit = 2 * UNITS * n;
            native[c] = (int32_t)(top >= 0 ? top / unit : -((unit - 1 - top) / unit));
        }
    }
    free(sums);
    return TEC_OK;
}

/* Samples of a band from its coefficients; `work` has room for a plane, twice. */
static int decode_band(const TecModel *m, const Spectrum *s, int band, const Coefficients *c,
                       int32_t *work, int32_t *dn) {
    const Layout *l = &s->layout;
    int level = l->level[band], factor = l->cells[band].factor;
    int height = level ? l->plane_height[1] : l->height, width = level ? l->plane_width[1] : l->width;
    int32_t *plane = l->grids[band].factor ? work : dn, *native = work;
    int status = tec_synthesise(m, l, level, c->of[band], c->alive, s->means[band], factor > 1, plane);
    if (status || !l->grids[band].factor) return status;
    if (factor > 1) {
        native = work + (int64_t)height * width;
        status = average_cells(&l->cells[band], plane, height, width, native);
    }
    return status ? status : tec_enlarge(&l->grids[band], native, l->height, l->width, dn);
}

int tec_decode_pixels(const TecModel *m, const Spectrum *s, const Coefficients *c, int32_t *dn) {
    const Layout *l = &s->layout;
    int32_t *work = tec_room(2 * (uint64_t)l->height * (uint64_t)l->width, sizeof *work);
    int status = work ? TEC_OK : TEC_NO_MEMORY;
    for (int b = 0; b < l->bands && !status; b++)
        status = decode_band(m, s, b, c, work, dn + (int64_t)b * l->height * l->width);
    free(work);
    return status;
}

static int decode_plain(const TecModel *m, const uint8_t *section, int64_t length, int bands,
                        int height, int width, int quality, int32_t *dn, uint32_t *checksum) {
    Spectrum s;
    int64_t step = tec_step(quality), after;
    int status = tec_read_header(section, length, bands, height, width, step, &s, &after);
    if (status) return status;
    int32_t components[CLASSES], spreads[CLASSES * MOST_BANDS];
    int kind, fineness, planes = tec_value_planes(m, &s);
    tec_walk_inputs(&s, quality, components, spreads, &kind, &fineness);
    int64_t count = (int64_t)planes * s.layout.rows * s.layout.cols;
    int32_t *values = tec_zeros((uint64_t)count, sizeof *values);
    uint8_t *indexes = tec_zeros((uint64_t)count, 1);
    Coefficients coefficients = {.block = 0};
    status = values && indexes ? TEC_OK : TEC_NO_MEMORY;
    if (!status)
        status = (int)tec_walk(DECODE, &m->context, MOST_SIZE, s.layout.rows, s.layout.cols, components,
                               spreads, kind, fineness, 0, 0, 0, values, indexes,
                               (uint8_t *)section + after, length - after, 0, 0, 0);
    if (!status) {
        *checksum = tec_checksum(values, count);
        status = tec_mix_values(m, &s, step, values, indexes, &coefficients);
    }
    if (!status) status = tec_decode_pixels(m, &s, &coefficients, dn);
    free(coefficients.block), free(values), free(indexes);
    return status;
}

/* A section that begins with a map: the samples are copies of pixels of its source. */
static int decode_mapped(const TecModel *m, const uint8_t *section, int64_t length, int bands,
                         int height, int width, int quality, int32_t *dn, uint32_t *checksum) {
    int64_t count = (int64_t)height * width, after;
    int tall, wide;
    int32_t *places = tec_room((uint64_t)count, sizeof *places), *source = 0;
    int status = places ? tec_map_places(section, length, height, width, places, &tall, &wide, &after)
                        : TEC_NO_MEMORY;
    if (!status && (tec_is_mapped(section + after, length - after) ||
                    !tec_is_tile(bands, tall, wide, quality)))
        status = TEC_DAMAGED;
    if (!status) {
        source = tec_room((uint64_t)bands * (uint64_t)tall * (uint64_t)wide, sizeof *source);
        status = source ? decode_plain(m, section + after, length - after, bands, tall, wide, quality,
                                       source, checksum)
                        : TEC_NO_MEMORY;
    }
    for (int b = 0; b < bands && !status; b++) {
        const int32_t *from = source + (int64_t)b * tall * wide;
        for (int64_t i = 0; i < count; i++) dn[b * count + i] = from[places[i]];
    }
    free(source), free(places);
    return status;
}

int tec_tile_decode(const TecModel *m, const uint8_t *section, int64_t length, int bands, int height,
                    int width, int quality, int32_t *dn, uint32_t *checksum) {
    if (!tec_is_tile(bands, height, width, quality) || length < 0) return TEC_BAD_ARGUMENT;
    return (tec_is_mapped(section, length) ? decode_mapped : decode_plain)(
        m, section, length, bands, height, width, quality, dn, checksum);
}

/* ---- encoding */

#define HEADER_ROOM 16384
#define BITS_OF_ERROR 8.0 /* bits that a squared step of error is worth to the quantiser */
#define MOST_DN (1 << 20)

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

/* Coefficients of all bands, and what the header says so far. */
static int analyse_bands(const TecModel *m, const int32_t *dn, const uint8_t *known, int64_t step,
                         BitWriter *bits, Spectrum *s, double *const *coefficients) {
    const Layout *l = &s->layout;
    int64_t samples = (int64_t)l->height * l->width, places = (int64_t)l->plane_height[0] * l->plane_width[0];
    double *planes = tec_room((uint64_t)l->bands * (uint64_t)places, sizeof *planes), means[MOST_BANDS];
    int32_t *whole = tec_room((uint64_t)samples, sizeof *whole);
    int status = planes && whole ? TEC_OK : TEC_NO_MEMORY;
    for (int b = 0; b < l->bands && !status; b++) {
        const int32_t *from = dn + b * samples;
        double *plane = planes + b * places;
        for (int64_t i = 0; i < samples; i++)
            whole[i] = from[i] > MOST_DN ? MOST_DN : from[i] < -MOST_DN ? -MOST_DN : from[i];
        status = tec_plane(l, b, whole, known ? known + b * samples : 0, plane);
        if (!status) means[b] = mean_of(plane, l->plane_height[l->level[b]], l->plane_width[l->level[b]]);
    }
    if (!status) tec_write_means(bits, l->bands, step, means, s->means);
    for (int b = 0; b < l->bands && !status; b++)
        status = tec_analyse(m, l, b, planes + b * places, s->means[b], coefficients[b]);
    free(planes), free(whole);
    return status;
}

/* Write the bases, and make the components of all classes, in steps. */
static int choose_bases(const TecModel *m, int64_t step, double *const *coefficients, BitWriter *bits,
                        Spectrum *s, double *components) {
    double covariance[MOST_BANDS][MOST_BANDS], dn_step = (double)step / 256;
    const Basis none = {0}, *before = &none;
    int status = TEC_OK;
    for (int class = 0; class < CLASSES && !status; class++) {
        Basis *basis = &s->bases[class];
        int bands = tec_bands_of(&s->layout, class);
        basis->bands = basis->components = 0;
        if (bands) {
            tec_covariance(m, &s->layout, coefficients, class, covariance);
            status = tec_write_basis(bits, covariance, bands, dn_step, class, before, basis);
            components = tec_components(m, &s->layout, coefficients, class, basis, dn_step, components);
        }
        before = basis;
    }
    return status;
}

/* The most planes of components that a layout can have. */
static int64_t places_of_components(const TecModel *m, const Layout *l) {
    int64_t count = 0;
    for (int class = 0; class < CLASSES; class++)
        count += (int64_t)(m->first[class + 1] - m->first[class]) * tec_bands_of(l, class);
    return count;
}

int64_t tec_tile_encode(const TecModel *m, const int32_t *dn, const uint8_t *known, const TecGrid *grids,
                        int bands, int height, int width, int quality, uint8_t *section,
                        int64_t capacity, uint32_t *checksum) {
    if (!tec_is_tile(bands, height, width, quality) || capacity < 0) return TEC_BAD_ARGUMENT;
    Spectrum s;
    BitWriter bits = {section, 8 * (capacity < HEADER_ROOM ? capacity : HEADER_ROOM), 0, 0};
    int64_t step = tec_step(quality), status = tec_layout(bands, height, width, grids, &s.layout);
    if (status) return status;
    const Layout *l = &s.layout;
    tec_write_layout(&bits, l);
    int64_t blocks = (int64_t)l->rows * l->cols, places = 0;
    for (int b = 0; b < bands; b++) places += FREQUENCIES >> (2 * l->level[b]);
    double *all = tec_room((uint64_t)places * (uint64_t)blocks, sizeof *all), *coefficients[MOST_BANDS];
    double *components = tec_room((uint64_t)places_of_components(m, l) * (uint64_t)blocks, sizeof *components);
    int32_t *values = 0;
    uint8_t *indexes = 0;
    status = all && components ? TEC_OK : TEC_NO_MEMORY;
    for (int b = 0, at = 0; b < bands && !status; at += FREQUENCIES >> (2 * l->level[b]), b++)
        coefficients[b] = all + at * blocks;
    if (!status) status = analyse_bands(m, dn, known, step, &bits, &s, coefficients);
    if (!status) status = choose_bases(m, step, coefficients, &bits, &s, components);
    if (!status && bits.full) status = TEC_TOO_SMALL;
    if (!status) {
        int32_t counts[CLASSES], spreads[CLASSES * MOST_BANDS];
        int kind, fineness, planes = tec_value_planes(m, &s);
        int64_t header = (bits.at + 7) / 8, count = planes * blocks;
        tec_walk_inputs(&s, quality, counts, spreads, &kind, &fineness);
        values = tec_zeros((uint64_t)count, sizeof *values), indexes = tec_zeros((uint64_t)count, 1);
        status = TEC_NO_MEMORY;
        if (values && indexes)
            status = tec_walk(ENCODE, &m->context, MOST_SIZE, l->rows, l->cols, counts, spreads, kind,
                              fineness, 0, components, 256 * BITS_OF_ERROR, values, indexes,
                              section + header, capacity - header, 0, 0, 0);
        if (status >= 0) {
            *checksum = tec_checksum(values, count);
            status += header;
        }
    }
    free(all), free(components), free(values), free(indexes);
    return status;
}
