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

int tec_decode_values(const TecModel *m, const Spectrum *s, int quality, int prediction,
                      const Coefficients *guess, const uint8_t *bytes, int64_t length, Coefficients *out, uint32_t *checksum) {
    int32_t components[CLASSES], spreads[CLASSES * MOST_BANDS];
    int kind, fineness, planes = tec_value_planes(m, s);
    tec_walk_inputs(s, quality, prediction, components, spreads, &kind, &fineness);
    int64_t count = (int64_t)planes * s->layout.rows * s->layout.cols;
    int32_t *values = tec_zeros((uint64_t)count, sizeof *values);
    uint8_t *indexes = tec_zeros((uint64_t)count, 1);
    int16_t *hints = guess ? tec_hints(m, &s->layout, tec_step(quality), guess) : 0;
    int status = values && indexes && (hints || !guess) ? TEC_OK : TEC_NO_MEMORY;
    if (!status)
        status = (int)tec_walk(DECODE, &m->context, MOST_SIZE, s->layout.rows, s->layout.cols, components,
                               spreads, kind, fineness, hints, 0, 0, values, indexes, (uint8_t *)bytes, length,
                               0, 0, 0);
    if (!status) {
        *checksum = tec_checksum(values, count);
        status = tec_mix_values(m, s, tec_step(quality), values, indexes, out);
    }
    free(values), free(indexes), free(hints);
    return status;
}

int tec_decode_date(const TecModel *m, const uint8_t *section, int64_t length, int bands, int height,
                    int width, int quality, TecDate *date, uint32_t *checksum) {
    int tall = height, wide = width;
    int64_t after = 0;
    date->height = height, date->width = width, date->map = 0, date->map_length = 0;
    if (tec_is_mapped(section, length)) {
        int32_t *places = tec_room((uint64_t)height * (uint64_t)width, sizeof *places);
        int status = places ? tec_map_places(section, length, height, width, places, &tall, &wide, &after)
                            : TEC_NO_MEMORY;
        free(places);
        if (status) return status;
        if (tec_is_mapped(section + after, length - after) || !tec_is_tile(bands, tall, wide, quality))
            return TEC_DAMAGED;
        date->map = section, date->map_length = length;
        section += after, length -= after;
    }
    int status = tec_read_header(m, section, length, bands, tall, wide, tec_step(quality), &date->spectrum, &after);
    if (status) return status;
    return tec_decode_values(m, &date->spectrum, quality, ALONE, 0, section + after, length - after,
                             &date->coefficients, checksum);
}

void tec_date_end(TecDate *date) {
    free(date->coefficients.block);
    date->coefficients.block = 0;
}

/* The samples of a date with a map are copies of pixels of its source. */
static int copy_source(const TecModel *m, const TecDate *date, int32_t *dn) {
    const Layout *l = &date->spectrum.layout;
    int64_t count = (int64_t)date->height * date->width, pixels = (int64_t)l->height * l->width, after;
    int tall, wide;
    int32_t *places = tec_room((uint64_t)count, sizeof *places);
    int32_t *source = tec_room((uint64_t)l->bands * (uint64_t)pixels, sizeof *source);
    int status = places && source ? TEC_OK : TEC_NO_MEMORY;
    if (!status)
        status = tec_map_places(date->map, date->map_length, date->height, date->width, places, &tall,
                                &wide, &after);
    if (!status && (tall != l->height || wide != l->width)) status = TEC_DAMAGED;
    if (!status) status = tec_decode_pixels(m, &date->spectrum, &date->coefficients, source);
    for (int b = 0; b < l->bands && !status; b++)
        for (int64_t i = 0; i < count; i++) dn[b * count + i] = source[b * pixels + places[i]];
    free(source), free(places);
    return status;
}

int tec_date_pixels(const TecModel *m, const TecDate *date, int32_t *dn) {
    if (date->map) return copy_source(m, date, dn);
    return tec_decode_pixels(m, &date->spectrum, &date->coefficients, dn);
}

int tec_tile_decode(const TecModel *m, const uint8_t *section, int64_t length, int bands, int height,
                    int width, int quality, int32_t *dn, uint32_t *checksum) {
    if (!tec_is_tile(bands, height, width, quality) || length < 0) return TEC_BAD_ARGUMENT;
    TecDate date = {.map = 0};
    int status = tec_decode_date(m, section, length, bands, height, width, quality, &date, checksum);
    if (!status) status = tec_date_pixels(m, &date, dn);
    tec_date_end(&date);
    return status;
}
