/* A GDAL plugin that decodes TEC: the codec "tec" of arrays of Zarr format 2.
 *
 * GDAL loads gdal_TEC.so from the folders of GDAL_DRIVER_PATH and calls GDALRegister_TEC. The plugin
 * adds no driver: GDAL's own Zarr driver finds the codec by its name. */
#include <stdlib.h>
#include <string.h>

#include "cpl_compressor.h"
#include "cpl_conv.h"
#include "cpl_error.h"
#include "cpl_multiproc.h"
#include "cpl_string.h"
#include "cpl_vsi.h"

#include "models.h"

/* Models that were opened. They stay open: GDAL has no hook by which a decompressor ends. */
typedef struct Opened {
    uint8_t weights[8];
    TecModel *model;
    struct Opened *next;
} Opened;

static CPLMutex *lock;
static Opened *opened;

static bool failed(const char *wrong) {
    CPLError(CE_Failure, CPLE_AppDefined, "TEC: %s", wrong);
    return false;
}

/* Find the model of a frame; threads share it. */
static int model_of(const TecFrame *frame, const TecModel **model, const char **wrong) {
    int status = TEC_OK;
    *model = NULL;
    if (!frame->section_count) return TEC_OK;
    CPLAcquireMutex(lock, 1000.0);
    Opened *found = opened;
    while (found && memcmp(found->weights, frame->weights, sizeof found->weights)) found = found->next;
    if (!found) {
        found = malloc(sizeof *found);
        *wrong = "no memory for a model";
        status = found ? tec_model_for(frame, &found->model, wrong) : TEC_NO_MEMORY;
        if (!status) {
            memcpy(found->weights, frame->weights, sizeof found->weights);
            found->next = opened;
            opened = found;
        } else {
            free(found);
        }
    }
    if (!status) *model = found->model;
    CPLReleaseMutex(lock);
    return status;
}

static size_t sample_bytes(const TecFrame *frame) {
    static const size_t sizes[] = {2, 2, 4, 8};
    return sizes[frame->dtype];
}

static size_t chunk_bytes(const TecFrame *frame) {
    size_t bytes = sample_bytes(frame);
    for (int i = 0; i < 4; i++) bytes *= (size_t)frame->shape[i];
    return bytes;
}

/* Copy samples (time, band, y, x) so that time runs fastest. */
static void to_column_major(const TecFrame *frame, const uint8_t *from, uint8_t *to) {
    const int64_t *n = frame->shape;
    size_t size = sample_bytes(frame);
    for (int64_t t = 0; t < n[0]; t++)
        for (int64_t band = 0; band < n[1]; band++)
            for (int64_t y = 0; y < n[2]; y++)
                for (int64_t x = 0; x < n[3]; x++, from += size)
                    memcpy(to + (((x * n[2] + y) * n[1] + band) * n[0] + t) * (int64_t)size, from, size);
}

static void swap_bytes(uint8_t *samples, size_t bytes, size_t size) {
    for (uint8_t *sample = samples; sample < samples + bytes; sample += size)
        for (size_t i = 0; i < size / 2; i++) {
            uint8_t byte = sample[i];
            sample[i] = sample[size - 1 - i];
            sample[size - 1 - i] = byte;
        }
}

/* Decode a frame to bytes as the array that was encoded lay in memory: what Zarr's codecs return. */
static bool decode(const uint8_t *bytes, size_t length, const TecFrame *frame, uint8_t *out) {
    const TecModel *model;
    const char *wrong = "";
    size_t size = chunk_bytes(frame);
    if (model_of(frame, &model, &wrong)) return failed(wrong);
    uint8_t *samples = frame->column_major ? VSI_MALLOC_VERBOSE(size) : out;
    if (!samples) return false;
    int status = tec_decode(bytes, (int64_t)length, NULL, model, NULL, 0, samples, (int64_t)size, &wrong);
    if (!status && frame->column_major) to_column_major(frame, samples, out);
    if (frame->column_major) VSIFree(samples);
    if (status) return failed(wrong);
    if (frame->big_endian != !CPL_IS_LSB) swap_bytes(out, size, sample_bytes(frame));
    return true;
}

/* A CPLCompressionFunc: cpl_compressor.h says what it gets and returns. */
static bool decompress(const void *input, size_t length, void **output, size_t *output_size,
                       CSLConstList options, void *user_data) {
    TecFrame frame;
    const char *wrong = "";
    (void)options, (void)user_data;
    if (!output_size) return failed("the caller does not ask for a size");
    size_t room = *output_size;
    *output_size = 0;
    if (tec_describe(input, (int64_t)length, NULL, &frame, &wrong)) return failed(wrong);
    *output_size = chunk_bytes(&frame);
    if (!output) return true;
    if (*output) {
        if (room < *output_size) return failed("the chunk of the frame is larger than those of the array");
        return decode(input, length, &frame, *output);
    }
    uint8_t *made = VSI_MALLOC_VERBOSE(*output_size);
    if (!made) return false;
    if (!decode(input, length, &frame, made)) {
        VSIFree(made);
        return false;
    }
    *output = made;
    return true;
}

/* A CPLCompressionFunc: TEC arrays are not written by GDAL. */
static bool compress(const void *input, size_t length, void **output, size_t *output_size,
                     CSLConstList options, void *user_data) {
    (void)input, (void)length, (void)output, (void)output_size, (void)options, (void)user_data;
    return failed("GDAL reads TEC arrays, it does not write them: write with tec_zarr");
}

CPL_C_START
void CPL_DLL GDALRegister_TEC(void);
CPL_C_END

/* Called by GDAL when it has loaded the plugin. The Zarr driver opens no array whose codec has no
 * compressor, so that there has to be one. */
void GDALRegister_TEC(void) {
    if (CPLGetDecompressor("tec")) return;
    lock = CPLCreateMutex();
    if (!lock) return;
    CPLReleaseMutex(lock);
    CPLCompressor codec = {.nStructVersion = 1, .pszId = "tec", .eType = CCT_COMPRESSOR,
                           .pfnFunc = compress};
    CPLRegisterCompressor(&codec);
    codec.pfnFunc = decompress;
    CPLRegisterDecompressor(&codec);
}
