/* The sections of a frame's bound layer; see tec.h. */
#include "planes.h"

#include <stdlib.h>
#include <string.h>

#define BLOCK 4 /* samples along a side of a block that has a bound */

/* Bounds of blocks: quarter octaves, rounded down. */
static const int32_t LEVELS[] = {
    0, 1, 2, 3, 4, 5, 6, 8, 9, 11, 13, 16, 19, 22, 26, 32, 38, 45, 53, 64, 76, 90, 107, 128, 152, 181, 215,
    256, 304, 362, 430, 512, 608, 724, 861, 1024, 1217, 1448, 1722, 2048, 2435, 2896, 3444, 4096, 4870, 5792,
    6888, 8192, 9741, 11585, 13777, 16384, 19483, 23170, 27554, 32768, 38967, 46340, 55108};
enum { LEVEL_COUNT = sizeof LEVELS / sizeof *LEVELS };

typedef struct {
    int64_t dates, bands, height, width, samples; /* of a plane */
    int64_t held, mapped;
    int64_t *of; /* bands of the layer, in order */
    uint8_t *labels;
    int32_t *bounds, *sample_bounds, *levels, *dn;
} Chunk;

/* Levels are coded where a block holds a measured sample. */
static int decode_levels(Chunk *c, const uint8_t *map, int64_t length, const uint8_t *labels, const uint8_t *kinds,
                         const int32_t *bounds) {
    int64_t down = (c->height + BLOCK - 1) / BLOCK, across = (c->width + BLOCK - 1) / BLOCK, blocks = down * across;
    uint8_t *empty = malloc((size_t)(c->dates * c->mapped * blocks));
    int32_t *lossless = calloc((size_t)c->mapped, sizeof *lossless);
    c->levels = malloc((size_t)(c->dates * c->mapped * blocks) * sizeof *c->levels);
    c->sample_bounds = calloc((size_t)(c->dates * c->held * c->samples), sizeof *c->sample_bounds);
    int status = empty && lossless && c->levels && c->sample_bounds ? TEC_OK : TEC_NO_MEMORY;
    if (!status) {
        memset(empty, labels ? 1 : 0, (size_t)(c->dates * c->mapped * blocks));
        for (int64_t date = 0, plane = 0; labels && date < c->dates; date++)
            for (int64_t band = 0; band < c->bands; band++) {
                if (kinds[band] != TEC_BLOCK_BOUNDS) continue;
                const uint8_t *from = labels + (date * c->bands + band) * c->samples;
                uint8_t *into = empty + plane++ * blocks;
                for (int64_t i = 0; i < c->samples; i++)
                    if (!from[i]) into[i / c->width / BLOCK * across + i % c->width / BLOCK] = 0;
            }
        status = tec_bound_layer(map, length, c->dates, c->mapped, down, across, labels ? empty : 0, lossless, 0,
                                 c->levels);
    }
    for (int64_t date = 0, plane = 0; date < c->dates && !status; date++)
        for (int64_t k = 0; k < c->held && !status; k++) {
            int64_t band = c->of[k];
            if (kinds[band] != TEC_BLOCK_BOUNDS) continue;
            const int32_t *level = c->levels + plane++ * blocks;
            int32_t *into = c->sample_bounds + (date * c->held + k) * c->samples;
            for (int64_t i = 0; i < c->samples; i++) {
                int32_t at = level[i / c->width / BLOCK * across + i % c->width / BLOCK];
                if (at < 0 || at >= LEVEL_COUNT) {
                    status = TEC_DAMAGED;
                    break;
                }
                into[i] = LEVELS[at] < bounds[band] ? LEVELS[at] : bounds[band];
            }
        }
    free(empty), free(lossless);
    return status;
}

int tec_bound_decode(const uint8_t *section, int64_t length, const uint8_t *map, int64_t map_length,
                     int64_t dates, int64_t bands, int64_t height, int64_t width,
                     const uint8_t *labels, const uint8_t *kinds, const int32_t *bounds, int32_t *dn) {
    if (dates < 1 || bands < 1 || height < 1 || width < 1 || tec_too_large(dates, bands, height, width))
        return TEC_BAD_ARGUMENT;
    Chunk c = {dates, bands, height, width, height * width, 0, 0, 0, 0, 0, 0, 0, 0};
    for (int64_t i = 0; i < bands; i++) {
        c.held += kinds[i] != TEC_FREE;
        c.mapped += kinds[i] == TEC_BLOCK_BOUNDS;
        if (kinds[i] != TEC_FREE && bounds[i] < 0) return TEC_BAD_ARGUMENT;
    }
    if (!c.held) return TEC_BAD_ARGUMENT;
    int all = c.held == bands;
    c.of = malloc((size_t)c.held * sizeof *c.of);
    c.bounds = malloc((size_t)c.held * sizeof *c.bounds);
    c.dn = all ? dn : malloc((size_t)(dates * c.held * c.samples) * sizeof *c.dn);
    c.labels = all || !labels ? 0 : malloc((size_t)(dates * c.held * c.samples));
    int status = c.of && c.bounds && c.dn && (all || !labels || c.labels) ? TEC_OK : TEC_NO_MEMORY;
    for (int64_t i = 0, k = 0; i < bands && !status; i++)
        if (kinds[i] != TEC_FREE) {
            c.of[k] = i;
            c.bounds[k++] = kinds[i] == TEC_BLOCK_BOUNDS ? -1 : bounds[i];
        }
    for (int64_t i = 0; c.labels && i < dates * c.held && !status; i++)
        memcpy(c.labels + i * c.samples, labels + (i / c.held * bands + c.of[i % c.held]) * c.samples,
               (size_t)c.samples);
    if (!status && c.mapped) status = decode_levels(&c, map, map_length, labels, kinds, bounds);
    if (!status)
        status = tec_bound_layer(section, length, dates, c.held, height, width, c.labels ? c.labels : labels,
                                 c.bounds, c.sample_bounds, c.dn);
    for (int64_t i = 0; i < dates * c.held && !all && !status; i++)
        memcpy(dn + (i / c.held * bands + c.of[i % c.held]) * c.samples, c.dn + i * c.samples,
               (size_t)c.samples * sizeof *dn);
    if (!all) free(c.dn);
    free(c.of), free(c.bounds), free(c.labels), free(c.levels), free(c.sample_bounds);
    return status;
}
