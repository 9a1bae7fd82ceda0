/* Opens the model that a frame names, of those that are part of the program. */
#include "models.h"

#include <string.h>

int tec_model_for(const TecFrame *frame, TecModel **model, const char **wrong) {
    *model = NULL;
    if (!frame->section_count) return TEC_OK;
    for (const TecWeights *weights = tec_weights; weights->file; weights++) {
        if (memcmp(weights->sha256, frame->weights, sizeof frame->weights)) continue;
        int status = tec_model_open(weights->file, weights->length, model);
        *wrong = "the model of the frame cannot be opened";
        return status;
    }
    *wrong = "this reader does not have the weights that the frame was coded with";
    return TEC_OTHER_MODEL;
}
