# make         ./run
# make demo    builds, then tells a story
# make test    every test (brings its own Python packages into build/venv)
# make bench   prefill and decode at growing context, and where the time goes (MODEL=file: of another model than the demo)
# make study   the latent cache in each type beside an ordinary K/V cache: memory, speed, perplexity (STUDY_TEXT=file: on a text of your own)
# make debug   build/debug/run, with ASan and UBSan
# make analyse what cppcheck has to say: nothing
# make coverage  a table of the lines that the tests run (clang)
# make matrix  logits of every compiler, optimisation, instruction set, number of threads and cache type against tests/hashes.json
# make fuzz    hostile checkpoints, sessions, tokenizers and command lines (clang; FUZZ_SECONDS=60 for each; what is found stays in build/fuzz)

MAKEFLAGS += --no-builtin-rules
CC      ?= cc
VERSION  = 0.1.0

# -O3 for the kernels' loops; no -Ofast and no contraction of a*b+c: the text must be the same on every machine.
CFLAGS  ?= -O3
WARN     = -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion
BASE     = -std=gnu11 -ffp-contract=off -fno-strict-aliasing -pthread -I. $(WARN) $(if $(OPENMP),,-Wno-unknown-pragmas) -DMLA_VERSION='"$(VERSION)"'
# OpenMP if the compiler has it; without it the program is single-threaded and says so. make OPENMP= builds without.
OPENMP  := $(shell echo 'int main(void){return 0;}' | $(CC) -fopenmp -x c - -o /dev/null 2>/dev/null && echo -fopenmp)
BUILD    = build
PROGRAM  = run
ARCH    := $(shell $(CC) -dumpmachine)

# The kernels are compiled once per instruction set and chosen at start.
ISAS     = portable
ifneq (,$(findstring x86_64,$(ARCH)))
ISAS    += avx2 avx512
# compilers before gcc 11 and clang 12 do not know it
ISAS    += $(shell echo 'int main(void){return 0;}' | $(CC) -mavxvnni -x c - -o /dev/null 2>/dev/null && echo avxvnni)
endif
ifneq (,$(filter aarch64% arm64%,$(ARCH)))
ISAS    += neon
endif
FLAGS_portable =
FLAGS_avx2     = -mavx2 -mfma -mf16c
FLAGS_avxvnni  = $(FLAGS_avx2) -mavxvnni
FLAGS_avx512   = -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mfma -mf16c -mprefer-vector-width=512
FLAGS_neon     = -march=armv8.2-a+dotprod

