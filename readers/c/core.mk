# What every reader in C is built from: the core, its models and their weights.
# BUILD is the folder for what is made, NATIVE that of the core, WEIGHTS that of the weights.
READER := $(dir $(lastword $(MAKEFILE_LIST)))
NATIVE ?= $(READER)../../tec_zarr/native
WEIGHTS ?= $(READER)../../tec_zarr/models/weights
PYTHON ?= python3
BUILD ?= build
CFLAGS ?= -O3
# Every operation on floats is rounded by itself: the results are the same everywhere.
CORE_FLAGS := -std=c11 -ffp-contract=off -fno-math-errno -fwrapv -fPIC -fvisibility=hidden -Wno-psabi \
	-I $(NATIVE) -I $(READER) -MMD
SOURCES := $(wildcard $(NATIVE)/*.c) $(READER)models.c
CORE := $(patsubst %.c,$(BUILD)/%.o,$(notdir $(SOURCES))) $(BUILD)/embedded.o

vpath %.c $(NATIVE) $(READER) $(BUILD)

$(BUILD)/%.o: %.c
	@mkdir -p $(BUILD)
	$(CC) $(CORE_FLAGS) $(CFLAGS) -c -o $@ $<

$(BUILD)/embedded.c: $(READER)weights.py $(WEIGHTS)/index.json
	@mkdir -p $(BUILD)
	$(PYTHON) $(READER)weights.py $(WEIGHTS) $@

$(BUILD)/embedded.o: $(BUILD)/embedded.c

-include $(wildcard $(BUILD)/*.d)
