/* The map of a section of tec-s2: which source pixel each sample of a tile is a copy of. */
#ifndef TEC_TILE_MAP_H
#define TEC_TILE_MAP_H

#include <stdint.h>

/* Whether a section begins with a map. The section of the source follows the map. */
int tec_is_mapped(const uint8_t *section, int64_t length);

/* Read a map: places (height, width) gets the flat index of each sample's pixel in the source.
 * *after is where the section of the source begins. A source is no larger than 4 tiles and 4096
 * pixels. */
int tec_map_places(const uint8_t *section, int64_t length, int height, int width, int32_t *places,
                   int *source_height, int *source_width, int64_t *after);

#endif
