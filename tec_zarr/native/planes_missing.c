/* Stands in for the bound layer until it is here. */
#include "tec.h"

__attribute__((weak)) int tec_bound_decode(
    const uint8_t *section, int64_t length, const uint8_t *map, int64_t map_length, int64_t dates,
    int64_t bands, int64_t height, int64_t width, const uint8_t *labels, const uint8_t *kinds,
    const int32_t *bounds, int32_t *dn) {
    (void)section, (void)length, (void)map, (void)map_length, (void)dates, (void)bands;
    (void)height, (void)width, (void)labels, (void)kinds, (void)bounds, (void)dn;
    return TEC_OTHER_MODEL;
}