SOURCES  = run.c mla.c tokenizer.c $(wildcard engine/*.c) kernels/dispatch.c kernels/team.c kernels/pace.c kernels/linear.c $(wildcard cli/*.c)
OBJECTS  = $(SOURCES:%.c=$(BUILD)/%.o) $(ISAS:%=$(BUILD)/kernels/kernels_%.o)

$(PROGRAM): $(OBJECTS)
	$(CC) $(CFLAGS) $(OPENMP) $(LDFLAGS) -pthread -o $@ $^ -lm

$(BUILD)/%.o: %.c Makefile
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(OPENMP) $(BASE) -DISAS='"$(ISAS)"' -MMD -c -o $@ $<

$(BUILD)/kernels/kernels_%.o: kernels/kernels.c Makefile
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(OPENMP) $(BASE) $(FLAGS_$*) -DISA_$* -MMD -c -o $@ $<

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)

# The parts under test, alone: programs that print a line `ok NAME` or `FAIL NAME` per case; the tokenizer and the rotations behind a pipe.
KERNELS  = $(BUILD)/kernels/dispatch.o $(BUILD)/kernels/team.o $(BUILD)/kernels/pace.o $(ISAS:%=$(BUILD)/kernels/kernels_%.o)
TESTS    = $(BUILD)/test_kernels $(BUILD)/test_attention $(BUILD)/test_team $(BUILD)/tokenizer_driver $(BUILD)/rope_driver $(BUILD)/sequences_driver

$(BUILD)/test_kernels $(BUILD)/test_attention $(BUILD)/test_team: $(BUILD)/%: $(BUILD)/tests/%.o $(KERNELS)
	$(CC) $(CFLAGS) $(OPENMP) $(LDFLAGS) -pthread -o $@ $^ -lm

$(BUILD)/tokenizer_driver: $(BUILD)/tests/tokenizer_driver.o $(BUILD)/tokenizer.o $(patsubst %,$(BUILD)/engine/%.o,section pretokenizer unicode)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ -lm

$(BUILD)/rope_driver: $(BUILD)/tests/rope_driver.o $(BUILD)/engine/rope.o
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ -lm

$(BUILD)/sequences_driver: $(BUILD)/tests/sequences_driver.o $(filter-out $(BUILD)/run.o,$(OBJECTS))
	$(CC) $(CFLAGS) $(OPENMP) $(LDFLAGS) -pthread -o $@ $^ -lm

test: $(PROGRAM) $(TESTS)
	tests/run_tests.sh

MODEL    = demo/stories.bin
bench: $(PROGRAM)
	./run $(MODEL) --bench --profile

# export.py needs numpy, which the tests' Python has
PYTHON   = $(firstword $(wildcard build/venv/bin/python) python3)
study: $(PROGRAM)
	$(PYTHON) tests/study.py $(if $(STUDY_TEXT),"$(STUDY_TEXT)")

# -g1: line numbers are what a sanitizer reports; tracking variables through the portable kernels takes gcc a minute.
debug:
	$(MAKE) BUILD=build/debug PROGRAM=build/debug/run CFLAGS="-O1 -g1 -fsanitize=address,undefined -fno-omit-frame-pointer -fno-sanitize-recover=undefined" $(or $(GOAL),build/debug/run)

# Kernels in plain C: the sanitizers see all of it. main of run.c under another name: libFuzzer brings its own. What runs too long or takes too
# much memory is a finding as well.
FUZZ_SECONDS = 60
FUZZ_TARGETS = options tokenizer session checkpoint
fuzz: $(PROGRAM)
	tests/venv.sh
	$(MAKE) BUILD=build/fuzz CC=clang OPENMP= ISAS=portable LDFLAGS=-fsanitize=fuzzer $(FUZZ_TARGETS:%=build/fuzz/fuzz_%) \
		CFLAGS="-O1 -g1 -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined -Dmain=run_main"
	rm -rf build/fuzz/seeds && build/venv/bin/python tests/fuzz/make_seeds.py build/fuzz/seeds
	for target in $(FUZZ_TARGETS); do mkdir -p build/fuzz/corpus/$$target; \
		MLA_FUZZ_MODEL=build/fuzz/seeds/model.bin build/fuzz/fuzz_$$target \
		-max_total_time=$(FUZZ_SECONDS) -timeout=100 -rss_limit_mb=2048 -malloc_limit_mb=1024 -max_len=262144 -len_control=0 \
		-close_fd_mask=3 -print_final_stats=1 -artifact_prefix=build/fuzz/$$target- build/fuzz/corpus/$$target build/fuzz/seeds/$$target || exit 1; done

$(BUILD)/fuzz_%: $(BUILD)/tests/fuzz/fuzz_%.o $(BUILD)/tests/fuzz/fuzz.o $(OBJECTS)
	$(CC) $(CFLAGS) $(LDFLAGS) -pthread -o $@ $^ -lm

analyse:
	cppcheck --quiet --enable=warning,portability,performance --error-exitcode=1 --inline-suppr --std=c11 --suppress=missingIncludeSystem -I. \
		-DISA_portable -DISAS='"portable"' -DMLA_VERSION='""' *.c engine/*.c cli/*.c kernels/*.c

# make matrix HASHES=--write makes tests/hashes.json anew, with ./run on one thread.
matrix: $(PROGRAM)
	tests/venv.sh
	build/venv/bin/python tests/matrix.py $(HASHES)

# The tests run the program and the kernels' tests that are built here; what ends by a signal or _exit leaves no counts, and of the faults in
# tests/test_faults.py some meet clang's OpenMP and profile libraries, which abort: those tests fail here.
COVERED  = build/coverage
coverage:
	$(MAKE) BUILD=$(COVERED) PROGRAM=$(COVERED)/run CC=clang CFLAGS="-O1 -fprofile-instr-generate -fcoverage-mapping" \
		$(COVERED)/run $(TESTS:$(BUILD)/%=$(COVERED)/%)
	rm -f $(COVERED)/*.profraw
	-MLA_BUILD=$(COVERED) LLVM_PROFILE_FILE=$(CURDIR)/$(COVERED)/%8m.profraw tests/run_tests.sh --deselect tests/test_fuzz.py::test_fuzz
	llvm-profdata merge -o $(COVERED)/profile $(COVERED)/*.profraw
	llvm-cov report $(COVERED)/run $(TESTS:$(BUILD)/%=-object $(COVERED)/%) -instr-profile=$(COVERED)/profile -show-region-summary=false \
		-show-branch-summary=false -ignore-filename-regex=tests/

demo: run
	./run demo/stories.bin -p "Once upon a time"

clean:
	rm -rf run build

.PHONY: demo test bench study debug fuzz analyse matrix coverage clean
