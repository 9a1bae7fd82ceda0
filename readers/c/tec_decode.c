/* Decodes one frame to a file of samples (time, band, y, x): tec_decode FRAME SAMPLES
 *
 * It prints shape, dtype and weights of the frame. The samples are in the byte order of the machine.
 * `make -C readers/c` builds it, with the weights in it. */
#include <stdio.h>
#include <stdlib.h>

#include "models.h"

static uint8_t *contents(const char *path, int64_t *length) {
    FILE *file = fopen(path, "rb");
    uint8_t *bytes = NULL;
    if (file && !fseek(file, 0, SEEK_END)) {
        *length = ftell(file);
        rewind(file);
        bytes = malloc((size_t)*length + 1);
        if (bytes && fread(bytes, 1, (size_t)*length, file) != (size_t)*length) {
            free(bytes);
            bytes = NULL;
        }
    }
    if (file) fclose(file);
    if (!bytes) fprintf(stderr, "%s cannot be read\n", path);
    return bytes;
}

static int failed(int status, const char *wrong) {
    fprintf(stderr, "status %d: %s\n", status, wrong);
    return 1;
}

int main(int count, char **arguments) {
    static const char *const dtypes[] = {"uint16", "int16", "float32", "float64"};
    static const int sizes[] = {2, 2, 4, 8};
    if (count != 3) return failed(TEC_BAD_ARGUMENT, "tec_decode FRAME SAMPLES");
    int64_t length = 0;
    uint8_t *frame = contents(arguments[1], &length);
    if (!frame) return 1;
    TecFrame header;
    TecModel *model = NULL;
    const char *wrong = "";
    int status = tec_describe(frame, length, NULL, &header, &wrong);
    if (!status) status = tec_model_for(&header, &model, &wrong);
    if (status) return failed(status, wrong);
    int64_t size = sizes[header.dtype];
    for (int i = 0; i < 4; i++) size *= header.shape[i];
    void *samples = malloc((size_t)size);
    if (!samples) return failed(TEC_NO_MEMORY, "no memory for the samples");
    status = tec_decode(frame, length, NULL, model, NULL, 0, samples, size, &wrong);
    if (status) return failed(status, wrong);
    printf("%d x %d x %d x %d %s, weights ", (int)header.shape[0], (int)header.shape[1],
           (int)header.shape[2], (int)header.shape[3], dtypes[header.dtype]);
    for (int i = 0; i < 8; i++) printf("%02x", header.weights[i]);
    printf("\n");
    FILE *file = fopen(arguments[2], "wb");
    int bad = !file || fwrite(samples, 1, (size_t)size, file) != (size_t)size;
    if (file) bad |= fclose(file);
    if (bad) return failed(TEC_BAD_ARGUMENT, "the samples cannot be written");
    if (model) tec_model_close(model);
    free(samples);
    free(frame);
    return 0;
}
