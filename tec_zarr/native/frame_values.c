/* Values of an array: made of DN and kept away from nodata, or listed as points. */
#include "frame.h"

#include <float.h>
#include <stdlib.h>
#include <string.h>

/* The distance of |value| to the next larger float of the dtype; to the next smaller one for the
 * largest float. */
static double spacing(double value, int dtype) {
    if (value < 0) value = -value;
    if (dtype == FLOAT32) {
        float low = (float)value, high;
        uint32_t bits;
        memcpy(&bits, &low, 4);
        bits += low == FLT_MAX ? -1u : 1u;
        memcpy(&high, &bits, 4);
        return low == FLT_MAX ? (double)low - (double)high : (double)high - (double)low;
    }
    double next;
    uint64_t bits;
    memcpy(&bits, &value, 8);
    bits += value == DBL_MAX ? (uint64_t)-1 : 1u;
    memcpy(&next, &bits, 8);
    return value == DBL_MAX ? value - next : next - value;
}

static int is_nodata(const Units *units, double value) {
    for (int i = 0; i < units->count; i++)
        if (units->nodata[i] == value) return 1;
    return 0;
}

int tec_units_prepare(Units *units) {
    int whole = units->dtype < FLOAT32;
    double high = units->dtype == UINT16 ? 65535 : units->dtype == INT16 ? 32767
                  : units->dtype == FLOAT32 ? FLT_MAX : DBL_MAX;
    double low = units->dtype == UINT16 ? 0 : units->dtype == INT16 ? -32768 : -high;
    for (int i = 0; i < units->count; i++) {
        double value = units->nodata[i], step = 1;
        if (!whole) {
            double unit = units->scale < high / 1024 ? units->scale : 0;
            step = spacing(value, units->dtype);
            step = unit > step ? unit : step;
        }
        int found = 0;
        /* Two steps may round to the same float. So there are twice as many as nodata values. */
        for (int k = 1; k <= 2 * units->count + 1 && !found; k++)
            for (int sign = 1; sign >= -1 && !found; sign -= 2) {
                double near = value + sign * k * step;
                if (!(near >= low && near <= high)) continue;
                if (units->dtype == FLOAT32) near = (float)near;
                found = !is_nodata(units, near);
                units->instead[i] = near;
            }
        if (!found) return 0;
    }
    return 1;
}

/* Round to the nearest whole number between low and high, half to even. */
static inline int32_t rounded(double value, int32_t low, int32_t high) {
    if (!(value > low)) return low;
    if (value >= high) return high;
    int32_t whole = (int32_t)value;
    double rest = value - whole;
    if (rest > 0.5 || (rest == 0.5 && whole & 1)) whole++;
    if (rest < -0.5 || (rest == -0.5 && whole & 1)) whole--;
    return whole;
}

static inline int32_t clipped(int32_t value, int32_t low, int32_t high) {
    return value < low ? low : value > high ? high : value;
}

#define CONVERT(name, T, PLAIN, SCALED)                                                           \
    static void name(const Units *units, const int32_t *dn, int64_t n, T *values) {               \
        double scale = units->scale, offset = units->offset;                                      \
        if (units->plain)                                                                         \
            for (int64_t i = 0; i < n; i++) values[i] = (T)(PLAIN);                               \
        else                                                                                      \
            for (int64_t i = 0; i < n; i++) {                                                     \
                double value = ((double)dn[i] + offset) * scale;                                  \
                values[i] = (T)(SCALED);                                                          \
            }                                                                                     \
        for (int k = 0; k < units->count; k++) {                                                  \
            T nodata = (T)units->nodata[k], instead = (T)units->instead[k];                       \
            for (int64_t i = 0; i < n; i++) values[i] = values[i] == nodata ? instead : values[i]; \
        }                                                                                         \
    }

CONVERT(to_uint16, uint16_t, clipped(dn[i], 0, 65535), rounded(value, 0, 65535))
CONVERT(to_int16, int16_t, clipped(dn[i], -32768, 32767), rounded(value, -32768, 32767))
CONVERT(to_float32, float, dn[i], value)
CONVERT(to_float64, double, dn[i], value)

void tec_units_convert(const Units *units, const int32_t *dn, int64_t n, void *values) {
    if (units->dtype == UINT16) to_uint16(units, dn, n, values);
    else if (units->dtype == INT16) to_int16(units, dn, n, values);
    else if (units->dtype == FLOAT32) to_float32(units, dn, n, values);
    else to_float64(units, dn, n, values);
}

int tec_values(const int32_t *dn, int64_t n, int dtype, double scale, double offset,
               const double *nodata, int count, void *values) {
    Units units = {.dtype = dtype, .plain = scale == 1 && offset == 0, .scale = scale,
                   .offset = offset, .count = count};
    if (count < 0 || count > 255 || dtype < UINT16 || dtype > FLOAT64) return TEC_BAD_ARGUMENT;
    if (count) memcpy(units.nodata, nodata, (size_t)count * sizeof *nodata);
    if (!tec_units_prepare(&units)) return TEC_BAD_ARGUMENT;
    tec_units_convert(&units, dn, n, values);
    return TEC_OK;
}

int tec_points_restore(const uint8_t *packed, int64_t length, const int64_t shape[4], int size,
                       const int64_t *slots, uint8_t *samples) {
    int64_t bands = shape[1], plane = shape[2] * shape[3], total = shape[0] * bands * plane;
    Cursor c = {packed, packed + length, 0};
    int64_t count = read_varint(&c);
    if (c.short_of || count < 1 || count > total || count > c.end - c.at) return TEC_DAMAGED;
    Cursor gaps = c;
    int64_t place = -1;
    for (int64_t i = 0; i < count; i++) {
        place += read_varint(&c) + 1;
        if (c.short_of || place >= total) return TEC_DAMAGED;
    }
    uint8_t *values = malloc((size_t)(count * size));
    if (!values) return TEC_NO_MEMORY;
    int status = tec_unpack(c.at, c.end - c.at, values, count * size);
    place = -1;
    for (int64_t i = 0; !status && i < count; i++) {
        place += read_varint(&gaps) + 1;
        int64_t pixel = place / bands, date = pixel / plane;
        int64_t slot = slot_of(slots, date);
        if (slot < 0) continue;
        int64_t at = (slot * bands + place % bands) * plane + pixel % plane;
        put_value(samples + at * size, values + i, count, size);
    }
    free(values);
    return status;
}
